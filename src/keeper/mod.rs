//! A keeper: a small process that holds a mount while the processes come and go that serve it.
//!
//! ```text
//! crfs mount ─> keeper ─> worker     opens the image, mounts, hands /dev/fuse to the keeper, serves
//!                  │         ╳       dies
//!                  └────> worker     opens the image by what the keeper was handed, goes on where the other one stopped
//! ```
//!
//! It has one thread, and knows nothing of images and registries: what is served are bytes to it, which one worker writes and another reads. What
//! a worker had read of the kernel's requests and not answered, the kernel gives out once more. So one mechanism does for a crash, for a kill and for
//! an upgrade, which ends the old worker once the new one is ready.
//!
//! Nothing answers while there is no worker. Whoever waits goes on to wait, and for no longer than the I/O deadline: then the keeper answers EIO, until
//! a worker lives.

mod deaths;
mod keeping;
mod notify;
mod refusing;
mod renewal;
mod shelf;
mod telling;
mod wire;
mod worker;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use self::keeping::{End, Keeper, Setting};
use self::renewal::Passed;
use self::shelf::Shelf;
use self::telling::Telling;
use self::worker::{Program, Standard, Which};
use crate::{sys, threads};

pub use self::notify::notify;
pub(crate) use self::refusing::resend;
pub(crate) use self::renewal::{FORM, start_heir};
pub(crate) use self::shelf::FIRST as FIRST_PASSED_ON;
pub use self::shelf::{Manager, passed_on};
pub use self::wire::Words;
pub(crate) use self::wire::{Channel, Go, Held, Packet};
pub use self::worker::KEEPER;

/// What a keeper is called in lists of processes.
pub(crate) const NAME: &str = "crfs-keeper";

/// The hidden subcommand that becomes a keeper, of what follows it.
pub const SUBCOMMAND: &str = "keep";
/// The argument before that: it stays in its session, and has a standard error; or not.
pub const FOREGROUND: &str = "foreground";
pub const BACKGROUND: &str = "background";
/// The same, but it leaves the process group of whoever starts it only when its worker is ready. What is mounted over an autofs is mounted by the
/// process group of the service manager; all others wait at that directory until it is.
pub const AUTOMOUNT: &str = "automount";

const SCORE: &str = "/proc/self/oom_score_adj";

/// How much a keeper wants to be spared where memory runs out, and its worker (oom_score_adj, proc(5)).
const LAST: &str = "-900";
const EARLY: &str = "100";

/// What a worker does about that.
pub(crate) fn go_early() {
    let score = std::fs::read_to_string(SCORE).unwrap_or_default();
    if ["0", LAST].contains(&score.trim()) {
        // Raising it is everybody's right.
        let _raised = std::fs::write(SCORE, EARLY);
    }
}

/// The signals that a keeper listens for.
const HEARD: [Signal; 5] = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];
/// Those that tell of a fault of the process itself.
const FAULTS: [Signal; 7] =
    [Signal::SIGABRT, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL, Signal::SIGSEGV, Signal::SIGSYS, Signal::SIGTRAP];

/// Keeps what a worker serves that is started with these arguments, but for the first, which says where.
///
/// `manager`: the service manager that has started this process. `clear_away`: what is left to be done when nobody serves any more.
///
/// To be called before the process opens anything.
#[must_use]
pub fn run(mut arguments: Vec<OsString>, manager: &Manager, clear_away: impl FnOnce()) -> ExitCode {
    let ground = if arguments.is_empty() { OsString::new() } else { arguments.remove(0) };
    let passed_on = renewal::passed_on(&ground);
    let is_foreground = passed_on.as_ref().is_ok_and(|(ground, _)| *ground == FOREGROUND);
    let leaves_late = ground == AUTOMOUNT;
    let kept = passed_on.and_then(|(_, passed_on)| {
        // What was passed on to the program that this one took the place of is not there any more.
        let taken_back = if passed_on.is_none() { shelf::taken_back(manager) } else { None };
        let passed_on = passed_on.or(taken_back.map(|(held, go)| Passed::TakenBack(held, go)));
        let setting = setting(passed_on.as_ref(), manager, (is_foreground, leaves_late));
        begun(arguments, setting, passed_on).and_then(Keeper::keep)
    });
    clear_away();
    match kept {
        Ok(End::Exit(status)) => ExitCode::from(status),
        Ok(End::As(signal)) => {
            die(signal);
            ExitCode::FAILURE
        }
        Err(error) => {
            complain(&format!("the keeper of the mount: {error}"), is_foreground);
            ExitCode::FAILURE
        }
    }
}

fn setting(passed_on: Option<&Passed>, manager: &Manager, (is_foreground, leaves_late): (bool, bool)) -> Setting {
    let (is_told, worker) = match passed_on {
        Some(Passed::Kept(_, kept)) => (true, Some((kept.before, kept.upgrades))),
        Some(Passed::Left(..)) => (true, None),
        Some(Passed::TakenBack(_, go)) => (false, Some((go.before, go.upgrades))),
        None => (false, None),
    };
    let socket = manager.socket.clone();
    let shelf = socket.clone().filter(|_| is_foreground).map(|socket| Shelf::at(socket, worker));
    Setting { is_foreground, leaves_late, has_terminal: false, manager: socket.filter(|_| !is_told), shelf }
}

/// Says what is wrong before there is a worker: as that one would.
fn complain(message: &str, is_foreground: bool) {
    let _heard = match is_foreground {
        true => writeln!(io::stderr().lock(), "crfs: {message}"),
        false => {
            let event = serde_json::json!({ "event": "failed", "message": message });
            writeln!(io::stdout().lock(), "{event}")
        }
    };
}

/// Ends as the worker did that this process stands for.
fn die(signal: Signal) {
    let _unblocked = SigSet::from(signal).thread_unblock();
    let _killed = kill(nix::unistd::getpid(), signal);
}

/// `passed_on`: what the program had that this one takes the place of.
fn begun(arguments: Vec<OsString>, setting: Setting, passed_on: Option<Passed>) -> io::Result<Keeper> {
    let is_foreground = setting.is_foreground;
    if !is_foreground && !setting.leaves_late {
        own_session();
    }
    let name = std::ffi::CString::new(NAME)?;
    let _only_for_ps = nix::sys::prctl::set_name(&name);
    // Where memory runs out, workers go before it: they can be replaced. An ordinary user may not ask for that.
    // Where somebody has decided about that, they know better.
    let was_worker = matches!(passed_on, Some(Passed::Left(..)));
    if std::fs::read_to_string(SCORE).is_ok_and(|score| score.trim() == if was_worker { EARLY } else { "0" }) {
        let _where_allowed = std::fs::write(SCORE, LAST);
    }
    // A working directory on a mount would keep that one busy.
    nix::unistd::chdir("/")?;
    // Whoever ignores it leaves its children to the kernel, and their numbers to whoever comes next.
    sys::hear_of_children()?;
    let mut blocked = SigSet::all();
    FAULTS.into_iter().for_each(|fault| blocked.remove(fault));
    blocked.thread_block()?;
    let signals = SignalFd::with_flags(&HEARD.into_iter().collect(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    // A terminal that hangs up is gone for good; without one, the signal asks for an upgrade.
    let has_terminal = is_foreground && std::fs::File::open("/dev/tty").is_ok();
    let (program, setting) = (Program::new(arguments), Setting { has_terminal, ..setting });
    match passed_on {
        Some(Passed::Kept(held, kept)) => return Ok(Keeper::renewed(program, signals, (held, kept), setting)),
        Some(Passed::Left(held, go, channel)) => {
            return Ok(Keeper::heir(program, signals, (held, go, &channel), setting));
        }
        Some(Passed::TakenBack(held, go)) => {
            worker::let_go_of_standard(false)?;
            let _heard = writeln!(io::stderr(), "crfs: goes on with the mount that the service manager has kept");
            return Ok(Keeper::orphaned(program, signals, (held, go), setting));
        }
        None => {}
    }
    let worker = program.start(Which::Own, Standard::Inherited).map_err(threads::explained)?;
    let telling = Telling::by_standard_output()?;
    worker::let_go_of_standard(!is_foreground)?;
    Ok(Keeper::first(program, signals, (worker, telling), setting))
}

/// What a terminal or a service manager sends to all processes of a group is for others from now on.
pub(crate) fn own_session() {
    // Fails only for the leader of a process group, which has its own already.
    let _own_session = nix::unistd::setsid();
}
