#![no_main]
//! The name of an image: what is shown of it is read back the same.

use crfs::registry::ImageRef;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(image) = text.parse::<ImageRef>() else { return };
    let shown = image.to_string();
    let again: ImageRef = shown.parse().expect("what was shown");
    assert!(again == image, "{shown}");
});
