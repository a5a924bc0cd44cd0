//! What is to be fetched next, and whose idea that is.

use std::ops::Range;

/// Whose idea it is to fetch something. One policy may have several, with different turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// It lies behind a miss, and came with the same request.
    Miss,
    /// It is the rest of a file that was read, or what is next of a large one.
    Rest,
    /// A program needs it.
    Library,
    /// A file names it.
    Mention,
    /// The image's command needs it.
    Command,
    /// It is a small file near one that was read.
    Near,
    /// Somebody reads everything.
    Everything,
}

impl Origin {
    /// By which it is counted.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Miss => "miss",
            Self::Rest => "rest",
            Self::Library => "library",
            Self::Mention => "mention",
            Self::Command => "command",
            Self::Near => "near",
            Self::Everything => "everything",
        }
    }

    /// In this order they are asked for wishes: the first that has one is served. A miss asks for itself.
    pub(super) const TURNS: [Self; 6] =
        [Self::Rest, Self::Library, Self::Mention, Self::Command, Self::Near, Self::Everything];

    /// Whether what it wishes for counts, as a rule, for what may be guessed wrong. What the image's command needs does once it was read: until
    /// then it has a bound of its own.
    pub(super) fn counts(self) -> bool {
        self != Self::Command
    }

    /// Whether it is asked also when so much was guessed wrong that nothing more is: for what is bounded otherwise.
    pub(super) fn goes_on_when_over(self) -> bool {
        matches!(self, Self::Mention | Self::Command | Self::Everything)
    }
}

/// Units to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) layer: usize,
    pub(super) units: Range<u32>,
    /// Whether they count for what may be guessed wrong.
    pub(super) counts: bool,
    /// Whether those behind them are wished for next.
    pub(super) goes_on: bool,
    pub(super) origin: Origin,
}

impl Wish {
    pub(super) fn new(origin: Origin, layer: usize, units: Range<u32>) -> Self {
        Self { layer, units, counts: origin.counts(), goes_on: false, origin }
    }
}
