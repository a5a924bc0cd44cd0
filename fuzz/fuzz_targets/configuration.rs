#![no_main]
//! The files of the machine's configuration: whatever they rewrite is a whole name, and a policy that demands anything refuses.

use crfs::registry::fuzzing::configuration;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (_names, is_permitted) = configuration(text);
    assert!(!is_permitted || text.contains("insecureAcceptAnything") || text.contains('\\'));
});
