//! This user's mounts and what they have done.

use std::io;
use std::path::PathBuf;

use serde::Serialize;

use super::Error;
use super::control::Activity;
use super::holders::{self, Holder};
use super::state::{self, FoundState};
use crate::blob::Digest;
use crate::kernel::mounts::{self, Mount};

/// How a mount is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Its server answers.
    Serving,
    /// Its server lives and does not answer.
    Silent,
    /// Its server is gone and the mount is still there.
    Dead,
}

/// One mount. The names of the fields are those of `crfs status --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    pub id: String,
    pub state: State,
    pub pid: u32,
    pub image: String,
    pub digest: Digest,
    pub frontend: String,
    /// The mount point; what is not UTF-8 in it is replaced.
    #[serde(serialize_with = "holders::lossy")]
    pub dir: PathBuf,
    /// Seconds since 1970.
    pub started: u64,
    /// Where it is, if it is not at `dir`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<Elsewhere>,
    #[serde(flatten)]
    pub activity: Activity,
}

/// Where a mount is that is not at its directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Elsewhere {
    /// The mount namespace that it was made in, where that is another one; else it was unmounted here.
    pub namespace: Option<String>,
    /// Who has it, as far as this user may see.
    pub holders: Vec<Holder>,
}

/// Asks every server whose state is below one of `state_dirs`, in the order of their start; and why one of these directories cannot be asked.
#[must_use]
pub fn status(state_dirs: &[PathBuf]) -> (Vec<Status>, Option<Error>) {
    let (found, silent) = state::found_where_answered(state_dirs);
    let elsewhere: Vec<_> = found.iter().map(|state| elsewhere(state, &found)).collect();
    (found.into_iter().zip(elsewhere).map(|(state, elsewhere)| ask(state, elsewhere)).collect(), silent)
}

/// The metrics of every server whose state is below one of `state_dirs`, or why it does not tell them; and why one of these directories cannot be asked.
#[must_use]
pub fn metrics(state_dirs: &[PathBuf]) -> (Vec<(PathBuf, io::Result<String>)>, Option<Error>) {
    let (found, silent) = state::found_where_answered(state_dirs);
    // One that is dead has nothing to tell.
    let live = found.iter().filter(|state| !matches!(state.is_served(), Ok(false)));
    (live.map(|state| (state.record.dir.clone(), state.ask_for_metrics())).collect(), silent)
}

/// Where a mount is, if it is not at its directory. `all`: all mounts of this user. Their servers do not count in another mount namespace: each keeps
/// the one that it was started in, and uses nothing there.
pub(super) fn elsewhere(state: &FoundState, all: &[FoundState]) -> Option<Elsewhere> {
    let record = &state.record;
    let is_it = |mount: &Mount| record.describes(mount);
    if mounts::all().ok()?.iter().any(|mount| mount.point == record.dir && is_it(mount)) {
        return None;
    }
    let namespace = record.namespace.clone().filter(|_| record.is_foreign());
    let servers: Vec<_> = match namespace {
        Some(_) => all.iter().filter_map(FoundState::server).collect(),
        None => Vec::new(),
    };
    Some(Elsewhere { namespace, holders: holders::of(is_it, &record.dir, &servers) })
}

fn ask(found: FoundState, elsewhere: Option<Elsewhere>) -> Status {
    let (state, activity) = match (found.is_served(), found.ask()) {
        (Ok(true), Ok(activity)) => (State::Serving, activity),
        (Ok(true), Err(_)) => (State::Silent, Activity::default()),
        (Ok(false), _) => (State::Dead, Activity::default()),
        // That is no reason to take it for dead.
        (Err(error), _) => {
            let last_error = Some(format!("whether its server lives cannot be told: {error}"));
            (State::Silent, Activity { last_error, ..Activity::default() })
        }
    };
    let record = found.record;
    Status {
        id: record.id,
        state,
        pid: record.pid,
        image: record.image,
        digest: record.digest,
        frontend: record.frontend,
        dir: record.dir,
        started: record.started,
        elsewhere,
        activity,
    }
}
