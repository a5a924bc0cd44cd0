//! `crfs mount` and `crfs umount`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::args::{MountArgs, ServeArgs, UmountArgs};
use super::environment::Environment;
use super::progress::{Progress, be_quiet, is_quiet};
use super::{Failure, complain, complaint, format, options, print};
use crate::image;
use crate::keeper::{self, Words};
use crate::serve::holders::{Holder, named};
use crate::serve::options::MountOptions;
use crate::serve::unmount::{Detach, Outcome, unmount, unmount_all};
use crate::serve::{self as engine, Event, Keeper, Ready, Report, background, background::Said, mount as image_server};

pub(super) fn mount(args: MountArgs, verbose: u8, environment: &Environment) -> Result<(), Failure> {
    let foreground = args.foreground;
    let options = options::mount(args, verbose, environment)?;
    if foreground {
        let never = background::become_keeper(&options, Environment::manager().passed_on.len())?;
        match never {}
    }
    let start = Instant::now();
    let ready = in_background(&options)?;
    // It is mounted, whether or not anybody could be told.
    if let Err(error) = say_ready(&ready, &options.dir, start.elapsed()) {
        tracing::warn!(dir = %options.dir.display(), %error, "the image is mounted, but nobody could be told so");
    }
    if let Some(Err(error)) = environment.notify_socket.as_deref().map(|socket| keeper::notify(socket, ready.pid)) {
        complain(&format!("the service manager was not told ($NOTIFY_SOCKET): {error}"));
    }
    Ok(())
}

/// Mounts, and shows on a terminal how far it is.
pub(super) fn in_background(options: &MountOptions) -> Result<Ready, engine::Error> {
    let mut progress = Progress::new();
    let said = if progress.has_bars() { Said::Apart } else { Said::AsItIs };
    let ready = background::mount(options, said, &mut |event| {
        if let Event::Image(event) = event {
            progress.show(event);
        }
    });
    progress.clear();
    ready
}

pub(super) fn say_ready(ready: &Ready, dir: &Path, elapsed: Duration) -> Result<(), image::Error> {
    print(&ready_line(ready, dir, elapsed))?;
    sent_whole_line(ready.sent_whole).iter().filter(|_| !is_quiet()).for_each(|line| complain(line));
    Ok(())
}

/// A worker, as its keeper starts it.
pub(super) fn serve(args: &ServeArgs) -> Result<(), Failure> {
    let keeper = Keeper::inherited(args.keeper, (!args.foreground).then_some(background::WORKER))?;
    let served = match args {
        ServeArgs { resume: true, .. } => background::resume(&keeper).map_err(|error| (error, true)),
        ServeArgs { foreground: true, .. } => serve_in_foreground(&keeper).map_err(|error| (error, false)),
        ServeArgs { .. } => background::serve(&keeper, args.over_autofs).map_err(|error| (error, true)),
    };
    let Err((error, is_told)) = served else { return Ok(()) };
    keeper.failed(error.chain());
    Err(if is_told { Failure::Reported } else { error.into() })
}

fn serve_in_foreground(keeper: &Keeper) -> Result<(), engine::Error> {
    let start = Instant::now();
    let options: MountOptions = background::begin()?;
    if options.log.quiet {
        be_quiet();
    }
    let words = |ready: &Ready| {
        let slow = sent_whole_line(ready.sent_whole).filter(|_| !is_quiet());
        let error = slow.map(|line| complaint(&line) + "\n").unwrap_or_default();
        Words { output: ready_line(ready, &options.dir, start.elapsed()), error }
    };
    let waiting = image_server::Waiting { keeper, words: &words, then: || () };
    image_server::run(&options, &report(), std::future::pending(), &waiting)
}

/// Takes the events of a server in this process. What is said of the last one is for the keeper to say.
fn report() -> Report {
    let progress = Mutex::new(Progress::new());
    Arc::new(move |event| {
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Ready(_) => {
                progress.clear();
                Ok(())
            }
            Event::Image(event) => {
                progress.show(event);
                Ok(())
            }
            Event::Mounting { .. } | Event::Mounted { .. } | Event::Failed { .. } => Ok(()),
        }
    })
}

pub(super) fn umount(args: &UmountArgs, environment: &Environment) -> Result<(), Failure> {
    let state_dirs = environment.state_dirs();
    let Some(target) = &args.target else { return umount_all(&state_dirs) };
    Ok(said(target, unmount(target, &state_dirs, Detach::IfIdle)?)?)
}

fn umount_all(state_dirs: &[PathBuf]) -> Result<(), Failure> {
    let mut outcome = Ok(());
    for (dir, unmounted) in unmount_all(state_dirs) {
        match unmounted {
            Ok(left) => said(&dir, left)?,
            Err(error) => {
                complain(&error.chain());
                outcome = Err(Failure::Reported);
            }
        }
    }
    outcome
}

pub(super) fn said(dir: &Path, outcome: Outcome) -> Result<(), image::Error> {
    let Outcome::StillInUse(holders) = outcome else { return Ok(()) };
    let line = format!("{}: unmounted; still in use {}", dir.display(), by_whom(&holders));
    print(&(format::printable(&line) + "\n"))
}

/// By whom a mount is used that is not at its directory any more.
pub(super) fn by_whom(holders: &[Holder]) -> String {
    match holders {
        // Which process has a file of it open cannot be told once it is detached (umount -l).
        [] => "by a process that has a file or its working directory there, or by a mount that this user cannot see"
            .to_owned(),
        holders => format!("by another mount: {}", named(holders)),
    }
}

fn ready_line(ready: &Ready, dir: &Path, elapsed: Duration) -> String {
    let Ready { name, digest, layers, lazy, fetched, .. } = ready;
    let layers = match (layers, layers.saturating_sub(*lazy)) {
        (1, 0) => "1 layer (lazy)".to_owned(),
        (1, _) => "1 layer (read whole)".to_owned(),
        (_, 0) => format!("{layers} layers (all lazy)"),
        (_, whole) => format!("{layers} layers ({lazy} lazy, {whole} read whole)"),
    };
    let line = format!(
        "{name}@{digest} on {}: {layers}, {} fetched in {:.2} s",
        dir.display(),
        format::bytes(*fetched),
        elapsed.as_secs_f64()
    );
    format::printable(&line) + "\n"
}

/// What is said of layers that came whole though they were not asked for whole.
fn sent_whole_line(layers: usize) -> Option<String> {
    let said = match layers {
        0 => return None,
        1 => "1 layer was read whole: its host sends".to_owned(),
        layers => format!("{layers} layers were read whole: their host sends"),
    };
    Some(format!("{said} all of a blob to who asks for a part, as a pull-through cache does that has not got it yet"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::Digest;

    fn line(layers: usize, lazy: usize) -> String {
        let ready = Ready {
            name: "docker.io/library/a".into(),
            digest: Digest::of(b""),
            layers,
            lazy,
            sent_whole: 0,
            fetched: 1 << 20,
            pid: 1,
        };
        ready_line(&ready, Path::new("/m\x1b"), Duration::from_millis(840))
    }

    #[test]
    fn the_line_says_what_layers_bytes_and_time() {
        let digest = Digest::of(b"");
        let expected = format!(
            "docker.io/library/a@{digest} on /m\\u{{1b}}: 5 layers (4 lazy, 1 read whole), 1.0 MiB fetched in 0.84 s\n"
        );
        assert_eq!(line(5, 4), expected);
        assert!(line(5, 5).contains(": 5 layers (all lazy),"));
        assert!(line(1, 1).contains(": 1 layer (lazy),"));
        assert!(line(1, 0).contains(": 1 layer (read whole),"));
    }

    #[test]
    fn what_came_whole_unasked_is_said() {
        assert_eq!(sent_whole_line(0), None);
        assert!(sent_whole_line(1).unwrap().starts_with("1 layer was read whole: its host sends all"));
        assert!(sent_whole_line(3).unwrap().starts_with("3 layers were read whole: their host sends all"));
    }
}
