//! What a server and a reader say to each other: lines of JSON, on the reader's standard input and output.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use crate::blob::Digest;
use crate::image::Event;
use crate::image::options::ImageOptions;
use crate::index::{Identity, Trust};
use crate::metrics::Counts;
use crate::serve::options::LogOptions;

/// What a reader is to do. It is told to open first, once.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Ask {
    Open(Box<Open>),
    /// The tar-splits of these layers, with their diffIDs, as `--full` makes them.
    Split(BTreeMap<usize, Digest>),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Open {
    pub(super) source: ImageOptions,
    /// Byte for byte, whether or not that is text: both read the same image.
    pub(super) manifest: Vec<u8>,
    /// The layers, by their numbers.
    pub(super) wanted: Vec<usize>,
    /// For an image that is added.
    pub(super) adds: Option<Adds>,
    /// Layers that have to be read whole are refused.
    pub(super) is_lazy: bool,
    pub(super) log: LogOptions,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Adds {
    /// Where tar-splits are written, without a name.
    pub(super) tar_splits: OsString,
    /// All that can have one get one. Else those get one that are read whole anyway.
    pub(super) full: bool,
}

/// What a reader says. Descriptors are its own: the server opens them by /proc.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Said {
    Event(Event),
    /// It lives, and has counted so much until now.
    Working(Counts),
    Opened(BTreeMap<usize, Came>),
    Split(BTreeMap<usize, Split>),
    /// Nothing came of it: why, and because of which layer.
    Failed {
        layer: Option<usize>,
        message: String,
    },
}

/// What came of a layer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Came {
    Open {
        /// `None`: it is in the cache.
        index: Option<Index>,
        split: Option<Split>,
    },
    Refused {
        message: String,
        /// It can only be read whole.
        not_lazy: bool,
    },
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Index {
    pub(super) identity: Option<Identity>,
    pub(super) trust: Trust,
    pub(super) file: RawFd,
}

/// A tar-split that can be used.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Split {
    pub(super) file: RawFd,
    pub(super) tar_len: u64,
}
