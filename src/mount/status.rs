//! This user's mounts and what they have done.

use std::path::PathBuf;

use serde::Serialize;

use super::control::{self, Activity};
use super::state::{self, FoundState};
use super::{Error, mounts};
use crate::blob::Digest;

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
    #[serde(serialize_with = "lossy")]
    pub dir: PathBuf,
    /// Seconds since 1970.
    pub started: u64,
    #[serde(flatten)]
    pub activity: Activity,
}

fn lossy<S: serde::Serializer>(path: &std::path::Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// Asks every server whose state is below one of `state_dirs`, in the order of their start.
///
/// # Errors
/// Where one of these does not answer.
pub fn status(state_dirs: &[PathBuf]) -> Result<Vec<Status>, Error> {
    let mut found = Vec::new();
    for dir in state_dirs {
        let dirs = [dir.clone()];
        found.extend(mounts::answered(dir, move || Ok(state::find_all(&dirs)))?);
    }
    found.sort_by(FoundState::by_start);
    Ok(found.into_iter().map(ask).collect())
}

fn ask(found: FoundState) -> Status {
    let (state, activity) = match (found.is_served(), control::ask(&found.socket())) {
        (true, Ok(activity)) => (State::Serving, activity),
        (true, Err(_)) => (State::Silent, Activity::default()),
        (false, _) => (State::Dead, Activity::default()),
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
        activity,
    }
}
