//! What refers to a manifest without being named by it (OCI distribution specification 1.1, "Listing Referrers").
//!
//! ```text
//! GET /v2/<name>/referrers/<digest>    an index of all that refer to it, where the registry has that API
//! tag sha256-<hex>                     the same index, kept by who pushes, where it has not; and in layouts
//! index.json of a layout               may list them as well
//! ```
//!
//! Anyone who may push to a repository can add one: what is found says nothing of who made it.

use super::client::{Client, Source};
use super::layout::Layout;
use super::manifest::{Content, Descriptor, parse};
use super::patience::Patience;
use super::repository::{Document, Repository};
use super::{Error, Freshness, ImageRef};
use crate::blob::Digest;

impl Client {
    /// Those of one type that are said to refer to a manifest, in the order in which they are listed. A list may leave the type out.
    pub(super) async fn referrers(
        &self,
        image: &ImageRef,
        source: &Source,
        subject: &Digest,
        artifact_type: &str,
    ) -> Result<Vec<Descriptor>, Error> {
        let mut found = match source {
            Source::Remote(repository) => {
                let name = subject.to_string();
                let mut patience = repository.patience("referrers of", &name, self.resolve_deadline);
                listed(repository, image, subject, artifact_type, &mut patience).await?
            }
            Source::Local(layout) => {
                let mut found = self.tagged(image, source, layout, subject).await?;
                let (reader, name) = (layout.clone(), image.name());
                let listed = self.ask_disk(layout.path(), move || reader.entries(&name)).await?;
                found.extend(listed.into_iter().filter(|entry| entry.artifact().is_some()));
                found
            }
        };
        found.retain(|entry| entry.artifact_type.as_deref().is_none_or(|kind| kind == artifact_type));
        Ok(found)
    }

    /// What the index under the fallback tag of a layout has.
    async fn tagged(
        &self,
        image: &ImageRef,
        source: &Source,
        layout: &Layout,
        subject: &Digest,
    ) -> Result<Vec<Descriptor>, Error> {
        let (reader, name, tag) = (layout.clone(), image.name(), tag_of(subject));
        let entry = match self.ask_disk(layout.path(), move || reader.find(&name, Some(&tag))).await {
            Ok(entry) => entry,
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        entries(image, &self.child(image, source, &entry).await?)
    }
}

/// What an index has; nothing, where it is none.
fn entries(image: &ImageRef, index: &Document) -> Result<Vec<Descriptor>, Error> {
    match parse(&image.to_string(), &index.bytes)? {
        Content::Index(entries) => Ok(entries),
        Content::Image(_) => Ok(Vec::new()),
    }
}

fn tag_of(subject: &Digest) -> String {
    format!("sha256-{}", subject.hex())
}

/// By the API, else under the fallback tag.
async fn listed(
    repository: &Repository,
    image: &ImageRef,
    subject: &Digest,
    artifact_type: &str,
    patience: &mut Patience,
) -> Result<Vec<Descriptor>, Error> {
    match repository.referrers(subject, artifact_type, patience).await {
        // Some registries answer with a page for people where they have no API.
        Ok(answer) => match parse(&image.to_string(), &answer.bytes) {
            Ok(Content::Index(entries)) => return Ok(entries),
            _ => tracing::debug!(%image, "what the registry answers for referrers is no index"),
        },
        Err(error) if is_without_api(&error) => tracing::debug!(%image, %error, "the registry lists no referrers"),
        Err(error) => return Err(error),
    }
    match repository.by_tag(&tag_of(subject), Freshness::Any, patience).await {
        Ok((answer, _)) => entries(image, &answer),
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// 404 by the specification; registries that know nothing of it answer otherwise as well.
fn is_without_api(error: &Error) -> bool {
    match error.root() {
        error if error.is_not_found() => true,
        Error::Denied { status, .. } | Error::Status { status, .. } => matches!(status, 400 | 405 | 406 | 410 | 415),
        Error::Endpoints { errors, .. } => errors.iter().all(|(_, error)| is_without_api(error)),
        _ => false,
    }
}
