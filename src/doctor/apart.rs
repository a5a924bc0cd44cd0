//! doctor's checks run in a child of `crfs doctor`. A filesystem that does not answer may hold whoever asks it, also one that was killed: then the
//! child stays, and doctor itself ends.
//!
//! Neither output of the child comes to an end while something holds it, so each has a mark behind its text, and standard output the exit status
//! behind that. Without marks the child has ended as any other process does.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::sys::{close_inherited_on_exec, limit};
use crate::threads;

/// The hidden word before what was typed.
pub const SUBCOMMAND: &str = "doctor-apart";

/// No text of doctor's has it.
const MARK: u8 = 0;

/// More than all checks and the configuration may take.
const LIMIT: Duration = Duration::from_secs(150);

/// How long the child may take to end by itself when it has said all.
const ENDING: Duration = Duration::from_millis(200);

/// What the child has said.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub output: Vec<u8>,
    pub errors: Vec<u8>,
    pub status: u8,
}

/// Lets a child run with these arguments behind [`SUBCOMMAND`].
///
/// # Errors
/// Where it cannot be started, or has not said all after [`LIMIT`].
pub fn run_apart(arguments: impl Iterator<Item = OsString>) -> io::Result<Told> {
    // What whoever started doctor has left open is not to stay open because of a filesystem.
    close_inherited_on_exec();
    let mut command = Command::new("/proc/self/exe");
    command.arg(SUBCOMMAND).args(arguments);
    told(&mut command, LIMIT)
}

fn told(command: &mut Command, limit: Duration) -> io::Result<Told> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(threads::explained)?;
    let said = listen(&mut child, limit);
    let patience = if said.is_ok() { ENDING } else { Duration::ZERO };
    let status = limit::wait_for(&mut child, patience)?;
    let (mut told, marked) = said?;
    let own = || status.and_then(|status| status.code()).and_then(|code| u8::try_from(code).ok());
    told.status = marked.or_else(own).unwrap_or(1);
    Ok(told)
}

fn listen(child: &mut Child, limit: Duration) -> io::Result<(Told, Option<u8>)> {
    let missing = || io::Error::from(io::ErrorKind::BrokenPipe);
    let (output, errors) = (child.stdout.take().ok_or_else(missing)?, child.stderr.take().ok_or_else(missing)?);
    let listen = move || {
        // Both at once: a full pipe holds the child.
        let errors = thread::Builder::new().name("errors".to_owned()).spawn(move || until_mark(errors))?;
        let (output, status) = until_mark(output)?;
        let (errors, _) = errors.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))?;
        Ok((Told { output, errors, status: 0 }, status))
    };
    limit::within(limit, listen).unwrap_or_else(|| {
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("it has not come to an end within {} s", limit.as_secs())))
    })
}

/// A text, and the byte behind its mark.
fn until_mark(stream: impl Read) -> io::Result<(Vec<u8>, Option<u8>)> {
    let mut stream = BufReader::new(stream);
    let mut text = Vec::new();
    stream.read_until(MARK, &mut text)?;
    if text.last() != Some(&MARK) {
        return Ok((text, None));
    }
    text.pop();
    let mut status = [0];
    stream.read_exact(&mut status)?;
    let [status] = status;
    Ok((text, Some(status)))
}

/// What the child writes to both outputs when it has said all.
#[must_use]
pub const fn mark(status: u8) -> [u8; 2] {
    [MARK, status]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> io::Result<Told> {
        told(Command::new("sh").args(["-c", script]), Duration::from_secs(60))
    }

    fn said(output: &str, errors: &str, status: u8) -> Told {
        Told { output: output.into(), errors: errors.into(), status }
    }

    #[test]
    fn a_child_that_does_not_end_is_left() {
        let marked = "printf 'out\\0\\1'; printf 'err\\0\\1' >&2; exec sleep 600";
        assert_eq!(shell(marked).unwrap(), said("out", "err", 1));
        let large = "head -c 200000 /dev/zero | tr '\\0' e >&2; printf '\\0\\0' >&2; printf '\\0\\0'; exec sleep 600";
        assert_eq!(shell(large).unwrap().errors.len(), 200_000);
    }

    #[test]
    fn a_child_that_ends_by_itself_has_its_own_status() {
        assert_eq!(shell("echo usage >&2; exit 2").unwrap(), said("", "usage\n", 2));
        assert_eq!(shell("kill -9 $$").unwrap().status, 1);
    }

    #[test]
    fn a_child_that_says_nothing_is_killed() {
        let late = told(Command::new("sleep").arg("600"), Duration::from_millis(1)).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    }
}
