#![no_main]
//! An image of erofs, within the memory of an image. Its magic is put right, so that there is more to be read.

use crfs::index::Format;
use crfs_fuzz::read_image;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut image = input.to_vec();
    image.resize(image.len().max(2048), 0);
    image[1024..1028].copy_from_slice(&[0xe2, 0xe1, 0xf5, 0xe0]);
    read_image(Format::Erofs, image);
});
