//! Who vouches for a TOC, and what is read to find that out.

use bytes::Bytes;

use super::layers::{Made, PAYLOAD, described, estargz, estargz_footer, gzip, layer, toc_tar, zstd_chunked};
use super::{Admit, Counted, INSECURE, NEVER_WHOLE, WHOLE, indexed, no_external, stored};
use crate::blob::{ByteRange, Digest, SourceError};
use crate::budget::Budget;
use crate::index::{
    Descriptor, Error, Format, Found, Identity, Opened, Options, Trust, named_identity, open, open_unnamed, open_whole,
};

const JSON: &[u8] = br#"{"entries":[{"name":"a","type":"dir"}]}"#;
const CHECKSUM: &str = "io.github.containers.zstd-chunked.manifest-checksum";
const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";

fn opened(layer: &Descriptor, blob: Bytes, options: &Options) -> (Result<Opened, Error>, Vec<ByteRange>) {
    let source = Counted::new(blob);
    (indexed(open(layer, &source, &no_external, options)), source.reads())
}

fn error(layer: &Descriptor, blob: Bytes, options: &Options) -> Error {
    opened(layer, blob, options).0.err().unwrap()
}

#[test]
fn a_position_in_the_manifest_is_all_that_is_read() {
    let (layer, blob) = layer(Made::ZstdChunked, JSON);
    let (opened, reads) = opened(&layer, blob.clone(), &NEVER_WHOLE);
    let opened = opened.unwrap();
    assert_eq!(reads.len(), 1);
    assert_eq!(reads[0].start, PAYLOAD as u64 + 8);
    assert_eq!((opened.format, opened.trust), (Format::ZstdChunked, Trust::Manifest));
    assert_eq!(opened.identity, named_identity(&layer));
    assert_eq!(stored(&layer, &opened).summary().toc_len, reads[0].len());
}

#[test]
fn a_toc_before_the_tail_takes_one_more_read_of_what_is_missing() {
    let name = |i: u32| Digest::of(&i.to_le_bytes()).hex();
    let entries: Vec<_> = (0..2000).map(|i| format!(r#"{{"name":"{}","type":"dir"}}"#, name(i))).collect();
    let json = format!(r#"{{"entries":[{}]}}"#, entries.join(","));
    let (layer, blob) = layer(Made::EStargz, json.as_bytes());
    let (opened, reads) = opened(&layer, blob, &NEVER_WHOLE);
    assert_eq!(stored(&layer, &opened.unwrap()).summary().entries, 2000);
    let tail = ByteRange { start: layer.size - (16 << 10), end: layer.size };
    assert_eq!(reads, [tail, ByteRange { start: PAYLOAD as u64, end: tail.start }]);
}

#[test]
fn both_digests_are_checked_where_both_are_named() {
    let (mut layer, blob) = layer(Made::ZstdChunked, JSON);
    layer.annotations.insert(TOC_DIGEST.to_owned(), Digest::of(JSON).to_string());
    assert!(opened(&layer, blob.clone(), &NEVER_WHOLE).0.is_ok());
    layer.annotations.insert(TOC_DIGEST.to_owned(), Digest::of(b"other").to_string());
    for options in [&NEVER_WHOLE, &WHOLE, &INSECURE] {
        assert!(matches!(error(&layer, blob.clone(), options), Error::TocDigest { .. }));
    }
}

#[test]
fn a_named_digest_is_checked_whatever_else_vouches() {
    for (made, key) in [(Made::ZstdChunked, CHECKSUM), (Made::EStargz, TOC_DIGEST)] {
        let (mut layer, blob) = layer(made, JSON);
        layer.annotations.insert(key.to_owned(), Digest::of(b"other").to_string());
        for options in [&NEVER_WHOLE, &WHOLE, &INSECURE] {
            assert!(matches!(error(&layer, blob.clone(), options), Error::TocDigest { .. }), "{key}");
        }
    }
}

#[test]
fn a_toc_that_nothing_names_needs_the_whole_blob_or_the_users_word() {
    let blobs = [estargz(JSON, JSON.len() as u64).0, zstd_chunked(JSON, JSON.len() as u64).0];
    for blob in blobs.map(longer) {
        let layer = described(&blob, &[]);
        assert!(is_unvouched(&layer, &blob, &NEVER_WHOLE));
        let whole = opened(&layer, blob.clone(), &WHOLE).0.unwrap();
        assert_eq!((whole.trust, whole.identity), (Trust::Blob, Some(Identity::Own)));
        assert_eq!(whole.blob.as_ref(), Some(&blob));
        let insecure = opened(&layer, blob.clone(), &INSECURE).0.unwrap();
        assert_eq!((insecure.trust, insecure.identity), (Trust::Unverified, None));
        let at_the_limit = Options { whole_layer_below: layer.size, ..NEVER_WHOLE };
        assert!(is_unvouched(&layer, &blob, &at_the_limit));
        let verified = open_whole(&layer, &blob, &Budget::UNLIMITED).unwrap();
        assert_eq!((verified.trust, verified.identity, verified.encoded), (whole.trust, whole.identity, whole.encoded));
    }
}

/// With so much payload in front that the tail is not all of it. Offsets in footers are moved with it.
fn longer(blob: Vec<u8>) -> Bytes {
    let at = |blob: &[u8], offset: usize| blob.len() - offset;
    let mut long = [vec![b'p'; MORE], blob].concat();
    if long.ends_with(b"GNUlInUx") {
        let (start, toc) = (at(&long, 64), u64::from_le_bytes(*long[at(&long, 64)..].first_chunk().unwrap()));
        long[start..start + 8].copy_from_slice(&(toc + MORE as u64).to_le_bytes());
    } else {
        let (start, end) = (at(&long, 51), at(&long, 0));
        long[start..end].copy_from_slice(&estargz_footer((PAYLOAD + MORE) as u64));
    }
    long.into()
}

const MORE: usize = 100_000;

fn is_unvouched(layer: &Descriptor, blob: &Bytes, options: &Options) -> bool {
    matches!(open(layer, &Counted::new(blob.clone()), &no_external, options), Ok(Found::Unvouched(_)))
}

#[test]
fn a_position_without_a_digest_does_not_vouch() {
    let (blob, annotations) = zstd_chunked(JSON, JSON.len() as u64);
    let long = longer(blob.clone());
    let layer = described(&long, &[]);
    assert!(is_unvouched(&layer, &long, &NEVER_WHOLE));
    assert_eq!(opened(&layer, long, &INSECURE).0.unwrap().trust, Trust::Unverified);

    // Nor where the blob's digest vouches: an index made so is used for every image with that blob, whatever its manifest says of the TOC.
    let honest = opened(&described(&blob, &[]), blob.clone().into(), &WHOLE).0.unwrap();
    let elsewhere = [(annotations[1].0, "9:20:20:1".to_owned())];
    for options in [WHOLE, Options { insecure_unverified_toc: true, ..WHOLE }] {
        let other = opened(&described(&blob, &elsewhere), blob.clone().into(), &options).0.unwrap();
        assert_eq!(
            (other.trust, other.identity, other.encoded),
            (honest.trust, honest.identity, honest.encoded.clone())
        );
    }
}

#[test]
fn wrong_bytes_of_a_blob_read_whole_are_noticed() {
    let (layer, blob) = layer(Made::EStargz, JSON);
    let mut damaged = blob.to_vec();
    damaged[17] ^= 1;
    let error = error(&layer, damaged.into(), &WHOLE);
    assert!(matches!(error, Error::BlobDigest { .. }) && error.is_wrong_bytes());
    let short = self::error(&layer, blob.slice(1..), &NEVER_WHOLE);
    assert!(matches!(short, Error::Size { .. }));
}

#[test]
fn the_blob_does_not_vouch_for_a_toc_that_is_elsewhere() {
    let mut blob = vec![0; PAYLOAD];
    blob.extend_from_slice(
        b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x15\0SG\x11\0STARGZEXTERNALTOC\x01\0\0\xff\xff\0\0\0\0\0\0\0\0",
    );
    let toc = gzip(&toc_tar("stargz.index.json", JSON, JSON.len() as u64));
    let external = |_: &Descriptor, _: Admit<'_>| Ok(Bytes::from(toc.clone()));
    let open =
        |layer: &Descriptor, options| indexed(open(layer, &Counted::new(blob.clone().into()), &external, options));
    let bare = described(&blob, &[]);
    let source = Counted::new(blob.clone().into());
    assert!(
        matches!(super::super::open(&bare, &source, &external, &WHOLE), Ok(Found::Plain { .. })),
        "it is a tar like any other"
    );
    assert_eq!(open(&bare, &INSECURE).unwrap().trust, Trust::Unverified);
    let named = described(&blob, &[(TOC_DIGEST, Digest::of(JSON).to_string())]);
    for options in [&NEVER_WHOLE, &WHOLE] {
        let opened = open(&named, options).unwrap();
        assert_eq!((opened.format, opened.trust), (Format::EStargzExternalToc, Trust::Manifest));
    }
    let missing = super::super::open(&named, &Counted::new(blob.clone().into()), &no_external, &NEVER_WHOLE);
    assert!(matches!(missing, Err(Error::ExternalToc { .. })));
    // One that is too large is not fetched at all.
    let large = |_: &Descriptor, admit: Admit<'_>| -> Result<Bytes, SourceError> {
        admit((1 << 20) + 1)?;
        panic!("it was fetched")
    };
    let within = |limit| Options { memory: Budget::of_process().of_image(limit), ..NEVER_WHOLE };
    let refused = super::super::open(&named, &Counted::new(blob.clone().into()), &large, &within(1 << 20));
    assert!(matches!(refused, Err(Error::Memory { what: "its table of contents", .. })));
}

#[test]
fn formats_that_are_no_tar_are_refused_by_their_media_type() {
    let cases = [
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "encrypted"),
        ("application/vnd.erofs.layer.v9", "EROFS"),
        ("application/vnd.cncf.model.weight.v1.raw", "artifact"),
    ];
    for (media_type, what) in cases {
        let blob = vec![b'x'; 2000];
        let layer = Descriptor { media_type: media_type.to_owned(), ..described(&blob, &[]) };
        let message = error(&layer, blob.into(), &WHOLE).to_string();
        assert!(message.contains(what), "{message}");
    }
}

#[test]
fn a_layer_whose_manifest_names_a_toc_has_one() {
    let blob = vec![b'x'; 2000];
    let layer = described(&blob, &[(TOC_DIGEST, Digest::of(JSON).to_string())]);
    let error = error(&layer, blob.into(), &WHOLE);
    assert!(matches!(error, Error::NoToc { .. }) && error.is_wrong_bytes() && error.is_misfit());
}

#[test]
fn a_toc_that_was_damaged_on_the_way_is_wrong_bytes() {
    let (layer, blob) = layer(Made::EStargz, JSON);
    for at in PAYLOAD..blob.len() - 51 {
        let mut damaged = blob.to_vec();
        damaged[at] ^= 0x55;
        if let Err(error) = opened(&layer, damaged.into(), &NEVER_WHOLE).0 {
            assert!(error.is_wrong_bytes(), "byte {at}: {error}");
        }
    }
}

#[test]
fn what_does_not_fit_is_opened_as_if_nothing_were_named() {
    let stale = Digest::of(b"stale").to_string();
    let of = |layer: &Descriptor, blob: &Bytes, options| open_unnamed(layer, &Counted::new(blob.clone()), options);
    for (made, key) in [(Made::ZstdChunked, CHECKSUM), (Made::EStargz, TOC_DIGEST)] {
        let (mut layer, blob) = layer(made, JSON);
        let honest = opened(&Descriptor { annotations: Default::default(), ..layer.clone() }, blob.clone(), &WHOLE);
        layer.annotations.insert(key.to_owned(), stale.clone());
        let Ok(Found::Indexed(opened)) = of(&layer, &blob, &WHOLE) else { panic!("{key}") };
        assert_eq!((opened.trust, opened.identity), (Trust::Blob, Some(Identity::Own)));
        assert_eq!(opened.encoded, honest.0.unwrap().encoded);
        assert_eq!(open_whole(&layer, &blob, &Budget::UNLIMITED).unwrap().encoded, opened.encoded);
        let long = longer(blob.to_vec());
        let layer = described(&long, &[(key, stale.clone())]);
        assert!(matches!(of(&layer, &long, &NEVER_WHOLE), Ok(Found::Unvouched(_))), "{key}");
    }
    let plain = Bytes::from(vec![b'x'; 2000]);
    let layer = described(&plain, &[(TOC_DIGEST, stale)]);
    assert!(matches!(of(&layer, &plain, &WHOLE), Ok(Found::Plain { blob: Some(_) })));
}

#[test]
fn a_position_that_does_not_fit_leaves_the_digest_to_the_footer() {
    let (mut layer, blob) = layer(Made::ZstdChunked, JSON);
    for position in ["99999999:50:70:1", "1:2"] {
        layer.annotations.insert("io.github.containers.zstd-chunked.manifest-position".to_owned(), position.to_owned());
        assert_eq!(opened(&layer, blob.clone(), &NEVER_WHOLE).0.unwrap().trust, Trust::Manifest);
    }
}
