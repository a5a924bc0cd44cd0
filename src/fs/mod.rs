//! The image tree (pure), the overlay rules, and the FUSE frontend.
//!
//! ```text
//! index::Entries of each layer -> overlay -> tree::Tree -> view::View -> forest::Forest -> fuse::Frontend -> /dev/fuse
//!                                                              |
//!                                         view::Contents: the layers' bytes, from fetch
//! ```

mod acl;
mod errno;
#[cfg(test)]
mod fake;
pub mod forest;
pub mod fuse;
mod ids;
mod overlay;
mod paths;
mod possible;
mod sparse;
pub mod tree;
pub mod view;
mod xattr;

#[cfg(fuzzing)]
pub use acl::read_for_fuzzing as read_acl_for_fuzzing;
