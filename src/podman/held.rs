//! Who holds layers asks the store's server for them (layers/held.rs).

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use super::control::{Answer, Request};
use super::layers::held::Holding;
pub use super::layers::held::{Held, HeldLayer, State};
use super::trees::HELD;
use super::{Error, Paths};
use crate::serve::ask::{self, SILENCE};
use crate::serve::{Unanswered, control};

/// How long a server may take to take a connection.
const ANSWER: Duration = Duration::from_secs(10);

/// Where a held layer is.
#[must_use]
pub fn place(paths: &Paths, number: u32) -> PathBuf {
    paths.mount().join(HELD).join(number.to_string())
}

/// Opens all layers of an image that is named by its digest, and holds those that can be had.
///
/// # Errors
/// Where there is no server, or nothing of the image can be had.
pub fn hold(paths: &Paths, reference: &str) -> Result<Held, Error> {
    let mut held = asked(paths, Holding::Hold(reference.to_owned()))?;
    held.pop().ok_or_else(|| Error::Server { log: paths.log(), source: Unanswered::OtherVersion })
}

/// Lets layers of an image go, by their places.
///
/// # Errors
/// Where there is no server, or that cannot be written down.
pub fn release(paths: &Paths, reference: &str, places: Vec<usize>) -> Result<(), Error> {
    asked(paths, Holding::Release { reference: reference.to_owned(), places }).map(drop)
}

/// All that is held.
///
/// # Errors
/// Where there is no server.
pub fn list(paths: &Paths) -> Result<Vec<Held>, Error> {
    asked(paths, Holding::List)
}

/// Whether a server has the store, also one that is not ready.
#[must_use]
pub fn is_served(paths: &Paths) -> bool {
    File::open(&paths.state).is_ok_and(|state| ask::connect(state.as_fd(), ANSWER).is_ok())
}

fn asked(paths: &Paths, holding: Holding) -> Result<Vec<Held>, Error> {
    let failed = |source| match source {
        Unanswered::Failed { message } => Error::Reported { message },
        source => Error::Server { log: paths.log(), source },
    };
    let state = File::open(&paths.state).map_err(|source| Error::File { path: paths.state.clone(), source })?;
    let server = ask::connect(state.as_fd(), ANSWER).map_err(failed)?;
    match ask::ask(server, &control::Request::Own(Request::Layers(holding)), SILENCE, &mut |_| {}).map_err(failed)? {
        control::Answer::Own(Answer::Held(held)) => Ok(held),
        _ => Err(failed(Unanswered::OtherVersion)),
    }
}
