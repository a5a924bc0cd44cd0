#![no_main]
//! A registry's challenge: credentials go nowhere by plain http but for a registry that is plain itself, and to no link-local address.

use crfs::registry::fuzzing::token_server;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|header: &[u8]| {
    for (base, schemes) in [("https://r/", &["https"][..]), ("http://r/", &["https", "http"])] {
        let Some(url) = token_server(base, header) else { continue };
        assert!(schemes.contains(&url.scheme()) && url.username().is_empty() && url.password().is_none());
        let host = url.host_str().expect("it is http");
        assert!(!host.starts_with("169.254.") && !host.starts_with("[fe80:"), "{url}");
    }
});
