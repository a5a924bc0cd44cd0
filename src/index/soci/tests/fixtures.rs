//! Every zTOC in tests/fixtures: its spans tile the blob, and its entries are those of the tar.

use std::io::Read as _;
use std::path::Path;

use serde_json::Value;

use super::super::*;
use crate::budget::Charge;
use crate::index::tar;
use crate::index::tests::fixtures_dir;
use crate::index::toc::EntryType;
use crate::sys::inflate::WINDOW;

fn blob(image: &Path, digest: &Value) -> Bytes {
    let digest: Digest = digest.as_str().unwrap().parse().unwrap();
    std::fs::read(image.join("blobs/sha256").join(digest.hex())).unwrap().into()
}

/// Each zTOC of the fixtures: the image's name, the zTOC, and the layer that it is of.
pub(super) fn ztocs(dir: &Path) -> Vec<(String, Bytes, Bytes)> {
    let images = std::fs::read_dir(dir).unwrap().map(|image| image.unwrap().path());
    let name = |image: &Path| image.file_name().unwrap().to_string_lossy().into_owned();
    let images = images.filter(|image| name(image).contains("-soci"));
    images
        .flat_map(|image| ztocs_of(&image).into_iter().map(move |(ztoc, layer)| (name(&image), ztoc, layer)))
        .collect()
}

fn ztocs_of(image: &Path) -> Vec<(Bytes, Bytes)> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(image.join("blobs/sha256")).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let Ok(manifest) = serde_json::from_slice::<Value>(&bytes) else { continue };
        let kind = manifest["config"]["mediaType"].as_str().unwrap_or_default();
        if kind.starts_with("application/vnd.amazon.soci.index.") {
            for ztoc in manifest["layers"].as_array().unwrap() {
                let layer = &ztoc["annotations"]["com.amazon.soci.image-layer-digest"];
                found.push((blob(image, &ztoc["digest"]), blob(image, layer)));
            }
        }
    }
    found
}

fn decoded(compression: Compression, layer: &Bytes) -> Vec<u8> {
    let mut tar = Vec::new();
    match compression {
        Compression::Gzip => drop(flate2::read::MultiGzDecoder::new(&layer[..]).read_to_end(&mut tar).unwrap()),
        Compression::Uncompressed => tar.extend_from_slice(layer),
    }
    tar
}

fn spans_tile(ztoc: &Ztoc, layer: &Bytes, tar: &[u8]) {
    let mut end = ztoc.spans[0].compressed.start;
    assert!(end == 0 || ztoc.compression == Compression::Gzip && end >= 10);
    let mut at = 0;
    for span in &ztoc.spans {
        assert_eq!(span.compressed.start + u64::from(span.bits != 0), end);
        assert!(span.decoded >= at && span.decoded <= tar.len() as u64);
        (end, at) = (span.compressed.end, span.decoded);
        let bytes = &layer[span.compressed.start as usize..span.compressed.end as usize];
        assert_eq!(Digest::of(bytes), span.digest);
        let before = &tar[(at as usize).saturating_sub(WINDOW)..at as usize];
        let gzip = ztoc.compression == Compression::Gzip;
        assert_eq!(span.window.as_ref().map(Bytes::len), (gzip && at > 0).then_some(WINDOW));
        assert!(span.window.as_ref().is_none_or(|window| window.ends_with(before)));
    }
    assert_eq!(end, layer.len() as u64);
    assert!(ztoc.decoded_size <= tar.len() as u64);
}

/// What both say of an entry, and where its contents are.
fn shown(entry: &TocEntry) -> String {
    let TocEntry { name, kind, size, mtime, link_name, mode, uid, gid, major, minor, xattrs, .. } = entry;
    // Go gives names of a map's order, tar those of the file's.
    let mut xattrs: Vec<_> = xattrs.iter().filter(|(_, value)| !value.is_empty()).collect();
    xattrs.sort();
    format!("{name:?} {kind:?} {size} {mtime:?} {link_name:?} {mode:o} {uid} {gid} {major} {minor} {xattrs:?}")
}

fn entries_are_those_of_the_tar(ztoc: &Ztoc, tar: &[u8]) -> usize {
    let mut reader = tar::Reader::new(tar);
    let mut count = 0;
    let each = &mut |entry: &mut TocEntry| {
        let own = reader.next().unwrap().expect("the tar has fewer entries");
        assert_eq!(shown(entry), shown(own));
        let is_file = entry.kind == Some(EntryType::File);
        let mut first = None;
        let sink = &mut |_, place, _: &[u8]| {
            first.get_or_insert(place);
            Ok(())
        };
        reader.contents(sink).unwrap();
        assert_eq!(first, (is_file && entry.size > 0).then_some(entry.offset));
        count += 1;
        Ok(())
    };
    ztoc.entries(each).unwrap();
    assert!(reader.next().unwrap().is_none(), "the tar has more entries");
    count
}

#[test]
fn every_ztoc_describes_its_layer() {
    let dir = fixtures_dir();
    let (mut seen, mut entries, mut spans, mut plain, mut bits, mut empty) = (0, 0, 0, 0, 0, 0);
    for (_, bytes, layer) in ztocs(&dir) {
        let ztoc = read(&bytes, layer.len() as u64, &mut Charge::default()).unwrap();
        let tar = decoded(ztoc.compression, &layer);
        spans_tile(&ztoc, &layer, &tar);
        entries += entries_are_those_of_the_tar(&ztoc, &tar);
        seen += 1;
        spans += ztoc.spans.len();
        plain += usize::from(ztoc.compression == Compression::Uncompressed);
        bits += ztoc.spans.iter().filter(|span| span.bits != 0).count();
        empty += usize::from(ztoc.spans.last().unwrap().decoded == ztoc.decoded_size);
        let error = read(&bytes, layer.len() as u64 + 1, &mut Charge::default()).unwrap_err();
        assert!(matches!(error.problem, Problem::Ztoc(ZtocProblem::OtherBlob { .. })));
    }
    eprintln!("{seen} zTOCs, {entries} entries, {spans} spans: {bits} with bits, {empty} empty, {plain} plain tars");
    assert!(seen >= 13 && entries >= 2755 && spans >= 39 && bits >= 11 && empty >= 1 && plain >= 3);
}
