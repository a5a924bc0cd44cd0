//! Which image is meant, where an index holds several: indexes may name indexes, and entries need not say what they are for.

use super::Error;
use super::left_out::LeftOut;
use super::manifest::{Content, Descriptor, Manifest};
use super::platform::{Offer, Platform, offer};
use super::soci;

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
    passed_over: bool,
}

impl<'a> Search<'a> {
    /// `what` names the image in errors.
    pub(super) fn new(what: &'a str, wanted: &'a Platform) -> Self {
        let (waiting, available, left_out) = (Vec::new(), Vec::new(), LeftOut::default());
        Self { what, wanted, waiting, depth: 0, documents: 1, platform: None, available, left_out, passed_over: false }
    }

    fn refused(&self, reason: String) -> Error {
        Error::Manifest { what: self.what.to_owned(), kind: "index", reason }
    }

    /// Looks into a document: the image, where it is the one that is meant.
    pub(super) fn look(&mut self, content: Content) -> Result<Option<Manifest>, Error> {
        match content {
            // It may stand beside its image, for the same platform.
            Content::Image(manifest) if soci::is_index(&manifest) => self.passed_over = true,
            Content::Image(manifest) => return Ok(Some(manifest)),
            Content::Index(_) if self.depth == DEEPEST_INDEX => {
                return Err(self.refused(format!("indexes are nested more than {DEEPEST_INDEX} deep")));
            }
            Content::Index(entries) => self.consider(&entries),
        }
        Ok(None)
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
        if self.passed_over && self.available.is_empty() {
            return self.refused("it is a SOCI index, which goes with an image and is none".to_owned());
        }
        Error::NoPlatform {
            image: self.what.to_owned(),
            wanted: self.wanted.to_string(),
            available: std::mem::take(&mut self.available),
            left_out: Box::new(std::mem::take(&mut self.left_out)),
        }
    }
}
