//! Names without a registry: which image one means.

use std::sync::Arc;
use std::time::Duration;

use super::Error;
use super::engine::{Engine, RESOLVE_WITHIN};
use super::event::Report;
use super::look::runtime;
use super::options::ImageOptions;
use crate::registry::{Candidates, ImageRef, candidates};

/// How long one registry may be silent where another may have the image.
const PATIENCE: Duration = Duration::from_secs(10);

/// The image that a short name means: by this machine's configuration, and where that leaves a choice, the first that can be had. No registry is
/// asked where there is none.
///
/// # Errors
/// Where the configuration is broken or forbids the choice, or none of the images can be had.
pub(crate) fn meant(options: &ImageOptions, name: &str) -> Result<ImageRef, Error> {
    match candidates(&options.places, name)? {
        Candidates::One(image) => Ok(ImageRef::Registry(image)),
        Candidates::Several(images) => {
            let images = images.into_iter().map(ImageRef::Registry).collect();
            runtime()?.block_on(first(options, name, images))
        }
    }
}

async fn first(options: &ImageOptions, name: &str, images: Vec<ImageRef>) -> Result<ImageRef, Error> {
    // Nobody sees how it goes.
    let report: Report = Arc::new(|_| Ok(()));
    let mut failed = Vec::new();
    let last = images.len().saturating_sub(1);
    for (number, image) in images.into_iter().enumerate() {
        let patience = if number == last { RESOLVE_WITHIN } else { PATIENCE };
        let tried = ImageOptions { image: image.clone(), ..options.clone() };
        match Engine::new(&tried, patience)?.resolve(&report).await {
            Ok(_) => return Ok(image),
            Err(error) => failed.push(format!("{image}: {}", error.chain())),
        }
    }
    Err(Error::NoCandidate { name: name.to_owned(), failed: failed.join("; ") })
}
