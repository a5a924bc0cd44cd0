//! `crfs upgrade`: lets the program that is installed now go on with mounts that another one serves.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Error;
use super::ask::{self, SILENCE, Unanswered};
use super::control::{Answer, Request};
use super::explain;
use super::service::{Kept, Nothing};
use super::state::{self, FoundState};
use crate::kernel;

/// How long the next server may take to answer, once the one before it is gone.
const ANSWERS: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_millis(5);

/// The directory of a mount, and what came of upgrading it.
pub type Upgraded = (PathBuf, Result<(), Error>);

/// Upgrades the mount that `target` means, by its id or its directory. `None`: there is none.
///
/// # Errors
/// Where that cannot be told.
pub fn upgrade(target: &Path, state_dirs: &[PathBuf]) -> Result<Option<Upgraded>, Error> {
    match explain::state_of(target, state_dirs) {
        // A store's root may be a filesystem of its own.
        Err(Error::Kernel(kernel::Error::NotMounted { .. }) | Error::NotCrfs { .. } | Error::NotOurs { .. })
        | Ok(None) => Ok(None),
        found => Ok(found?.map(|state| (state.record.dir.clone(), upgrade_known(&state)))),
    }
}

/// What to say where there is none.
#[must_use]
pub fn not_mounted(target: &Path) -> Error {
    kernel::Error::NotMounted { dir: target.to_owned() }.into()
}

/// Upgrades all mounts of this user, one after the other. The last error is that of a directory of states that cannot be asked.
#[must_use]
pub fn upgrade_all(state_dirs: &[PathBuf]) -> Vec<Upgraded> {
    let (all, silent) = state::found_where_answered(state_dirs);
    let live = all.iter().filter(|state| state.may_be_served());
    let mut upgraded: Vec<_> = live.map(|state| (state.record.dir.clone(), upgrade_known(state))).collect();
    upgraded.extend(silent.map(|error| (PathBuf::new(), Err(error))));
    upgraded
}

fn upgrade_known(state: &FoundState) -> Result<(), Error> {
    upgrade_by(&state.record.dir, &|| state.connect())
}

/// Upgrades what has its place at a directory, and whose server `connect` connects to.
pub(crate) fn upgrade_by(dir: &Path, connect: &dyn Fn() -> Result<UnixStream, Unanswered>) -> Result<(), Error> {
    let stays = |why| Error::NotUpgraded { dir: dir.to_owned(), why };
    let kept = || -> Result<Option<Kept>, Unanswered> { Ok(connect().and_then(ask::status)?.kept) };
    let before = kept().map_err(stays)?;
    let asked =
        connect().and_then(|server| ask::ask::<Nothing, Nothing>(server, &Request::Upgrade, SILENCE, &mut |_| {}));
    match asked {
        // It is gone, and says nothing.
        Err(Unanswered::Ended { .. }) => {}
        Err(why) => return Err(stays(why)),
        Ok(Answer::Own(never)) => match never {},
        Ok(_) => return Err(stays(Unanswered::OtherVersion)),
    }
    let start = Instant::now();
    loop {
        match kept() {
            Ok(now) if now.map(|kept| kept.upgrades) > before.map(|kept| kept.upgrades) => return Ok(()),
            // Another server, which is no upgrade: nobody is left who would bring one.
            Ok(now) if now != before => return Err(stays(Unanswered::Replaced)),
            Err(why) if start.elapsed() >= ANSWERS => return Err(stays(why)),
            _ if start.elapsed() >= ANSWERS => return Err(stays(Unanswered::Stopped { seconds: ANSWERS.as_secs() })),
            _ => std::thread::sleep(GLANCE),
        }
    }
}
