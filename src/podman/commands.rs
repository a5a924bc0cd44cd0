//! `crfs store add`, `rm` and `ls`: by the store's server where one runs, else in this process, for the server that comes later.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Error;
use super::Store;
use super::control::{self, Request};
use super::lock::Lock;
use super::open;
pub use super::open::Listing;
use super::paths::Paths;
use super::records::Records;
use crate::cache::Cache;
use crate::image::look::runtime;
use crate::image::options::ImageOptions;
use crate::image::{Event, Report};
use crate::kernel::mounts::{self, Mount};
use crate::registry::Given;
use crate::serve::Unanswered;
use crate::serve::ask::{self, GLANCE, server_of};
use crate::serve::service::Service;
use crate::serve::status::{State, Status};
use crate::serve::upgrade;
use crate::sys::limit;

/// How long a server that starts, or another command, is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// How long a server may take to take a connection.
const ANSWER: Duration = Duration::from_secs(10);

/// Who changes the store.
enum Changer {
    Server(UnixStream),
    Here(Box<Lock>),
}

/// Adds an image; with `full`, reads all of its layers, so that podman can push them.
///
/// # Errors
/// Where it cannot be had or not be served; the store is as it was, then.
pub fn add(
    paths: &Paths,
    source: ImageOptions,
    name: Option<String>,
    full: bool,
    report: &Report,
) -> Result<Vec<Listing>, Error> {
    perform(paths, Request::Add { source: Box::new(source), name, full }, report)
}

/// Removes images by their names or ids. `podman`: the roots of podman's own stores, which may use them.
///
/// # Errors
/// Where one is not there, or is used; none is removed, then.
pub fn remove(paths: &Paths, names: Vec<String>, podman: Vec<PathBuf>, report: &Report) -> Result<Vec<Listing>, Error> {
    perform(paths, Request::Remove { names, podman }, report)
}

/// Gives the store to a user of the machine, now if it is served and whenever it is; with `stop`, takes it away.
///
/// # Errors
/// Where there is no such user, or no ids for their containers, or the kernel cannot do it.
pub fn share(paths: &Paths, user: String, stop: bool) -> Result<(), Error> {
    let nobody: Report = Arc::new(|_| Ok(()));
    perform(paths, Request::Share { user, stop }, &nobody).map(drop)
}

/// Hands the store's server what podman pulls by. Nothing is to be done where none runs.
///
/// # Errors
/// Where it does not take them.
pub fn give_credentials(paths: &Paths, given: Given) -> Result<(), Error> {
    let Some(server) = answered(paths, connect)? else { return Ok(()) };
    asked(paths, control::ask(server, Request::Credentials(given), &mut |_| {})).map(drop)
}

/// All images of the store.
///
/// # Errors
/// Where the store cannot be read.
pub fn list(paths: &Paths) -> Result<Vec<Listing>, Error> {
    if let Some(server) = answered(paths, connect)? {
        return asked(paths, control::ask(server, Request::List, &mut |_| {}));
    }
    let records = answered(paths, |paths| Records::read(&paths.records()))?;
    Ok(records.images.iter().map(|image| open::listing(&records, image)).collect())
}

/// The metrics of the store's server, where one runs.
///
/// # Errors
/// Where it does not answer.
pub fn metrics(paths: &Paths) -> Result<Option<String>, Error> {
    let server = answered(paths, |paths| Ok(control::connect(paths, GLANCE)))?;
    let told = server.and_then(|server| server.map(ask::metrics).transpose());
    asked(paths, told)
}

/// How the store's server is, where there is one, or was one whose mount is still there.
///
/// # Errors
/// Where that cannot be told.
pub fn status(paths: &Paths) -> Result<Option<Status>, Error> {
    let known = |state| {
        let root = &paths.root;
        Status::unknown(Store::KIND, root.display().to_string(), state, root.clone())
    };
    Ok(match answered(paths, |paths| Ok(control::connect(paths, GLANCE)))? {
        Ok(Some(server)) => {
            let pid = server_of(&server).ok();
            Some(Status { pid, ..known(State::Silent) }.told(ask::status(server)))
        }
        Ok(None) => {
            let mount = mounts::at(&paths.mount()).map_err(|source| Error::File { path: paths.mount(), source })?;
            mount.filter(Mount::is_stores).map(|_| of_unanswered(paths, known(State::Dead))).transpose()?
        }
        Err(stopped) => Some(known(State::Silent).told(Err(stopped))),
    })
}

/// A store that is mounted, and that nobody answers for at the place of its state.
fn of_unanswered(paths: &Paths, dead: Status) -> Result<Status, Error> {
    let is_taken = answered(paths, |paths| Ok(Lock::is_taken(paths)))?;
    Ok(match is_taken {
        Ok(false) => dead,
        Ok(true) => dead.silent("somebody has the store: its server starts, or has another --state".to_owned()),
        // That is no reason to take it for dead.
        Err(error) => dead.silent(format!("whether its server lives cannot be told: {error}")),
    })
}

/// Lets the program that is installed now go on with a store. `None`: it has no server.
///
/// # Errors
/// Where the store goes on with the server that it has.
pub fn upgrade(paths: &Paths) -> Result<Option<()>, Error> {
    let gone = || Unanswered::Ended { source: io::ErrorKind::NotConnected.into() };
    let again = || control::connect(paths, GLANCE)?.ok_or_else(gone);
    match answered(paths, |paths| Ok(control::connect(paths, GLANCE)))? {
        Ok(None) => Ok(None),
        _ => Ok(upgrade::upgrade_by(&paths.root, &again).map(Some)?),
    }
}

fn asked<T>(paths: &Paths, answer: Result<T, Unanswered>) -> Result<T, Error> {
    answer.map_err(|error| match error {
        Unanswered::Failed { message } => Error::Reported { message },
        source => Error::Server { log: paths.log(), source },
    })
}

fn perform(paths: &Paths, request: Request, report: &Report) -> Result<Vec<Listing>, Error> {
    answered(paths, Paths::create)?;
    // Progress that nobody hears is none.
    let mut on_event = |event: &Event| drop(report(event));
    match changer(paths)? {
        Changer::Server(server) => asked(paths, control::ask(server, request, &mut on_event)),
        Changer::Here(lock) => {
            let (asked, own, report) = (paths.clone(), paths.clone(), Arc::clone(report));
            let done =
                limit::while_answered(DISK, move || asked.ask_disk(), move || here(&own, request, *lock, &report));
            done.unwrap_or_else(|| Err(Error::File { path: paths.root.clone(), source: limit::silence(DISK) }))
        }
    }
}

/// How long the filesystem of a store may take, and a server to take a connection.
const DISK: Duration = Duration::from_secs(ANSWER.as_secs() + 10);

/// Does what may wait for the filesystem of a store.
pub(super) fn answered<T: Send + 'static>(
    paths: &Paths,
    ask: impl FnOnce(&Paths) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let asked = paths.clone();
    let done = limit::answered(DISK, move || Ok(ask(&asked)));
    done.map_err(|source| Error::File { path: paths.root.clone(), source })?
}

fn changer(paths: &Paths) -> Result<Changer, Error> {
    let start = Instant::now();
    loop {
        let found = answered(paths, |paths| match connect(paths)? {
            Some(server) => Ok(Some(Changer::Server(server))),
            None => Ok(Lock::take(paths)?.map(|lock| Changer::Here(Box::new(lock)))),
        })?;
        if let Some(changer) = found {
            return Ok(changer);
        }
        if start.elapsed() >= PATIENCE {
            return Err(Error::Taken { root: paths.root.clone() });
        }
        std::thread::sleep(PAUSE);
    }
}

/// The store's server, where there is one.
fn connect(paths: &Paths) -> Result<Option<UnixStream>, Error> {
    asked(paths, control::connect(paths, ANSWER))
}

fn here(paths: &Paths, request: Request, lock: Lock, report: &Report) -> Result<Vec<Listing>, Error> {
    let place = Records::read(&paths.records())?.cache;
    let cache = match (&request, place) {
        (_, Some(place)) => Cache::open(&place.dir, place.size),
        (Request::Add { source, .. }, None) => Cache::open(&source.cache_dir, source.cache_size),
        _ => Cache::none(),
    };
    let store = Store::new(paths.clone(), cache, None, lock)?;
    runtime()?.block_on(Store::perform(&store, request, report))
}
