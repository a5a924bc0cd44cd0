//! What programs need to start: their libraries, and what every program of a C library reads.

use std::collections::VecDeque;
use std::ops::Range;

use super::super::files::{Files, Node, Place};
use super::super::image::{Image, Located, WHOLE};
use super::super::seen::Seen;
use super::super::stack::Stack;
use super::super::stretch::{Stretch, TAIL};
use super::super::wish::{Origin, Wish};
use super::elf::{self, Needed, Unknown};
use super::{Ask, Found, Known, News, Policy};
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
pub(super) struct Programs {
    /// To be looked into; with what the image's command needs.
    waiting: VecDeque<(Node, bool)>,
    libraries: Stack<Stretch>,
    /// What the image's command needs.
    started: Stack<Stretch>,
    /// Each file of that once, whatever needs it, and the bytes that are wished for.
    of_command: Seen,
    started_bytes: u64,
    /// Libraries that were wished for.
    wished: Seen,
    /// Where libraries were found.
    dirs: Vec<Node>,
    /// The C library's own files were wished for.
    has_c_library: bool,
}

impl Policy for Programs {
    fn origins(&self) -> &'static [Origin] {
        &[Origin::Library, Origin::Command]
    }

    fn told(&mut self, known: &Known<'_>, news: &News<'_>, _: &mut Found) -> Result<(), Damaged> {
        match news {
            News::Read(read) if read.is_first => self.push(read.file, false),
            News::Linked(file) => self.push(*file, false),
            News::Starts(file) => self.starts(known.image, *file)?,
            News::Needed(stretch) => self.started.push(stretch.clone()),
            News::Asked => self.look_into_all(known)?,
            News::Read(_) | News::Studied => {}
        }
        Ok(())
    }

    fn next(&mut self, known: &Known<'_>, ask: Ask, _: &mut Found) -> Result<Option<Wish>, Damaged> {
        let stack = if ask.turn == Origin::Command { &mut self.started } else { &mut self.libraries };
        stack.next(known.image, ask.size, ask.turn)
    }

    fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

impl Programs {
    /// A file was read, or is to be: it may be a program.
    fn push(&mut self, file: Node, is_started: bool) {
        self.waiting.push_front((file, is_started));
        self.waiting.truncate(WAITING);
    }

    /// The image's command starts with a file.
    fn starts(&mut self, image: &Image, file: Node) -> Result<(), Damaged> {
        let Some(located) = image.locate(file)?.filter(|located| !located.units.is_empty()) else { return Ok(()) };
        if !located.layer.is_remote() || !self.of_command.insert(file) {
            return Ok(());
        }
        let units = if located.size()? <= STARTED { located.units.clone() } else { head_of(&located)? };
        let bytes = self.started_bytes.saturating_add(located.layer.size(&units)?);
        if bytes <= ALL_STARTED {
            self.started_bytes = bytes;
            self.push(file, true);
            let start = units.start;
            self.started.push(Stretch::new(located.place.layer, units, start));
        }
        Ok(())
    }

    /// Looks whether files are programs, and wishes for what they need.
    fn look_into_all(&mut self, known: &Known<'_>) -> Result<(), Damaged> {
        for (file, is_started) in std::mem::take(&mut self.waiting) {
            let Some(place) = known.image.files().place(file) else { continue };
            match look_into(known.image, place) {
                Ok(needed) => self.wish_for(known, file, is_started, &needed)?,
                Err(Unknown::Missing) => self.waiting.push_back((file, is_started)),
                Err(Unknown::NotElf) => {}
            }
        }
        self.waiting.truncate(WAITING);
        Ok(())
    }

    fn wish_for(&mut self, known: &Known<'_>, file: Node, is_started: bool, needed: &Needed) -> Result<(), Damaged> {
        let dir = known.image.dir(file).unwrap_or(1);
        for library in self.find(known.image, dir, needed).into_iter().rev() {
            if known.history.has_read(library) {
                continue;
            }
            if is_started {
                self.starts(known.image, library)?;
            } else {
                self.wish_for_library(known.image, library)?;
            }
        }
        Ok(())
    }

    /// The interpreter and the libraries that a file in `dir` needs, as far as they are found, and what the C library reads.
    fn find(&mut self, image: &Image, dir: Node, needed: &Needed) -> Vec<Node> {
        let files = image.files();
        let search = needed.search.iter().filter_map(|path| searched(files, dir, path));
        let mut dirs: Vec<Node> = search.chain([dir]).chain(self.dirs.iter().copied()).collect();
        let interpreter = needed.interpreter.as_ref().and_then(|path| files.find(1, path));
        dirs.extend(interpreter.and_then(|file| image.dir(file)));
        dirs.extend(LIBRARY_DIRS.iter().filter_map(|path| files.find(1, path)));
        let library = |name: &Vec<u8>| dirs.iter().find_map(|dir| files.find(*dir, name));
        let mut found: Vec<Node> = interpreter.into_iter().chain(needed.libraries.iter().filter_map(library)).collect();
        self.remember(found.iter().filter_map(|file| image.dir(*file)));
        if interpreter.is_some() && !std::mem::replace(&mut self.has_c_library, true) {
            found.extend(C_LIBRARY.iter().filter_map(|path| files.find(1, path)));
            found.extend(self.dirs.iter().find_map(|dir| files.find(*dir, BESIDE_C_LIBRARY)));
        }
        found
    }

    /// There are libraries in these directories.
    fn remember(&mut self, dirs: impl Iterator<Item = Node>) {
        for dir in dirs {
            if self.dirs.len() < MOST_DIRS && !self.dirs.contains(&dir) {
                self.dirs.push(dir);
            }
        }
    }

    fn wish_for_library(&mut self, image: &Image, library: Node) -> Result<(), Damaged> {
        let Some(located) = image.locate(library)? else { return Ok(()) };
        if !self.wished.insert(library) {
            return Ok(());
        }
        self.push(library, false);
        let start = located.units.start;
        if located.size()? > WHOLE {
            self.libraries.push(Stretch::new(located.place.layer, head_of(&located)?, start));
        }
        Stretch::rest_of(&located, start)?.into_iter().for_each(|rest| self.libraries.push(rest));
        Ok(())
    }
}

/// The directory that a program in `dir` names to look for libraries in.
fn searched(files: &dyn Files, dir: Node, path: &[u8]) -> Option<Node> {
    match path.strip_prefix(b"$ORIGIN").or_else(|| path.strip_prefix(b"${ORIGIN}")) {
        Some(rest) => files.find(dir, rest.strip_prefix(b"/").unwrap_or(rest)),
        None => files.find(1, path),
    }
}

/// The first units of a large file.
fn head_of(Located { units, layer, .. }: &Located<'_>) -> Result<Range<u32>, Damaged> {
    Ok(units.start..layer.forward(units.start, TAIL, units.end)?.saturating_add(1))
}

/// What a file needs, if it is a program and the parts that say so are there.
fn look_into(image: &Image, place: Place) -> Result<Needed, Unknown> {
    elf::needed(&|range: ByteRange| {
        // What lies past its end is not missing: it is nothing.
        let in_file = |at: u64| place.range.start.saturating_add(at).min(place.range.end);
        image.peek(Place { range: ByteRange::new(in_file(range.start), in_file(range.end))?, ..place })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::readahead::fake::Lab;

    /// A program of the C library's, as every host has one.
    fn lab() -> Lab {
        let dirs = ["/", "/bin/", "/etc/", "/lib/"].map(|dir| (dir, Vec::new()));
        let program = std::fs::read("/bin/true").unwrap();
        let files = [
            ("/bin/true", program),
            ("/etc/ld.so.cache", vec![1; 100]),
            ("/lib/libc.so.6", vec![1; 5 << 20]),
            ("/lib/libother.so", vec![1; 100]),
        ];
        Lab::of(&[&dirs[..], &files].concat())
    }

    #[test]
    fn a_program_needs_its_libraries_once_its_head_is_here() {
        let (mut lab, mut programs) = (lab(), Programs::default());
        lab.read(&mut programs, "/bin/true", 0..1);
        lab.tell(&mut programs, &News::Asked);
        assert!(lab.next(&mut programs, Origin::Library).is_none() && programs.is_waiting());
        lab.bring(lab.units("/bin/true"));
        lab.tell(&mut programs, &News::Asked);
        let library = lab.units("/lib/libc.so.6");
        let wishes: Vec<_> = std::iter::from_fn(|| lab.next(&mut programs, Origin::Library)).collect();
        let ends = [library.end - 4..library.end, library.start..library.start + 4];
        assert!(ends.iter().all(|end| wishes.contains(end)), "the ends of a large one: {wishes:?}, {library:?}");
        assert!(lab.next(&mut programs, Origin::Command).is_none());
    }

    #[test]
    fn what_the_command_needs_has_its_own_turn_and_does_not_count() {
        let (lab, mut programs) = (lab(), Programs::default());
        let file = lab.node("/bin/true");
        lab.tell(&mut programs, &News::Starts(file));
        let ask = Ask { turn: Origin::Command, size: 1 << 20, is_over: true };
        let wish = lab.ask(&mut programs, ask).unwrap();
        assert!(!wish.counts && wish.origin == Origin::Command && wish.units == lab.units("/bin/true"));
        lab.bring(wish.units);
        lab.tell(&mut programs, &News::Starts(file));
        assert!(lab.ask(&mut programs, ask).is_none(), "once");
        lab.tell(&mut programs, &News::Asked);
        assert!(
            lab.ask(&mut programs, ask).is_some_and(|wish| wish.units.start >= lab.units("/etc/ld.so.cache").start)
        );
        assert!(lab.next(&mut programs, Origin::Library).is_none());
    }
}
