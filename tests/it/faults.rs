//! The fault table: each fault of the network in each phase, and what was seen of it. The rows are data (faults/table.rs).
//!
//! It stands in docs/reliability.md: written there with CRFS_WRITE_RELIABILITY=1, and else compared with what is there. So it holds only
//! what is the same each time: outcomes, and numbers of requests where no deadline decides them.

mod stage;
pub(crate) mod table;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::mem::discriminant;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use stage::Stage;
use table::{PHASES, Phase, Row, Span, rows};

/// Cells that run at a time, where there are descriptors for them. Most of them wait.
const AT_ONCE: usize = 48;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reliability.md");
const BEGIN: &str = "<!-- the fault table: made by tests/it/faults.rs -->\n";
const END: &str = "<!-- end of the fault table -->\n";

/// What came of a fault.
#[derive(Debug, Clone)]
enum Outcome {
    /// Nobody noticed.
    Unseen,
    /// The mount was refused, or the reader got EIO, with this message.
    Failed(String),
    /// Who read meanwhile got EIO; prefetch went on when it was over.
    PutOff,
}

#[derive(Debug, Clone)]
struct Seen {
    outcome: Outcome,
    requests: usize,
}

/// One field of the table.
type Cell = (usize, Span, Phase);

fn cells(rows: &[Row]) -> Vec<Cell> {
    let numbered = rows.iter().enumerate();
    let spans = numbered.flat_map(|(number, row)| row.spans.iter().map(move |span| (number, *span)));
    let all = spans.flat_map(|(number, span)| PHASES.map(|phase| (number, span, phase)));
    all.filter(|(number, _, phase)| !rows[*number].never.contains(phase)).collect()
}

/// Names the cell where a test in it fails.
struct Named<'a>(&'a Row, Span, Phase);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("that was: {}, {:?}, {:?}", self.0.fault, self.1, self.2);
        }
    }
}

fn see(row: &Row, span: Span, phase: Phase) -> Seen {
    let _named = Named(row, span, phase);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let play = |guesses| runtime.block_on(async { Stage::new(row, span, phase, guesses).await.play().await });
    let seen = play(false);
    if phase == Phase::Read {
        // More is fetched, in requests that nobody counts on; who reads sees the same.
        let guessing = play(true).outcome;
        assert!(
            discriminant(&guessing) == discriminant(&seen.outcome),
            "with guesses: {guessing:?}, without: {seen:?}"
        );
    }
    runtime.shutdown_background();
    seen
}

fn see_all(rows: &[Row]) -> BTreeMap<(usize, bool, usize), Seen> {
    // A cell has some twenty descriptors: hosts, connections, cache. The last 256 are not for the cache.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let at_once = AT_ONCE.min(usize::try_from(hard / 64).unwrap_or(AT_ONCE)).max(1);
    let (cells, next, seen) = (cells(rows), AtomicUsize::new(0), Mutex::default());
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(&(number, span, phase)) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let key = (number, span == Span::Stays, phase as usize);
                    let what = see(&rows[number], span, phase);
                    let seen: &Mutex<BTreeMap<_, _>> = &seen;
                    seen.lock().unwrap().insert(key, what);
                }
            });
        }
    });
    seen.into_inner().unwrap()
}

fn text(seen: Option<&Seen>, phase: Phase) -> String {
    let Some(Seen { outcome, requests }) = seen else { return "-".to_owned() };
    let failed = if matches!(phase, Phase::Manifest | Phase::Toc | Phase::Pass) { "refused" } else { "EIO" };
    match outcome {
        Outcome::Unseen => format!("unseen ({requests})"),
        Outcome::Failed(message) if message.contains("nothing moved") => format!("{failed} at the deadline"),
        Outcome::Failed(_) => format!("{failed} ({requests})"),
        Outcome::PutOff => "put off".to_owned(),
    }
}

/// Both tables, as they stand in the document.
fn tables(rows: &[Row], seen: &BTreeMap<(usize, bool, usize), Seen>) -> String {
    let mut outcomes = String::from(
        "| fault | | manifest | table of contents | full read | cold read | prefetch | other layers |\n|---|---|---|---|---|---|---|---|\n",
    );
    let mut messages: Vec<(&str, Vec<&str>)> = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        for span in row.spans {
            let at = |phase: Phase| seen.get(&(number, *span == Span::Stays, phase as usize));
            let fields = PHASES.map(|phase| text(at(phase), phase)).join(" | ");
            let span = if *span == Span::Once { "once" } else { "stays" };
            let others = if row.one_layer { "go on" } else { "the same" };
            writeln!(outcomes, "| {} | {span} | {fields} | {others} |", row.fault).unwrap();
        }
        for phase in [Phase::Manifest, Phase::Pass, Phase::Read] {
            let Some(Seen { outcome: Outcome::Failed(message), .. }) = seen.get(&(number, true, phase as usize)) else {
                continue;
            };
            match messages.iter_mut().find(|(known, _)| known == message) {
                Some((_, faults)) if faults.last() == Some(&row.fault) => {}
                Some((_, faults)) => faults.push(row.fault),
                None => messages.push((message, vec![row.fault])),
            }
        }
    }
    let said = messages.iter().map(|(message, faults)| format!("| {message} | {} |\n", faults.join("; ")));
    let said: String = said.collect();
    format!("{outcomes}\n| what the mount says, or the log of a read | of |\n|---|---|\n{said}")
}

#[test]
fn what_is_seen_of_each_fault_in_each_phase_is_what_the_document_says() {
    let rows = rows();
    let seen = tables(&rows, &see_all(&rows));
    let document = std::fs::read_to_string(Path::new(DOCUMENT)).unwrap();
    let (before, rest) = document.split_once(BEGIN).expect("docs/reliability.md has a place for the table");
    let (said, after) = rest.split_once(END).expect("docs/reliability.md has an end of the table");
    if std::env::var_os("CRFS_WRITE_RELIABILITY").is_some() {
        std::fs::write(DOCUMENT, [before, BEGIN, &seen, END, after].concat()).unwrap();
        return;
    }
    let differ = |one: &str, other: &str| -> String {
        one.lines()
            .filter(|line| !other.lines().any(|other| other == *line))
            .map(|line| format!("  {line}\n"))
            .collect()
    };
    assert!(
        said == seen,
        "docs/reliability.md says:\n{}and this was seen:\n{}If that is better, write it there with CRFS_WRITE_RELIABILITY=1.",
        differ(said, &seen),
        differ(&seen, said)
    );
}
