//! A worker's side of its keeper (src/keeper): what it hands over, and how it goes on with what another one has handed over.

use std::convert::Infallible;
use std::io::{self, Write};
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::socket::{Backlog, listen};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::Error;
use super::options::MountOptions;
use super::service::Kept;
use crate::blob::Digest;
use crate::image::wire;
use crate::keeper::{self, Channel, Go, Held, Packet, Words};
use crate::kernel::mounts::Identity;
use crate::threads;

/// The form of a description. Another one is for another version of crfs.
const VERSION: u32 = 1;

/// Connections that wait to be accepted: as many as std has for a listener.
const BACKLOG: i32 = 128;

/// What is served of a mount, for whoever goes on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Description {
    pub(super) options: MountOptions,
    /// The image, whatever the reference leads to by now.
    pub(super) digest: Digest,
    pub(super) identity: Identity,
    /// Whether a single layer was mounted with what is known of those below it.
    pub(super) has_lowers: bool,
    /// Of what the kernel was told: numbers, names, attributes.
    pub(super) tree: Digest,
    /// Seconds since 1970.
    pub(super) started: u64,
    /// The directory of the mount's state.
    #[serde(with = "wire::path")]
    pub(super) state: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    description: T,
}

fn bytes<D: Serialize>(description: D) -> Result<Vec<u8>, Error> {
    let versioned = Versioned { version: VERSION, description };
    serde_json::to_vec(&versioned).map_err(|source| Error::Handover { source })
}

fn of_bytes<D: DeserializeOwned>(bytes: &[u8]) -> Result<D, Error> {
    let version: Version = serde_json::from_slice(bytes).map_err(|source| Error::Handover { source })?;
    if version.version != VERSION {
        return Err(Error::OtherForm { found: version.version, known: VERSION });
    }
    let versioned: Versioned<D> = serde_json::from_slice(bytes).map_err(|source| Error::Handover { source })?;
    Ok(versioned.description)
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// What a worker goes on with.
pub(crate) struct Handed<D> {
    pub(crate) description: D,
    pub(crate) device: OwnedFd,
    pub(crate) listener: UnixListener,
    pub(crate) lock: OwnedFd,
    /// Whether another process serves it until this one is ready.
    pub(crate) beside: bool,
}

/// Whoever keeps a mount, as the process knows it that serves it.
#[derive(Clone)]
pub(crate) struct Keeping {
    keeper: Keeper,
    /// How many have served before this one, and how many of them have gone for an upgrade.
    restarts: u32,
    upgrades: u32,
}

impl Keeping {
    pub(super) fn told(&self) -> Kept {
        Kept { keeper: Keeper::pid(), restarts: self.restarts, upgrades: self.upgrades }
    }

    /// Asks for an upgrade. Comes back with why there is none; if there is one, this process is gone.
    pub(super) async fn upgrade(&self) -> String {
        let (say, said) = oneshot::channel();
        self.keeper.upgrading.lock().unwrap_or_else(PoisonError::into_inner).push(say);
        if let Err(error) = self.keeper.channel.send(&Packet::Upgrade) {
            return format!("its keeper does not answer: {error}");
        }
        match tokio::time::timeout(PATIENCE, said).await {
            Ok(Ok(why)) => why,
            _ => "its keeper does not answer".to_owned(),
        }
    }
}

/// The keeper of this process.
#[derive(Debug, Clone)]
pub struct Keeper {
    channel: Arc<Channel>,
    /// What its workers are started with, where they may start another one.
    arguments: Option<&'static [&'static str]>,
    /// What that one would hold.
    held: Arc<Mutex<Option<Held>>>,
    /// Whoever waits to hear why there is no upgrade.
    upgrading: Arc<Mutex<Vec<oneshot::Sender<String>>>>,
}

impl Keeper {
    /// The one at the other end of the descriptor that this process was started with. `arguments`: what another keeper starts workers with, where this
    /// process is to start one when its own is gone.
    ///
    /// # Errors
    /// Where there is no such descriptor.
    pub fn inherited(number: RawFd, arguments: Option<&'static [&'static str]>) -> Result<Self, Error> {
        let channel = Channel::inherited(number).map_err(|source| Error::Keeper { source })?;
        // Until it serves, nobody is to be left behind who could not be ended.
        let _ends_with_it = set_pdeathsig(Signal::SIGKILL);
        Ok(Self { channel: Arc::new(channel), arguments, held: Arc::default(), upgrading: Arc::default() })
    }

    /// Whose number is that of the server, which stays when workers go.
    pub(crate) fn pid() -> u32 {
        u32::try_from(nix::unistd::getppid().as_raw()).unwrap_or_default()
    }

    /// Hands over what another one may go on with. `io_deadline`: how long whoever uses the mount may wait while nobody serves it.
    pub(crate) fn hold(
        &self,
        (description, io_deadline): (impl Serialize, Duration),
        device: OwnedFd,
        listener: OwnedFd,
        lock: OwnedFd,
    ) -> Result<(), Error> {
        let held = Held { description: bytes(description)?, io_deadline, device, listener, lock };
        self.channel.hand_over(&held, false).map_err(|source| Error::Keeper { source })?;
        self.remember(held);
        Ok(())
    }

    /// What this one is to go on with.
    pub(crate) fn handed<D: DeserializeOwned>(&self) -> Result<Handed<D>, Error> {
        let failed = |source| Error::Keeper { source };
        match self.channel.receive().map_err(failed)? {
            Some(Packet::Held(held, beside)) => {
                self.remember(held.try_clone().map_err(failed)?);
                if !beside && self.arguments.is_some() {
                    // Nobody serves: where the keeper is killed now, this one has the mount alone, and starts another.
                    Self::serves();
                }
                let Held { description, device, listener, lock, .. } = held;
                let description = of_bytes(&description)?;
                Ok(Handed { description, device, listener: listener.into(), lock, beside })
            }
            _ => Err(failed(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    fn remember(&self, held: Held) {
        if self.arguments.is_some() {
            *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
        }
    }

    /// Starts another keeper, and ends this process, whose successor that one starts. Comes back where that cannot be.
    fn start_another(&self, kept: Kept) -> io::Result<Infallible> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (Some(held), Some(arguments)) = (held, self.arguments) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let Kept { restarts, upgrades, .. } = kept;
        let why = "its keeper was killed".to_owned();
        keeper::start_heir(&held, Go { before: restarts, upgrades, why }, arguments)?;
        // At once: nobody else answers before.
        std::process::exit(0);
    }

    /// What becomes of a mount that this process was to go on with, whose keeper was killed before it could: another one goes on, where nobody else
    /// serves it. Gives why that cannot be.
    pub(crate) fn lost_before_go(&self, beside: bool) -> Error {
        if !beside {
            // How many there were is not known here: the one before, at least.
            let another = self.start_another(Kept { keeper: 0, restarts: 1, upgrades: 0 });
            let error = another.err().map(|error| error.to_string());
            tracing::warn!(error, "the keeper of this mount is gone, and nobody serves it: it is dead");
        }
        Error::Interrupted
    }

    /// Says that this one is ready. To whoever keeps nothing yet, that the mount can be used, and what whoever waits for that is to be told.
    pub(crate) fn ready(&self, words: Words) -> Result<(), Error> {
        self.channel.send(&Packet::Ready(keeper::FORM, words)).map_err(|source| Error::Keeper { source })
    }

    /// Says why this one ends.
    pub fn failed(&self, why: String) {
        let _heard = self.channel.send(&Packet::Failed(why));
        // It is closed by the end of the process and not before: a keeper kills whoever can say nothing any more.
        std::mem::forget(Arc::clone(&self.channel));
    }

    /// Hears what the keeper says, from now on.
    pub(crate) fn listen(&self) -> Result<mpsc::UnboundedReceiver<Said>, Error> {
        let (channel, upgrading) = (Arc::clone(&self.channel), Arc::clone(&self.upgrading));
        let (say, said) = mpsc::unbounded_channel();
        let hear = move || {
            while let Ok(Some(packet)) = channel.receive() {
                match packet {
                    Packet::Go(go) => drop(say.send(Said::Go(go))),
                    Packet::Told => drop(say.send(Said::Told)),
                    Packet::Refused(why) => {
                        tracing::warn!(why, "the mount goes on with the server that it has");
                        answer_all(&upgrading, &why);
                    }
                    _ => {}
                }
            }
            answer_all(&upgrading, GONE);
            drop(say.send(Said::Nothing));
        };
        threads::spawn("keeper", hear).map_err(|source| Error::Runtime { source })?;
        Ok(said)
    }

    /// Now that it serves, it goes on without its keeper.
    pub(crate) fn serves() {
        let _stays = set_pdeathsig(None);
    }

    pub(crate) fn keeping(&self, restarts: u32, upgrades: u32) -> Keeping {
        Keeping { keeper: self.clone(), restarts, upgrades }
    }
}

/// What is said of upgrades that a keeper does not live to see.
const GONE: &str = "its keeper was killed meanwhile; ask again";

/// Tells all who wait for an upgrade why there is none.
fn answer_all(upgrading: &Mutex<Vec<oneshot::Sender<String>>>, why: &str) {
    let asked = std::mem::take(&mut *upgrading.lock().unwrap_or_else(PoisonError::into_inner));
    asked.into_iter().for_each(|asked| drop(asked.send(why.to_owned())));
}

/// Sees to it that whoever waits for the mount is told so: the keeper does, and where that is gone before, this process. `then`: what is done after that.
pub(crate) async fn tell_waiting(said: &mut mpsc::UnboundedReceiver<Said>, words: &Words, then: fn()) {
    loop {
        match said.recv().await {
            Some(Said::Told) => break,
            Some(Said::Go(_)) => {}
            Some(Said::Nothing) | None => {
                // Whoever has gone does not want to know any more.
                let _heard = io::stdout().lock().write_all(words.output.as_bytes());
                let _seen = io::stderr().lock().write_all(words.error.as_bytes());
                break;
            }
        }
    }
    then();
}

/// Longer than a keeper waits for the next worker.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a keeper says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    Go(Go),
    /// Whoever waited for the mount knows of it.
    Told,
    /// It is gone.
    Nothing,
}

/// Comes back when the keeper is gone.
pub(super) async fn lost(said: &mut mpsc::UnboundedReceiver<Said>) {
    while !matches!(said.recv().await, Some(Said::Nothing) | None) {}
}

/// When the keeper is gone, starts another one, or says so.
pub(crate) async fn goes_on_alone(mut said: mpsc::UnboundedReceiver<Said>, kept: Arc<Mutex<Option<Keeping>>>) {
    lost(&mut said).await;
    let keeping = kept.lock().unwrap_or_else(PoisonError::into_inner).take();
    let another = keeping.map(|keeping| keeping.keeper.start_another(keeping.told()));
    let error = another.and_then(Result::err).map(|error| error.to_string());
    tracing::warn!(error, "the keeper of this mount is gone: the mount ends with this process now");
}

/// Makes this process the one that is behind the socket to whoever asks who that is.
pub(crate) fn claim(listener: &UnixListener) -> io::Result<()> {
    Ok(listen(listener, Backlog::new(BACKLOG)?)?)
}

/// A descriptor of its own for the same open file.
pub(crate) fn again(of: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    of.try_clone_to_owned().map_err(|source| Error::Runtime { source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_of_another_version_is_told_from_a_broken_one() {
        let of = |text: &str| of_bytes::<Description>(text.as_bytes());
        assert!(matches!(of(r#"{"version":2,"image":"x"}"#), Err(Error::OtherForm { found: 2, known: VERSION })));
        assert!(matches!(of(r#"{"version":1}"#), Err(Error::Handover { .. })));
        assert!(matches!(of(""), Err(Error::Handover { .. })));
    }
}
