//! The TOC row of docs/faults.md: what lies is refused at mount, with the entry's name in the message.

use std::io::Read;

use super::layers::{BOTH, Made, PAYLOAD, described, estargz, estargz_footer, gzip, layer, toc_tar, zstd_chunked};
use super::{Counted, INSECURE, NEVER_WHOLE, indexed, no_external};
use crate::blob::Digest;
use crate::index::{Descriptor, Error, Opened, Problem, open, toc};

const DIGEST: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

fn open_json(made: Made, json: &[u8]) -> Result<Opened, Error> {
    let (layer, blob) = layer(made, json);
    indexed(open(&layer, &Counted::new(blob), &no_external, &NEVER_WHOLE))
}

fn entries(entries: &str) -> String {
    format!(r#"{{"version":1,"entries":[{entries}]}}"#)
}

/// The message of a refusal, sources and all.
fn refusal(made: Made, json: &str) -> String {
    let mut json = json.replace("DIGEST", DIGEST);
    if let Some(name) = json.contains("LONG").then(|| "n".repeat(256)) {
        json = json.replace("LONG", &name);
    }
    let error = open_json(made, json.as_bytes()).err().unwrap_or_else(|| panic!("{json} was not refused"));
    assert!(error.to_string().contains("sha256:"), "names no layer: {error}");
    error.to_string()
}

/// Each entry or list of entries, what names it in the message, and what else the message says.
const HOSTILE: &[(&str, &str, &str)] = &[
    // Names.
    (r#"{"name":"a/../../b","type":"dir"}"#, "a/../../b", ".."),
    (r#"{"name":"../up","type":"reg"}"#, "../up", ".."),
    (r#"{"name":"nul\u0000byte","type":"dir"}"#, r"nul\0byte", "NUL"),
    (r#"{"name":"d/LONG","type":"dir"}"#, "d/nnnn", "256 bytes"),
    (r#"{"type":"dir"}"#, r#""""#, "no name"),
    (r#"{"name":17,"type":"dir"}"#, r#""""#, "name is 17"),
    (r#"{"name":"./","type":"reg"}"#, "./", "root"),
    (r#"{"name":"d/.wh..","type":"reg"}"#, "d/.wh..", "whiteout"),
    (r#"{"name":"d/.wh.","type":"reg"}"#, "d/.wh.", "whiteout"),
    // Types.
    (r#"{"name":"s","type":"socket"}"#, "\"s\"", "socket"),
    (r#"{"name":"s"}"#, "\"s\"", "type"),
    (r#"{"name":"s","type":7}"#, "\"s\"", "type is 7"),
    (r#"{"name":"f","type":"reg","size":1,"offset":9,"chunkType":"ones"}"#, "\"f\"", "ones"),
    (r#"{"name":"f","type":"reg","size":1,"offset":9,"chunkType":1}"#, "\"f\"", "chunkType is 1"),
    // Numbers.
    (r#"{"name":"f","type":"reg","size":-1}"#, "\"f\"", "size is a negative number"),
    (r#"{"type":"reg","size":-1,"name":"last"}"#, "\"last\"", "size"),
    (r#"{"name":"f","type":"reg","size":9223372036854775808}"#, "\"f\"", "size"),
    (r#"{"name":"f","type":"reg","size":18446744073709551616}"#, "\"f\"", "size"),
    (r#"{"name":"f","type":"reg","size":1e999}"#, "\"f\"", "number"),
    (r#"{"name":"f","type":"reg","size":1.5}"#, "\"f\"", "size"),
    (r#"{"name":"f","type":"reg","size":true}"#, "\"f\"", "size is a boolean"),
    (r#"{"name":"f","type":"reg","size":"7"}"#, "\"f\"", "size"),
    (r#"{"name":"f","type":"reg","size":[1,{"a":2}]}"#, "\"f\"", "size is a list"),
    (r#"{"name":"f","type":"dir","uid":4294967296}"#, "\"f\"", "uid"),
    (r#"{"name":"c","type":"char","devMajor":4096,"devMinor":0}"#, "\"c\"", "devMajor"),
    (r#"{"name":"b","type":"block","devMajor":0,"devMinor":1048576}"#, "\"b\"", "devMinor"),
    (r#"{"name":"f","type":"dir","gid":-2}"#, "\"f\"", "gid"),
    (r#"{"name":"f","type":"dir","mode":-1}"#, "\"f\"", "mode"),
    (r#"{"name":"f","type":"char","devMajor":4294967296}"#, "\"f\"", "devMajor"),
    (r#"{"name":"f","type":"reg","size":1,"offset":-5}"#, "\"f\"", "offset"),
    (
        r#"{"name":"f","type":"reg","size":1,"offset":10,"innerOffset":9223372036854775807,"digest":"DIGEST"}"#,
        "\"f\"",
        "overlap",
    ),
    // Who reads it would unpack a tebibyte first.
    (
        r#"{"name":"f","type":"reg","size":1,"offset":10,"innerOffset":1099511627776,"digest":"DIGEST"}"#,
        "\"f\"",
        "innerOffset is 1099511627776",
    ),
    (
        r#"{"name":"f","type":"reg","size":9223372036854775807,"offset":10,"digest":"DIGEST"}"#,
        "\"f\"",
        "bytes of contents",
    ),
    // Times and digests.
    (r#"{"name":"f","type":"dir","modtime":"yesterday"}"#, "\"f\"", "modtime"),
    (r#"{"name":"f","type":"dir","modtime":5}"#, "\"f\"", "modtime"),
    (r#"{"name":"f","type":"reg","size":1,"offset":10,"digest":"md5:0"}"#, "\"f\"", "md5:0"),
    (r#"{"name":"f","type":"reg","size":1,"offset":10,"digest":5}"#, "\"f\"", "digest is 5"),
    (r#"{"name":"f","type":"reg","size":1,"offset":10}"#, "\"f\"", "no digest"),
    // Links.
    (r#"{"name":"l","type":"symlink"}"#, "\"l\"", "symlink target of 0"),
    (r#"{"name":"l","type":"symlink","linkName":"a\u0000"}"#, "\"l\"", "NUL"),
    (r#"{"name":"l","type":"hardlink","linkName":"../x"}"#, "\"l\"", ".."),
    (r#"{"name":"l","type":"hardlink"}"#, "\"l\"", "directory"),
    (r#"{"name":"d","type":"dir"},{"name":"l","type":"hardlink","linkName":"d"}"#, "\"l\"", "directory"),
    (r#"{"name":"l","type":"hardlink","linkName":"d"},{"name":"d","type":"dir"}"#, "\"l\"", "directory"),
    (r#"{"name":"l","type":"hardlink","linkName":"d"},{"name":"d/f","type":"fifo"}"#, "\"l\"", "directory"),
    (r#"{"name":"l","type":"hardlink","linkName":"l"}"#, "\"l\"", "back to itself"),
    (
        r#"{"name":"a","type":"hardlink","linkName":"b"},{"name":"b","type":"hardlink","linkName":"c"},{"name":"c","type":"hardlink","linkName":"a"}"#,
        "\"a\"",
        "back to itself",
    ),
    (r#"{"name":".wh.x","type":"reg"},{"name":"l","type":"hardlink","linkName":".wh.x"}"#, "\"l\"", "whiteout"),
    // Something below what is no directory.
    (r#"{"name":"f","type":"fifo"},{"name":"f/g","type":"dir"}"#, "f/g", "not a directory"),
    (
        r#"{"name":"f","type":"fifo"},{"name":"l","type":"symlink","linkName":"f"},{"name":"l/x","type":"fifo"}"#,
        "l/x",
        "not a directory",
    ),
    (
        r#"{"name":"a","type":"symlink","linkName":"b"},{"name":"b","type":"symlink","linkName":"/a"},{"name":"b/x","type":"fifo"}"#,
        "b/x",
        "40 symlinks",
    ),
    // Xattrs.
    (r#"{"name":"f","type":"dir","xattrs":{"user.a":"*"}}"#, "\"f\"", "user.a"),
    (r#"{"name":"f","type":"dir","xattrs":{"user.a":{}}}"#, "\"f\"", "user.a"),
    (r#"{"name":"f","type":"dir","xattrs":[]}"#, "\"f\"", "xattrs is not an object"),
    (r#"{"name":"f","type":"dir","xattrs":true}"#, "\"f\"", "xattrs is not an object"),
    (r#"{"name":"f","type":"dir","xattrs":1}"#, "\"f\"", "xattrs is not an object"),
    (r#"{"name":"f","type":"dir","xattrs":-1}"#, "\"f\"", "xattrs is not an object"),
    (r#"{"name":"f","type":"dir","xattrs":1.5}"#, "\"f\"", "xattrs is not an object"),
    (r#"{"name":"f","type":"dir","xattrs":"user.a"}"#, "\"f\"", "xattrs is not an object"),
    (r#"{"name":"f","type":"dir","xattrs":{"":"YQ=="}}"#, "\"f\"", "xattr"),
    (r#"{"name":"f","type":"dir","xattrs":{"LONG":"YQ=="}}"#, "\"f\"", "255"),
    // Chunks.
    (r#"{"name":"f","type":"chunk","offset":10}"#, "\"f\"", "follow its file"),
    (r#"{"name":"f","type":"reg"},{"name":"g","type":"chunk"}"#, "\"g\"", "follow its file"),
    (
        r#"{"name":"f","type":"reg","size":2,"digest":"DIGEST","offset":9},{"name":"d","type":"dir"},{"name":"f","type":"chunk"}"#,
        "\"f\"",
        "follow its file",
    ),
    (
        r#"{"name":"f","type":"reg","size":9,"digest":"DIGEST","offset":9,"chunkSize":4},{"name":"f","type":"chunk","offset":20,"chunkOffset":5}"#,
        "\"f\"",
        "gap at byte 4",
    ),
    (
        r#"{"name":"f","type":"reg","size":9,"digest":"DIGEST","offset":9,"chunkSize":4},{"name":"f","type":"chunk","offset":20,"chunkOffset":3}"#,
        "\"f\"",
        "overlap at byte 3",
    ),
    (r#"{"name":"f","type":"reg","size":9,"digest":"DIGEST","offset":9,"chunkSize":4}"#, "\"f\"", "gap at byte 4"),
    (r#"{"name":"f","type":"reg","size":9,"digest":"DIGEST","offset":9,"chunkOffset":1}"#, "\"f\"", "gap at byte 0"),
    (r#"{"name":"f","type":"reg","size":9,"digest":"DIGEST","offset":9,"chunkSize":10}"#, "\"f\"", "overlap"),
    (
        r#"{"name":"f","type":"reg","size":9,"digest":"DIGEST","offset":9},{"name":"f","type":"chunk","offset":20,"chunkOffset":9}"#,
        "\"f\"",
        "overlap",
    ),
    (
        r#"{"name":"f","type":"reg","digest":"DIGEST"},{"name":"f","type":"chunk","offset":20,"chunkSize":1}"#,
        "\"f\"",
        "overlap at byte 0",
    ),
    (r#"{"name":"f","type":"reg","size":9,"digest":"DIGEST"}"#, "\"f\"", "where its contents are"),
    // Places in the blob. The payload ends at 10,000.
    (r#"{"name":"f","type":"reg","size":9,"digest":"DIGEST","offset":10000}"#, "\"f\"", "outside"),
    (r#"{"name":"f","type":"reg","size":9,"digest":"DIGEST","offset":20000}"#, "\"f\"", "outside"),
    (
        r#"{"name":"f","type":"reg","size":9,"digest":"DIGEST","offset":50},{"name":"g","type":"reg","size":9,"digest":"DIGEST","offset":49}"#,
        "\"g\"",
        "before",
    ),
    (
        r#"{"name":"f","type":"reg","size":9,"digest":"DIGEST","offset":50},{"name":"g","type":"reg","size":9,"digest":"DIGEST","offset":50,"innerOffset":8}"#,
        "\"g\"",
        "overlap",
    ),
    (
        r#"{"name":"f","type":"reg","size":9,"digest":"DIGEST","offset":50,"endOffset":90},{"name":"g","type":"reg","size":9,"digest":"DIGEST","offset":89}"#,
        "\"g\"",
        "before",
    ),
    (r#"{"name":"f","type":"reg","size":9,"digest":"DIGEST","offset":50,"endOffset":10001}"#, "\"f\"", "outside"),
    (r#"{"name":"f","type":"reg","size":9,"digest":"DIGEST","offset":50,"endOffset":49}"#, "\"f\"", "outside"),
    (
        r#"{"name":"f","type":"reg","size":9,"digest":"DIGEST","offset":50,"chunkSize":4,"chunkType":"zeros"},{"name":"f","type":"chunk","offset":60,"chunkOffset":4}"#,
        "\"f\"",
        "no digest",
    ),
    (
        r#"{"name":"f","type":"reg","size":9,"offset":500,"chunkType":"zeros"},{"name":"g","type":"reg","size":9,"digest":"DIGEST","offset":499}"#,
        "\"g\"",
        "before",
    ),
];

#[test]
fn a_toc_that_lies_is_refused_with_the_entry_in_the_message() {
    for (json, name, what) in HOSTILE {
        for made in BOTH {
            let message = refusal(made, &entries(json));
            assert!(message.contains(name) && message.contains(what), "{json}\n{message}");
        }
    }
}

#[test]
fn a_path_that_is_too_long_is_refused() {
    let deep = entries(&format!(r#"{{"name":"{}","type":"dir"}}"#, "d/".repeat(2049)));
    for made in BOTH {
        let message = refusal(made, &deep);
        assert!(message.contains("d/d/d") && message.contains("4097"), "{message}");
        assert!(
            open_json(made, entries(&format!(r#"{{"name":"{}","type":"dir"}}"#, "d/".repeat(2048))).as_bytes()).is_ok()
        );
    }
    let target = |len: usize| entries(&format!(r#"{{"name":"l","type":"symlink","linkName":"{}"}}"#, "t".repeat(len)));
    assert!(open_json(Made::EStargz, target(4095).as_bytes()).is_ok());
    assert!(refusal(Made::EStargz, &target(4096)).contains("4096"));
}

#[test]
fn paths_through_symlinks_are_bounded() {
    let chain = |len: usize| {
        let links: Vec<_> =
            (1..=len).map(|i| format!(r#"{{"name":"d{i}","type":"symlink","linkName":"d{}"}}"#, i - 1)).collect();
        entries(&format!(r#"{{"name":"d0","type":"dir"}},{},{{"name":"d{len}/x","type":"fifo"}}"#, links.join(",")))
    };
    let long = "d/".repeat(1500);
    let deep = entries(&format!(
        r#"{{"name":"l","type":"symlink","linkName":"{long}"}},{{"name":"l/m","type":"symlink","linkName":"{long}"}},{{"name":"{long}m/x","type":"dir"}}"#
    ));
    // Long targets are no long way; the names in them are one.
    let winding = |len: usize| chain(len).replace("\"linkName\":\"", &format!("\"linkName\":\"{}", "./".repeat(2000)));
    for made in BOTH {
        assert!(open_json(made, winding(8).as_bytes()).is_ok());
        assert!(refusal(made, &winding(9)).contains("16384 names"));
        assert!(open_json(made, chain(40).as_bytes()).is_ok());
        assert!(refusal(made, &chain(41)).contains("40 symlinks"));
        assert!(refusal(made, &deep).contains("6001 bytes"), "where a path leads counts");
    }
}

#[test]
fn what_is_no_toc_is_refused() {
    let cases = [
        ("", "EOF"),
        ("x", "expected"),
        ("[]", "TOC"),
        ("null", "TOC"),
        ("{}", "no list of entries"),
        (r#"{"version":1}"#, "no list of entries"),
        (r#"{"version":2,"entries":[]}"#, "version 2"),
        (r#"{"version":"1","entries":[]}"#, "version"),
        (r#"{"entries":7}"#, "list of entries"),
        (r#"{"entries":[7]}"#, "an object"),
        (r#"{"entries":[],"Entries":[]}"#, "two lists"),
        (r#"{"entries":[]} x"#, "trailing"),
        (r#"{"entries":[]}{}"#, "trailing"),
        (r#"{"entries":[]"#, "EOF"),
    ];
    for (json, what) in cases {
        for made in BOTH {
            let message = refusal(made, json);
            assert!(message.contains(what), "{json}: {message}");
        }
    }
}

#[test]
fn a_toc_cut_anywhere_is_refused() {
    let json =
        entries(r#"{"name":"one","type":"dir"},{"name":"two","type":"reg","size":1,"offset":9,"digest":"DIGEST"}"#);
    let json = json.replace("DIGEST", DIGEST);
    assert!(open_json(Made::EStargz, json.as_bytes()).is_ok());
    for cut in 0..json.len() {
        assert!(open_json(Made::EStargz, &json.as_bytes()[..cut]).is_err(), "{cut}");
    }
    let message = refusal(Made::ZstdChunked, &json[..json.find("offset").unwrap()]);
    assert!(message.contains("\"two\""), "{message}");
}

#[test]
fn keys_are_matched_without_case_and_unknown_ones_skipped() {
    let json = r#"{"VERSION":1,"x":{"entries":[[]]},"eNTRIES":[{"NAME":"a","Type":"dir","UID":7,"NumLink":0,"y":[{"name":"z"}]}]}"#;
    for made in BOTH {
        assert!(open_json(made, json.as_bytes()).is_ok());
        assert!(open_json(made, br#"{"version":null,"entries":null}"#).is_ok());
    }
}

#[test]
fn depth_is_bounded() {
    let deep = |open: &str, close: &str, count: usize| open.repeat(count) + &close.repeat(count);
    for made in BOTH {
        let skipped =
            |count| open_json(made, format!(r#"{{"entries":[],"x":{}}}"#, deep("[", "]", count)).as_bytes()).is_ok();
        assert!(skipped(100) && !skipped(200_000), "what is skipped counts as well");
        let message = refusal(
            made,
            &entries(&format!(r#"{{"name":"deep","size":{}}}"#, deep("{\"a\":", "}", 200_000).replace(":}", ":1}"))),
        );
        assert!(message.contains("\"deep\""), "{message}");
    }
}

/// A TOC that goes on for ever, and counts what is read of it.
struct Endless<'a> {
    head: &'a [u8],
    body: &'a [u8],
    at: usize,
}

impl Read for Endless<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let from = if self.at == 0 { self.head } else { self.body };
        let len = from.len().min(buffer.len());
        buffer[..len].copy_from_slice(&from[..len]);
        self.at += len;
        Ok(len)
    }
}

#[test]
fn no_single_value_takes_unbounded_memory_or_time() {
    let heads: [(&[u8], &[u8]); 6] = [
        (br#"{"entries":[{"name":""#, b"n"),
        (br#"{"entries":[{"name":"f","xattrs":{"user.a":""#, b"A"),
        (br#"{"entries":[{"name":"f","xattrs":{"#, br#""user.a":"","#),
        (br#"{"entries":[{"name":"f","#, br#""x":1,"#),
        (br#"{"entries":[{"name":"f","x":"#, b"["),
        (br#"{"x":""#, b"x"),
    ];
    for (head, body) in heads {
        let body = body.repeat(60_000 / body.len());
        let mut endless = Endless { head, body: &body, at: 0 };
        assert!(toc::parse(&mut endless, &mut |_| Ok(())).is_err());
        assert!(endless.at < 6 << 20, "{} bytes were read", endless.at);
    }
}

#[test]
fn the_declared_length_is_the_length() {
    let json = entries(r#"{"name":"a","type":"dir"}"#);
    let padded = format!("{json}{}", " ".repeat(1 << 20));
    let (blob, annotations) = zstd_chunked(padded.as_bytes(), json.len() as u64);
    let message = open_blob(&described(&blob, &annotations), blob).err().unwrap().to_string();
    assert!(message.contains("declares"), "{message}");
    let (blob, annotations) = zstd_chunked(json.as_bytes(), json.len() as u64 + 1);
    let message = open_blob(&described(&blob, &annotations), blob).err().unwrap().to_string();
    assert!(message.contains("declares"), "{message}");
}

fn open_blob(layer: &Descriptor, blob: Vec<u8>) -> Result<Opened, Error> {
    indexed(open(layer, &Counted::new(blob.into()), &no_external, &INSECURE))
}

#[test]
fn a_toc_that_says_it_is_huge_is_refused_before_it_is_read() {
    let (blob, _) = zstd_chunked(b"{}", u64::MAX);
    assert!(matches!(problem(open_blob(&described(&blob, &[]), blob)), Problem::TocTooLarge { .. }));
    let (blob, annotations) = estargz(br#"{"entries":[]}"#, 0o77_777_777_777);
    assert!(matches!(problem(open_blob(&described(&blob, &annotations), blob)), Problem::TocTooLarge { .. }));
}

#[test]
fn a_toc_that_expands_as_none_does_is_refused_before_it_is_read() {
    let json = format!("{{\"entries\":[]}}{}", " ".repeat(80 << 20));
    let len = json.len() as u64;
    for ((blob, annotations), expands) in
        [(estargz(json.as_bytes(), len), false), (zstd_chunked(json.as_bytes(), len), true)]
    {
        // What gzip makes of them is no sign of anything; so many spaces are refused all the same.
        let problem = problem(open_blob(&described(&blob, &annotations), blob));
        assert_eq!(matches!(problem, Problem::TocExpands(_)), expands, "{problem}");
    }
}

#[test]
fn all_paths_of_a_layer_together_lead_through_so_many_names_and_no_more() {
    let winding = format!("{}real", "./".repeat(2000));
    let mut all = vec![
        r#"{"name":"real","type":"dir"}"#.to_owned(),
        format!(r#"{{"name":"l","type":"symlink","linkName":"{winding}"}}"#),
    ];
    // A directory that was asked for just now is not looked for again.
    let (fine, too_many) = ((64 << 20) / 2001, (64 << 20) / 2001 + 1);
    all.extend(
        (0..too_many)
            .flat_map(|at| [format!("l/{at}"), format!("{at}")])
            .map(|name| format!(r#"{{"name":"{name}","type":"fifo"}}"#)),
    );
    assert!(open_json(Made::ZstdChunked, entries(&all[..2 + 2 * fine].join(",")).as_bytes()).is_ok());
    let refused = refusal(Made::ZstdChunked, &entries(&all.join(",")));
    assert!(refused.contains("67108864 names"), "{refused}");
}

fn problem(opened: Result<Opened, Error>) -> Problem {
    match opened.err().unwrap() {
        Error::Toc { problem, .. } => problem,
        other => panic!("{other}"),
    }
}

#[test]
fn a_footer_that_points_nowhere_is_refused() {
    for toc in [PAYLOAD as u64 + 1, 0, 1 << 40, u64::MAX] {
        let (mut blob, _) = estargz(br#"{"entries":[]}"#, 14);
        blob.truncate(blob.len() - 51);
        blob.extend_from_slice(&estargz_footer(toc));
        assert!(open_blob(&described(&blob, &[]), blob).is_err(), "{toc}");
    }
    for (name, len) in [("other.json", 14), ("stargz.index.json", 13), ("stargz.index.json", 15)] {
        let mut blob = gzip(&toc_tar(name, br#"{"entries":[]}"#, len));
        blob.extend_from_slice(&estargz_footer(0));
        assert!(open_blob(&described(&blob, &[]), blob).is_err(), "{name} {len}");
    }
}

#[test]
fn a_toc_of_another_digest_is_wrong_bytes_even_where_it_cannot_be_parsed() {
    for made in BOTH {
        for json in [&br#"{"entries":[]}"#[..], b"{\"entries\":[7", b"x"] {
            let (mut layer, blob) = layer(made, json);
            for (key, value) in &mut layer.annotations {
                if !key.contains("position") {
                    *value = Digest::of(b"another").to_string();
                }
            }
            let error = open(&layer, &Counted::new(blob), &no_external, &NEVER_WHOLE).err().unwrap();
            assert!(error.is_wrong_bytes(), "{error}");
        }
    }
}
