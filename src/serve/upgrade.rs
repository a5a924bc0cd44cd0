//! `crfs upgrade`: lets the program that is installed now go on with mounts that another one serves.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Error;
use super::ask::{self, SILENCE, Unanswered};
use super::control::{Answer, Request};
use super::explain;
use super::service::{Kept, Nothing};
use super::state::{self, FoundState};

/// How long the next server may take to answer, once the one before it is gone.
const ANSWERS: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_millis(5);

/// The directory of a mount, and what came of upgrading it.
pub type Upgraded = (PathBuf, Result<(), Error>);

/// Upgrades the mount that `target` means, by its id or its directory.
///
/// # Errors
/// Where there is none, or it goes on with the server that it has.
pub fn upgrade(target: &Path, state_dirs: &[PathBuf]) -> Result<Upgraded, Error> {
    let found = explain::state_of(target, state_dirs)?;
    let state = found.ok_or_else(|| crate::kernel::Error::NotMounted { dir: target.to_owned() })?;
    Ok((state.record.dir.clone(), upgrade_known(&state)))
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
    let stays = |why| Error::NotUpgraded { dir: state.record.dir.clone(), why };
    let before = kept(state).map_err(stays)?;
    let asked = state
        .connect()
        .and_then(|server| ask::ask::<Nothing, Nothing>(server, &Request::Upgrade, SILENCE, &mut |_| {}));
    match asked {
        // It is gone, and says nothing.
        Err(Unanswered::Ended { .. }) => {}
        Err(why) => return Err(stays(why)),
        Ok(Answer::Own(never)) => match never {},
        Ok(_) => return Err(stays(Unanswered::OtherVersion)),
    }
    let start = Instant::now();
    loop {
        match kept(state) {
            Ok(now) if now.map(|kept| kept.upgrades) > before.map(|kept| kept.upgrades) => return Ok(()),
            Err(why) if start.elapsed() >= ANSWERS => return Err(stays(why)),
            _ if start.elapsed() >= ANSWERS => return Err(stays(Unanswered::Stopped { seconds: ANSWERS.as_secs() })),
            _ => std::thread::sleep(GLANCE),
        }
    }
}

fn kept(state: &FoundState) -> Result<Option<Kept>, Unanswered> {
    Ok(state.connect().and_then(ask::status)?.kept)
}
