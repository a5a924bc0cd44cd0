//! A layer's directory as it lies in the cache, for those who have no index of it: eviction, `crfs cache show`, `clear` and `verify`.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::dir::Dir;
use super::lock::{self, Kind};
use super::presence::{Present, is_linked, punch};
use super::space::PAGE;
use super::sums::Sums;
use crate::blob::{ByteRange, Digest};
use crate::index::{Identity, LayerKey};

/// The byte of `data` that whoever uses the layer holds a shared lock of, for as long as it does.
pub(super) const IN_USE: u64 = 0;

/// The byte of `data` that is locked as well by those whose contents are not to be evicted.
pub(super) const PINNED: u64 = 1;

/// Where all layers are.
pub(super) const LAYERS: &str = "layers";

const OWN: &str = "own";
const TOC: &str = "toc-";
const ZTOC: &str = "ztoc-";

/// A layer's directory.
pub(super) fn layer_dir(key: &LayerKey) -> PathBuf {
    let identity = match key.identity {
        Identity::Toc(digest) => format!("{TOC}{}", digest.hex()),
        Identity::Ztoc(digest) => format!("{ZTOC}{}", digest.hex()),
        Identity::Own => OWN.to_owned(),
    };
    Path::new(LAYERS).join(key.blob.hex()).join(identity)
}

fn key_of(blob: &str, identity: &str) -> Option<LayerKey> {
    let digest = |hex: &str| format!("sha256:{hex}").parse::<Digest>().ok();
    let identity = match (identity.strip_prefix(TOC), identity.strip_prefix(ZTOC)) {
        (Some(hex), _) => Identity::Toc(digest(hex)?),
        (None, Some(hex)) => Identity::Ztoc(digest(hex)?),
        (None, None) if identity == OWN => Identity::Own,
        _ => return None,
    };
    Some(LayerKey { blob: digest(blob)?, identity })
}

/// What a layer's directory holds.
pub(super) const LAYER_FILES: [&str; 4] = ["index", "data", "present", Sums::NAME];

/// Whether these are the names of a layer's directory and the one above it.
pub(super) fn is_layer_dir(blob: &str, identity: &str) -> bool {
    key_of(blob, identity).is_some()
}

/// The directories of all layers, and whose they are (`None`: no layer's).
pub(super) fn layers(dir: &Dir) -> Vec<(PathBuf, Option<LayerKey>)> {
    let mut layers = Vec::new();
    for blob in dir.list(Path::new(LAYERS)) {
        let path = Path::new(LAYERS).join(&blob.name);
        for identity in dir.list(&path) {
            let key = blob.name.to_str().zip(identity.name.to_str()).and_then(|(blob, name)| key_of(blob, name));
            layers.push((path.join(identity.name), key));
        }
    }
    layers
}

/// The directories of layers alone.
pub(super) fn own_layers(dir: &Dir) -> Vec<PathBuf> {
    layers(dir).into_iter().filter_map(|(path, key)| key.map(|_| path)).collect()
}

/// The layer file, locked as in use, and of the name that it was opened by: one that is being removed is waited for.
pub(super) fn open_in_use(open: impl Fn() -> io::Result<File>) -> io::Result<File> {
    const TRIES: u32 = 50;
    for _ in 0..TRIES {
        match open() {
            Ok(data) if lock::try_keep(&data, Kind::Shared, IN_USE)? && is_linked(&data) => return Ok(data),
            Ok(_) => {}
            // Its directory was removed before it could be made in it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err(io::ErrorKind::WouldBlock.into())
}

/// What is stored of one layer's contents.
pub(super) struct Stored {
    pub(super) data: File,
    pub(super) present: Present,
}

impl Stored {
    /// `None` where there is nothing, or it is damaged.
    pub(super) fn open(dir: &Dir, layer: &Path) -> Option<Self> {
        Self::with(layer, |path| dir.open_to_write(path))
    }

    pub(super) fn open_to_read(dir: &Dir, layer: &Path) -> Option<Self> {
        Self::with(layer, |path| dir.open(path))
    }

    fn with(layer: &Path, open: impl Fn(&Path) -> io::Result<File>) -> Option<Self> {
        // In this order: a layer is removed with `data` last. Where it was removed in between, `data` has no name any more.
        let data = open(&layer.join("data")).ok()?;
        let present = Present::read(open(&layer.join("present")).ok()?)?;
        Some(Self { data, present })
    }

    /// Evicts a group: whoever is reading it sees by its generation that what was read may be gone. Gives the bytes that are free now;
    /// `None`: another has the layer locked, or pinned.
    ///
    /// A crash leaves what is there to be verified anew, or bytes that nothing tells of, which go with the next eviction.
    pub(super) fn evict(&self, group: usize, patience: Duration) -> Option<u64> {
        // What was removed has another's presence beside its name now.
        let is_free = || is_linked(&self.data) && !lock::is_held(&self.data, PINNED);
        let _held = self.present.lock(patience).filter(|_| is_free())?;
        let before = allocated(&self.data);
        let range = self.present.groups().bytes(group);
        if has_data(&self.data, range.start, range.end) {
            // With another generation instead of none, somebody could verify by it what is gone the next moment.
            let cleared = self.present.end_generation(group).and_then(|()| self.present.clear(group));
            match cleared.and_then(|()| punch(&self.data, range)) {
                Ok(true) => {}
                Ok(false) => return Some(self.empty(before)),
                Err(_) => return Some(0),
            }
        }
        let _ = self.present.set_last_use(group, 0);
        Some(before.saturating_sub(allocated(&self.data)))
    }

    /// Where holes cannot be punched: all of the layer's contents go at once.
    fn empty(&self, before: u64) -> u64 {
        for group in 0..self.present.groups().count() {
            let cleared = self.present.end_generation(group).and_then(|()| self.present.clear(group));
            if cleared.and_then(|()| self.present.set_last_use(group, 0)).is_err() {
                return 0;
            }
        }
        let _ = self.data.set_len(0).and_then(|()| self.data.set_len(self.present.groups().len()));
        before.saturating_sub(allocated(&self.data))
    }
}

fn allocated(file: &File) -> u64 {
    file.metadata().map_or(0, |found| found.blocks() * 512)
}

/// Whether anything of a range is not a hole.
pub(super) fn has_data(file: &File, start: u64, end: u64) -> bool {
    next_data(file, start).is_some_and(|found| found < end)
}

/// Where, from a place on, something is not a hole.
fn next_data(file: &File, start: u64) -> Option<u64> {
    match lseek(file, i64::try_from(start).ok()?, Whence::SeekData) {
        Ok(found) => Some(found.unsigned_abs()),
        Err(Errno::ENXIO) => None,
        // What cannot be asked may have some.
        Err(_) => Some(start),
    }
}

/// Groups that take room although nothing tells of a use of them, as a crash may leave them, are the first to go from now on: else nobody
/// would evict them.
pub(super) fn tell_of_untold(data: &File, present: &Present) {
    // Whoever has it is storing or evicting, and leaves it right; what was left before can wait for the next who opens the layer.
    let Some(_held) = present.lock(Duration::ZERO) else { return };
    let told: HashSet<usize> = present.uses().into_iter().map(|used| used.group).collect();
    let mut found = next_data(data, 0);
    for group in (0..present.groups().count()).filter(|group| !told.contains(group)) {
        // Blocks that it shares with its neighbours stay when it is evicted.
        let ByteRange { start, end } = present.groups().bytes(group);
        let (start, end) = (start.next_multiple_of(PAGE), end / PAGE * PAGE);
        if found.is_some_and(|found| found < start) {
            found = next_data(data, start);
        }
        match found {
            Some(found) if found < end => drop(present.set_last_use(group, 1)),
            Some(_) => {}
            None => return,
        }
    }
}

/// Removes a layer that nobody uses, or only its contents. Gives the bytes that are free now; `None`: it is in use.
pub(super) fn remove(dir: &Dir, layer: &Path, with_index: bool) -> Option<u64> {
    let data = dir.open_or_create(&layer.join("data")).ok()?;
    let _held = lock::exclusive(&data, IN_USE, Duration::ZERO).filter(|_| is_linked(&data))?;
    let before = dir.allocated(layer);
    // `data` last: see `Stored::with`.
    let _ = dir.remove(&layer.join("present"));
    let _ = dir.remove(&layer.join(Sums::NAME));
    if with_index {
        let _ = dir.remove(&layer.join("index"));
    }
    let _ = dir.remove(&layer.join("data"));
    let after = dir.allocated(layer);
    // Only where they are empty.
    let _ = dir.remove(layer);
    let _ = layer.parent().map(|blob| dir.remove(blob));
    Some(before.saturating_sub(after))
}

/// Takes care that nobody removes a layer file, or evicts from it, for as long as it is open. `false`: somebody is removing it.
pub(super) fn keep(data: &File) -> io::Result<bool> {
    Ok(lock::try_keep(data, Kind::Shared, IN_USE)? && lock::try_keep(data, Kind::Shared, PINNED)?)
}

/// The layer file, to be kept, if others use it and the first `checks` are there.
pub(super) fn kept(dir: &Dir, layer: &Path, checks: u32) -> Option<File> {
    let Stored { data, present } = Stored::open(dir, layer)?;
    let is_kept = lock::is_held(&data, IN_USE) && keep(&data).ok()? && is_linked(&data);
    // Whoever stores or evicts has this lock.
    let _held = present.lock(Duration::ZERO).filter(|_| is_kept)?;
    (0..checks).all(|check| present.is_there(check)).then_some(data)
}

/// Whether a process uses the layer.
pub(super) fn is_in_use(dir: &Dir, layer: &Path) -> bool {
    dir.open(&layer.join("data")).is_ok_and(|data| lock::is_held(&data, IN_USE))
}
