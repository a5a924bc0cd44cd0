//! What files name: who reads a module reads the modules that it imports, and those that they import.
//!
//! ```text
//! a small file is read, or guessed --> when all of it is there: its words (words.rs)
//! a word                           --> a file of that name beside it, or where others were read (shelf.rs)
//! that file                        --> is wished for, and looked into as well, a few steps far
//! ```
//!
//! Nothing is known of any language but how names become paths, and what Python reads when it starts. What the image's command is given as a
//! script names modules that may be anywhere.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::super::{Layer, plan};
use super::super::files::Node;
use super::super::state::{Next, State};
use super::super::stretch::Stretch;
use super::super::{Readahead, SMALL, WHOLE};
use super::shelf::{self, Kind, Shelf};
use super::words::{is_script, words};
use crate::cache;
use crate::index::{CheckKind, Damaged};

/// Bytes of the largest file that is looked into.
pub(in super::super) const LOOKED_INTO: u64 = 512 << 10;

/// How many steps from what was read a file may be that is looked into.
const STEPS: usize = 4;

/// Files that are looked into in one go, before a wish is made a request.
const AT_A_TIME: usize = 4;

/// Directories that are looked into for the file that stands for them, for one file that names them.
const ENTRIES_LOOKED_AT: u32 = 64;

/// In a larger image nothing is looked for anywhere.
const ANYWHERE: u64 = 200_000;

/// Files that were named and not read that are remembered.
const MOST_TOLD: usize = 16 << 10;

/// Who names more files than this lists them, and does not need them.
const LIST: usize = 32;

/// Files that are waited for to be looked into, and that are wished for.
const WAITING: usize = 256;
const WISHED: usize = 1024;

/// Directories in which files were read, that words are looked for in; and those that are remembered.
const SEARCHED: usize = 12;
const REMEMBERED: usize = 24;

/// Directories below a program's own that are looked into for extensions of its language.
const BELOW: usize = 64;

/// Wished files this near each other are one request, which costs about as much as the bytes between them.
const GAP: u64 = 64 << 10;

/// What is named by the command's script, and not read yet, counts for nothing up to so many bytes.
const COMMAND: u64 = 8 << 20;

/// What interpreters read when they start, in the directory of their own files, without suffixes: Python's.
const READ_AT_START: [&[&[u8]]; 4] =
    [&[b"encodings", b"__init__"], &[b"encodings", b"aliases"], &[b"encodings", b"utf_8"], &[b"sitecustomize"]];

/// What the image's command starts with has the last turns.
const COMMAND_TURNS: u32 = u32::MAX - 64;

/// How a file came to be named.
#[derive(Clone)]
struct Told {
    /// When it is likely read: the newest read first, what that names in the order of the names, and behind each what it names itself.
    turn: Turn,
    /// Whether it counts for what may be guessed wrong: it does not where it follows from the image's command.
    counts: bool,
}

/// Reads are counted down; then the place of each name among those beside it.
type Turn = Vec<u32>;

impl Told {
    fn steps(&self) -> usize {
        self.turn.len().saturating_sub(1)
    }
}

/// A file that is looked into when its checks are there.
struct Waiting {
    file: Node,
    layer: usize,
    checks: Range<u32>,
    told: Told,
    /// What it names may be anywhere.
    anywhere: bool,
}

#[derive(Default)]
pub(in super::super) struct Mentions {
    waiting: VecDeque<Waiting>,
    told: HashMap<Node, Told>,
    /// What is to be fetched.
    wished: BTreeMap<Turn, Node>,
    /// How many files were read.
    reads: u32,
    /// How many files the image's command starts with.
    commands: u32,
    shelves: VecDeque<Arc<Shelf>>,
    searched: VecDeque<Node>,
    command_bytes: u64,
}

impl Mentions {
    pub(in super::super) fn are_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether a file was named before it was read.
    pub(in super::super) fn has_told(&self, file: Node) -> bool {
        self.told.contains_key(&file)
    }

    /// The next file that is wished for, and whether it counts; it is not given again.
    fn next_wished(&mut self, is_over: bool) -> Option<(Node, bool)> {
        let counts = |file: &Node| self.told.get(file).is_none_or(|told| told.counts);
        let (turn, counts) =
            self.wished.iter().map(|(turn, file)| (turn, counts(file))).find(|(_, counts)| !is_over || !counts)?;
        let turn = turn.clone();
        Some((self.wished.remove(&turn)?, counts))
    }

    /// So much is fetched, of what counts for what may be guessed wrong, or of what the command names.
    fn spend(&mut self, bytes: u64, counts: bool) {
        if !counts {
            self.command_bytes = self.command_bytes.saturating_add(bytes);
        }
    }

    /// Whether a file is linked as a library is, as far as it is known.
    fn is_native(&self, file: Node) -> bool {
        self.shelves.iter().any(|shelf| shelf.kind(file) == Some(&Kind::Native))
    }

    /// What a directory holds, if it is one that can be looked into.
    fn shelf(&mut self, readahead: &Readahead, dir: Node) -> Option<Arc<Shelf>> {
        if let Some(at) = self.shelves.iter().position(|shelf| shelf.dir == dir || shelf.compiled == Some(dir)) {
            let shelf = self.shelves.remove(at)?;
            self.shelves.push_front(Arc::clone(&shelf));
            return Some(shelf);
        }
        let shelf = Arc::new(Shelf::of(&*readahead.files, dir)?);
        self.shelves.push_front(Arc::clone(&shelf));
        self.shelves.truncate(REMEMBERED);
        Some(shelf)
    }

    /// Words are looked for in a directory from now on.
    fn search(&mut self, readahead: &Readahead, dir: Node) {
        let Some(shelf) = self.shelf(readahead, dir) else { return };
        self.searched.retain(|searched| *searched != shelf.dir);
        self.searched.push_front(shelf.dir);
        self.searched.truncate(SEARCHED);
    }

    /// A few of the files that are waited for, of which all is there by now.
    fn ready(&mut self, readahead: &Readahead) -> Result<Vec<Waiting>, Damaged> {
        let mut ready = Vec::new();
        for waiting in std::mem::take(&mut self.waiting) {
            let Some(contents) = readahead.layers.get(waiting.layer) else { continue };
            if ready.len() == AT_A_TIME {
                readahead.came.store(true, Ordering::Release);
            }
            if ready.len() < AT_A_TIME && is_here(contents, &waiting.checks)? {
                ready.push(waiting);
            } else {
                self.waiting.push_back(waiting);
            }
        }
        self.waiting.truncate(WAITING);
        Ok(ready)
    }

    /// What the contents of a file name.
    fn named_by(&mut self, readahead: &Readahead, file: Node, contents: &[u8], words: &[&[u8]]) -> Vec<Node> {
        let Some(own) = readahead.neighbourhood().dir(file).and_then(|dir| self.shelf(readahead, dir)) else {
            return Vec::new();
        };
        let script = is_script(contents).then_some(Kind::Script);
        let Some(kind) = own.kind(file).cloned().or(script) else { return Vec::new() };
        let others: Vec<_> = self.searched.clone().into_iter().filter(|dir| *dir != own.dir).collect();
        let others: Vec<_> = others.into_iter().filter_map(|dir| self.shelf(readahead, dir)).collect();
        let own_dir = Some(own.dir);
        let shelves: Vec<_> = std::iter::once(own).chain(others).collect();
        let mut found = Vec::new();
        let mut known = HashSet::from([file]);
        let mut entries = ENTRIES_LOOKED_AT;
        for word in words.iter().copied().filter(|word| !shelf::ENTRIES.contains(word)) {
            let mut named =
                shelves.iter().map(|shelf| (shelf.dir, shelf.named(&*readahead.files, word, &kind, &mut entries)));
            let Some((dir, named)) = named.find(|(_, named)| !named.is_empty()) else { continue };
            found.extend(named.into_iter().filter(|node| known.insert(*node)).map(|node| (dir, node)));
            if found.len() > LIST {
                return Vec::new();
            }
        }
        // What it builds on comes before its own parts.
        let (own, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|(dir, _)| Some(*dir) == own_dir);
        others.into_iter().chain(own).map(|(_, node)| node).collect()
    }

    /// The same wherever they are in the image, those nearest to its root.
    fn named_anywhere(readahead: &Readahead, file: Node, contents: &[u8], words: &[&[u8]]) -> Vec<Node> {
        let files = &*readahead.files;
        let dir_of_it = readahead.neighbourhood().dir(file);
        let name = dir_of_it.and_then(|dir| files.children(dir).find(|(_, node)| *node == file));
        let Some(kind) = name.and_then(|(name, _)| Kind::of(name)).or(is_script(contents).then_some(Kind::Script))
        else {
            return Vec::new();
        };
        if files.count() > ANYWHERE {
            return Vec::new();
        }
        let wanted: HashSet<&[u8]> = words.iter().copied().take(LIST).collect();
        let mut found: HashMap<&[u8], Vec<Node>> = HashMap::new();
        let mut entries = ENTRIES_LOOKED_AT;
        // Breadth first: the first of each name is nearest to the root.
        for dir in readahead.neighbourhood().dirs() {
            for (name, node) in files.children(dir) {
                let word = wanted.get(shelf::stem(name)).filter(|word| !found.contains_key(*word));
                let Some(word) = word else { continue };
                let is_file = files.place(node).is_some();
                let named = match Kind::of(name).filter(|_| is_file) {
                    Some(other) if kind.may_name(&other) => vec![node],
                    Some(_) => Vec::new(),
                    None if name == *word => shelf::entry(files, node, &kind, &mut entries),
                    None => Vec::new(),
                };
                if !named.is_empty() {
                    found.insert(word, named);
                }
            }
        }
        words.iter().filter_map(|word| found.remove(word)).flatten().take(LIST).collect()
    }
}

impl Readahead {
    /// Looks into the files of which all is there by now, and wishes for what they name. While they are read, the state is anybody's.
    pub(in super::super) fn look_into_mentions(&self) -> Result<(), Damaged> {
        if !self.came.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let ready = self.state().mentions.ready(self)?;
        for Waiting { file, layer, told, anywhere, .. } in ready {
            let place = self.files.place(file);
            let contents = place.zip(self.layers.get(layer)).and_then(|(place, layer)| layer.peek(place.range));
            let Some(contents) = contents else { continue };
            let words = words(&contents);
            let anywhere = anywhere.then(|| Mentions::named_anywhere(self, file, &contents, &words));
            let mut state = self.state();
            let named = anywhere.unwrap_or_else(|| state.mentions.named_by(self, file, &contents, &words));
            state.tell(self, named, &told)?;
        }
        Ok(())
    }
}

impl State {
    /// A file was read for the first time.
    pub(in super::super) fn mentions_of(&mut self, readahead: &Readahead, file: Node) -> Result<(), Damaged> {
        if let Some(dir) = readahead.neighbourhood().dir(file) {
            self.mentions.search(readahead, dir);
        }
        self.mentions.reads = self.mentions.reads.saturating_add(1);
        if let Some(told) = self.mentions.told.remove(&file) {
            self.mentions.wished.remove(&told.turn);
        }
        let turn = COMMAND_TURNS.saturating_sub(self.mentions.reads);
        let told = Told { turn: vec![turn], counts: true };
        self.wait_to_look_into(readahead, file, told, false)
    }

    /// The image's command starts with a program, or is given a script.
    pub(in super::super) fn mentions_of_command(&mut self, readahead: &Readahead, file: Node) -> Result<(), Damaged> {
        let files = &*readahead.files;
        // The program comes last here, and first in turn.
        let turn = u32::MAX.saturating_sub(self.mentions.commands.saturating_mul(2)).max(COMMAND_TURNS + 2);
        self.mentions.commands = self.mentions.commands.saturating_add(1);
        if let Some(own) = readahead.neighbourhood().dir(file).and_then(|dir| shelf::of_program(files, dir, file)) {
            let below = files.children(own).map(|(_, node)| node).filter(|node| files.parent(*node).is_some());
            for dir in below.take(BELOW) {
                if self.mentions.shelf(readahead, dir).is_some_and(|shelf| shelf.has_native()) {
                    self.mentions.search(readahead, dir);
                }
            }
            self.mentions.search(readahead, own);
            let read_at_start = self.mentions.shelf(readahead, own).map(|shelf| shelf.paths(files, &READ_AT_START));
            self.tell(readahead, read_at_start.unwrap_or_default(), &Told { turn: vec![turn - 1], counts: false })?;
        }
        self.wait_to_look_into(readahead, file, Told { turn: vec![turn], counts: false }, true)
    }

    fn wait_to_look_into(
        &mut self,
        readahead: &Readahead,
        file: Node,
        told: Told,
        anywhere: bool,
    ) -> Result<(), Damaged> {
        let Some((place, units)) = readahead.units(file)? else { return Ok(()) };
        let Some(contents) = readahead.layers.get(place.layer).filter(|_| place.range.len() <= LOOKED_INTO) else {
            return Ok(());
        };
        // What is guessed is fetched only where that is over a network.
        let comes = contents.source.is_remote() || told.steps() == 0;
        if comes && plan::compressed(&contents.index, &units)? <= SMALL {
            let checks = contents.index.checks_over(place.range)?;
            self.mentions.waiting.push_front(Waiting { file, layer: place.layer, checks, told, anywhere });
            self.mentions.waiting.truncate(WAITING);
            // It may be there.
            readahead.came.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn tell(&mut self, readahead: &Readahead, named: Vec<Node>, by: &Told) -> Result<(), Damaged> {
        for (at, file) in (0..).zip(named) {
            let told = Told { turn: [by.turn.as_slice(), &[at]].concat(), counts: by.counts };
            let before = self.mentions.told.get(&file).cloned();
            let is_old =
                before.as_ref().is_some_and(|before| before.turn <= told.turn && (before.counts || !told.counts));
            let is_full = before.is_none() && self.mentions.told.len() >= MOST_TOLD;
            if is_old || is_full || self.seen.contains(file) {
                continue;
            }
            if let Some(before) = &before {
                self.mentions.wished.remove(&before.turn);
            }
            self.mentions.wished.insert(told.turn.clone(), file);
            self.mentions.told.insert(file, told.clone());
            if before.is_none() {
                if self.mentions.is_native(file) {
                    self.programs.push(file, false);
                }
                if told.steps() <= STEPS {
                    self.wait_to_look_into(readahead, file, told, false)?;
                }
            }
        }
        while self.mentions.wished.len() > WISHED {
            self.mentions.wished.pop_last();
        }
        Ok(())
    }

    /// What to fetch next of what was named, at most about `size` bytes.
    pub(in super::super) fn next_mentioned(
        &mut self,
        readahead: &Readahead,
        size: u64,
        is_over: bool,
    ) -> Result<Option<Next>, Damaged> {
        while let Some((file, counts)) = self.mentions.next_wished(is_over) {
            let Some((place, units)) = readahead.units(file)?.filter(|_| !self.seen.contains(file)) else { continue };
            let Some(contents) = readahead.layers.get(place.layer).filter(|layer| layer.source.is_remote()) else {
                continue;
            };
            let bytes = plan::compressed(&contents.index, &units)?;
            let left = if counts { WHOLE } else { COMMAND.saturating_sub(self.mentions.command_bytes) };
            if bytes > left.min(WHOLE) {
                continue;
            }
            if bytes > size {
                // In pieces, with what else is large.
                self.mentions.spend(bytes, counts);
                let stack = if counts { &mut self.libraries } else { &mut self.started };
                stack.push(Stretch::new(place.layer, units.clone(), units.start));
                match if counts { stack.next(readahead, size, counts)? } else { None } {
                    Some(next) => return Ok(Some(next)),
                    None => continue,
                }
            }
            let wished = |file: &Node| self.mentions.told.contains_key(file) && !self.seen.contains(*file);
            if let Some(units) = readahead.run_of(file, (place.layer, units), (size.min(left), GAP), wished)? {
                self.mentions.spend(plan::compressed(&contents.index, &units)?, counts);
                return Ok(Some(Next { layer: place.layer, units, counts, goes_on: false }));
            }
        }
        Ok(None)
    }
}

/// Whether all checks of a file were found right; holes need not be.
fn is_here(contents: &Layer, checks: &Range<u32>) -> Result<bool, Damaged> {
    for check in checks.clone() {
        let is_here = contents.file.state(check) == cache::State::Ready;
        if !is_here && contents.index.check(check)?.kind != CheckKind::Hole {
            return Ok(false);
        }
    }
    Ok(true)
}
