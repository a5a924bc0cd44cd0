//! `crfs mount` and `crfs umount`.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::args::{MountArgs, ServeArgs, UmountArgs};
use super::environment::Environment;
use super::{Failure, complain, format, options, print};
use crate::image;
use crate::keeper;
use crate::serve::holders::{Holder, named};
use crate::serve::options::MountOptions;
use crate::serve::unmount::{Outcome, unmount, unmount_all};
use crate::serve::{self as engine, Event, Keeper, Ready, Report, background, mount as image_server};

pub(super) fn mount(args: MountArgs, verbose: u8, environment: &Environment) -> Result<(), Failure> {
    let foreground = args.foreground;
    let options = options::mount(args, verbose, environment)?;
    if foreground {
        let never = background::become_keeper(&options)?;
        match never {}
    }
    let start = Instant::now();
    let mut progress = Progress::new();
    let ready = background::mount(&options, &mut |event| {
        if let Event::Image(event) = event {
            progress.show(event);
        }
    });
    progress.clear();
    let ready = ready?;
    // It is mounted, whether or not anybody could be told.
    if let Err(error) = say_ready(&ready, &options.dir, start.elapsed()) {
        tracing::warn!(dir = %options.dir.display(), %error, "the image is mounted, but nobody could be told so");
    }
    if let Some(Err(error)) = environment.notify_socket.as_deref().map(|socket| keeper::notify(socket, ready.pid)) {
        complain(&format!("the service manager was not told ($NOTIFY_SOCKET): {error}"));
    }
    Ok(())
}

fn say_ready(ready: &Ready, dir: &Path, elapsed: Duration) -> Result<(), image::Error> {
    print(&ready_line(ready, dir, elapsed))?;
    sent_whole_line(ready.sent_whole).iter().for_each(|line| complain(line));
    Ok(())
}

/// A worker, as its keeper starts it.
pub(super) fn serve(args: &ServeArgs) -> Result<(), Failure> {
    let keeper = Keeper::inherited(args.keeper, (!args.foreground).then_some(background::WORKER))?;
    let served = match args {
        ServeArgs { resume: true, .. } => background::resume(&keeper).map_err(|error| (error, true)),
        ServeArgs { foreground: true, .. } => serve_in_foreground(&keeper).map_err(|error| (error, false)),
        ServeArgs { .. } => background::serve(&keeper).map_err(|error| (error, true)),
    };
    let Err((error, is_told)) = served else { return Ok(()) };
    keeper.failed(error.chain());
    Err(if is_told { Failure::Reported } else { error.into() })
}

fn serve_in_foreground(keeper: &Keeper) -> Result<(), engine::Error> {
    let start = Instant::now();
    let options: MountOptions = background::begin()?;
    let dir = options.dir.clone();
    let said = move |ready: &Ready| Ok(say_ready(ready, &dir, start.elapsed())?);
    image_server::run(&options, &report(said), std::future::pending(), Some(keeper))
}

/// Takes the events of a server in this process.
fn report(said: impl Fn(&Ready) -> Result<(), engine::Error> + Send + Sync + 'static) -> Report {
    let progress = Mutex::new(Progress::new());
    Arc::new(move |event| {
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Ready(ready) => {
                progress.clear();
                // A closed standard output is no reason to take the mount away.
                said(ready).or(Ok(()))
            }
            Event::Image(event) => {
                progress.show(event);
                Ok(())
            }
            Event::Mounting { .. } | Event::Mounted { .. } | Event::Failed { .. } => Ok(()),
        }
    })
}

/// Shows on a terminal how far `work` is.
pub(super) fn with_progress<T>(work: impl FnOnce(&image::Report) -> T) -> T {
    let progress = Arc::new(Mutex::new(Progress::new()));
    let shown = Arc::clone(&progress);
    let report: image::Report = Arc::new(move |event| {
        shown.lock().unwrap_or_else(PoisonError::into_inner).show(event);
        Ok(())
    });
    let done = work(&report);
    progress.lock().unwrap_or_else(PoisonError::into_inner).clear();
    done
}

pub(super) fn umount(args: &UmountArgs, environment: &Environment) -> Result<(), Failure> {
    let state_dirs = environment.state_dirs();
    let Some(target) = &args.target else { return umount_all(&state_dirs) };
    Ok(said(target, unmount(target, &state_dirs)?)?)
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

fn said(dir: &Path, outcome: Outcome) -> Result<(), image::Error> {
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

/// The line on a terminal while layers are opened; nothing anywhere else.
pub(super) struct Progress {
    visible: bool,
    shown: bool,
    /// Since when layers are read whole.
    reading: Option<Instant>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { visible: io::stderr().is_terminal(), shown: false, reading: None }
    }

    pub(super) fn show(&mut self, event: &image::Event) {
        let text = match event {
            image::Event::Reading { bytes, of } => {
                let since = *self.reading.get_or_insert_with(Instant::now);
                Some(reading_text(*bytes, *of, since.elapsed()))
            }
            event => progress_text(event),
        };
        let Some(text) = text.filter(|_| self.visible) else { return };
        self.shown = true;
        write(&format!("\r\x1b[K{}", format::printable(&text)));
    }

    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            write("\r\x1b[K");
        }
    }
}

fn write(text: &str) {
    let mut terminal = io::stderr().lock();
    // A terminal that is gone needs no progress.
    let _shown = terminal.write_all(text.as_bytes()).and_then(|()| terminal.flush());
}

fn progress_text(event: &image::Event) -> Option<String> {
    match event {
        image::Event::Resolved { name, layers, .. } => Some(format!("{name}: 0/{layers} layers open")),
        image::Event::Opened { layers, of, fetched } => {
            Some(format!("{layers}/{of} layers open, {} fetched", format::bytes(*fetched)))
        }
        // Shown with what only whoever shows it knows: the rate.
        image::Event::Reading { .. } => None,
    }
}

/// The bar for layers that are read whole: how much, how fast, and how long it will still take.
fn reading_text(bytes: u64, of: u64, elapsed: Duration) -> String {
    const WIDTH: u64 = 24;
    let filled = bytes.saturating_mul(WIDTH).checked_div(of).unwrap_or(0).min(WIDTH);
    let bar: String = (0..WIDTH).map(|place| if place < filled { '#' } else { '.' }).collect();
    let rate = bytes as f64 / elapsed.as_secs_f64().max(0.001);
    let left = of.saturating_sub(bytes) as f64 / rate.max(1.0);
    let (bytes, of, rate) = (format::bytes(bytes), format::bytes(of), format::bytes(rate as u64));
    format!("[{bar}] {bytes} of {of}, {rate}/s, {left:.0} s left")
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

    #[test]
    fn only_what_happens_before_it_is_ready_is_progress() {
        let opened = image::Event::Opened { layers: 1, of: 3, fetched: 2048 };
        assert_eq!(progress_text(&opened).as_deref(), Some("1/3 layers open, 2.0 KiB fetched"));
        assert_eq!(progress_text(&image::Event::Reading { bytes: 1, of: 2 }), None);
    }

    #[test]
    fn reading_has_a_bar_a_rate_and_an_end() {
        let text = reading_text(5 << 20, 20 << 20, Duration::from_secs(2));
        assert_eq!(text, "[######..................] 5.0 MiB of 20.0 MiB, 2.5 MiB/s, 6 s left");
        assert!(reading_text(0, 0, Duration::ZERO).starts_with("[...."));
    }
}
