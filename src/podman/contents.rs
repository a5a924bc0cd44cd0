//! The contents of a layer in a store, read as a part of an image: what is fetched around a miss follows from the image's files, and those of a single
//! layer do not tell, since a program and its libraries are in several.
//!
//! The tree of a whole image takes memory, so it is made when the first of its layers misses something, and when it is added: it will be run, then. A
//! layer that several images have counts as part of the one of them that came first.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc::UnboundedSender;

use crate::blob::ByteRange;
use crate::budget::Budget;
use crate::fetch::{self, Disk, Files, Readahead};
use crate::fs::tree::{Ino, Tree};
use crate::fs::view::Contents;
use crate::image;
use crate::image::engine::of_each;

/// Where layers say that they were read and belong to no image yet: by their numbers.
pub(super) type Wants = UnboundedSender<u32>;

/// The contents of one layer.
pub(super) struct LayerContents {
    number: u32,
    layer: Arc<fetch::Layer>,
    /// The layer alone, of which nothing is guessed.
    alone: Arc<Readahead>,
    within: RwLock<Option<Arc<Within>>>,
    /// `None`: nothing is guessed at all.
    wants: Option<Wants>,
    has_asked: AtomicBool,
}

/// A layer's place in an image.
struct Within {
    image: Arc<ImageContents>,
    /// The layer's place among the image's.
    place: usize,
    /// Of each file of the layer that the image shows, where it starts in the layer file, and its number in the image; ascending.
    files: Vec<(u64, u32)>,
    /// Whether no other image has the layer, so that who reads it runs this one.
    is_own: bool,
}

/// What an image's layers share.
struct ImageContents {
    readahead: Arc<Readahead>,
    /// What its command starts, until it was looked at.
    command: Mutex<Vec<Vec<String>>>,
    is_started: AtomicBool,
}

/// One layer of an image that is to be joined.
pub(super) struct Part {
    pub(super) contents: Arc<LayerContents>,
    /// Whether no other image has it.
    pub(super) is_own: bool,
}

/// Makes the tree of an image of its layers, the lowest first, so that they are read as its parts. `command`: the files that its command starts.
/// Takes a while.
pub(super) fn join(parts: &[Part], command: Vec<Vec<String>>) -> Result<(), image::Error> {
    let layers: Vec<_> = parts.iter().map(|part| Arc::clone(&part.contents.layer)).collect();
    let entries = of_each(&layers, |index| index.entries().map(Arc::new))?;
    // Other images have some of these layers: neither takes what the other may.
    let memory = layers.last().map_or(Budget::UNLIMITED, |layer| layer.index().budget().another());
    let tree = Tree::merged(entries.iter().map(AsRef::as_ref).collect(), &memory)?;
    let mut files: HashMap<usize, Vec<(u64, u32)>> = HashMap::new();
    for number in 1..=u32::try_from(tree.totals().0).unwrap_or(u32::MAX) {
        let extent = Ino::new(number.into()).and_then(|ino| tree.extent(ino)).filter(|extent| extent.len > 0);
        if let Some(extent) = extent {
            files.entry(extent.layer).or_default().push((extent.start, number));
        }
    }
    let readahead = Readahead::new(layers, Arc::new(tree) as Arc<dyn Files>, true);
    let image = ImageContents { readahead, command: Mutex::new(command), is_started: AtomicBool::new(false) };
    let image = Arc::new(image);
    for (place, part) in parts.iter().enumerate() {
        let mut files = files.remove(&place).unwrap_or_default();
        files.sort_unstable();
        let within = Within { image: Arc::clone(&image), place, files, is_own: part.is_own };
        let mut slot = part.contents.within.write().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() || part.is_own {
            *slot = Some(Arc::new(within));
        }
    }
    Ok(())
}

impl LayerContents {
    pub(super) fn new(number: u32, layer: Arc<fetch::Layer>, tree: Arc<Tree>, wants: Option<Wants>) -> Arc<Self> {
        let alone = Readahead::new(vec![Arc::clone(&layer)], tree as Arc<dyn Files>, false);
        let (within, has_asked) = (RwLock::default(), AtomicBool::new(false));
        Arc::new(Self { number, layer, alone, within, wants, has_asked })
    }

    fn within(&self) -> Option<Arc<Within>> {
        self.within.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The image's number of the file that holds a range of the layer file, if the image shows it.
    fn in_image(&self, range: ByteRange) -> Option<(Arc<Within>, u64)> {
        let within = self.within()?;
        let after = within.files.partition_point(|(start, _)| *start <= range.start);
        let node = within.files.get(after.checked_sub(1)?)?.1;
        Some((within, node.into()))
    }
}

impl Within {
    /// Who reads what only this image has runs it.
    fn is_read(&self) {
        if self.is_own && !self.image.is_started.swap(true, Ordering::AcqRel) {
            let image = Arc::clone(&self.image);
            tokio::spawn(async move {
                let command = std::mem::take(&mut *image.command.lock().unwrap_or_else(PoisonError::into_inner));
                image.readahead.starts(command).await;
            });
        }
    }
}

impl Contents for LayerContents {
    fn patience(&self) -> Duration {
        self.alone.patience()
    }

    fn gave_up(&self, _layer: usize) {
        self.alone.gave_up(0);
    }

    fn layers(&self) -> usize {
        1
    }

    fn read(
        self: Arc<Self>,
        _layer: usize,
        ino: Ino,
        range: ByteRange,
    ) -> BoxFuture<'static, Result<Bytes, fetch::Error>> {
        Box::pin(async move {
            if let Some((within, node)) = self.in_image(range) {
                within.is_read();
                return Readahead::read(&within.image.readahead, within.place, node, range).await;
            }
            if let Some(wants) = self.wants.as_ref().filter(|_| !self.has_asked.swap(true, Ordering::AcqRel)) {
                // Nobody listens any more when the server ends.
                let _heard = wants.send(self.number);
            }
            Readahead::read(&self.alone, 0, ino.get(), range).await
        })
    }

    fn read_cached(self: Arc<Self>, _layer: usize, ino: Ino, range: ByteRange, buffer: &mut [u8], disk: Disk) -> bool {
        match self.in_image(range) {
            Some((within, node)) => {
                Readahead::read_cached(&within.image.readahead, within.place, node, range, buffer, disk)
            }
            None => Readahead::read_cached(&self.alone, 0, ino.get(), range, buffer, disk),
        }
    }
}
