//! Where logs go: to standard error for whoever typed the command, and, for a server, as JSON lines to a file of bounded size.
//!
//! A command writes by itself. A server does not: neither may wait that nobody reads its standard error, nor that the file's disk has stopped.

mod queue;

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use nix::libc;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use self::queue::Queue;
use super::options::LogOptions;
use crate::sys::own::regular;

/// Bytes after which a log is put aside (`.1`, the one before it is dropped).
const LIMIT: u64 = 10 << 20;

/// How long the end of a server waits for what was logged and is not written.
const ENDING: Duration = Duration::from_secs(1);

/// Those of this process.
static QUEUES: OnceLock<Vec<Queue>> = OnceLock::new();

/// Starts logging for the life of the process; a second call changes nothing.
pub fn start(options: &LogOptions) {
    install(options, BoxMakeWriter::new(|| StandardError), None);
}

/// The same for a server. What it logs is written by threads of their own until this is dropped.
///
/// # Errors
/// Where their threads cannot be made; says which limit it is.
pub(crate) fn start_server(options: &LogOptions, file: Option<RotatingLog>) -> io::Result<Settled> {
    let terminal = Queue::start(StandardError, |lines| {
        tracing::warn!(lines, "standard error has not taken all of the log; these lines are missing there");
    })?;
    let lost = |lines| tracing::warn!(lines, "the disk of the log file was too slow; these lines are missing in it");
    let file = file.map(|file| Queue::start(file, lost)).transpose()?;
    install(options, writer(&terminal), file.as_ref().map(writer));
    // One process is one server.
    let _first = QUEUES.set(std::iter::once(terminal).chain(file).collect());
    Ok(Settled)
}

/// The same for a process whose log is its server's: lines of JSON on standard error, for [`take_over`].
pub(crate) fn start_for_server(options: &LogOptions) {
    let level = file_level(options);
    let lines = tracing_subscriber::fmt::layer().json().log_internal_errors(false).with_writer(io::stderr);
    // An error says that logging has been started before, which is as good.
    let _started_before = tracing_subscriber::registry().with(lines.with_filter(filter(options, level))).try_init();
    hear_of_panics();
}

/// Logs a line that such a process has logged. `None`: it is none.
pub(crate) fn take_over(line: &str) -> Option<()> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let mut fields = line.get("fields")?.as_object()?.clone();
    let message = fields.remove("message");
    let message = message.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default();
    let facts = if fields.is_empty() { None } else { Some(serde_json::Value::from(fields).to_string()) };
    match line.get("level")?.as_str()? {
        "ERROR" => tracing::error!(facts, "{message}"),
        "WARN" => tracing::warn!(facts, "{message}"),
        "INFO" => tracing::info!(facts, "{message}"),
        "DEBUG" => tracing::debug!(facts, "{message}"),
        _ => tracing::trace!(facts, "{message}"),
    }
    Some(())
}

/// Writes what was logged, within a limit, when it is dropped.
#[must_use]
pub(crate) struct Settled;

impl Drop for Settled {
    fn drop(&mut self) {
        settle();
    }
}

/// Waits until what was logged is written, but not for long.
pub(crate) fn settle() {
    for queue in QUEUES.get().into_iter().flatten() {
        // One that takes nothing has to do without.
        let _written = queue.settle(ENDING);
    }
}

fn writer(queue: &Queue) -> BoxMakeWriter {
    let queue = queue.clone();
    BoxMakeWriter::new(move || queue.clone())
}

fn install(options: &LogOptions, terminal: BoxMakeWriter, file: Option<BoxMakeWriter>) {
    let terminal = tracing_subscriber::fmt::layer()
        .with_writer(terminal)
        .with_ansi(io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .with_filter(filter(options, if options.quiet { QUIET } else { terminal_level(options.verbosity) }));
    let file = file.map(|file| {
        let level = file_level(options);
        let json = tracing_subscriber::fmt::layer().json().log_internal_errors(false).with_writer(file);
        json.with_filter(filter(options, level))
    });
    // An error says that logging has been started before, which is as good.
    let _started_before = tracing_subscriber::registry().with(terminal).with(file).try_init();
    hear_of_panics();
}

fn file_level(options: &LogOptions) -> &'static str {
    if options.verbosity > 1 { terminal_level(options.verbosity) } else { "info,fuser=off" }
}

fn hear_of_panics() {
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(%panic, "panicked: this is a bug in crfs");
        // For the log, not for the terminal.
        tracing::info!(backtrace = %std::backtrace::Backtrace::force_capture(), "where it panicked");
    }));
}

/// What RUST_LOG asks for, or `level`. RUST_LOG is of other programs as well: what is no `[TARGET=]LEVEL` there is left out.
fn filter(options: &LogOptions, level: &str) -> Targets {
    let directives = options.filter.as_deref().unwrap_or(level).split(',').map(str::trim);
    // Nothing between two commas would be the level `error`.
    let is_known = |directive: &&str| !directive.is_empty() && directive.parse::<Targets>().is_ok();
    let known: Vec<&str> = directives.filter(is_known).collect();
    known.join(",").parse().unwrap_or_default()
}

/// Other crates stay one step quieter: their talk is for those who ask for all of it.
///
/// fuser calls it an error when the kernel no longer wants a reply, which is what happens when a reader is killed; of a certificate that is
/// refused, crfs says more itself.
fn terminal_level(verbosity: u8) -> &'static str {
    match verbosity {
        0 => "warn,fuser=off,rustls_platform_verifier=off",
        1 => "warn,fuser=off,rustls_platform_verifier=off,crfs=info",
        2 => "info,crfs=debug",
        _ => "trace",
    }
}

/// What `-q` leaves.
const QUIET: &str = "error,fuser=off,rustls_platform_verifier=off";

/// Does what writes to standard error when nothing else is in the way there.
type WriteBy = fn(&mut dyn FnMut());

/// How that is done; as it is where nothing else is there.
static WRITE_BY: OnceLock<WriteBy> = OnceLock::new();

/// Writes to standard error by `aside` from now on; a second call changes nothing.
pub fn write_by(aside: WriteBy) {
    // One process has one standard error.
    let _first = WRITE_BY.set(aside);
}

/// Standard error, which others draw on.
pub(super) struct StandardError;

impl Write for StandardError {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut written = Ok(0);
        let mut write = || written = io::stderr().lock().write_all(bytes).map(|()| bytes.len());
        match WRITE_BY.get() {
            Some(aside) => aside(&mut write),
            None => write(),
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// A log file that is put aside once when it is full, so that both together never pass twice the limit.
pub struct RotatingLog {
    path: PathBuf,
    file: File,
    len: u64,
    limit: u64,
}

impl RotatingLog {
    /// # Errors
    /// Where the file cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, LIMIT)
    }

    fn with_limit(path: &Path, limit: u64) -> io::Result<Self> {
        let file = open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, len, limit })
    }

    fn rotate(&mut self) -> io::Result<()> {
        fs::rename(&self.path, self.path.with_extension("log.1"))?;
        self.file = open(&self.path)?;
        self.len = 0;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    // What stands there and is none is nothing that could be waited for.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    regular(OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(path)?)
}

impl Write for RotatingLog {
    /// A line comes at a time, so lines are never torn between the two files.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.len > 0 && self.len.saturating_add(line.len() as u64) > self.limit {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.len = self.len.saturating_add(line.len() as u64);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_is_put_aside_once_and_lines_stay_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.log");
        let mut log = RotatingLog::with_limit(&path, 10).unwrap();
        for line in ["one\n", "two\n", "three\n", "four\n"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "four\n");
        assert_eq!(fs::read_to_string(dir.path().join("server.log.1")).unwrap(), "three\n");
    }

    #[test]
    fn an_old_log_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.log");
        fs::write(&path, "12345678\n").unwrap();
        let mut log = RotatingLog::with_limit(&path, 10).unwrap();
        log.write_all(b"x\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "x\n");
        assert_eq!(fs::read_to_string(dir.path().join("server.log.1")).unwrap(), "12345678\n");
    }

    #[test]
    fn the_filter_leaves_out_what_it_does_not_know() {
        use tracing_subscriber::filter::LevelFilter;
        let filter = |directives: Option<&str>| {
            let filter = filter(
                &LogOptions { filter: directives.map(str::to_owned), verbosity: 0, quiet: false },
                terminal_level(1),
            );
            let level = |target: &str| {
                let enabled = |level: &tracing::Level| filter.would_enable(target, level);
                let levels = [tracing::Level::TRACE, tracing::Level::DEBUG, tracing::Level::INFO, tracing::Level::WARN];
                levels.iter().find(|level| enabled(level)).map_or(LevelFilter::OFF, |level| (*level).into())
            };
            [level("crfs::fetch"), level("fuser"), level("hyper")]
        };
        assert_eq!(filter(None), [LevelFilter::INFO, LevelFilter::OFF, LevelFilter::WARN]);
        let asked = filter(Some("info, crfs=debug,other[span]=oops=1,,fuser=off"));
        assert_eq!(asked, [LevelFilter::DEBUG, LevelFilter::OFF, LevelFilter::INFO]);
        assert_eq!(filter(Some("crfs")), [LevelFilter::TRACE, LevelFilter::OFF, LevelFilter::OFF]);
    }
}
