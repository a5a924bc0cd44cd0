//! The one server of all layers: a store that nobody but this snapshotter uses (podman/layers/held.rs). It outlives the snapshotter, and is started again
//! where it is gone.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::{Code, Status};
use super::table::Lazy;
use crate::podman::held::{self, Held, State};
use crate::podman::{self, ServeOptions};
use crate::threads;

/// How long a server may take to answer for the first time.
const START: Duration = Duration::from_secs(30);

/// How long layers are waited for that are not open: containerd gives two minutes to a container that it starts.
const OPEN: Duration = Duration::from_secs(100);
const PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Pool {
    options: ServeOptions,
    starting: Mutex<()>,
    /// Who prepares or removes layers of an image, one after the other.
    turns: Mutex<HashMap<String, Turn>>,
}

/// Whoever holds it has the layers of an image.
pub(super) type Turn = Arc<Mutex<()>>;

impl Pool {
    pub(super) fn new(options: ServeOptions) -> Self {
        Self { options, starting: Mutex::default(), turns: Mutex::default() }
    }

    pub(super) fn turn(&self, reference: &str) -> Turn {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody has or waits for.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(reference.to_owned()).or_default())
    }

    /// Where a layer is served.
    pub(super) fn place(&self, lazy: &Lazy) -> PathBuf {
        held::place(&self.options.paths, lazy.number)
    }

    /// Starts the server, where there is none.
    pub(super) fn start(&self) -> Result<(), Status> {
        let paths = &self.options.paths;
        let _starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if held::is_served(paths) {
            return Ok(());
        }
        let failed = |error: &dyn std::error::Error| {
            let log = paths.state.join("server.log");
            let (why, log) = (crate::errors::chain(error), log.display());
            tracing::error!("the server of the layers cannot be started: {why}; its log is {log}");
            Status::new(
                Code::Unavailable,
                format!("the server of the layers cannot be started: {why}; its log is {log}"),
            )
        };
        let mut child = podman::start_keeper(&self.options).map_err(|error| failed(&error))?;
        let start = Instant::now();
        while !held::is_served(paths) {
            match child.try_wait() {
                Ok(Some(status)) => return Err(failed(&std::io::Error::other(format!("it has ended ({status})")))),
                _ if start.elapsed() > START => {
                    let _it_may_have_ended = child.kill().and_then(|()| child.wait());
                    return Err(failed(&std::io::Error::from(std::io::ErrorKind::TimedOut)));
                }
                _ => std::thread::sleep(PAUSE),
            }
        }
        tracing::info!(pid = child.id(), "the server of the layers was started");
        // Somebody has to hear of its end.
        threads::spawn("layer-server", move || {
            let status = child.wait();
            tracing::warn!(?status, "the server of the layers has ended");
        })
        .map_err(|error| failed(&error))
    }

    /// Opens all layers of an image, and holds them.
    pub(super) fn hold(&self, reference: &str) -> Result<Held, Status> {
        self.start()?;
        held::hold(&self.options.paths, reference).map_err(|error| Status::new(Code::Unavailable, error.chain()))
    }

    /// Lets layers go. Where there is no server, that is found out later.
    pub(super) fn release(&self, reference: &str, places: Vec<usize>) {
        if let Err(error) = held::release(&self.options.paths, reference, places) {
            tracing::warn!(reference, error = error.chain(), "layers are not let go of yet");
        }
    }

    /// What is held, where there is a server.
    pub(super) fn held(&self) -> Vec<Held> {
        if !held::is_served(&self.options.paths) {
            return Vec::new();
        }
        held::list(&self.options.paths).unwrap_or_else(|error| {
            tracing::warn!(error = error.chain(), "the server of the layers does not say what it holds");
            Vec::new()
        })
    }

    /// Comes back when layers can be mounted. Gives those whose numbers are other ones by now: the server has lost what it knew.
    pub(super) fn ready(&self, layers: &[Lazy]) -> Result<Vec<Lazy>, Status> {
        // A server that has lost its records gives a number to another layer: that something is there says nothing.
        let missing = |layers: &[Lazy]| -> Vec<Lazy> {
            let held = self.held();
            let is_there = |lazy: &&Lazy| is_held(&held, lazy) && self.place(lazy).metadata().is_ok();
            layers.iter().filter(|lazy| !is_there(lazy)).cloned().collect()
        };
        let start = Instant::now();
        let (mut changed, mut waiting) = (BTreeMap::new(), missing(layers));
        let mut last = None;
        while !waiting.is_empty() {
            if start.elapsed() > OPEN {
                return Err(late(&waiting, last));
            }
            let mut references: Vec<_> = waiting.iter().map(|lazy| lazy.reference.clone()).collect();
            references.dedup();
            for reference in references {
                match self.hold(&reference) {
                    Ok(held) => waiting.iter_mut().filter(|lazy| lazy.reference == reference).for_each(|lazy| {
                        match found(&held, lazy) {
                            Ok(new) => {
                                changed.insert((new.reference.clone(), new.place), new.clone());
                                *lazy = new;
                            }
                            Err(why) => {
                                last = why.map(|why| Status::new(Code::Unavailable, why)).or_else(|| last.take())
                            }
                        }
                    }),
                    Err(status) => last = Some(status),
                }
            }
            waiting = missing(&waiting);
            if !waiting.is_empty() {
                std::thread::sleep(PAUSE);
            }
        }
        let is_new = |new: &Lazy| !layers.contains(new);
        Ok(changed.into_values().filter(is_new).collect())
    }
}

fn late(waiting: &[Lazy], last: Option<Status>) -> Status {
    let why = last.map(|status| format!(": {}", status.message)).unwrap_or_default();
    let which = waiting.first().map(|lazy| format!("{} of {}", lazy.blob, lazy.reference)).unwrap_or_default();
    Status::new(Code::Unavailable, format!("the layer {which} cannot be read yet{why}"))
}

/// The same layer, as it is held now; else why it is not, where that is said.
fn found(held: &Held, lazy: &Lazy) -> Result<Lazy, Option<String>> {
    let layer = held.layers.iter().find(|layer| layer.place == lazy.place && layer.blob == lazy.blob).ok_or(None)?;
    match &layer.state {
        State::Held { number, owner } => Ok(Lazy { number: *number, owner: *owner, ..lazy.clone() }),
        State::Refused(why) => Err(Some(why.clone())),
    }
}

/// Whether a layer is held by the number that is known of it.
fn is_held(held: &[Held], lazy: &Lazy) -> bool {
    let same = |held: &&Held| held.reference == lazy.reference;
    held.iter().filter(same).any(|held| found(held, lazy).is_ok_and(|now| now.number == lazy.number))
}
