//! zTOCs of soci-snapshotter, and zTOCs that lie.

mod fixtures;
mod hostile;
mod index;
mod made;
