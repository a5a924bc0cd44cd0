#![no_main]
//! An image of squashfs, within the memory of an image. Its magic is put right, so that there is more to be read.

use crfs::index::Format;
use crfs_fuzz::read_image;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut image = input.to_vec();
    image.resize(image.len().max(96), 0);
    image[..4].copy_from_slice(b"hsqs");
    image[28..32].copy_from_slice(&[4, 0, 0, 0]);
    read_image(Format::Squashfs, image);
});
