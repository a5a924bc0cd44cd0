//! How far crfs says it is: bars on a terminal, lines on a pipe, nothing with -q. The registry holds back what the bars are about.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;

use nix::sys::signal::Signal;
use tokio::sync::Semaphore;

use crate::image::{File, Layer, gzip, noise, plain, tar};
use crate::lying::{Fault, Lie, On};
use crate::support::command::{ends, send, start};
use crate::support::lab::CRFS;
use crate::support::lies::Liar;
use crate::support::{Lab, run, until};

const MIB: usize = 1 << 20;

fn layer(seed: u64) -> Layer {
    plain(gzip(&tar(&[File { name: ["a", "b", "c"][seed as usize % 3], content: noise(3 * MIB, seed) }])))
}

/// An image of two plain layers, of which more than 1 MiB comes once the gate has a permit for each.
struct Held {
    liar: Liar,
    image: String,
    gate: Arc<Semaphore>,
}

impl Held {
    fn new() -> Self {
        let (liar, gate) = (Liar::new(), Arc::new(Semaphore::new(0)));
        let image = liar.push(&[&layer(0), &layer(1)]);
        let lie = Lie::PartBehind(MIB, Arc::clone(&gate));
        liar.fault(Fault::always(On::Blobs, lie));
        Self { liar, image, gate }
    }

    fn let_go(&self) {
        self.gate.add_permits(1000);
    }
}

/// crfs on a terminal of its own (script(1)).
struct Terminal {
    script: Child,
    columns: usize,
    said: PathBuf,
    pid: PathBuf,
}

impl Terminal {
    fn start(lab: &Lab, columns: usize, term: &str, arguments: &[&str]) -> Self {
        let dir = lab.fresh("terminal");
        fs::create_dir_all(&dir).unwrap();
        let (said, pid) = (dir.join("said"), dir.join("pid"));
        let line = format!(
            "stty cols {columns} rows 24; echo $$ > {}; TERM={term} exec {CRFS} {}",
            pid.display(),
            arguments.join(" ")
        );
        let mut script = Command::new("script");
        let script = start(
            script
                .args(["--quiet", "--flush", "--return", "--command", &line])
                .arg(&said)
                .stdout(std::process::Stdio::null()),
        );
        Self { script, columns, said, pid }
    }

    fn text(&self) -> String {
        let text = fs::read(&self.said).unwrap_or_default();
        // Around it stand lines of script's own.
        let text = String::from_utf8_lossy(&text).into_owned();
        let text = text.split_once('\n').map_or("", |(_, text)| text);
        text.rsplit_once("\nScript done").map_or(text, |(text, _)| text).to_owned()
    }

    fn screen(&self) -> Vec<String> {
        screen(&self.text(), self.columns)
    }

    fn pid(&self) -> u32 {
        until("its number", || fs::read_to_string(&self.pid).ok()?.trim().parse().ok())
    }

    fn ends(&mut self) -> std::process::ExitStatus {
        ends("the command", &mut self.script)
    }
}

/// What a terminal shows that was told this: of what VT100 obeys, what is used here.
fn screen(text: &str, columns: usize) -> Vec<String> {
    let (mut lines, mut row, mut column) = (vec![Vec::new()], 0_usize, 0_usize);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\r' => column = 0,
            '\n' => row += 1,
            '\x1b' => {
                assert_eq!(letters.next(), Some('['));
                let mut number = String::new();
                while letters.peek().is_some_and(|letter| letter.is_ascii_digit() || ";?".contains(*letter)) {
                    number.extend(letters.next());
                }
                let count = number.parse().unwrap_or(1);
                let line: &mut Vec<char> = &mut lines[row];
                match letters.next().unwrap() {
                    'A' => row = row.saturating_sub(count),
                    'B' => row += count,
                    'C' => column += count,
                    'D' => column = column.saturating_sub(count),
                    'G' => column = count - 1,
                    'K' if number == "2" => line.clear(),
                    'K' => line.truncate(column),
                    'J' => {
                        line.truncate(column);
                        lines.truncate(row + 1);
                    }
                    'm' | 'h' | 'l' => {}
                    other => panic!("unknown: {other:?} in {text:?}"),
                }
            }
            letter => {
                if column == columns {
                    (row, column) = (row + 1, 0);
                }
                lines.resize(lines.len().max(row + 1), Vec::new());
                let length = lines[row].len().max(column + 1);
                lines[row].resize(length, ' ');
                lines[row][column] = letter;
                column += 1;
            }
        }
        lines.resize(lines.len().max(row + 1), Vec::new());
    }
    lines.into_iter().map(|line| line.into_iter().collect::<String>().trim_end().to_owned()).collect()
}

fn is_bar(line: &str) -> bool {
    ["layer 0 ", "layer 1 ", "layer 0:", "layer 1:", "in all"].iter().any(|bar| line.starts_with(bar))
}

#[test]
fn a_terminal_has_a_bar_for_each_layer_and_nothing_of_them_afterwards() {
    let Some(lab) = Lab::new() else { return };
    for (columns, bar) in [(100, true), (50, false), (20, false)] {
        let (held, cache) = (Held::new(), lab.fresh("cache"));
        let arguments = ["index", "--cache-dir", cache.to_str().unwrap(), &held.image];
        let mut terminal = Terminal::start(&lab, columns, "xterm", &arguments);
        let lines = until("both bars, and one for all", || {
            let lines = terminal.screen();
            let has_all =
                ["layer 0", "layer 1", "in all"].iter().all(|bar| lines.iter().any(|line| line.starts_with(bar)));
            has_all.then_some(lines)
        });
        for line in lines.iter().filter(|line| is_bar(line)) {
            assert!(line.len() <= columns, "{line}");
            assert_eq!(bar, line.contains('[') && line.contains(" of ") && line.contains(" left"), "{line}");
            assert_eq!(!bar, line.contains('%'), "{line}");
        }
        held.let_go();
        assert!(terminal.ends().success());
        let lines = terminal.screen();
        assert!(lines.iter().any(|line| line.contains("DIGEST") || columns < 50), "{lines:?}");
        assert!(!lines.iter().any(|line| is_bar(line)), "{lines:?}");
    }
}

#[test]
fn whoever_waits_for_a_mount_sees_bars_that_its_servers_log_does_not_tear() {
    let Some(lab) = Lab::new() else { return };
    let (held, cache, dir) = (Held::new(), lab.fresh("cache"), lab.fresh("mount"));
    fs::create_dir_all(&dir).unwrap();
    let options = ["mount", "-vv", "--cache-dir", cache.to_str().unwrap(), "--whole-layer-below", "0", &held.image];
    let mut terminal = Terminal::start(&lab, 90, "xterm", &[&options[..], &[dir.to_str().unwrap()]].concat());
    until("the bars", || terminal.screen().iter().filter(|line| is_bar(line)).count().eq(&3).then_some(()));
    held.let_go();
    assert!(terminal.ends().success(), "{}", terminal.text());
    assert_eq!(fs::read(dir.join("a")).unwrap(), noise(3 * MIB, 0));
    run(Command::new(CRFS).arg("umount").arg(&dir)).ok();
    let lines = terminal.screen();
    assert!(lines.iter().any(|line| line.contains("DEBUG")), "{lines:?}");
    assert!(!lines.iter().any(|line| is_bar(line) || line.contains("[#") || line.contains("..]")), "{lines:?}");
}

#[test]
fn whoever_is_interrupted_leaves_a_clean_line() {
    let Some(lab) = Lab::new() else { return };
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (held, cache) = (Held::new(), lab.fresh("cache"));
        let arguments = ["index", "--cache-dir", cache.to_str().unwrap(), &held.image];
        let mut terminal = Terminal::start(&lab, 100, "xterm", &arguments);
        until("the bars", || terminal.screen().iter().any(|line| is_bar(line)).then_some(()));
        send(terminal.pid(), signal);
        let status = terminal.ends();
        assert_eq!(status.code(), Some(128 + signal as i32), "as without bars");
        assert!(terminal.screen().iter().all(String::is_empty), "{:?}", terminal.screen());
        drop(held.liar);
    }
}

#[test]
fn a_pipe_gets_lines_and_whoever_is_quiet_nothing() {
    let Some(lab) = Lab::new() else { return };
    let liar = Liar::new();
    let small = plain(gzip(&tar(&[File { name: "small", content: noise(9000, 9) }])));
    let image = liar.push(&[&layer(0), &small, &layer(1)]);
    let cache = lab.fresh("cache");
    let index = |more: &[&str], cache: &PathBuf| {
        lab.crfs(&[&["index", "--cache-dir", cache.to_str().unwrap()], more, &[&image]].concat())
    };
    let told = index(&[], &cache);
    assert!(told.good(), "{told}");
    let lines: Vec<_> = told.stderr.lines().collect();
    for number in [0, 2] {
        let of = |what: &str| {
            lines
                .iter()
                .filter(|line| line.starts_with(&format!("crfs: layer {number} (sha256:")) && line.contains(what))
                .count()
        };
        assert_eq!((of(": reading 3."), of(" read in ")), (1, 1), "{told}");
    }
    assert_eq!(lines.len(), 4, "the small one is not worth a line: {told}");
    let quiet = index(&["-q"], &lab.fresh("cache"));
    assert!(quiet.good() && quiet.stderr.is_empty() && !quiet.stdout.is_empty(), "{quiet}");
    let verified = lab.crfs(&["cache", "verify", "--cache-dir", cache.to_str().unwrap()]);
    assert!(verified.good(), "{verified}");
    let both = lab.crfs(&["-q", "-v", "status"]);
    assert_eq!(both.status, Some(2), "{both}");
}

#[test]
fn a_terminal_that_cannot_move_gets_lines() {
    let Some(lab) = Lab::new() else { return };
    let (held, cache) = (Held::new(), lab.fresh("cache"));
    held.let_go();
    let mut terminal =
        Terminal::start(&lab, 200, "dumb", &["index", "--cache-dir", cache.to_str().unwrap(), &held.image]);
    assert!(terminal.ends().success());
    let text = terminal.text();
    assert!(!text.contains('\x1b') && text.contains(": reading 3.") && text.contains(" read in "), "{text}");
}
