//! The windows of deflate checkpoints: the output that what follows may refer to, kept compressed and only as far as it does refer to it.

use std::io;

use crate::sys::inflate::{Inflate, Stop, WINDOW};

/// zstd's level: windows are a large part of an index, and packed once.
const LEVEL: i32 = 9;

/// A place in deflate data where decompression can start.
#[derive(Debug)]
pub(super) struct Checkpoint {
    /// Bits of `first` that belong to what follows; 0: none.
    pub(super) bits: u8,
    pub(super) first: u8,
    pub(super) window: Vec<u8>,
}

impl Checkpoint {
    /// Sets to zero what of the window `following`, the compressed bytes behind the checkpoint, does not refer to.
    ///
    /// What is referred to shows when the data is decompressed with windows that tell places: a byte of output that came from the window has
    /// the low half of its place with one, the high half with the other. Later output refers to output alone. A literal of equal halves looks
    /// like one place more, which is kept for nothing.
    pub(super) fn prune(&mut self, following: &[u8]) -> io::Result<()> {
        let places = |half: fn(u16) -> u8| (0..=u16::MAX).take(self.window.len()).map(half).collect::<Vec<u8>>();
        let low = self.output(&places(|place| (place & 0xff) as u8), following)?;
        let high = self.output(&places(|place| (place >> 8) as u8), following)?;
        let mut needed = vec![false; self.window.len()];
        for (low, high) in low.into_iter().zip(high) {
            if let Some(needed) = needed.get_mut(usize::from(u16::from_le_bytes([low, high]))) {
                *needed = true;
            }
        }
        for (byte, _) in self.window.iter_mut().zip(needed).filter(|(_, needed)| !needed) {
            *byte = 0;
        }
        Ok(())
    }

    /// The first output behind the checkpoint, as far as it can refer to the window.
    fn output(&self, window: &[u8], following: &[u8]) -> io::Result<Vec<u8>> {
        let mut inflate = Inflate::resumed(self.bits, self.first, window)?;
        let mut output = vec![0; WINDOW];
        let (mut taken, mut given) = (0, 0);
        while let (Some(input), Some(room)) = (following.get(taken..), output.get_mut(given..)) {
            let step = inflate.step(input, room)?;
            (taken, given) = (taken + step.consumed, given + step.produced);
            if step.stop == Stop::End || step.consumed + step.produced == 0 || given == WINDOW {
                break;
            }
        }
        output.truncate(given);
        Ok(output)
    }
}

/// A window as the index keeps it.
pub(in crate::index) fn pack(window: &[u8]) -> io::Result<Vec<u8>> {
    zstd::bulk::compress(window, LEVEL)
}

/// The window that was packed.
pub(in crate::index) fn unpack(packed: &[u8]) -> io::Result<Vec<u8>> {
    zstd::bulk::decompress(packed, WINDOW)
}
