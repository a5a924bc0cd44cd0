//! `crfs heat`.

mod svg;

use std::path::Path;

use serde::Serialize;

use super::args::HeatArgs;
use super::environment::Environment;
use super::options::UsageError;
use super::progress::with_progress;
use super::{Failure, json, options, print};
use crate::blob::Digest;
use crate::image::Error;
use crate::image::heat::{self, Heat};
use crate::serve::explain::{Found, find};

/// What `crfs heat --json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Shown {
    image: String,
    digest: Digest,
    /// Of an image that is not asked about as a mount, `None`.
    mount: Option<Found>,
    #[serde(flatten)]
    heat: Heat,
}

pub(super) fn heat(args: &HeatArgs, environment: &Environment) -> Result<(), Failure> {
    if args.json && args.svg.as_deref() == Some(Path::new("-")) {
        return Err(UsageError::TwoOutputs.into());
    }
    let shown = match find(args.target.as_ref(), &environment.state_dirs())? {
        Some(mount) => Shown {
            heat: mount.heat()?,
            image: mount.name().to_owned(),
            digest: mount.digest(),
            mount: Some(mount.mount()),
        },
        None => {
            let options = options::source(&args.target, &args.access, &args.cache, environment)?;
            let heat::CachedImage { image, digest, heat } = with_progress(|report| heat::of_cache(&options, report))?;
            Shown { image, digest, mount: None, heat }
        }
    };
    if let Some(file) = &args.svg {
        write(file, &svg::picture(&shown))?;
    }
    if args.json {
        print(&json(&shown)?)?;
    }
    Ok(())
}

fn write(file: &Path, picture: &str) -> Result<(), Error> {
    if file == Path::new("-") {
        return print(picture);
    }
    std::fs::write(file, picture).map_err(|source| Error::Archive { path: file.to_owned(), source })
}
