//! What programs need to start: their libraries, and what every program of a C library reads.

use std::collections::VecDeque;
use std::ops::Range;

use super::super::super::{Layer, plan};
use super::super::files::{Node, Place};
use super::super::state::{Seen, State, TAIL, rest_of};
use super::super::stretch::Stretch;
use super::super::{Readahead, WHOLE};
use super::elf::{self, Needed, Unknown};
use crate::blob::ByteRange;
use crate::index::Damaged;

/// A file that the image's command starts with is fetched whole up to this size.
const STARTED: u64 = 8 << 20;

/// All of them together: what an image says that it starts may not be what is run.
const ALL_STARTED: u64 = 32 << 20;

/// Files that may be programs, and wait until the part of them is there that says so.
const WAITING: usize = 32;

/// Directories in which libraries were found that are remembered.
const MOST_DIRS: usize = 64;

/// Where libraries are, if nothing says otherwise.
const LIBRARY_DIRS: [&[u8]; 5] = [b"lib", b"usr/lib", b"lib64", b"usr/lib64", b"usr/local/lib"];

/// What programs of the GNU C library read when they start (ld.so(8), locale(7), tzset(3)); what of it is beside the library is looked for there.
const C_LIBRARY: [&[u8]; 3] = [b"etc/ld.so.cache", b"usr/lib/locale/C.utf8/LC_CTYPE", b"etc/localtime"];
const BESIDE_C_LIBRARY: &[u8] = b"gconv/gconv-modules.cache";

/// What is known of programs and libraries.
#[derive(Default)]
pub(in super::super) struct Programs {
    /// To be looked into; with what the image's command needs.
    waiting: VecDeque<(Node, bool)>,
    /// What the image's command needs, and the bytes of it that are wished for: each file once, whatever needs it.
    started: Seen,
    /// Libraries that were wished for.
    wished: Seen,
    started_bytes: u64,
    /// Where libraries were found.
    dirs: Vec<Node>,
    /// The C library's own files were wished for.
    has_c_library: bool,
}

impl Programs {
    /// A file was read, or is to be: it may be a program.
    pub(in super::super) fn push(&mut self, file: Node, is_started: bool) {
        self.waiting.push_front((file, is_started));
        self.waiting.truncate(WAITING);
    }

    pub(in super::super) fn are_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

impl State {
    /// The image's command starts with a file.
    pub(in super::super) fn starts(&mut self, readahead: &Readahead, file: Node) -> Result<(), Damaged> {
        let Some((place, units)) = readahead.units(file)? else { return Ok(()) };
        let Some(contents) = readahead.layers.get(place.layer).filter(|_| !units.is_empty()) else { return Ok(()) };
        if !contents.source.is_remote() || !self.programs.started.insert(file) {
            return Ok(());
        }
        let whole = plan::compressed(&contents.index, &units)? <= STARTED;
        let units = if whole { units } else { head_of(contents, &units)? };
        let bytes = self.programs.started_bytes.saturating_add(plan::compressed(&contents.index, &units)?);
        if bytes <= ALL_STARTED {
            self.programs.started_bytes = bytes;
            self.programs.push(file, true);
            self.started.push(Stretch::new(place.layer, units.clone(), units.start));
        }
        Ok(())
    }

    /// Looks whether files are programs, and wishes for what they need.
    pub(in super::super) fn look_into_programs(&mut self, readahead: &Readahead) -> Result<(), Damaged> {
        for (file, is_started) in std::mem::take(&mut self.programs.waiting) {
            let Some(place) = readahead.files.place(file) else { continue };
            match look_into(readahead, place) {
                Ok(needed) => self.wish_for(readahead, file, &needed, is_started)?,
                Err(Unknown::Missing) => self.programs.waiting.push_back((file, is_started)),
                Err(Unknown::NotElf) => {}
            }
        }
        self.programs.waiting.truncate(WAITING);
        Ok(())
    }

    fn wish_for(
        &mut self,
        readahead: &Readahead,
        file: Node,
        needed: &Needed,
        is_started: bool,
    ) -> Result<(), Damaged> {
        let dir = readahead.neighbourhood().dir(file).unwrap_or(1);
        let found = self.find(readahead, dir, needed);
        for library in found.into_iter().rev().filter(|library| !self.seen.contains(*library)).collect::<Vec<_>>() {
            if is_started {
                self.starts(readahead, library)?;
            } else {
                self.wish_for_library(readahead, library)?;
            }
        }
        Ok(())
    }

    /// The interpreter and the libraries that a file in `dir` needs, as far as they are found, and what the C library reads.
    fn find(&mut self, readahead: &Readahead, dir: Node, needed: &Needed) -> Vec<Node> {
        let files = &readahead.files;
        let search = needed.search.iter().filter_map(|path| {
            match path.strip_prefix(b"$ORIGIN").or_else(|| path.strip_prefix(b"${ORIGIN}")) {
                Some(rest) => files.find(dir, rest.strip_prefix(b"/").unwrap_or(rest)),
                None => files.find(1, path),
            }
        });
        let mut dirs: Vec<Node> = search.chain([dir]).chain(self.programs.dirs.iter().copied()).collect();
        let interpreter = needed.interpreter.as_ref().and_then(|path| files.find(1, path));
        dirs.extend(interpreter.and_then(|file| readahead.neighbourhood().dir(file)));
        dirs.extend(LIBRARY_DIRS.iter().filter_map(|path| files.find(1, path)));
        let library = |name: &Vec<u8>| dirs.iter().find_map(|dir| files.find(*dir, name));
        let mut found: Vec<Node> = interpreter.into_iter().chain(needed.libraries.iter().filter_map(library)).collect();
        for dir in found.iter().filter_map(|file| readahead.neighbourhood().dir(*file)) {
            if self.programs.dirs.len() < MOST_DIRS && !self.programs.dirs.contains(&dir) {
                self.programs.dirs.push(dir);
            }
        }
        if interpreter.is_some() && !std::mem::replace(&mut self.programs.has_c_library, true) {
            found.extend(C_LIBRARY.iter().filter_map(|path| files.find(1, path)));
            found.extend(self.programs.dirs.iter().find_map(|dir| files.find(*dir, BESIDE_C_LIBRARY)));
        }
        found
    }

    fn wish_for_library(&mut self, readahead: &Readahead, library: Node) -> Result<(), Damaged> {
        let Some((place, units)) = readahead.units(library)? else { return Ok(()) };
        let Some(contents) = readahead.layers.get(place.layer) else { return Ok(()) };
        if !self.programs.wished.insert(library) {
            return Ok(());
        }
        self.programs.push(library, false);
        if plan::compressed(&contents.index, &units)? > WHOLE {
            self.libraries.push(Stretch::new(place.layer, head_of(contents, &units)?, units.start));
        }
        if let Some(wish) = rest_of(readahead, place, &units, units.start)? {
            self.libraries.push(wish);
        }
        Ok(())
    }
}

/// The first units of a large file.
fn head_of(contents: &Layer, units: &Range<u32>) -> Result<Range<u32>, Damaged> {
    Ok(units.start..plan::forward(&contents.index, units.start, TAIL, units.end)?.saturating_add(1))
}

/// What a file needs, if it is a program and the parts that say so are there.
fn look_into(readahead: &Readahead, place: Place) -> Result<Needed, Unknown> {
    let contents = readahead.layers.get(place.layer).ok_or(Unknown::NotElf)?;
    elf::needed(&|range: ByteRange| {
        // What lies past its end is not missing: it is nothing.
        let in_file = |at: u64| place.range.start.saturating_add(at).min(place.range.end);
        contents.peek(ByteRange::new(in_file(range.start), in_file(range.end))?)
    })
}
