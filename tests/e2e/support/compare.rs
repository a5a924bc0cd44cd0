//! fixtures/compare.py, in processes that stay: each compares one tree after the other.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::Signal;

use super::command::{HANG, send};

/// Those that nobody uses now. They end with this process, which holds their input open.
static IDLE: Mutex<Vec<Comparer>> = Mutex::new(Vec::new());

struct Comparer {
    process: Child,
    input: ChildStdin,
    output: Receiver<String>,
}

impl Comparer {
    #[track_caller]
    fn start(script: &Path) -> Self {
        let mut command = Command::new("python3");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/support/compare.py")).arg(script);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (sender, output) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { input: process.stdin.take().unwrap(), process, output }
    }

    /// The exit status of one run, and all that it printed.
    #[track_caller]
    fn run(&mut self, arguments: &[&str]) -> (i32, String) {
        let arguments = serde_json::to_string(arguments).unwrap();
        writeln!(self.input, "{arguments}").unwrap();
        let Ok(answer) = self.output.recv_timeout(HANG) else {
            send(self.process.id(), Signal::SIGKILL);
            panic!("compare.py {arguments} hangs, or has ended");
        };
        serde_json::from_str(&answer).unwrap()
    }
}

/// How a tree differs from a listing, by that script; `Ok` where it does not.
#[track_caller]
pub(crate) fn differences(script: &Path, dir: &Path, listing: &Path, flags: &[&str]) -> Result<(), String> {
    let idle = || IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = idle().pop();
    let mut comparer = kept.unwrap_or_else(|| Comparer::start(script));
    let arguments = [&[dir.to_str().unwrap(), listing.to_str().unwrap()], flags].concat();
    let (status, printed) = comparer.run(&arguments);
    idle().push(comparer);
    let equal = status == 0 && printed.ends_with(", 0 differences\n");
    if equal { Ok(()) } else { Err(format!("compare.py {arguments:?}\n  status {status}\n{printed}")) }
}
