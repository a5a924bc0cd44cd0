//! Reading an image for the fuzz targets, which cannot see this module.

use bytes::Bytes;

use super::{Failed, make};
use crate::blob::Digest;
use crate::budget::{Budget, DEFAULT_LIMIT};
use crate::index::Format;
use crate::sys::expansion::{Allowance, Meter};

/// The encoded index of an image, and the contents of its files, each part with its place in the layer file; `None` where it is refused.
pub fn read(format: Format, image: &Bytes, mut keep: impl FnMut(u64, &[u8])) -> Option<Bytes> {
    let charge = Budget::of_process().of_image(DEFAULT_LIMIT).charge(image.len() as u64);
    let meter = Meter::new(&Allowance::default());
    match make(Digest::of(image), format, image, &mut keep, meter, charge) {
        Ok(made) => Some(made.encoded),
        Err(Failed::Stream(_) | Failed::Layer(_)) => None,
    }
}
