//! This user's servers and what they have done.

use std::path::PathBuf;

use serde::Serialize;

use super::Error;
use super::ask::{self, Unanswered};
use super::holders::{self, Holder};
use super::mounted::MountedImage;
use super::service::{Activity, Service, Told};
use super::state::{self, FoundState};
use crate::blob::Digest;
use crate::errors::chain;
use crate::kernel::mounts::{self, Mount};
use crate::registry::EndpointReport;

/// How a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It answers.
    Serving,
    /// It lives and does not answer.
    Silent,
    /// It died several times in a row, and is started again and again.
    Failing,
    /// It is gone and its mount is still there.
    Dead,
}

/// One server. The names of the fields are those of `crfs status --json`, which docs/STATUS.md has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    pub kind: &'static str,
    pub id: String,
    pub state: State,
    pub pid: Option<u32>,
    /// The image, where it serves but one.
    pub image: Option<String>,
    pub digest: Option<Digest>,
    pub frontend: Option<String>,
    /// The mount point, or the root of a store; what is not UTF-8 in it is replaced.
    #[serde(serialize_with = "holders::lossy")]
    pub dir: PathBuf,
    /// Seconds since 1970.
    pub started: Option<u64>,
    /// The process that keeps the mount when its server dies; `None`: nobody does, or that is not known.
    pub keeper: Option<u32>,
    /// How many processes have served it before.
    pub restarts: Option<u32>,
    pub images: Option<usize>,
    /// Those that can be read.
    pub layers: Option<usize>,
    /// Those of a store that podman uses of images that it has pulled by itself.
    pub pulled: Option<usize>,
    /// Where images are asked for, and what came of it.
    pub endpoints: Vec<EndpointReport>,
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

impl Status {
    /// Of a server of which nothing is known but where it is.
    pub(crate) fn unknown(kind: &'static str, id: String, state: State, dir: PathBuf) -> Self {
        Self {
            kind,
            id,
            state,
            pid: None,
            image: None,
            digest: None,
            frontend: None,
            dir,
            started: None,
            keeper: None,
            restarts: None,
            images: None,
            layers: None,
            pulled: None,
            endpoints: Vec::new(),
            elsewhere: None,
            activity: Activity::default(),
        }
    }

    /// With what the server has said of itself, or why it has not.
    pub(crate) fn told(self, told: Result<Told, Unanswered>) -> Self {
        match told {
            Ok(Told { frontend, started, kept, images, layers, pulled, endpoints, activity }) => Self {
                state: State::Serving,
                frontend: Some(frontend),
                started: Some(started),
                keeper: kept.map(|kept| kept.keeper),
                restarts: kept.map(|kept| kept.restarts),
                images: Some(images),
                layers: Some(layers),
                pulled,
                endpoints,
                activity,
                ..self
            },
            Err(Unanswered::Troubled { message, keeper }) => {
                Self { state: State::Failing, pid: None, keeper: Some(keeper), ..self.silent(message) }
            }
            Err(error) => self.silent(format!("its server does not say how it is: {}", chain(&error))),
        }
    }

    pub(crate) fn silent(self, why: String) -> Self {
        Self { state: State::Silent, activity: Activity { last_error: Some(why), ..self.activity }, ..self }
    }
}

/// Asks the server of every mount whose state is below one of `state_dirs`, in the order of their start; and why one of these directories cannot be asked.
#[must_use]
pub fn status(state_dirs: &[PathBuf]) -> (Vec<Status>, Option<Error>) {
    let (found, silent) = state::found_where_answered(state_dirs);
    let elsewhere: Vec<_> = found.iter().map(|state| elsewhere(state, &found)).collect();
    (found.into_iter().zip(elsewhere).map(|(state, elsewhere)| ask(state, elsewhere)).collect(), silent)
}

/// Where a mount is, and what its server counts, or why it does not tell.
pub type Counted = (PathBuf, Result<String, Unanswered>);

/// The metrics of the server of every mount whose state is below one of `state_dirs`, or why it does not tell them; and why one of these directories
/// cannot be asked.
#[must_use]
pub fn metrics(state_dirs: &[PathBuf]) -> (Vec<Counted>, Option<Error>) {
    let (found, silent) = state::found_where_answered(state_dirs);
    // One that is dead has nothing to tell.
    let live = found.iter().filter(|state| state.may_be_served());
    (live.map(|state| (state.record.dir.clone(), state.connect().and_then(ask::metrics))).collect(), silent)
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
        Some(_) => all.iter().flat_map(FoundState::servers).collect(),
        None => Vec::new(),
    };
    Some(Elsewhere { namespace, holders: holders::of(is_it, &record.dir, &servers) })
}

fn ask(found: FoundState, elsewhere: Option<Elsewhere>) -> Status {
    let record = found.record.clone();
    let known = Status {
        pid: Some(record.pid),
        image: Some(record.image),
        digest: Some(record.digest),
        frontend: Some(record.frontend),
        started: Some(record.started),
        images: Some(1),
        elsewhere,
        ..Status::unknown(MountedImage::KIND, record.id, State::Dead, record.dir)
    };
    match found.is_served() {
        Ok(true) => match found.connect() {
            Ok(server) => {
                let told = ask::status(server);
                // Another process may serve it by now than the one that has mounted it, or that was there when it was asked.
                let pid = found.connect().ok().and_then(|server| ask::server_of(&server).ok());
                Status { pid: pid.or(known.pid), ..known }.told(told)
            }
            Err(error) => known.told(Err(error)),
        },
        Ok(false) => known,
        // That is no reason to take it for dead.
        Err(error) => known.silent(format!("whether its server lives cannot be told: {error}")),
    }
}
