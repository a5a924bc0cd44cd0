//! Blobs that are what the manifest names, and no layer.

use crfs::blob::Digest;

use super::{COMPRESSORS, Lab};
use crate::image::{File, Layer, gzip, noise, plain, ramp, tar, tar_entry, zstd};

fn honest(name: &'static str) -> Vec<u8> {
    tar_entry(name, 700, &ramp(700, 1))
}

fn with_end(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

/// Tars, and what the message must say besides the layer.
fn rows() -> Vec<(Vec<u8>, &'static [&'static str])> {
    let mut flipped = honest("flipped");
    flipped[3] ^= 1;
    let mut unsigned = honest("unsigned");
    unsigned[148..156].fill(0);
    let mut linked = tar_entry("linked", 0, b"");
    linked[156] = b'1';
    linked[148..156].fill(b' ');
    let sum: u32 = linked.iter().map(|byte| u32::from(*byte)).sum();
    linked[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    vec![
        (with_end(&[honest("good"), tar_entry("../evil", 1, b"x")]), &["evil", ".."]),
        (with_end(&[honest("good"), tar_entry("a/../../evil", 1, b"x")]), &["evil", ".."]),
        (with_end(&[honest("good"), flipped]), &["at byte 1536"]),
        (with_end(&[honest("good"), unsigned]), &["at byte 1536"]),
        (with_end(&[honest("good"), tar_entry("larger", 1 << 30, b"x")]), &["at byte 1536", "larger", "ends"]),
        (with_end(&[honest("good"), tar_entry("smaller", 1, &noise(9999, 1))]), &["at byte 2560"]),
        (with_end(&[honest("good")])[..1536 + 100].to_vec(), &["at byte 1536"]),
        (honest("cut")[..1000].to_vec(), &["at byte 0", "cut", "ends"]),
        (honest("cut")[..100].to_vec(), &["at byte 0", "ends"]),
        ([honest("good"), vec![0; 512], honest("behind"), vec![0; 1024]].concat(), &["at byte 1536", "zeros"]),
        (with_end(&[honest("good"), linked]), &["linked"]),
        (noise(100_000, 3), &["at byte 0", "checksum"]),
        (b"hello\n".to_vec(), &["at byte 0", "ends"]),
    ]
}

#[tokio::test]
async fn a_tar_that_is_none_is_refused_with_the_place() {
    let lab = Lab::new().await;
    for (_, compress) in COMPRESSORS {
        for (tar, said) in rows() {
            let layer = plain(compress(&tar));
            lab.push_image("a", &[&layer], &[Digest::of(&tar)]);
            let text = lab.refusal().await;
            assert!(text.contains(&layer.digest().to_string()), "{text}");
            assert!(said.iter().all(|part| text.contains(part)), "{said:?} in: {text}");
            assert!(lab.kept().is_empty(), "{:?}", lab.kept());
            // What was read was what it should be: there is nothing to read again.
            assert!(lab.sent(&layer).0 <= 2, "{} requests", lab.sent(&layer).0);
        }
    }
}

#[tokio::test]
async fn what_cannot_be_decompressed_is_refused() {
    let lab = Lab::new().await;
    let whole = tar(&[File { name: "file", content: noise(300_000, 1) }]);
    let (gzip, zstd) = (gzip(&whole), zstd(&whole));
    let changed = |blob: &[u8], at: usize| {
        let mut blob = blob.to_vec();
        blob[at] ^= 1;
        blob
    };
    for blob in [
        gzip[..gzip.len() - 1].to_vec(),
        gzip[..1000].to_vec(),
        gzip[..5].to_vec(),
        changed(&gzip, gzip.len() - 1),
        changed(&gzip, gzip.len() - 6),
        // A second member that is cut is not garbage.
        [gzip.as_slice(), &gzip[..5000]].concat(),
        zstd[..zstd.len() - 1].to_vec(),
        zstd[..3000].to_vec(),
        [zstd.as_slice(), b"garbage"].concat(),
    ] {
        let layer = plain(blob);
        lab.push_image("a", &[&layer], &[Digest::of(&whole)]);
        let text = lab.refusal().await;
        assert!(text.contains(&layer.digest().to_string()) && text.contains("cannot be decompressed"), "{text}");
        assert!(lab.kept().is_empty(), "{:?}", lab.kept());
    }
}

#[tokio::test]
async fn other_compressors_are_refused_by_name() {
    let lab = Lab::new().await;
    let xz = [b"\xfd7zXZ\0".as_slice(), &noise(100_000, 1)].concat();
    let bzip2 = [b"BZh91AY&SY".as_slice(), &noise(100_000, 2)].concat();
    for (blob, name) in [(xz, "xz"), (bzip2, "bzip2")] {
        for media_type in ["application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.v1.tar+gzip"] {
            let layer = Layer { media_type, ..plain(blob.clone()) };
            lab.push_image("a", &[&layer], &[]);
            let text = lab.refusal().await;
            assert!(text.contains(name) && text.contains(&layer.digest().to_string()), "{text}");
        }
    }
}
