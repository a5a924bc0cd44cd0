//! What `crfs cache` does: says what is there, removes it, verifies it. All while mounts are in use.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::dir::{Dir, is_temporary};
use super::documents::{self, DOCUMENTS, NAMES};
use super::groups::Groups;
use super::layer::hash;
use super::presence::Present;
use super::store::SPACE;
use super::stored::{self, Stored};
use super::sums::Sums;
use super::{LAYOUT, Limits, Store, images, open_index, space, store};
use crate::blob::Digest;
use crate::index::{CheckKind, Identity, LayerKey, StoredIndex};
use crate::sys::limit;
use crate::sys::own::OwnDir;

/// A layer that is being stored into is waited for as long as this.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is in a cache. Sizes are bytes on the disk, as du(1) counts them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Usage {
    pub dir: PathBuf,
    /// Of everything below the directory.
    pub total: u64,
    #[serde(flatten)]
    pub limits: Limits,
    /// Manifests, and what names were resolved to.
    pub documents: u64,
    pub layers: Vec<LayerUse>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LayerUse {
    pub blob: Digest,
    /// The digest of the table of contents, as the manifest names it; `None`: the blob's own digest vouches for the index.
    pub toc: Option<Digest>,
    pub contents: u64,
    /// Of all contents, cached or not.
    pub contents_size: u64,
    pub index: u64,
    /// By a mount, or another command.
    pub in_use: bool,
    /// Those that it is of, as far as manifests in the cache tell: by name, else by the digest of the manifest.
    pub images: Vec<String>,
}

/// What `clear` has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cleared {
    /// Bytes that are free now.
    pub freed: u64,
    /// Bytes that are still there.
    pub total: u64,
    /// Layers of which the index stays because they are in use.
    pub in_use: u32,
    /// Those of them of which contents stay as well: a process has them locked and does not go on.
    pub held_up: u32,
}

/// What `verify` has found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verification {
    pub documents: u64,
    pub indexes: u64,
    /// Parts of contents that have a digest of their own, and their bytes.
    pub checks: u64,
    pub bytes: u64,
    /// Layers whose contents cannot be checked, as they have no index. Nobody uses them before they have.
    pub without_index: u64,
    pub wrong: Vec<Wrong>,
}

/// How far a layer is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Its place among those of the cache.
    pub number: usize,
    pub blob: Digest,
    /// Bytes of its contents that were verified, about of how many.
    pub bytes: u64,
    pub of: u64,
    /// The same of all layers.
    pub all: u64,
    pub of_all: u64,
    pub done: bool,
}

/// Takes how far layers are verified.
pub type Report = Arc<dyn Fn(&Verified) + Send + Sync>;

/// Tells it, for each so many bytes.
struct Progress<'a> {
    report: &'a Report,
    of_all: u64,
    /// Bytes of the layers before.
    before: u64,
}

impl Progress<'_> {
    const STEP: u64 = 4 << 20;

    fn tell(&self, told: &mut Verified, bytes: u64) {
        if bytes >= told.bytes.saturating_add(Self::STEP) {
            told.bytes = bytes;
            self.say(*told);
        }
    }

    fn end(&mut self, told: Verified) {
        self.say(Verified { bytes: told.of, done: true, ..told });
        self.before = self.before.saturating_add(told.of);
    }

    fn say(&self, told: Verified) {
        let bytes = told.bytes.min(told.of);
        (self.report)(&Verified { bytes, all: self.before.saturating_add(bytes), of_all: self.of_all, ..told });
    }
}

/// Something in the cache that is not what was stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wrong {
    /// The file, in the cache directory.
    pub path: PathBuf,
    pub what: String,
}

/// What a command does with the disk: whether that answers is asked in the same way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    Write,
}

impl Use {
    /// Comes back once the disk has answered.
    fn ask(self, dir: &OwnDir) {
        match self {
            Self::Read => dir.ask_disk_to_read(SPACE),
            Self::Write => dir.ask_disk(),
        }
    }
}

/// What comes of a cache, which takes as long as it is large, while its disk answers; `None` where there is no cache yet.
fn with<T: Send + 'static>(
    path: &Path,
    how: Use,
    work: impl FnOnce(Dir) -> T + Send + 'static,
) -> io::Result<Option<T>> {
    let Some(dir) = existing(path)? else { return Ok(None) };
    let asked = OwnDir::from(OwnedFd::from(dir.file()?));
    let done = limit::while_answered(super::PATIENCE, move || how.ask(&asked), move || work(dir));
    done.ok_or_else(|| limit::silence(super::PATIENCE)).map(Some)
}

/// The directory; `None` where there is no cache yet.
fn existing(path: &Path) -> io::Result<Option<Dir>> {
    let asked = path.to_owned();
    let opened = limit::answered(super::PATIENCE, move || {
        let dir = Dir::existing(&asked, LAYOUT)?;
        dir.check()?;
        Ok(dir)
    });
    match opened {
        Ok(dir) => Ok(Some(dir)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is in the cache at `path`, and what may be with this size.
///
/// # Errors
/// Where the directory cannot be used.
pub fn show(path: &Path, size: Option<u64>) -> io::Result<Usage> {
    let shown = path.to_owned();
    if let Some(usage) = with(path, Use::Read, move |dir| usage(shown, size, &dir))? {
        return Ok(usage);
    }
    let (total, documents, layers) = (0, 0, Vec::new());
    let asked = path.to_owned();
    let limits = limit::answered(super::PATIENCE, move || Ok(limits_of_missing(&asked, size)))?;
    let limits = limits.unwrap_or(Limits { limit: size.unwrap_or(0), floor: 0 });
    Ok(Usage { dir: path.to_owned(), total, limits, documents, layers })
}

fn usage(path: PathBuf, size: Option<u64>, dir: &Dir) -> Usage {
    let images = images::of_blobs(dir);
    let found = stored::layers(dir);
    let mut layers: Vec<LayerUse> =
        found.iter().filter_map(|(layer, key)| Some(layer_use(dir, layer, (*key)?, &images))).collect();
    // What takes the most stands first.
    layers.sort_by_key(|layer| (Reverse(layer.contents + layer.index), layer.blob.hex()));
    Usage {
        dir: path,
        total: dir.allocated(Path::new("")),
        limits: store::limits(dir, size),
        documents: [DOCUMENTS, NAMES].iter().map(|folder| dir.allocated(Path::new(folder))).sum(),
        layers,
    }
}

/// Of the filesystem that a directory would be on.
fn limits_of_missing(path: &Path, size: Option<u64>) -> Option<Limits> {
    let above = path.ancestors().find(|above| above.exists())?;
    Limits::of(&std::fs::File::open(above).ok()?, size).ok()
}

fn layer_use(dir: &Dir, layer: &Path, key: LayerKey, images: &HashMap<Digest, BTreeSet<String>>) -> LayerUse {
    let files = dir.list(layer);
    let of = |name: &str| files.iter().find(|file| file.name == name).map_or(0, |file| file.allocated);
    LayerUse {
        blob: key.blob,
        toc: match key.identity {
            Identity::Toc(digest) | Identity::Ztoc(digest) => Some(digest),
            Identity::Own => None,
        },
        contents: of("data"),
        contents_size: contents_size(dir, layer, &key),
        index: of("index"),
        in_use: stored::is_in_use(dir, layer),
        images: images.get(&key.blob).into_iter().flatten().cloned().collect(),
    }
}

/// Of all contents of a layer. The file of contents is not there before something is stored; the index knows.
fn contents_size(dir: &Dir, layer: &Path, key: &LayerKey) -> u64 {
    let index = open_index(dir, layer);
    let index = index.and_then(|source| StoredIndex::open(Arc::new(source), &key.blob, Some(key)).ok());
    let data = || dir.open(&layer.join("data")).and_then(|data| data.metadata()).map_or(0, |found| found.len());
    index.map_or_else(data, |index| index.summary().layer_file_len)
}

/// Removes what nobody uses, and the contents of what is in use as well; with `contents_only` indexes and documents stay.
///
/// # Errors
/// Where the directory cannot be used.
pub fn clear(path: &Path, contents_only: bool) -> io::Result<Cleared> {
    let cleared = with(path, Use::Write, move |dir| clear_all(dir, contents_only))?;
    Ok(cleared.unwrap_or(Cleared { freed: 0, total: 0, in_use: 0, held_up: 0 }))
}

fn clear_all(dir: Dir, contents_only: bool) -> Cleared {
    let limits = store::limits(&dir, None);
    let store = Store::open(dir, limits);
    let dir = &store.dir;
    let (before, mut in_use, mut held_up) = (dir.allocated(Path::new("")), 0, 0);
    for layer in stored::own_layers(dir) {
        if stored::remove(dir, &layer, !contents_only).is_none() {
            in_use += 1;
            held_up += u32::from(!evict_all(dir, &layer));
        }
    }
    if !contents_only {
        documents::free(dir, u64::MAX);
    }
    store.recount();
    let total = dir.allocated(Path::new(""));
    Cleared { freed: before.saturating_sub(total), total, in_use, held_up }
}

/// `false`: another has it locked, who is waited for once.
fn evict_all(dir: &Dir, layer: &Path) -> bool {
    let Some(stored) = Stored::open(dir, layer) else { return true };
    (0..stored.present.groups().count()).all(|group| stored.evict(group, PATIENCE).is_some())
}

/// Verifies every stored byte. What is evicted or removed meanwhile is not wrong.
///
/// # Errors
/// Where the directory cannot be used.
pub fn verify(path: &Path, report: Report) -> io::Result<Verification> {
    Ok(with(path, Use::Read, move |dir| verified(&dir, &report))?.unwrap_or_default())
}

fn verified(dir: &Dir, report: &Report) -> Verification {
    let mut found = Verification::default();
    if let Some(what) = dir.open(Path::new(SPACE)).ok().and_then(|file| space::damage(&file)) {
        found.tell(dir, Path::new(SPACE), what);
    }
    for folder in [DOCUMENTS, NAMES] {
        for entry in dir.list(Path::new(folder)).into_iter().filter(|entry| !is_temporary(&entry.name)) {
            let sound = entry.name.to_str().map_or(Some(false), |name| documents::is_sound(dir, folder, name));
            let Some(sound) = sound else { continue };
            found.documents += 1;
            if !sound {
                found.tell(dir, &Path::new(folder).join(entry.name), "it is not what its name says");
            }
        }
    }
    let layers = stored::layers(dir);
    let stored =
        |layer: &Path| dir.list(layer).iter().find(|file| file.name == "data").map_or(0, |file| file.allocated);
    let of: Vec<u64> = layers.iter().map(|(layer, _)| stored(layer)).collect();
    let mut progress = Progress { report, of_all: of.iter().sum(), before: 0 };
    for (number, ((layer, key), of)) in layers.into_iter().zip(of).enumerate() {
        match key {
            Some(key) => {
                let mut told = Verified { number, blob: key.blob, bytes: 0, of, all: 0, of_all: 0, done: false };
                found.layer(dir, &layer, &key, &mut |bytes| progress.tell(&mut told, bytes));
                progress.end(told);
            }
            None => found.tell(dir, &layer, "it is no layer's directory"),
        }
    }
    found
}

impl Verification {
    fn tell(&mut self, dir: &Dir, path: &Path, what: impl Into<String>) {
        self.wrong.push(Wrong { path: dir.path().join(path), what: what.into() });
    }

    fn layer(&mut self, dir: &Dir, layer: &Path, key: &LayerKey, tell: &mut dyn FnMut(u64)) {
        let before = self.bytes;
        let Some(source) = open_index(dir, layer) else {
            self.without_index += 1;
            return;
        };
        let opened = StoredIndex::open(Arc::new(source), &key.blob, Some(key));
        let index = match opened.and_then(|index| index.verify().map(|()| index)) {
            Ok(index) => index,
            Err(damaged) => return self.tell(dir, &layer.join("index"), damaged.what),
        };
        self.indexes += 1;
        let (data, present) = (layer.join("data"), layer.join("present"));
        let Some(stored) = Stored::open_to_read(dir, layer) else {
            if Present::is_damaged(|| dir.open(&present)) {
                self.tell(dir, &present, "its division into groups is damaged");
            }
            return;
        };
        let groups = Groups::of(&index);
        match stored.present.damage() {
            Some(what) => self.tell(dir, &present, what),
            None if groups.is_ok_and(|groups| groups != *stored.present.groups()) => {
                self.tell(dir, &present, "its division into groups is another layer's");
            }
            None => {}
        }
        let sums = dir.open(&layer.join(Sums::NAME)).ok().map(Sums);
        for check in 0..index.summary().checks.min(stored.present.groups().checks()) {
            if let Err(what) = self.check(&stored, sums.as_ref(), &index, check) {
                self.tell(dir, &data, what);
            }
            tell(self.bytes - before);
        }
    }

    fn check(&mut self, stored: &Stored, sums: Option<&Sums>, index: &StoredIndex, number: u32) -> Result<(), String> {
        let group = stored.present.groups().of_check(number);
        let generation = stored.present.generation(group);
        if generation == 0 || !stored.present.is_there(number) {
            return Ok(());
        }
        let check = index.check(number).map_err(|damaged| damaged.what)?;
        let digest = match check.kind {
            CheckKind::Hole => return Ok(()),
            CheckKind::Digest(digest) => digest,
            // Without a digest it is not there.
            CheckKind::Span(_) | CheckKind::Vouched => match sums.and_then(|sums| sums.get(number)) {
                Some(digest) => digest,
                None => return Ok(()),
            },
        };
        let found = hash(&stored.data, check.range);
        let is_wrong = !found.as_ref().is_ok_and(|found| *found == digest);
        // Evicted meanwhile, or found wrong by a reader as well, who has it fetched again.
        if stored.present.generation(group) != generation || (is_wrong && !stored.present.is_there(number)) {
            return Ok(());
        }
        self.checks += 1;
        self.bytes += check.range.len();
        match found {
            Ok(_) if !is_wrong => Ok(()),
            Ok(_) => Err(format!("{} are not those of check {number}, {digest}", check.range)),
            Err(error) => Err(format!("{} of check {number} cannot be read: {error}", check.range)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use tempfile::TempDir;

    use super::*;
    use crate::cache::Cache;

    fn run(command: &str, words: &[&str]) -> bool {
        Command::new(command).args(words).status().is_ok_and(|status| status.success())
    }

    /// A filesystem of its own, for as long as this lives.
    struct Disk {
        temp: TempDir,
        at: String,
    }

    impl Disk {
        /// `None` where this machine or this user cannot make one.
        fn new() -> Option<Self> {
            let temp = tempfile::tempdir().unwrap();
            let (image, at) = (temp.path().join("image").display().to_string(), temp.path().join("at"));
            std::fs::create_dir(&at).unwrap();
            std::fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
            let disk = Self { temp, at: at.display().to_string() };
            let is_there = run("mkfs.ext4", &["-q", "-F", &image]) && run("mount", &["-o", "loop", &image, &disk.at]);
            is_there.then_some(disk)
        }

        fn path(&self) -> PathBuf {
            self.temp.path().join("at/cache")
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            run("fsfreeze", &["-u", &self.at]);
            run("umount", &["-l", &self.at]);
        }
    }

    #[test]
    fn what_only_reads_goes_on_where_nothing_can_be_written() {
        let Some(disk) = Disk::new() else { return };
        drop(Cache::open(&disk.path(), Some(1 << 20)));
        let dir = || OwnDir::from(OwnedFd::from(existing(&disk.path()).unwrap().unwrap().file().unwrap()));
        let (read, write) = (dir(), dir());
        assert!(run("fsfreeze", &["-f", &disk.at]));
        assert!(limit::within(Duration::from_secs(60), move || Use::Read.ask(&read)).is_some());
        assert!(
            show(&disk.path(), None).is_ok()
                && verify(&disk.path(), Arc::new(|_| ())).is_ok_and(|found| found.wrong.is_empty())
        );
        let waits = limit::within(Duration::from_millis(100), move || Use::Write.ask(&write));
        assert!(waits.is_none(), "what writes does not");
    }
}
