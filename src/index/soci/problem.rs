//! What can be wrong with a zTOC.

/// Longest text of a zTOC in a message, in characters.
const SHOWN: usize = 80;

/// What is wrong with a zTOC, or with how it describes an entry.
#[derive(Debug, thiserror::Error)]
pub enum ZtocProblem {
    #[error("is malformed: {0}")]
    Malformed(String),
    #[error("is of version {0:?}, and crfs reads 0.9")]
    Version(String),
    #[error("has no {0}")]
    Missing(&'static str),
    #[error("is that of a blob of {said} bytes, and this one has {is}")]
    OtherBlob { said: u64, is: u64 },
    #[error("names compression {0}, which is unknown")]
    Compression(i8),
    #[error("says that {key} is {value}")]
    Value { key: &'static str, value: i64 },
    #[error("has {digests} span digests, and its last span is number {last}")]
    Digests { digests: usize, last: i32 },
    #[error("has the span digest {0:?}, which is none")]
    Digest(String),
    #[error("has {bytes} bytes of checkpoints, which does not fit {spans} spans")]
    Checkpoints { bytes: usize, spans: usize },
    #[error("has an impossible checkpoint {number}: in {start}, out {out}, {bits} bits")]
    Checkpoint { number: usize, start: i64, out: i64, bits: u8 },
    #[error("puts its contents, {len} bytes, at byte {offset} of a tar of {size} bytes")]
    Contents { offset: u64, len: u64, size: u64 },
    #[error(
        "puts its contents at byte {offset} of the tar, where those of the entry before it are, which end at {before}"
    )]
    Order { offset: u64, before: u64 },
    #[error("does not say where the parts of this sparse file are")]
    Sparse,
}

impl ZtocProblem {
    pub(super) fn malformed(error: impl std::fmt::Display) -> Self {
        // What follows the first line is the way through the tables.
        Self::Malformed(shortened(error.to_string().lines().next().unwrap_or_default()))
    }
}

/// Enough of a hostile text to know it by.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}
