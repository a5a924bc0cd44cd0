#![no_main]
//! The TOC of an eStargz layer, from JSON to a decoded index.

use crfs_fuzz::{PAYLOAD, open_and_look};
use libfuzzer_sys::fuzz_target;

/// A gzip member (RFC 1952) of one stored block (RFC 1951), of which nobody checks the trailer.
fn stored_gzip(bytes: &[u8]) -> Vec<u8> {
    let len = bytes.len() as u16;
    let mut member = b"\x1f\x8b\x08\0\0\0\0\0\0\xff\x01".to_vec();
    member.extend_from_slice(&len.to_le_bytes());
    member.extend_from_slice(&(!len).to_le_bytes());
    member.extend_from_slice(bytes);
    member.extend_from_slice(&[0; 8]);
    member
}

fuzz_target!(|json: &[u8]| {
    if json.len() > 60_000 {
        return;
    }
    let mut tar = vec![0; 512];
    tar[..17].copy_from_slice(b"stargz.index.json");
    tar[124..135].copy_from_slice(format!("{:011o}", json.len()).as_bytes());
    tar.extend_from_slice(json);
    let mut blob = vec![0; PAYLOAD];
    blob.extend_from_slice(&stored_gzip(&tar));
    blob.extend_from_slice(b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0");
    blob.extend_from_slice(format!("{PAYLOAD:016x}STARGZ").as_bytes());
    blob.extend_from_slice(b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0");
    open_and_look(blob);
});
