//! What tells two trees apart for whoever was told of one: the kernel remembers for ever what it has heard.

use sha2::{Digest as _, Sha256};

use super::{Ino, Tree, Type};
use crate::blob::Digest;

/// After each node: no text is as long.
const END: [u8; 8] = [u8::MAX; 8];

fn text(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

impl Tree {
    /// A digest of all that the kernel may hear of this tree: numbers, attributes, names, targets, xattrs. Where contents are is no part of it: they
    /// are the same bytes wherever they come from. Nor are holes, which change no more than what a file is said to take.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        let mut hash = Sha256::new();
        let mut number = Ino::ROOT;
        while let Some(attr) = self.attr(number) {
            let kind = match attr.kind {
                Type::Dir => 0u64,
                Type::File => 1,
                Type::Symlink => 2,
                Type::Char => 3,
                Type::Block => 4,
                Type::Fifo => 5,
                Type::Socket => 6,
            };
            let device = u64::from(attr.major) << 32 | u64::from(attr.minor);
            let owner = u64::from(attr.uid) << 32 | u64::from(attr.gid);
            let mode = u64::from(attr.nlink) << 32 | u64::from(attr.mode);
            let words = [kind, mode, owner, attr.size, attr.mtime.secs as u64, u64::from(attr.mtime.nanos), device];
            words.into_iter().for_each(|word| hash.update(word.to_le_bytes()));
            for (name, child) in self.children(number, 0) {
                text(&mut hash, name);
                hash.update(child.get().to_le_bytes());
            }
            text(&mut hash, self.readlink(number).unwrap_or_default());
            for (name, value) in self.xattrs(number) {
                text(&mut hash, name);
                text(&mut hash, value);
            }
            hash.update(END);
            let Some(next) = Ino::new(number.get() + 1) else { break };
            number = next;
        }
        Digest::from_bytes(hash.finalize().into())
    }
}
