//! What the bytes of a layer's checks were when they were stored.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::groups::Groups;
use crate::blob::Digest;

/// The file `sums` of a layer: for each check the sha256 of its bytes as they were stored, one after the other. For layers whose index has
/// digests of the blob alone, so that what is read back can be verified.
pub(super) struct Sums(pub(super) File);

impl Sums {
    pub(super) const NAME: &str = "sums";

    pub(super) fn len(groups: &Groups) -> u64 {
        u64::from(groups.checks()) * 32
    }

    pub(super) fn get(&self, check: u32) -> Option<Digest> {
        let mut sum = [0; 32];
        self.0.read_exact_at(&mut sum, u64::from(check) * 32).ok()?;
        Some(Digest::from_bytes(sum))
    }

    pub(super) fn set(&self, check: u32, sum: &Digest) -> io::Result<()> {
        self.0.write_all_at(sum.as_bytes(), u64::from(check) * 32)
    }
}
