//! Which image is meant, where an index holds several: indexes may name indexes, and entries need not say what they are for.

use super::Error;
use super::artifact::Artifact;
use super::left_out::LeftOut;
use super::manifest::{Content, Descriptor, Manifest};
use super::platform::{Offer, Platform, offer};

/// Indexes may name indexes; so deep is looked.
const DEEPEST_INDEX: usize = 4;

/// So many documents are asked for to find one image: entries of an index that state no platform have to be tried.
const MOST_DOCUMENTS: usize = 32;

/// A way down through indexes to the image of the wanted platform, the best entry of each first.
pub(super) struct Search<'a> {
    what: &'a str,
    wanted: &'a Platform,
    /// What is still to be looked into, the last first, and how deep it lies.
    waiting: Vec<(Descriptor, usize)>,
    depth: usize,
    documents: usize,
    /// What the entry that was looked into last is for.
    pub(super) platform: Option<Platform>,
    available: Vec<String>,
    left_out: LeftOut,
    /// The first that turned out to be no image.
    artifact: Option<Artifact>,
}

impl<'a> Search<'a> {
    /// `what` names the image in errors.
    pub(super) fn new(what: &'a str, wanted: &'a Platform) -> Self {
        let (waiting, available, left_out) = (Vec::new(), Vec::new(), LeftOut::default());
        Self { what, wanted, waiting, depth: 0, documents: 1, platform: None, available, left_out, artifact: None }
    }

    fn refused(&self, reason: String) -> Error {
        Error::Manifest { what: self.what.to_owned(), kind: "index", reason }
    }

    /// Looks into a document: the image, where it is the one that is meant.
    pub(super) fn look(&mut self, content: Content) -> Result<Option<Manifest>, Error> {
        match content {
            Content::Image(manifest) => match manifest.artifact() {
                // It may stand beside its image, for the same platform.
                Some(artifact) => self.pass_over(artifact),
                None => return Ok(Some(manifest)),
            },
            Content::Index(_) if self.depth == DEEPEST_INDEX => {
                return Err(self.refused(format!("indexes are nested more than {DEEPEST_INDEX} deep")));
            }
            Content::Index(entries) => self.consider(&entries),
        }
        Ok(None)
    }

    fn pass_over(&mut self, artifact: Artifact) {
        let platform = self.platform.take().map(|platform| platform.to_string());
        self.available.retain(|available| Some(available) != platform.as_ref());
        self.left_out.note_artifact(&artifact.kind);
        self.artifact.get_or_insert(artifact);
    }

    fn consider(&mut self, entries: &[Descriptor]) {
        self.left_out.add(LeftOut::of(entries));
        let Offer { fitting, available } = offer(self.wanted, entries);
        self.available.extend(available);
        // An entry that states the platform is the image; those without may be indexes, each to be looked into.
        let stated = fitting.iter().filter(|entry| entry.platform.is_some()).count();
        let worth = if stated > 0 { stated } else { fitting.len() };
        self.waiting.extend(fitting.into_iter().take(worth).rev().map(|entry| (entry.clone(), self.depth + 1)));
    }

    /// The entry whose document is to be looked into next.
    pub(super) fn next(&mut self) -> Result<Descriptor, Error> {
        let Some((entry, depth)) = self.waiting.pop() else { return Err(self.nothing()) };
        if self.documents == MOST_DOCUMENTS {
            return Err(self.refused(format!("its indexes name more than {MOST_DOCUMENTS} others without a platform")));
        }
        self.documents += 1;
        self.depth = depth;
        self.platform.clone_from(&entry.platform);
        Ok(entry)
    }

    fn nothing(&mut self) -> Error {
        let what = self.what.to_owned();
        if let Some(artifact) = self.artifact.take().filter(|_| self.available.is_empty()) {
            return Error::Artifact { what, artifact };
        }
        let (available, left_out) = (std::mem::take(&mut self.available), Box::new(std::mem::take(&mut self.left_out)));
        Error::NoPlatform { image: what, wanted: self.wanted.to_string(), available, left_out }
    }
}
