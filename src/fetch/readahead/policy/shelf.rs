//! A directory by the names of what is in it without their suffixes, as those name it who import it.

use std::collections::HashMap;

use super::super::files::{Files, Node};
use super::words::LENGTHS;

/// Larger directories are not looked into.
const MOST: usize = 4096;

/// Bytes of the longest suffix of a language.
const LONGEST_SUFFIX: usize = 16;

/// Where Python keeps what it compiled of the files of a directory (PEP 3147).
const COMPILED: &[u8] = b"__pycache__";

/// The file that stands for a directory to those who import that: Python's, and JavaScript's.
pub(super) const ENTRIES: [&[u8]; 2] = [b"__init__", b"index"];

/// A suffix that tells what may name what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Names, and is named by, whatever has a suffix: an extension of a language's, which is linked as a library.
    Native,
    /// Names what it is compiled of or to, or is of the same kind: one suffix starts with the other, as `py` and `pyc`, `js` and `json`.
    Suffix(Box<[u8]>),
    /// A script without a suffix: names whatever has one.
    Script,
}

impl Kind {
    /// `None` without a suffix.
    pub(super) fn of(name: &[u8]) -> Option<Self> {
        let dot = name.iter().rposition(|byte| *byte == b'.').filter(|dot| *dot > 0)?;
        match name.get(dot.saturating_add(1)..)? {
            b"" => None,
            // Libraries are needed, not named.
            b"so" => (!name.starts_with(b"lib")).then_some(Self::Native),
            suffix => (suffix.len() <= LONGEST_SUFFIX).then(|| Self::Suffix(suffix.into())),
        }
    }

    pub(super) fn may_name(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Suffix(one), Self::Suffix(other)) => one.starts_with(other) || other.starts_with(one),
            _ => true,
        }
    }
}

/// What is in a directory, or was compiled of it.
pub(super) struct Shelf {
    pub(super) dir: Node,
    /// Where what was compiled of it is.
    pub(super) compiled: Option<Node>,
    names: HashMap<Box<[u8]>, Vec<Named>>,
    kinds: HashMap<Node, Kind>,
}

#[derive(Clone, Copy)]
enum Named {
    Compiled(Node),
    File(Node),
    Dir(Node),
}

impl Shelf {
    /// `None` for what is no directory, or too large.
    pub(super) fn of(files: &dyn Files, dir: Node) -> Option<Self> {
        let dir = home(files, dir);
        files.parent(dir)?;
        let compiled = files.find(dir, COMPILED);
        let is_large = |dir: Node| files.children(dir).nth(MOST).is_some();
        if is_large(dir) || compiled.is_some_and(is_large) {
            return None;
        }
        let mut shelf = Self { dir, compiled, names: HashMap::new(), kinds: HashMap::new() };
        for (within, named) in [(compiled, Named::Compiled as fn(Node) -> Named), (Some(dir), Named::File)] {
            let Some(within) = within else { continue };
            files.children(within).for_each(|(name, node)| shelf.put(files, name, node, named));
        }
        Some(shelf)
    }

    fn put(&mut self, files: &dyn Files, name: &[u8], node: Node, named: fn(Node) -> Named) {
        let is_dir = files.parent(node).is_some();
        let word = if is_dir { name } else { stem(name) };
        if !LENGTHS.contains(&word.len()) {
            return;
        }
        if is_dir {
            self.names.entry(word.into()).or_default().push(Named::Dir(node));
        } else if let Some(kind) = Kind::of(name).filter(|_| files.place(node).is_some()) {
            self.names.entry(word.into()).or_default().push(named(node));
            self.kinds.insert(node, kind);
        }
    }

    /// The compiled files that paths without suffixes lead to from here.
    pub(super) fn paths(&self, files: &dyn Files, paths: &[&[&[u8]]]) -> Vec<Node> {
        let leads_to = |path: &&[&[u8]]| {
            let (name, dirs) = path.split_last()?;
            let dir = dirs.iter().try_fold(self.dir, |dir, name| files.find(dir, name))?;
            let within = files.find(dir, COMPILED)?;
            files.children(within).find(|(child, _)| stem(child) == *name).map(|(_, node)| node)
        };
        paths.iter().filter_map(leads_to).collect()
    }

    /// Whether it has any extension of a language's.
    pub(super) fn has_native(&self) -> bool {
        self.kinds.values().any(|kind| *kind == Kind::Native)
    }

    /// What kind of file it has there.
    pub(super) fn kind(&self, file: Node) -> Option<&Kind> {
        self.kinds.get(&file)
    }

    /// What a word names here to a file of such a kind: files, what was compiled of them instead if it was, and what stands for a directory.
    pub(super) fn named(&self, files: &dyn Files, word: &[u8], by: &Kind, entries: &mut u32) -> Vec<Node> {
        let Some(all) = self.names.get(word) else { return Vec::new() };
        let fits = |node: &Node| self.kinds.get(node).is_some_and(|kind| by.may_name(kind));
        let some = |kind: fn(&Named) -> Option<Node>| all.iter().filter_map(kind).filter(fits).collect::<Vec<_>>();
        let mut found = some(|named| if let Named::Compiled(node) = named { Some(*node) } else { None });
        if found.is_empty() {
            found = some(|named| if let Named::File(node) = named { Some(*node) } else { None });
        }
        for named in all {
            if let Named::Dir(dir) = named {
                found.extend(entry(files, *dir, by, entries));
            }
        }
        found
    }
}

/// The file that stands for a directory, as long as so many `left` directories may be looked into.
pub(super) fn entry(files: &dyn Files, dir: Node, by: &Kind, left: &mut u32) -> Vec<Node> {
    let Some(less) = left.checked_sub(1) else { return Vec::new() };
    *left = less;
    let within = [files.find(dir, COMPILED), Some(dir)];
    let stands = |within: Node, stem_of_it: &[u8]| -> Vec<Node> {
        let is_it = |name: &[u8]| stem(name) == stem_of_it && Kind::of(name).is_some_and(|kind| by.may_name(&kind));
        let found =
            files.children(within).take(MOST).filter(|(name, node)| is_it(name) && files.place(*node).is_some());
        found.map(|(_, node)| node).collect()
    };
    let each = ENTRIES.iter().flat_map(|stem| within.iter().flatten().map(|within| stands(*within, stem)));
    each.into_iter().find(|found| !found.is_empty()).unwrap_or_default()
}

/// A name up to its first dot, but for one at its start.
pub(super) fn stem(name: &[u8]) -> &[u8] {
    let dot = name.iter().skip(1).position(|byte| *byte == b'.').map_or(name.len(), |dot| dot.saturating_add(1));
    name.get(..dot).unwrap_or(name)
}

/// The directory that what is in `dir` was compiled of, or itself.
fn home(files: &dyn Files, dir: Node) -> Node {
    let above = files.parent(dir).filter(|above| files.find(*above, COMPILED) == Some(dir));
    above.unwrap_or(dir)
}

/// Where a program in `dir` has its own files: `../lib/NAME`.
pub(super) fn of_program(files: &dyn Files, dir: Node, program: Node) -> Option<Node> {
    let (name, _) = files.children(dir).find(|(_, node)| *node == program)?;
    files.find(files.parent(dir)?, &[b"lib/", name].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::readahead::fake::Fake;

    fn fake() -> Fake {
        let root = ["/", "/bin/", "/bin/py3", "/lib/", "/lib/py3/", "/lib/py3/dyn/", "/lib/py3/dyn/_x.cpython-3.so"];
        let python = [
            "/lib/py3/aa.py",
            "/lib/py3/bb.py",
            "/lib/py3/cc",
            "/lib/py3/pp/",
            "/lib/py3/pp/__init__.py",
            "/lib/py3/libz.so",
        ];
        let compiled = ["/lib/py3/__pycache__/", "/lib/py3/__pycache__/aa.cpython-3.pyc", "/lib/py3/pp/__pycache__/"];
        let inner = ["/lib/py3/pp/__pycache__/__init__.cpython-3.pyc", "/lib/py3/aa.txt"];
        Fake::of([&root[..], &python, &compiled, &inner].concat())
    }

    #[test]
    fn words_name_what_is_compiled_or_else_what_it_is_compiled_of() {
        let files = fake();
        let shelf = Shelf::of(&files, files.node("/lib/py3/__pycache__/")).unwrap();
        assert_eq!(shelf.dir, files.node("/lib/py3/"), "what it was compiled of");
        let python = Kind::of(b"x.pyc").unwrap();
        let named = |word: &str| {
            shelf
                .named(&files, word.as_bytes(), &python, &mut 9)
                .into_iter()
                .map(|node| files.path(node))
                .collect::<Vec<_>>()
        };
        assert_eq!(named("aa"), ["/lib/py3/__pycache__/aa.cpython-3.pyc"], "not aa.py, nor aa.txt");
        assert_eq!(named("bb"), ["/lib/py3/bb.py"]);
        assert_eq!(named("pp"), ["/lib/py3/pp/__pycache__/__init__.cpython-3.pyc"], "it stands for its directory");
        for nothing in ["cc", "libz", "dyn", "none", "__pycache__"] {
            assert!(named(nothing).is_empty(), "{nothing}");
        }
    }

    #[test]
    fn programs_have_files_of_their_own() {
        let files = fake();
        let own = of_program(&files, files.node("/bin/"), files.node("/bin/py3")).unwrap();
        assert_eq!(files.path(own), "/lib/py3/");
        assert!(of_program(&files, own, files.node("/lib/py3/cc")).is_none());
        let shelf = Shelf::of(&files, own).unwrap();
        let found = shelf.paths(&files, &[&[b"pp", b"__init__"], &[b"aa"], &[b"no", b"aa"], &[b"bb"]]);
        let found: Vec<_> = found.into_iter().map(|node| files.path(node)).collect();
        assert_eq!(found, ["/lib/py3/pp/__pycache__/__init__.cpython-3.pyc", "/lib/py3/__pycache__/aa.cpython-3.pyc"]);
        assert!(Shelf::of(&files, files.node("/lib/py3/dyn/")).unwrap().has_native() && !shelf.has_native());
    }

    #[test]
    fn suffixes_tell_what_may_name_what() {
        let kind = |name: &str| Kind::of(name.as_bytes());
        let may = |one: &str, other: &str| kind(one).unwrap().may_name(&kind(other).unwrap());
        assert!(may("a.pyc", "b.py") && may("a.js", "b.json") && may("a.pyc", "b.so") && may("b.so", "a.pyc"));
        assert!(!may("a.py", "b.js") && !may("a.pm", "b.pl"));
        assert!(
            kind("README").is_none() && kind(".profile").is_none() && kind("a.").is_none() && kind("libc.so").is_none()
        );
        let stems = [b"a.b.c".as_slice(), b"a", b".a.b", b"", b"."].map(stem);
        assert_eq!(stems, [b"a".as_slice(), b"a", b".a", b"", b"."]);
    }
}
