//! The memory that an index takes while it is written.

use crate::budget::{Charge, Exceeded};

/// What is taken for an index while it is written.
pub(super) struct Room {
    pub(super) charge: Charge,
    pub(super) honest: u64,
}

impl Room {
    pub(super) fn cover(&mut self, bytes: usize) -> Result<(), Exceeded> {
        self.charge.cover(bytes as u64, self.honest)
    }
}
