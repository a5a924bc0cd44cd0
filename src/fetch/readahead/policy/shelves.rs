//! Which files the words of a file name: those of the directories in which files were read, or any.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::super::files::{Files, Node};
use super::super::image::Image;
use super::shelf::{self, Kind, Shelf};

/// Directories that are looked into for the file that stands for them, for one file that names them.
const ENTRIES_LOOKED_AT: u32 = 64;

/// In a larger image nothing is looked for anywhere.
const ANYWHERE: u64 = 200_000;

/// Who names more files than this lists them, and does not need them.
const LIST: usize = 32;

/// Directories in which files were read, that words are looked for in; and those that are remembered.
const SEARCHED: usize = 12;
const REMEMBERED: usize = 24;

/// Directories below a program's own that are looked into for extensions of its language.
const BELOW: usize = 64;

/// What interpreters read when they start, in the directory of their own files, without suffixes: Python's.
const READ_AT_START: [&[&[u8]]; 4] =
    [&[b"encodings", b"__init__"], &[b"encodings", b"aliases"], &[b"encodings", b"utf_8"], &[b"sitecustomize"]];

/// The directories that words are looked for in, the newest first.
#[derive(Default)]
pub(super) struct Shelves {
    known: VecDeque<Arc<Shelf>>,
    searched: VecDeque<Node>,
}

impl Shelves {
    /// Whether a file is linked as a library is, as far as it is known.
    pub(super) fn is_native(&self, file: Node) -> bool {
        self.known.iter().any(|shelf| shelf.kind(file) == Some(&Kind::Native))
    }

    /// What a directory holds, if it is one that can be looked into.
    fn shelf(&mut self, files: &dyn Files, dir: Node) -> Option<Arc<Shelf>> {
        let known = self.known.iter().position(|shelf| shelf.dir == dir || shelf.compiled == Some(dir));
        let shelf = match known {
            Some(at) => self.known.remove(at)?,
            None => Arc::new(Shelf::of(files, dir)?),
        };
        self.known.push_front(Arc::clone(&shelf));
        self.known.truncate(REMEMBERED);
        Some(shelf)
    }

    /// Words are looked for in a directory from now on.
    pub(super) fn search(&mut self, files: &dyn Files, dir: Node) {
        let Some(shelf) = self.shelf(files, dir) else { return };
        self.searched.retain(|searched| *searched != shelf.dir);
        self.searched.push_front(shelf.dir);
        self.searched.truncate(SEARCHED);
    }

    /// The same for those that a program has for itself, if it does; gives what it reads when it starts.
    pub(super) fn search_own_of(&mut self, image: &Image, program: Node) -> Option<Vec<Node>> {
        let files = image.files();
        let own = shelf::of_program(files, image.dir(program)?, program)?;
        let below = files.children(own).map(|(_, node)| node).filter(|node| files.parent(*node).is_some());
        for dir in below.take(BELOW) {
            if self.shelf(files, dir).is_some_and(|shelf| shelf.has_native()) {
                self.search(files, dir);
            }
        }
        self.search(files, own);
        self.shelf(files, own).map(|shelf| shelf.paths(files, &READ_AT_START))
    }

    /// What the words of a file name.
    pub(super) fn named_by(&mut self, image: &Image, file: Node, words: &Words) -> Vec<Node> {
        let files = image.files();
        let Some(own) = image.dir(file).and_then(|dir| self.shelf(files, dir)) else { return Vec::new() };
        let Some(kind) = own.kind(file).cloned().or(words.script()) else { return Vec::new() };
        let own_dir = own.dir;
        let shelves = self.searched_from(files, own);
        let mut found = Vec::new();
        let mut known = HashSet::from([file]);
        let mut entries = ENTRIES_LOOKED_AT;
        for word in words.each().filter(|word| !shelf::ENTRIES.contains(word)) {
            let mut named = shelves.iter().map(|shelf| (shelf.dir, shelf.named(files, word, &kind, &mut entries)));
            let Some((dir, named)) = named.find(|(_, named)| !named.is_empty()) else { continue };
            found.extend(named.into_iter().filter(|node| known.insert(*node)).map(|node| (dir, node)));
            if found.len() > LIST {
                return Vec::new();
            }
        }
        // What it builds on comes before its own parts.
        let (own, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|(dir, _)| *dir == own_dir);
        others.into_iter().chain(own).map(|(_, node)| node).collect()
    }

    /// Where words of a file are looked for: in its own directory first.
    fn searched_from(&mut self, files: &dyn Files, own: Arc<Shelf>) -> Vec<Arc<Shelf>> {
        let others: Vec<_> = self.searched.iter().copied().filter(|dir| *dir != own.dir).collect();
        let others: Vec<_> = others.into_iter().filter_map(|dir| self.shelf(files, dir)).collect();
        std::iter::once(own).chain(others).collect()
    }
}

/// The words of a file, as far as they may name others.
pub(super) struct Words {
    words: Vec<Box<[u8]>>,
    is_script: bool,
}

impl Words {
    pub(super) fn of(contents: &[u8]) -> Self {
        let words = super::words::words(contents).into_iter().map(Box::from).collect();
        Self { words, is_script: super::words::is_script(contents) }
    }

    fn each(&self) -> impl Iterator<Item = &[u8]> {
        self.words.iter().map(|word| &**word)
    }

    fn script(&self) -> Option<Kind> {
        self.is_script.then_some(Kind::Script)
    }

    /// What they name wherever it is in the image, those nearest to its root.
    pub(super) fn name_anywhere(&self, image: &Image, file: Node) -> Vec<Node> {
        let files = image.files();
        let name = image.dir(file).and_then(|dir| files.children(dir).find(|(_, node)| *node == file));
        let kind = name.and_then(|(name, _)| Kind::of(name)).or(self.script());
        let Some(kind) = kind.filter(|_| files.count() <= ANYWHERE) else { return Vec::new() };
        let wanted: HashSet<&[u8]> = self.each().take(LIST).collect();
        let mut found: HashMap<&[u8], Vec<Node>> = HashMap::new();
        let mut entries = ENTRIES_LOOKED_AT;
        // Breadth first: the first of each name is nearest to the root.
        for dir in image.neighbourhood().dirs() {
            for (name, node) in files.children(dir) {
                let word = wanted.get(shelf::stem(name)).filter(|word| !found.contains_key(*word));
                let Some(word) = word else { continue };
                let named = named_as(files, name, node, word, &kind, &mut entries);
                if !named.is_empty() {
                    found.insert(word, named);
                }
            }
        }
        self.each().filter_map(|word| found.remove(word)).flatten().take(LIST).collect()
    }
}

/// What a word means by a node of such a name: itself, or what stands for it where it is a directory.
fn named_as(files: &dyn Files, name: &[u8], node: Node, word: &[u8], kind: &Kind, entries: &mut u32) -> Vec<Node> {
    let is_file = files.place(node).is_some();
    match Kind::of(name).filter(|_| is_file) {
        Some(other) if kind.may_name(&other) => vec![node],
        Some(_) => Vec::new(),
        None if name == word => shelf::entry(files, node, kind, entries),
        None => Vec::new(),
    }
}
