//! One layer file and which of its checks are there.
//!
//! A check is written only after it was found right, data before presence, one byte of presence for each check: writers need no lock,
//! since whoever writes a range writes the same bytes. What an earlier process left is verified once before it is used.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::dir::Dir;
use crate::blob::ByteRange;

/// What is known of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Verified by this process; can be read.
    Ready,
    /// Left by some process; to be verified first.
    Unverified,
    Missing,
}

/// The decoded contents of one layer on local disk, as far as they were read.
pub struct LayerFile {
    data: Option<File>,
    /// `None` for a private file: what is there is what this process verified.
    present: Option<File>,
    verified: Bits,
    /// Found wrong by this process: whatever `present` says, where it could not be written.
    wrong: Bits,
    /// Set by the first failed write, so that it is told once.
    failing: AtomicBool,
}

impl LayerFile {
    pub(super) fn shared(dir: &Dir, data: &Path, present: &Path, len: u64, checks: u32) -> io::Result<Self> {
        // What is there can be read also where nothing can be written.
        let open = |path| dir.open_or_create(path).or_else(|error| dir.open(path).map_err(|_| error));
        let (data, present) = (open(data)?, open(present)?);
        grow(&data, len)?;
        grow(&present, u64::from(checks))?;
        Ok(Self::new(Some(data), Some(present), checks))
    }

    pub(super) fn private(dir: &Dir, len: u64, checks: u32) -> io::Result<Self> {
        let data = dir.unnamed()?;
        grow(&data, len)?;
        Ok(Self::new(Some(data), None, checks))
    }

    /// Keeps nothing.
    pub(super) fn nowhere(checks: u32) -> Self {
        Self::new(None, None, checks)
    }

    fn new(data: Option<File>, present: Option<File>, checks: u32) -> Self {
        let (verified, wrong) = (Bits::new(checks), Bits::new(checks));
        Self { data, present, verified, wrong, failing: AtomicBool::new(false) }
    }

    #[must_use]
    pub fn state(&self, check: u32) -> State {
        if self.verified.get(check) {
            return State::Ready;
        }
        if self.wrong.get(check) {
            return State::Missing;
        }
        let mut byte = [0];
        let left = self.present.as_ref().is_some_and(|file| file.read_exact_at(&mut byte, check.into()).is_ok());
        if left && byte == [1] { State::Unverified } else { State::Missing }
    }

    /// What was left by another process was found right.
    pub fn set_verified(&self, check: u32) {
        self.verified.set(check, true);
    }

    /// The check's bytes on disk are wrong or cannot be read: they are missing from now on.
    pub fn forget(&self, check: u32) {
        self.wrong.set(check, true);
        self.verified.set(check, false);
        if let Some(file) = &self.present {
            let _ = file.write_all_at(&[0], check.into());
        }
    }

    /// Keeps the bytes of a check that was found right. `write` puts them into the layer file.
    ///
    /// Returns whether they are kept; failures are logged here, once.
    pub fn publish(&self, check: u32, write: impl FnOnce(&File) -> io::Result<()>) -> bool {
        let Some(data) = &self.data else { return false };
        let kept = write(data).and_then(|()| match &self.present {
            Some(file) => file.write_all_at(&[1], check.into()),
            None => Ok(()),
        });
        match kept {
            Ok(()) => self.verified.set(check, true),
            Err(error) => {
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "the cache cannot be written; contents are served without it");
                }
                return false;
            }
        }
        true
    }

    /// Reads from the layer file. The caller has seen every check of the range [`State::Ready`] (or verifies what it reads).
    ///
    /// # Errors
    /// Where the disk fails or the file was truncated; the checks concerned are to be forgotten.
    pub fn read(&self, range: ByteRange, buffer: &mut [u8]) -> io::Result<()> {
        match &self.data {
            Some(file) => file.read_exact_at(buffer, range.start),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// Sets the length of a sparse file that is shorter; never shortens what another process has open.
fn grow(file: &File, len: u64) -> io::Result<()> {
    if file.metadata()?.len() < len { file.set_len(len) } else { Ok(()) }
}

/// A fixed number of bits that threads share.
struct Bits(Vec<AtomicU64>);

impl Bits {
    fn new(len: u32) -> Self {
        Self((0..len.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    fn get(&self, bit: u32) -> bool {
        self.0.get(bit as usize / 64).is_some_and(|word| word.load(Ordering::Acquire) & (1 << (bit % 64)) != 0)
    }

    fn set(&self, bit: u32, value: bool) {
        let Some(word) = self.0.get(bit as usize / 64) else { return };
        let mask = 1 << (bit % 64);
        if value {
            word.fetch_or(mask, Ordering::AcqRel);
        } else {
            word.fetch_and(!mask, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Cache;
    use super::*;
    use crate::blob::Digest;
    use crate::index::{Identity, LayerKey};

    fn key() -> LayerKey {
        LayerKey { blob: Digest::of(b"blob"), identity: Identity::Toc(Digest::of(b"toc")) }
    }

    fn put(layer: &LayerFile, check: u32, start: u64, bytes: &[u8]) -> bool {
        layer.publish(check, |file| file.write_all_at(bytes, start))
    }

    #[test]
    fn what_was_published_is_ready_here_and_unverified_elsewhere() {
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::open(temp.path());
        let layer = cache.layer_file(Some(&key()), 8192, 70);
        assert_eq!(layer.state(65), State::Missing);
        assert!(put(&layer, 65, 4096, b"abc"));
        assert_eq!(layer.state(65), State::Ready);

        let other = cache.layer_file(Some(&key()), 8192, 70);
        assert_eq!(other.state(65), State::Unverified);
        assert_eq!(other.state(64), State::Missing);
        let mut buffer = [0; 3];
        other.read(ByteRange { start: 4096, end: 4099 }, &mut buffer).unwrap();
        assert_eq!(&buffer, b"abc");
        other.set_verified(65);
        assert_eq!(other.state(65), State::Ready);
        other.forget(65);
        assert_eq!(other.state(65), State::Missing);
        assert_eq!(cache.layer_file(Some(&key()), 8192, 70).state(65), State::Missing);
    }

    #[test]
    fn private_layers_are_seen_by_nobody_else() {
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::open(temp.path());
        let layer = cache.layer_file(None, 10, 1);
        assert!(put(&layer, 0, 0, b"0123456789"));
        assert_eq!(layer.state(0), State::Ready);
        assert_eq!(cache.layer_file(None, 10, 1).state(0), State::Missing);
        let named = std::fs::read_dir(temp.path().join(super::super::LAYOUT)).unwrap().count();
        assert_eq!(named, 0, "nothing has a name");
    }

    #[test]
    fn identities_do_not_share_contents() {
        let temp = tempfile::tempdir().unwrap();
        let cache = Cache::open(temp.path());
        assert!(put(&cache.layer_file(Some(&key()), 10, 1), 0, 0, b"x"));
        let own = LayerKey { identity: Identity::Own, ..key() };
        assert_eq!(cache.layer_file(Some(&own), 10, 1).state(0), State::Missing);
    }

    #[test]
    fn what_was_found_wrong_stays_wrong_where_nothing_can_be_written() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("present");
        std::fs::write(&path, [1, 1]).unwrap();
        let read_only = || File::open(&path).unwrap();
        let layer = LayerFile::new(Some(read_only()), Some(read_only()), 2);
        assert_eq!(layer.state(0), State::Unverified);
        layer.forget(0);
        assert_eq!((layer.state(0), layer.state(1)), (State::Missing, State::Unverified));
        assert!(!put(&layer, 0, 0, b"x"));
        assert_eq!(layer.state(0), State::Missing);
    }

    #[test]
    fn without_a_disk_nothing_is_kept_and_nothing_fails() {
        let layer = LayerFile::nowhere(3);
        assert!(!put(&layer, 0, 0, b"x"));
        assert_eq!(layer.state(0), State::Missing);
    }
}
