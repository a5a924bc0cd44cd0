//! The SOCI index of an image: which zTOC goes with which layer (soci-snapshotter, commit 77fb426, soci/soci_index.go).
//!
//! ```text
//! image manifest  annotation com.amazon.soci.index-digest -------> v2 index    vouched for by the image's own digest
//! v1 index        subject -------> image manifest                  found by referrers.rs; anyone who may push can add one
//! layers of an index: zTOCs, each with the annotation com.amazon.soci.image-layer-digest
//! ```

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::blob::Blob;
use super::client::{Client, Source};
use super::manifest::{Content, LayerDescriptor, Manifest, parse, place};
use super::{Error, Image, ImageRef, Layer};
use crate::blob::Digest;

const INDEX_V1: &str = "application/vnd.amazon.soci.index.v1+json";
const INDEX_V2: &str = "application/vnd.amazon.soci.index.v2+json";
const ZTOC: &str = "application/octet-stream";

const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";
const LAYER_DIGEST: &str = "com.amazon.soci.image-layer-digest";

/// Referrers that are looked at to find one that can be used.
const MOST_REFERRERS: usize = 8;

/// Which SOCI index of an image is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SociChoice {
    /// The one that the image's manifest names, if it names one.
    Annotated,
    /// That, else the first that refers to the image.
    Referring,
    /// This one.
    Digest(Digest),
}

/// Who says that an index belongs to the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SociSource {
    /// The image's manifest: the index is trusted as far as the image is.
    Manifest,
    /// The index itself, and so whoever may push to the repository.
    Referrer,
    /// The user.
    Given,
}

/// A SOCI index.
pub struct Soci {
    pub digest: Digest,
    pub source: SociSource,
    /// The zTOCs of the image's layers, by the layer's digest. Small layers usually have none.
    pub layers: BTreeMap<Digest, Layer>,
}

fn is_index(manifest: &Manifest) -> bool {
    [INDEX_V1, INDEX_V2].contains(&manifest.artifact_type.as_ref().unwrap_or(&manifest.config_type).as_str())
}

impl Client {
    /// Finds the SOCI index of an image that `image_ref` was resolved to; `None` where it has none.
    ///
    /// # Errors
    /// Where the registry cannot be asked, or the index is not what its digest says or no SOCI index. That an index which the user
    /// named is not there is an error; that one which the manifest names is not there is none, since images are copied without.
    pub async fn soci(&self, image_ref: &ImageRef, image: &Image, choice: SociChoice) -> Result<Option<Soci>, Error> {
        let Some(source) = self.source(image_ref).await? else {
            let missing = |digest| Error::NoBlob { path: image_ref.name().into(), digest };
            return if let SociChoice::Digest(digest) = choice { Err(missing(digest)) } else { Ok(None) };
        };
        let lookup = Lookup { client: self, image_ref, image, source };
        match (choice, image.annotations.get(INDEX_DIGEST)) {
            (SociChoice::Digest(digest), _) => {
                let manifest = lookup.index(digest, None).await?;
                Ok(Some(lookup.found(digest, SociSource::Given, manifest).await?))
            }
            (_, Some(named)) => lookup.annotated(named).await,
            (SociChoice::Annotated, None) => Ok(None),
            (SociChoice::Referring, None) => lookup.referring().await,
        }
    }
}

struct Lookup<'a> {
    client: &'a Client,
    image_ref: &'a ImageRef,
    image: &'a Image,
    source: Source,
}

impl Lookup<'_> {
    fn refused(&self, reason: String) -> Error {
        Error::Manifest { what: self.image_ref.to_string(), kind: "SOCI index", reason }
    }

    async fn annotated(&self, named: &str) -> Result<Option<Soci>, Error> {
        let digest = named.parse().map_err(|source| self.refused(format!("annotation {INDEX_DIGEST}: {source}")))?;
        match self.index(digest, None).await {
            Ok(manifest) => Ok(Some(self.found(digest, SociSource::Manifest, manifest).await?)),
            Err(error) if is_missing(&error) => {
                tracing::warn!(image = %self.image_ref, %digest, "the image names a SOCI index that is not there");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The first that refers to this image; what it was last where the registry cannot be reached.
    async fn referring(&self) -> Result<Option<Soci>, Error> {
        let key = format!("{}@{} {INDEX_V1}", self.image.name, self.image.digest);
        let documents = &self.client.documents;
        let listed = self.client.referrers(self.image_ref, &self.source, &self.image.digest, INDEX_V1).await;
        let entries = match (listed, documents.resolved(&key)) {
            (Ok(entries), _) => entries,
            (Err(error), Some(digest)) if error.is_unreachable() && documents.get(&digest).is_some() => {
                tracing::warn!(image = %self.image_ref, %digest, %error, "the registry cannot be reached; using the SOCI index of last time");
                let manifest = self.index(digest, None).await?;
                return Ok(Some(self.found(digest, SociSource::Referrer, manifest).await?));
            }
            (Err(error), _) => return Err(error),
        };
        for entry in entries.iter().take(MOST_REFERRERS) {
            let (digest, size) = place(&entry.digest, entry.size).map_err(|reason| self.refused(reason))?;
            match self.index(digest, Some(size)).await {
                Ok(manifest) if manifest.subject == Some(self.image.digest) => {
                    documents.remember(&key, &digest);
                    return Ok(Some(self.found(digest, SociSource::Referrer, manifest).await?));
                }
                Ok(_) => tracing::warn!(image = %self.image_ref, %digest, "this SOCI index is of another image"),
                // A list may have what is no SOCI index, and what was removed.
                Err(error) if is_missing(&error) || matches!(error, Error::Manifest { .. }) => {
                    tracing::warn!(image = %self.image_ref, %digest, %error, "a SOCI index is passed over");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// An index's manifest, verified.
    async fn index(&self, digest: Digest, size: Option<u64>) -> Result<Manifest, Error> {
        let bytes = self.client.by_digest(self.image_ref, &self.source, digest, size).await?;
        match parse(&format!("{} (SOCI index {digest})", self.image_ref), &bytes)? {
            Content::Image(manifest) if is_index(&manifest) => Ok(manifest),
            _ => Err(self.refused(format!("{digest} is something else"))),
        }
    }

    /// Where the zTOCs of the image's layers are. Other things that an index may hold, such as lists of files to prefetch, are passed over.
    async fn found(&self, digest: Digest, source: SociSource, manifest: Manifest) -> Result<Soci, Error> {
        let mut ztocs = BTreeMap::new();
        for ztoc in manifest.layers.into_iter().filter(|layer| layer.media_type == ZTOC) {
            let Some(named) = ztoc.annotations.get(LAYER_DIGEST) else { continue };
            let layer: Digest = named.parse().map_err(|source| self.refused(format!("{digest}: {source}")))?;
            if self.image.layers.iter().any(|of_image| of_image.digest == layer) {
                ztocs.entry(layer).or_insert(ztoc);
            }
        }
        Ok(Soci { digest, source, layers: self.blobs(ztocs).await? })
    }

    async fn blobs(&self, ztocs: BTreeMap<Digest, LayerDescriptor>) -> Result<BTreeMap<Digest, Layer>, Error> {
        match &self.source {
            Source::Remote(repository) => {
                let blob = |ztoc: LayerDescriptor| {
                    Layer::new(Blob::remote(repository.clone(), &ztoc, self.client.runtime.clone()), ztoc)
                };
                Ok(ztocs.into_iter().map(|(layer, ztoc)| (layer, blob(ztoc))).collect())
            }
            Source::Local(layout) => {
                let layout = layout.clone();
                let (opening, in_use) = (self.client.resolve_deadline, self.client.options.io_deadline);
                let path = layout.path().to_owned();
                let open =
                    move |(layer, ztoc): (Digest, LayerDescriptor)| match layout.blob(&ztoc.digest, Some(ztoc.size)) {
                        Ok(file) => {
                            let blob = Blob::local(file, ztoc.digest, opening, in_use);
                            Some(Ok((layer, Layer::new(blob, ztoc))))
                        }
                        // A layout may be a copy of a part.
                        Err(error) if is_missing(&error) => None,
                        Err(error) => Some(Err(error)),
                    };
                self.client.ask_disk(&path, move || ztocs.into_iter().filter_map(open).collect()).await
            }
        }
    }
}

/// Whether what a digest names is not there.
fn is_missing(error: &Error) -> bool {
    error.is_not_found() || matches!(error.root(), Error::NoBlob { .. })
}
