//! `crfs explain`: of a mount, what its server tells of its layers, or what its record says of its image.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Error;
use super::ask;
use super::ask::Unanswered;
use super::control::{Answer, Request};
use super::holders;
use super::layers::{Ask, Told};
use super::state::{self, FoundState};
use super::unmount::find as find_mount;
use crate::blob::Digest;
use crate::image::heat::Heat;
use crate::image::inspect::{self, LayerInspection};
use crate::image::options::ImageOptions;
use crate::kernel::mounts;
use crate::registry::EndpointReport;

/// What `crfs explain --json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    pub image: String,
    pub digest: Digest,
    /// Of an image that is not asked about as a mount, `None`.
    pub mount: Option<Found>,
    /// Bytes that were, or would be, fetched before a mount is ready.
    pub wait: u64,
    /// Where the image is asked for, and what came of it.
    pub endpoints: Vec<EndpointReport>,
    pub layers: Vec<LayerInspection>,
}

/// Which mount it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    pub id: String,
    #[serde(serialize_with = "holders::lossy")]
    pub dir: PathBuf,
    /// Whether its server has told this.
    pub told: bool,
}

impl From<inspect::Layers> for Explanation {
    fn from(of: inspect::Layers) -> Self {
        let inspect::Layers { image, digest, endpoints, layers } = of;
        let wait = layers.iter().map(|layer| layer.wait).fold(0, u64::saturating_add);
        Self { image, digest, mount: None, wait, endpoints, layers }
    }
}

/// A mount of this user.
pub struct Explained {
    state: FoundState,
}

impl Explained {
    /// What its server tells; `None`: it does not.
    #[must_use]
    pub fn told(&self) -> Option<Explanation> {
        let stream = self.state.connect().ok()?;
        let asked = ask::ask(stream, &Request::Own(Ask::Layers), ask::GLANCE, &mut |_| {});
        let Ok(Answer::Own(Told::Layers(layers))) = asked else { return None };
        let record = &self.state.record;
        let endpoints = self.state.connect().and_then(ask::status).map(|told| told.endpoints).unwrap_or_default();
        let told = inspect::Layers { image: record.image.clone(), digest: record.digest, endpoints, layers };
        Some(Explanation { mount: Some(self.found(true)), ..told.into() })
    }

    /// What became of the bytes of its image, as its server has recorded it.
    ///
    /// # Errors
    /// Where its server does not tell.
    pub fn heat(&self) -> Result<Heat, Error> {
        let asked = self.state.connect();
        let told = asked.and_then(|stream| ask::ask(stream, &Request::Own(Ask::Heat), ask::SILENCE, &mut |_| {}));
        let source = match told {
            Ok(Answer::Own(Told::Heat(heat))) => return Ok(*heat),
            Ok(_) => Unanswered::OtherVersion,
            Err(source) => source,
        };
        Err(Error::NotTold { dir: self.state.record.dir.clone(), source })
    }

    /// The name of its image.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.state.record.image
    }

    /// Which mount it is, told by its server.
    #[must_use]
    pub fn mount(&self) -> Found {
        self.found(true)
    }

    /// What is known of its image, where its server tells nothing.
    #[must_use]
    pub fn untold(&self, layers: inspect::Layers) -> Explanation {
        Explanation { mount: Some(self.found(false)), ..layers.into() }
    }

    fn found(&self, told: bool) -> Found {
        Found { id: self.state.record.id.clone(), dir: self.state.record.dir.clone(), told }
    }

    /// How the image was reached. Servers before 0.2 do not say.
    #[must_use]
    pub fn options(&self) -> Option<ImageOptions> {
        self.state.record.options.clone()
    }

    /// The image by its digest, as a user would type it.
    #[must_use]
    pub fn image(&self) -> String {
        self.state.record.source()
    }

    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.state.record.digest
    }
}

/// The mount that `target` means, by its id or its directory; `None`: it is none, and may be an image.
///
/// # Errors
/// Where it can only be meant as a directory, and is no crfs mount.
pub fn find(target: &Path, state_dirs: &[PathBuf]) -> Result<Option<Explained>, Error> {
    Ok(state_of(target, state_dirs)?.map(|state| Explained { state }))
}

/// The state of the mount that `target` means; `None`: it is none, and may be an image.
pub(super) fn state_of(target: &Path, state_dirs: &[PathBuf]) -> Result<Option<FoundState>, Error> {
    let (all, silent) = state::found_where_answered(state_dirs);
    let named = all.iter().find(|state| Path::new(&state.record.id) == target);
    if let Some(state) = named {
        return Ok(Some(state.clone()));
    }
    let asked = target.to_owned();
    let here = mounts::answered(target, move || find_mount(&asked));
    let dir = std::path::absolute(target).unwrap_or_default();
    let state = match &here {
        Ok(mount) => all.iter().find(|state| state.record.describes(mount)),
        // In another mount namespace, or unmounted and still in use.
        Err(_) => all.iter().rev().find(|state| state.record.dir == dir),
    };
    match (state, here) {
        (Some(state), _) => Ok(Some(state.clone())),
        (None, Err(error)) if is_path(target) => Err(silent.unwrap_or(error)),
        (None, Ok(mount)) => Err(silent.unwrap_or(Error::NotOurs { dir: mount.point })),
        (None, Err(_)) => Ok(None),
    }
}

/// Whether it can only be a path: no image is named so.
fn is_path(target: &Path) -> bool {
    target.is_absolute() || target.starts_with(".") || target.starts_with("..")
}
