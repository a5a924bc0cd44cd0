//! How far something is that people wait for: bars on a terminal, some lines elsewhere, nothing with `-q`.
//!
//! All of it goes to standard error. What else goes there while there are bars goes through [`aside`], so that neither tears the other.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use rustix::termios::tcgetwinsize;

use super::environment::Environment;
use super::{complain, format};
use crate::image::{self, LayerRead};
use crate::serve::before_the_end;

/// Bars of layers at a time; the last line counts those beyond it.
const BARS: usize = 8;

/// How often bars are drawn in a second.
const DRAWN: u8 = 10;

/// How often a line says how far all is, where there are no bars.
const LINES: Duration = Duration::from_secs(10);

/// Of a layer that has less than this, no line says that it is read.
const SMALL: u64 = 1 << 20;

/// Columns that a bar leaves to figures, and how many it has itself at most; with fewer than the first it is left out.
const FIGURES: u16 = 62;
const BAR: std::ops::RangeInclusive<u16> = 8..=24;
/// With fewer columns than this the percentage stands alone.
const NARROW: u16 = 44;

/// Nothing is shown.
static QUIET: AtomicBool = AtomicBool::new(false);

/// What is on the terminal now.
static DRAWN_NOW: Mutex<Option<MultiProgress>> = Mutex::new(None);

/// Shows nothing from now on.
pub(super) fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

pub(super) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Does what writes to standard error while there are no bars in the way.
pub(super) fn aside(write: &mut dyn FnMut()) {
    let drawn = DRAWN_NOW.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match drawn {
        Some(bars) => bars.suspend(write),
        None => write(),
    }
}

/// Shows how far `work` is.
pub(super) fn with_progress<T>(work: impl FnOnce(&image::Report) -> T) -> T {
    let progress = Arc::new(Mutex::new(Progress::new()));
    if progress.lock().is_ok_and(|progress| progress.has_bars()) {
        leave_a_clean_line();
    }
    let shown = Arc::clone(&progress);
    let report: image::Report = Arc::new(move |event| {
        shown.lock().unwrap_or_else(PoisonError::into_inner).show(event);
        Ok(())
    });
    let done = work(&report);
    progress.lock().unwrap_or_else(PoisonError::into_inner).clear();
    done
}

/// Whoever is told to end takes the bars away first.
fn leave_a_clean_line() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| before_the_end(clear_all));
}

fn clear_all() {
    let drawn = DRAWN_NOW.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(bars) = drawn {
        // A terminal that is gone needs no clean line.
        let _cleared = bars.clear();
        bars.set_draw_target(ProgressDrawTarget::hidden());
    }
}

/// How far something is.
pub(super) struct Progress(How);

enum How {
    Nothing,
    Lines(Lines),
    Bars(Bars),
}

impl Progress {
    pub(super) fn new() -> Self {
        Self(match (is_quiet(), io::stderr().is_terminal() && !Environment::is_dumb_terminal()) {
            (true, _) => How::Nothing,
            (_, true) => How::Bars(Bars::new(ProgressDrawTarget::stderr_with_hz(DRAWN))),
            _ => How::Lines(Lines::default()),
        })
    }

    /// Whether somebody else who writes to standard error would write into bars.
    pub(super) const fn has_bars(&self) -> bool {
        matches!(self.0, How::Bars(_))
    }

    pub(super) fn show(&mut self, event: &image::Event) {
        match (&mut self.0, event) {
            (How::Lines(lines), image::Event::Reading { bytes, of, layers }) => {
                lines.told((*bytes, *of), layers, Instant::now()).iter().for_each(|line| complain(line));
            }
            (How::Bars(bars), image::Event::Reading { bytes, of, layers }) => bars.read((*bytes, *of), layers),
            (How::Bars(bars), event) => status(event).iter().for_each(|text| bars.say(text)),
            (How::Nothing | How::Lines(_), _) => {}
        }
    }

    pub(super) fn clear(&mut self) {
        if let How::Bars(bars) = &mut self.0 {
            bars.clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn status(event: &image::Event) -> Option<String> {
    match event {
        image::Event::Resolved { name, layers, .. } => Some(format!("{name}: 0/{layers} layers open")),
        image::Event::Opened { layers, of, fetched } => {
            Some(format!("{layers}/{of} layers open, {} fetched", format::bytes(*fetched)))
        }
        image::Event::Reading { .. } => None,
    }
}

/// A bar for each layer that is read, and a line below for all of it.
struct Bars {
    all: MultiProgress,
    below: ProgressBar,
    layers: BTreeMap<usize, ProgressBar>,
    /// The layers that were read until now.
    read: BTreeSet<usize>,
    /// For how many columns they are.
    columns: u16,
    begun: bool,
}

impl Bars {
    fn new(target: ProgressDrawTarget) -> Self {
        let all = MultiProgress::with_draw_target(target);
        let below = ProgressBar::hidden();
        Self { all, below, layers: BTreeMap::new(), read: BTreeSet::new(), columns: 0, begun: false }
    }

    /// Puts the line below there, the first time, and fits all to the terminal.
    fn begin(&mut self) {
        if !std::mem::replace(&mut self.begun, true) {
            self.below = self.all.add(ProgressBar::new(0));
            *DRAWN_NOW.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.all.clone());
        }
        let columns = tcgetwinsize(io::stderr()).map_or(80, |size| size.ws_col).max(1);
        if std::mem::replace(&mut self.columns, columns) != columns {
            let is_read = !self.read.is_empty();
            self.below.set_style(if is_read { bar(columns) } else { words() });
            self.layers.values().for_each(|layer| layer.set_style(bar(columns)));
        }
    }

    fn say(&mut self, text: &str) {
        self.begin();
        if self.read.is_empty() {
            self.below.set_style(words());
            self.below.set_message(format::printable(text));
        }
    }

    fn read(&mut self, (bytes, of): (u64, u64), layers: &[LayerRead]) {
        self.begin();
        if self.read.is_empty() {
            self.below.reset();
            self.below.set_style(bar(self.columns));
            self.below.set_prefix("in all");
        }
        for layer in layers {
            self.read.insert(layer.number);
            if layer.done {
                self.layers.remove(&layer.number).iter().for_each(ProgressBar::finish_and_clear);
            } else {
                self.read_layer(layer);
            }
        }
        if layers.is_empty() {
            // Of an archive, which is unpacked before its layers are known.
            self.read.insert(usize::MAX);
        }
        self.below.set_length(of);
        self.below.set_position(bytes.min(of));
    }

    fn read_layer(&mut self, layer: &LayerRead) {
        let is_full = self.layers.len() >= BARS;
        let (all, below, columns) = (&self.all, &self.below, self.columns);
        let shown = match self.layers.get(&layer.number) {
            Some(shown) => shown,
            None if is_full => return,
            None => {
                let shown = all.insert_before(below, ProgressBar::new(layer.of));
                shown.set_style(bar(columns));
                shown.set_prefix(format!("layer {}", layer.number));
                self.layers.entry(layer.number).or_insert(shown)
            }
        };
        shown.set_length(layer.of);
        shown.set_position(layer.bytes.min(layer.of));
    }

    fn clear(&mut self) {
        for (_, layer) in std::mem::take(&mut self.layers) {
            layer.finish_and_clear();
        }
        self.below.finish_and_clear();
        clear_all();
    }
}

/// A line of words, cut at the end of the terminal's.
fn words() -> ProgressStyle {
    styled("{wide_msg}")
}

/// A line with a bar, as it fits in so many columns.
fn bar(columns: u16) -> ProgressStyle {
    let room = columns.saturating_sub(FIGURES);
    match room >= *BAR.start() {
        true => styled(&format!("{{prefix:<9}} [{{bar:{}}}] {{size}}, {{rate}}, {{left}}", room.min(*BAR.end()))),
        false if columns >= NARROW => styled("{prefix}: {percent} %, {rate}, {left}"),
        false => styled("{prefix}: {percent} %"),
    }
}

fn styled(template: &str) -> ProgressStyle {
    let style = ProgressStyle::default_bar().template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style
        .progress_chars("#.")
        .with_key("size", |state: &ProgressState, to: &mut dyn std::fmt::Write| {
            let of = state.len().unwrap_or_default();
            let _never_fails = write!(to, "{} of {}", format::bytes(state.pos()), format::bytes(of));
        })
        .with_key("rate", |state: &ProgressState, to: &mut dyn std::fmt::Write| {
            let _never_fails = write!(to, "{}/s", format::bytes(state.per_sec() as u64));
        })
        .with_key("left", |state: &ProgressState, to: &mut dyn std::fmt::Write| {
            let _never_fails = to.write_str(&left(state.eta()));
        })
}

fn left(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 86_400, seconds / 3600, seconds / 60) {
        (1.., ..) => "days left".to_owned(),
        (_, hours @ 1.., _) => format!("{hours} h {} min left", seconds / 60 % 60),
        (.., minutes @ 1..) => format!("{minutes} min {} s left", seconds % 60),
        _ => format!("{seconds} s left"),
    }
}

/// Where there are no bars: when a layer begins and when it was read, and now and then how far all is.
#[derive(Default)]
struct Lines {
    since: Option<Instant>,
    /// When all was told of last.
    last: Option<Instant>,
    /// When the layers were begun that are read.
    layers: BTreeMap<usize, Instant>,
}

impl Lines {
    fn told(&mut self, (bytes, of): (u64, u64), layers: &[LayerRead], now: Instant) -> Vec<String> {
        let since = *self.since.get_or_insert(now);
        let last = *self.last.get_or_insert(now);
        let mut lines: Vec<_> = layers.iter().filter_map(|layer| self.layer(layer, now)).collect();
        if now.saturating_duration_since(last) >= LINES {
            self.last = Some(now);
            let rate = rate(bytes, now.saturating_duration_since(since));
            let seconds = of.saturating_sub(bytes).checked_div(rate).unwrap_or(u64::MAX);
            lines.push(format!(
                "{} of {} read, {}/s, {}",
                format::bytes(bytes),
                format::bytes(of),
                format::bytes(rate),
                left(Duration::from_secs(seconds))
            ));
        }
        lines
    }

    fn layer(&mut self, layer: &LayerRead, now: Instant) -> Option<String> {
        let LayerRead { number, digest, bytes, of, done } = layer;
        if *of < SMALL {
            return None;
        }
        let name = format!("layer {number} (sha256:{}...)", digest.hex().get(..12).unwrap_or_default());
        match (self.layers.get(number).copied(), done) {
            (None, false) => {
                self.layers.insert(*number, now);
                Some(format!("{name}: reading {}", format::bytes(*of)))
            }
            (Some(begun), true) => {
                self.layers.remove(number);
                let took = now.saturating_duration_since(begun);
                let rate = format::bytes(rate(*bytes, took));
                // What went wrong is told elsewhere.
                let is_read = bytes >= of;
                is_read.then(|| format!("{name}: {} read in {:.1} s, {rate}/s", format::bytes(*of), took.as_secs_f64()))
            }
            _ => None,
        }
    }
}

fn rate(bytes: u64, time: Duration) -> u64 {
    (bytes as f64 / time.as_secs_f64().max(0.001)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::Digest;

    fn layer(number: usize, bytes: u64, of: u64, done: bool) -> LayerRead {
        LayerRead { number, digest: Digest::of(b""), bytes, of, done }
    }

    #[test]
    fn without_a_terminal_lines_are_rare() {
        let (mut lines, start) = (Lines::default(), Instant::now());
        let mut told = |seconds: u64, bytes: u64, layers: &[LayerRead]| {
            lines.told((bytes << 20, 200 << 20), layers, start + Duration::from_secs(seconds))
        };
        let name = "layer 3 (sha256:e3b0c44298fc...)";
        assert_eq!(told(0, 0, &[layer(3, 0, 100 << 20, false)]), [format!("{name}: reading 100.0 MiB")]);
        for second in 1..10 {
            let none = told(second, 10 * second, &[layer(3, (10 * second) << 20, 100 << 20, false)]);
            assert!(none.is_empty(), "{none:?}");
        }
        assert_eq!(told(10, 100, &[]), ["100.0 MiB of 200.0 MiB read, 10.0 MiB/s, 10 s left"]);
        let read = told(10, 100, &[layer(3, 100 << 20, 100 << 20, true)]);
        assert_eq!(read, [format!("{name}: 100.0 MiB read in 10.0 s, 10.0 MiB/s")]);
        assert!(told(11, 100, &[layer(4, 0, 5000, false), layer(4, 5000, 5000, true)]).is_empty(), "it is small");
        assert_eq!(told(12, 100, &[layer(5, 0, 9 << 20, false)]).len(), 1);
        assert!(told(13, 100, &[layer(5, 1, 9 << 20, true)]).is_empty(), "it was not read to its end");
    }

    #[test]
    fn what_is_left_is_told_as_people_do() {
        let told = |seconds| left(Duration::from_secs(seconds));
        assert_eq!([told(0), told(59), told(61)], ["0 s left", "59 s left", "1 min 1 s left"]);
        assert_eq!([told(3600 * 2 + 60), told(u64::MAX)], ["2 h 1 min left", "days left"]);
    }

    #[test]
    fn many_layers_have_a_bounded_number_of_bars() {
        let mut bars = Bars::new(ProgressDrawTarget::hidden());
        let layers: Vec<_> = (0..100).map(|number| layer(number, 1, 10, false)).collect();
        bars.read((100, 1000), &layers);
        assert_eq!((bars.layers.len(), bars.below.length(), bars.below.position()), (BARS, Some(1000), 100));
        bars.read((109, 1000), &[layer(0, 10, 10, true)]);
        bars.read((110, 1000), &[layer(99, 2, 10, false)]);
        assert!(!bars.layers.contains_key(&0) && bars.layers.contains_key(&99), "its place is another's");
        bars.clear();
        assert!(bars.layers.is_empty());
    }

    #[test]
    fn only_what_happens_before_it_is_ready_is_a_status() {
        let opened = image::Event::Opened { layers: 1, of: 3, fetched: 2048 };
        assert_eq!(status(&opened).as_deref(), Some("1/3 layers open, 2.0 KiB fetched"));
        assert_eq!(status(&image::Event::Reading { bytes: 1, of: 2, layers: Vec::new() }), None);
    }
}
