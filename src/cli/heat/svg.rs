//! The picture: what came and was read over time, and each layer as a strip along its bytes.
//!
//! It is one file that needs no other, has no script, and reads on light and on dark. The same heat gives the same bytes.

use std::fmt::Write as _;

use super::Shown;
use crate::cli::format::{bytes, printable};
use crate::fetch::heat::{Cell, Fate, Fates};
use crate::image::heat::{Bin, LayerHeat, Time};

/// Of the picture, and of a strip; both in pixels.
const WIDTH: u64 = 960;
const STRIP: u64 = 928;
const LEFT: u64 = 16;

/// A strip is drawn in columns of so many pixels, and so high.
const COLUMN: u64 = 2;
const HIGH: u64 = 18;

/// Into so many parts a byte is divided for that.
const FINELY: u64 = 1 << 10;

/// Parts of a strip that tell what is in them.
const SPOTS: u64 = 58;

/// How high each half of the picture of time is.
const HALF: u64 = 56;

/// Colours for when bytes were first read, the earliest first.
const RAMP: [&str; 8] = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30"];

/// The colours are Okabe and Ito's, which those can tell apart who do not see all of them; what is wasted is hatched as well.
const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#1f2328}.h{font-size:16px;font-weight:600}.s{fill:#59636e}.bg{fill:#fff}\
.m{fill:#d8dee4}.l{stroke:#8c959f;fill:none}.d{fill:#d55e00}.f{fill:#009e73}.c{fill:#56b4e9}.u{fill:url(#w)}.i{fill:#8c959f}\
.n{fill:#8c959f}.w{fill:#d55e00}.o{fill:#000;fill-opacity:0}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.s{fill:#9198a1}.bg{fill:#0d1117}.m{fill:#2a313c}}";

/// The class of a fate in [`STYLE`], and its words.
const fn class(fate: Fate) -> (&'static str, &'static str) {
    match fate {
        Fate::Demanded => ("d", "read, fetched when asked for"),
        Fate::Foreseen => ("f", "read, fetched ahead"),
        Fate::Cached => ("c", "read, in the cache before"),
        Fate::Unused => ("u", "fetched, not read (wasted so far)"),
        Fate::Idle => ("i", "in the cache before, not read"),
        Fate::Missing => ("m", "not fetched"),
    }
}

/// What is drawn, and how far down.
struct Picture {
    text: String,
    y: u64,
}

pub(super) fn picture(shown: &Shown) -> String {
    let mut picture = Picture { text: String::new(), y: 28 };
    picture.head(shown);
    if let Some(time) = &shown.heat.time {
        picture.time(time);
    }
    let last = last_needed(&shown.heat.layers);
    shown.heat.layers.iter().for_each(|layer| picture.layer(layer, last));
    let height = picture.y + 8;
    let (title, desc) = (escaped(&title(shown)), escaped(&description(shown)));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         role=\"img\" aria-labelledby=\"t d\">\n<title id=\"t\">{title}</title>\n<desc id=\"d\">{desc}</desc>\n\
         <style>{STYLE}</style>\n<defs><pattern id=\"w\" width=\"4\" height=\"4\" patternUnits=\"userSpaceOnUse\">\
         <path fill=\"#cc79a7\" d=\"M0 0h4v4h-4z\"/><path stroke=\"#7a2e58\" d=\"M-1 1l2-2M0 4l4-4M3 5l2-2\"/></pattern></defs>\n\
         <path class=\"bg\" d=\"M0 0h{WIDTH}v{height}H0z\"/>\n{}</svg>\n",
        picture.text
    )
}

/// When the last byte was first read.
fn last_needed(layers: &[LayerHeat]) -> u64 {
    layers.iter().flat_map(|layer| &layer.cells).filter_map(|cell| cell.needed).max().unwrap_or(0)
}

fn title(shown: &Shown) -> String {
    format!("What became of the bytes of {}", cut(&shown.image, 90))
}

/// In a sentence or two, for those who cannot see it.
fn description(shown: &Shown) -> String {
    let fates = Fate::ALL.into_iter().map(|fate| (class(fate).1, shown.heat.bytes.of(fate)));
    let fates: Vec<_> =
        fates.filter(|(_, count)| *count > 0).map(|(what, count)| format!("{what}: {}", bytes(count))).collect();
    let ready = shown.heat.time.as_ref().and_then(|time| time.ready);
    let ready = ready.map(|ready| format!(" All layers were open after {}.", seconds(ready))).unwrap_or_default();
    format!("{} layers, bytes of contents: {}.{ready}", shown.heat.layers.len(), fates.join("; "))
}

impl Picture {
    fn head(&mut self, shown: &Shown) {
        self.words(LEFT, "h", &title(shown));
        self.y += 20;
        let place = match &shown.mount {
            Some(mount) => format!("mounted on {}", cut(&mount.dir.display().to_string(), 70)),
            None => "not mounted: what the cache has of it".to_owned(),
        };
        let digest = shown.digest.to_string();
        self.words(LEFT, "s", &format!("{}, {place}", digest.get(..19).unwrap_or_default()));
        self.y += 26;
        let times = shown.heat.time.is_some();
        let legend = Fate::ALL.into_iter().filter(|fate| times || matches!(fate, Fate::Idle | Fate::Missing));
        for (number, fate) in (0_u64..).zip(legend) {
            let (x, (class, what)) = (LEFT + number % 3 * 312, class(fate));
            let what = match (times, fate) {
                (false, Fate::Idle) => "in the cache",
                (false, _) => "not in the cache",
                _ => what,
            };
            let y = self.y - 10;
            self.push(&format!("<path class=\"{class}\" d=\"M{x} {y}h12v12h-12z\"/>"));
            self.words(x + 18, "", &format!("{what}: {}", bytes(shown.heat.bytes.of(fate))));
            self.y += if number % 3 == 2 { 20 } else { 0 };
        }
        self.y += if times { 10 } else { 24 };
    }

    /// Above the line what came, below it what readers first needed.
    fn time(&mut self, time: &Time) {
        let end = (time.bins.len() as u64).saturating_mul(time.bin).max(1);
        let most = time.bins.iter().map(|bin| bin.came.all().max(bin.needed)).max().unwrap_or(0).max(1);
        let (top, x) = (self.y + 10, |millis: u64| LEFT + scaled(millis, end, STRIP));
        let middle = top + HALF;
        self.words(
            LEFT,
            "s",
            &format!(
                "what came (above) and what readers needed for the first time (below), up to {} in {}",
                bytes(most),
                seconds(time.bin)
            ),
        );
        let mut paths = [String::new(), String::new(), String::new(), String::new(), String::new()];
        for (number, bin) in (0_u64..).zip(&time.bins) {
            let (from, to) = (x(number * time.bin), x((number + 1) * time.bin));
            bin_paths(bin, (from, (to - from).max(1)), (middle, most), &mut paths);
        }
        for (class, path) in ["d", "f", "u", "w", "n"].into_iter().zip(&paths).filter(|(_, path)| !path.is_empty()) {
            self.push(&format!("<path class=\"{class}\" d=\"{path}\"/>"));
        }
        let (right, bottom) = (LEFT + STRIP, middle + HALF);
        self.push(&format!("<path class=\"l\" d=\"M{LEFT} {middle}H{right}\"/>"));
        if let Some(ready) = time.ready {
            let at = x(ready);
            self.push(&format!("<path class=\"l\" stroke-dasharray=\"3 3\" d=\"M{at} {top}V{bottom}\"/>"));
            self.y = top + 10;
            self.words((at + 4).min(LEFT + STRIP - 160), "s", &format!("all layers open, {}", seconds(ready)));
        }
        self.y = bottom + 14;
        for tick in 0..=4 {
            let (at, anchor) = (LEFT + STRIP * tick / 4, ["start", "middle", "middle", "middle", "end"]);
            let anchor = anchor.get(tick as usize).copied().unwrap_or_default();
            let y = self.y;
            let text = seconds(end * tick / 4);
            self.push(&format!("<text class=\"s\" x=\"{at}\" y=\"{y}\" text-anchor=\"{anchor}\">{text}</text>"));
        }
        self.y += 20;
        self.time_legend(last_of(time));
    }

    fn time_legend(&mut self, last: u64) {
        let y = self.y - 8;
        let at = LEFT + STRIP - 210;
        self.words(
            LEFT,
            "s",
            "Readers (below the line): orange waited, grey did not. Under each layer: when it was first read.",
        );
        self.words(at - 28, "s", "0 s");
        for (number, colour) in (0_u64..).zip(RAMP) {
            let x = at + number * 16;
            self.push(&format!("<path fill=\"{colour}\" d=\"M{x} {y}h16v8h-16z\"/>"));
        }
        self.words(at + 8 * 16 + 6, "s", &seconds(last));
        self.y += 26;
    }

    fn layer(&mut self, layer: &LayerHeat, last: u64) {
        let LayerHeat { number, digest, size, contents, whole, .. } = layer;
        let digest = digest.to_string();
        let what = match contents {
            Some(contents) => format!("{} of contents", bytes(*contents)),
            None => "nothing of it is in the cache".to_owned(),
        };
        let whole = if *whole { ", read whole before the mount was ready" } else { "" };
        let digest = digest.get(..19).unwrap_or_default();
        self.words(LEFT, "", &format!("layer {number}, {digest}: {} blob, {what}{whole}", bytes(*size)));
        self.y += 6;
        let all: u64 = layer.cells.iter().map(|cell| cell.bytes.all()).fold(0, u64::saturating_add);
        if all == 0 {
            self.y += 14;
            return;
        }
        // So that a few bytes fill a strip, too.
        let finely: Vec<_> = layer.cells.iter().map(|cell| Cell { bytes: finely(&cell.bytes), ..*cell }).collect();
        let columns = columns(&finely, all.saturating_mul(FINELY), STRIP / COLUMN);
        self.strip(&columns);
        if layer.cells.iter().any(|cell| cell.needed.is_some()) {
            self.firsts(&columns, last);
        }
        self.spots(layer, all);
        self.y += HIGH + 26;
    }

    fn strip(&mut self, columns: &[Cell]) {
        let y = self.y;
        self.push(&format!("<path class=\"m\" d=\"M{LEFT} {y}h{STRIP}v{HIGH}h-{STRIP}z\"/>"));
        for fate in Fate::ALL.into_iter().filter(|fate| *fate != Fate::Missing) {
            let mut path = String::new();
            let spans = columns.iter().map(|column| span(&column.bytes, fate));
            for (start, len, (from, to)) in runs(spans.collect()) {
                if to > from {
                    block(&mut path, (LEFT + start * COLUMN, y + from), (len * COLUMN, to - from));
                }
            }
            if !path.is_empty() {
                self.push(&format!("<path class=\"{}\" d=\"{path}\"/>", class(fate).0));
            }
        }
    }

    /// When each column was first read.
    fn firsts(&mut self, columns: &[Cell], last: u64) {
        let y = self.y + HIGH + 1;
        let colour = |cell: &Cell| cell.needed.map(|needed| scaled(needed, last.max(1), RAMP.len() as u64 - 1));
        let runs = runs(columns.iter().map(colour).collect());
        for (number, fill) in (0_u64..).zip(RAMP) {
            let mut path = String::new();
            for (start, len, _) in runs.iter().filter(|(_, _, colour)| *colour == Some(number)) {
                block(&mut path, (LEFT + start * COLUMN, y), (len * COLUMN, 5));
            }
            if !path.is_empty() {
                self.push(&format!("<path fill=\"{fill}\" d=\"{path}\"/>"));
            }
        }
    }

    /// What is shown where the pointer is.
    fn spots(&mut self, layer: &LayerHeat, all: u64) {
        let (y, high, wide) = (self.y, HIGH + 6, STRIP / SPOTS);
        self.push("<g class=\"o\">");
        let spots = (0_u64..).zip(columns(&layer.cells, all, SPOTS));
        for (number, spot) in spots.filter(|(_, spot)| spot.bytes.all() > 0) {
            let x = LEFT + number * wide;
            let fates = Fate::ALL.into_iter().filter(|fate| spot.bytes.of(*fate) > 0);
            let fates: Vec<_> =
                fates.map(|fate| format!("{}: {}", class(fate).1, bytes(spot.bytes.of(fate)))).collect();
            let waited = if spot.waited { ", and waited" } else { "" };
            let first = spot.needed.map(|at| format!("; first read after {}{waited}", seconds(at)));
            let at = bytes(all / SPOTS * number);
            let text = escaped(&format!("at {at}: {}{}", fates.join("; "), first.unwrap_or_default()));
            self.push(&format!("<path d=\"M{x} {y}h{wide}v{high}h-{wide}z\"><title>{text}</title></path>"));
        }
        self.push("</g>");
    }

    fn words(&mut self, x: u64, class: &str, words: &str) {
        let (y, words) = (self.y, escaped(words));
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        self.push(&format!("<text{class} x=\"{x}\" y=\"{y}\">{words}</text>"));
    }

    fn push(&mut self, element: &str) {
        self.text.push_str(element);
        self.text.push('\n');
    }
}

/// When anything happened last.
fn last_of(time: &Time) -> u64 {
    let needed = time.bins.iter().rposition(|bin| bin.needed > 0).unwrap_or(0) as u64;
    (needed + 1).saturating_mul(time.bin)
}

fn finely(bytes: &Fates) -> Fates {
    let mut finely = Fates::default();
    Fate::ALL.into_iter().for_each(|fate| finely.add(fate, bytes.of(fate).saturating_mul(FINELY)));
    finely
}

/// What came and was needed in a part of the time: of demanded, foreseen and unused bytes upwards, of those that were waited for and others downwards.
fn bin_paths(bin: &Bin, (x, wide): (u64, u64), (middle, most): (u64, u64), paths: &mut [String; 5]) {
    let [demanded, foreseen, unused, waited, needed] = paths;
    let mut sum = 0;
    for (path, count) in [
        (demanded, bin.came.demanded),
        (foreseen, bin.came.foreseen),
        (unused, bin.came.all() - bin.came.demanded - bin.came.foreseen),
    ] {
        let from = scaled(sum, most, HALF);
        sum = sum.saturating_add(count);
        let to = at_least_one(from, scaled(sum, most, HALF), count);
        block(path, (x, middle - to.min(HALF)), (wide, to - from));
    }
    let split = at_least_one(0, scaled(bin.waited, most, HALF), bin.waited);
    block(waited, (x, middle), (wide, split));
    let end = at_least_one(split, scaled(bin.needed, most, HALF), bin.needed - bin.waited);
    block(needed, (x, middle + split), (wide, end - split));
}

/// What is there is seen.
fn at_least_one(from: u64, to: u64, count: u64) -> u64 {
    if count > 0 { to.max(from + 1) } else { from }
}

/// `count` of `of`, in parts of `to`, rounded.
fn scaled(count: u64, of: u64, to: u64) -> u64 {
    let scaled = (u128::from(count) * u128::from(to) * 2 + u128::from(of)) / (u128::from(of.max(1)) * 2);
    u64::try_from(scaled).unwrap_or(to)
}

/// From where to where in a column bytes of a fate are.
fn span(column: &Fates, fate: Fate) -> (u64, u64) {
    let (all, before) = (column.all().max(1), Fate::ALL.into_iter().take_while(|other| *other != fate));
    let before = before.map(|fate| column.of(fate)).fold(0, u64::saturating_add);
    (scaled(before, all, HIGH), scaled(before.saturating_add(column.of(fate)), all, HIGH))
}

/// Neighbours that are the same: the first, how many, and what.
fn runs<T: PartialEq + Copy>(of: Vec<T>) -> Vec<(u64, u64, T)> {
    let mut runs: Vec<(u64, u64, T)> = Vec::new();
    for (number, one) in (0_u64..).zip(of) {
        match runs.last_mut().filter(|(_, _, last)| *last == one) {
            Some((_, len, _)) => *len += 1,
            None => runs.push((number, 1, one)),
        }
    }
    runs
}

fn block(path: &mut String, (x, y): (u64, u64), (wide, high): (u64, u64)) {
    if wide > 0 && high > 0 {
        let _never_fails = write!(path, "M{x} {y}h{wide}v{high}h-{wide}z");
    }
}

/// The same bytes in so many columns of as many bytes each.
fn columns(cells: &[Cell], all: u64, count: u64) -> Vec<Cell> {
    let mut columns = vec![Cell::default(); usize::try_from(count).unwrap_or(0)];
    let mut start = 0_u64;
    for cell in cells {
        let len = cell.bytes.all();
        let end = start.saturating_add(len);
        let bound = |number: u64| portion(all, number, count);
        let (first, last) = (portion(count, start, all), portion(count, end.saturating_sub(1), all));
        for number in (first..=last).filter(|_| len > 0) {
            let part = end.min(bound(number + 1)).saturating_sub(start.max(bound(number)));
            let Some(column) = columns.get_mut(usize::try_from(number).unwrap_or(usize::MAX)) else { continue };
            Fate::ALL.into_iter().for_each(|fate| column.bytes.add(fate, portion(cell.bytes.of(fate), part, len)));
            if cell.needed.is_some_and(|needed| column.needed.is_none_or(|first| needed < first)) {
                (column.needed, column.waited) = (cell.needed, cell.waited);
            }
        }
        start = end;
    }
    columns
}

/// So many parts of so many of a number.
fn portion(number: u64, parts: u64, of: u64) -> u64 {
    u64::try_from(u128::from(number) * u128::from(parts) / u128::from(of.max(1))).unwrap_or(u64::MAX)
}

fn seconds(millis: u64) -> String {
    match millis {
        0..1000 => format!("{millis} ms"),
        1000..60_000 => format!("{}.{:02} s", millis / 1000, millis % 1000 / 10),
        _ => format!("{} min {} s", millis / 60_000, millis / 1000 % 60),
    }
}

/// The start and the end of a long name.
fn cut(name: &str, most: usize) -> String {
    let letters: Vec<char> = printable(name).chars().collect();
    if letters.len() <= most {
        return letters.into_iter().collect();
    }
    let half = most / 2;
    let (start, end) = (letters.iter().take(half), letters.iter().skip(letters.len() - half));
    start.chain(&['.', '.', '.']).chain(end).collect()
}

/// Text as XML has it.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in printable(text).chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // XML 1.0 has no way to write these.
            '\u{fffe}' | '\u{ffff}' => escaped.push('?'),
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::Digest;
    use crate::image::heat::Heat;
    use crate::serve::explain::Found;

    fn cell(fate: Fate, bytes: u64, needed: Option<u64>) -> Cell {
        let mut cell = Cell { needed, waited: fate == Fate::Demanded, ..Cell::default() };
        cell.bytes.add(fate, bytes);
        cell
    }

    fn shown(layers: usize, cells: &[Cell]) -> Shown {
        let digest = Digest::of(b"");
        let bytes = cells.iter().fold(Fates::default(), |mut all, cell| {
            all.join(&cell.bytes);
            all
        });
        let contents = Some(bytes.all());
        let layer = LayerHeat { number: 0, digest, size: 7, contents, whole: true, bytes, cells: cells.to_vec() };
        let layers = (0..layers).map(|number| LayerHeat { number, ..layer.clone() }).collect();
        let mut bins = vec![Bin::default(); 100];
        (bins[10].came, bins[10].needed, bins[10].waited) = (bytes, 50, 20);
        let time = Some(Time { ready: Some(300), now: 9000, bin: 10, bins });
        let mount = Some(Found { id: "1".into(), dir: "/m<&>\x1b".into(), told: true });
        Shown { image: "r.io/a\"<b>&\u{ffff}".into(), digest, mount, heat: Heat { time, bytes, layers } }
    }

    /// The names of the elements in the order in which they end. Fails for what is no XML.
    fn elements(xml: &str) -> Vec<String> {
        let (mut open, mut ended, mut rest) = (Vec::new(), Vec::new(), xml);
        while let Some((text, after)) = rest.split_once('<') {
            let entities = text.split('&').skip(1);
            entities.for_each(|entity| {
                assert!(["amp;", "lt;", "gt;", "quot;"].iter().any(|known| entity.starts_with(known)), "{entity}")
            });
            assert!(text.chars().all(|letter| letter == '\n' || !letter.is_control()), "{text:?}");
            let (tag, after) = after.split_once('>').unwrap();
            rest = after;
            let name = tag.trim_matches('/').split(' ').next().unwrap().to_owned();
            if tag.starts_with('/') {
                assert_eq!(open.pop().as_deref(), Some(&*name));
                ended.push(name);
            } else if tag.ends_with('/') {
                ended.push(name);
            } else {
                open.push(name);
            }
        }
        assert!(open.is_empty() && rest.trim().is_empty());
        ended
    }

    #[test]
    fn it_is_xml_with_a_title_and_the_same_for_the_same() {
        let cells = Fate::ALL.map(|fate| cell(fate, 4096, (fate == Fate::Demanded).then_some(40)));
        let one = picture(&shown(2, &cells));
        assert_eq!(one, picture(&shown(2, &cells)));
        let elements = elements(&one);
        assert_eq!((elements[0].as_str(), elements[1].as_str()), ("title", "desc"));
        assert_eq!(elements.iter().filter(|name| *name == "title").count() as u64, 1 + 2 * SPOTS);
        assert!(one.contains("r.io/a&quot;&lt;b&gt;&amp;?") && one.contains("/m&lt;&amp;&gt;\\u{1b}"), "{one}");
        assert!(one.contains("layer 1, sha256:e3b0c44298fc") && one.contains("read whole before"));
        assert!(one.contains("first read after 40 ms, and waited"));
        for fate in Fate::ALL {
            assert!(one.contains(&format!("{}: 4.0 KiB", class(fate).1)), "{fate:?}");
            assert!(one.contains(&format!("<path class=\"{}\"", class(fate).0)), "{fate:?}");
        }
    }

    #[test]
    fn an_image_that_is_not_mounted_has_no_time() {
        let mut shown = shown(1, &[cell(Fate::Idle, 10, None), cell(Fate::Missing, 30, None)]);
        (shown.mount, shown.heat.time) = (None, None);
        let nothing = LayerHeat {
            number: 1,
            contents: None,
            cells: Vec::new(),
            bytes: Fates::default(),
            ..shown.heat.layers[0].clone()
        };
        shown.heat.layers.push(nothing);
        let picture = picture(&shown);
        elements(&picture);
        assert!(picture.contains("in the cache: 10 B") && picture.contains("not in the cache: 30 B"), "{picture}");
        assert!(picture.contains("not mounted") && picture.contains("nothing of it is in the cache"));
        assert!(!picture.contains("class=\"d\"") && !picture.contains("what came"));
    }

    #[test]
    fn every_byte_of_a_strip_is_in_one_column() {
        let cells = [cell(Fate::Demanded, 1000, Some(5)), cell(Fate::Unused, 1, None), cell(Fate::Missing, 998, None)];
        let told = columns(&cells, 1999, 10);
        let sum = told.iter().map(|column| column.bytes.all()).sum::<u64>();
        assert!(sum <= 1999 && sum >= 1999 - 2 * cells.len() as u64, "{sum}");
        assert!(told[..5].iter().all(|column| column.bytes.demanded > 190 && column.needed == Some(5)));
        assert!(told[6..].iter().all(|column| column.bytes.demanded == 0 && column.needed.is_none()));
        let strip = columns(&[cell(Fate::Foreseen, 1, None)], 1, 464);
        assert_eq!(strip.len(), 464);
        assert!(strip.iter().filter(|column| column.bytes.all() > 0).count() <= 1);
    }

    #[test]
    fn the_most_layers_make_no_huge_picture() {
        // The worst: each cell is of several kinds, none like the one before it.
        let mixed = |number: u64| {
            let mut cell = cell(Fate::Demanded, 100 + number % 50, Some(number * 7 % 900));
            cell.bytes.add(Fate::Unused, 100);
            cell.bytes.add(Fate::Foreseen, 1 + number % 90);
            cell
        };
        let cells: Vec<_> = (0..512).map(mixed).collect();
        let picture = picture(&shown(127, &cells));
        assert!(picture.len() < 6 << 20, "{}", picture.len());
        elements(&picture);
    }
}
