//! What to fetch around a read: near it, what programs need, and what files name.

pub mod elf;
pub(super) mod mentions;
pub(super) mod near;
pub(super) mod programs;
pub(super) mod shelf;
pub mod words;
