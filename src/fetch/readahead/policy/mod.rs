//! What to fetch before it is asked for: one policy a file, each for itself. None knows how anything is fetched, nor of the others.
//!
//! | policy | wishes for |
//! |---|---|
//! | [`rest`] | the rest of a file that was read; what is next of a large one |
//! | [`programs`] | what programs need, and the image's command |
//! | [`mentions`] | files that others name |
//! | [`near`] | small files near one that was read |
//! | [`everything`] | what lies behind the last read of who reads everything |
//!
//! Which of them is served first: [`Origin::TURNS`].

pub mod elf;
mod everything;
mod mentions;
mod near;
mod programs;
mod rest;
mod shelf;
mod shelves;
pub mod words;

use std::collections::VecDeque;
use std::ops::Range;

pub(super) use self::mentions::LOOKED_INTO;
pub(super) use self::near::end_of_small_files;
use super::super::plan::Tail;
use super::files::Node;
use super::history::History;
use super::image::{Image, Located};
use super::stretch::Stretch;
use super::wish::{Origin, Wish};
use crate::blob::ByteRange;
use crate::index::Damaged;

/// One idea of what is read next.
pub(super) trait Policy: Send {
    /// What its wishes are. When it is the turn of one of these, it is asked.
    fn origins(&self) -> &'static [Origin];

    /// Something has happened, or another policy has found something.
    fn told(&mut self, known: &Known<'_>, news: &News<'_>, found: &mut Found) -> Result<(), Damaged>;

    /// Its next wish, of about so many bytes; it does not give it again.
    fn next(&mut self, known: &Known<'_>, ask: Ask, found: &mut Found) -> Result<Option<Wish>, Damaged>;

    /// What it has to find out about files that came. Afterwards it is told [`News::Studied`].
    fn studies(&mut self, _known: &Known<'_>, _found: &mut Found) -> Result<Vec<Study>, Damaged> {
        Ok(Vec::new())
    }

    /// How far a miss in a large file, which ends at `end`, goes on; `bytes` is what the link carries. `None`: it does not say.
    fn tail(&self, _file: Node, _end: u64, _bytes: u64) -> Option<Tail> {
        None
    }

    /// Whether further hits in a file that was read tell it something.
    fn follows(&self, _file: Node) -> bool {
        false
    }

    /// Whether it takes a file for one that will be read, though none near it was: then those near it need not be.
    fn foresees(&self, _file: Node) -> bool {
        false
    }

    /// Whether it waits for contents to come.
    fn is_waiting(&self) -> bool {
        false
    }
}

/// All of them, in the order in which they are told of something.
pub(super) fn all() -> Vec<Box<dyn Policy>> {
    vec![
        Box::<programs::Programs>::default(),
        Box::<rest::Rest>::default(),
        Box::<near::Near>::default(),
        Box::<mentions::Mentions>::default(),
        Box::<everything::Everything>::default(),
    ]
}

/// What a policy may look at.
pub(super) struct Known<'a> {
    pub(super) image: &'a Image,
    pub(super) history: &'a History,
}

/// What policies are told.
pub(super) enum News<'a> {
    Read(Read<'a>),
    /// The image's command starts with this file.
    Starts(Node),
    /// A file was named that is linked as a library is: it may need others.
    Linked(Node),
    /// The image's command needs this, which is large.
    Needed(Stretch),
    /// What was to be found out is found out.
    Studied,
    /// Somebody is about to ask for wishes: what was waited for may be here.
    Asked,
}

/// A file was read for the first time, or missed, or a policy follows it.
pub(super) struct Read<'a> {
    pub(super) file: Node,
    pub(super) located: Located<'a>,
    /// Compressed bytes of the file.
    pub(super) size: u64,
    /// What was read of the layer file, and the units that hold that.
    pub(super) range: ByteRange,
    pub(super) here: Range<u32>,
    /// Whether any of it had to be fetched.
    pub(super) missed: bool,
    pub(super) is_first: bool,
    /// Whether a policy took it for one that will be read.
    pub(super) is_foreseen: bool,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    pub(super) turn: Origin,
    /// At most about so many compressed bytes.
    pub(super) size: u64,
    /// So much was guessed wrong that nothing more is but what is bounded otherwise.
    pub(super) is_over: bool,
}

/// What a policy finds that is not for itself.
#[derive(Default)]
pub(super) struct Found {
    /// For the others.
    pub(super) news: VecDeque<News<'static>>,
    /// Something that is waited for may be here already.
    pub(super) may_be_here: bool,
}

/// Something to find out that takes a while: done while the policies can be told and asked.
pub(super) type Study = Box<dyn FnOnce(&Image) + Send>;
