//! What a list of entries comes to: duplicates, whiteouts, hard links, hidden names, implied directories.

use super::layers::{Made, layer};
use super::{Counted, NEVER_WHOLE, indexed, no_external, stored};
use crate::blob::ByteRange;
use crate::index::{Child, Entries, Kind, Meta, NodeId, StoredIndex, Time, open};

const DIGEST: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

fn index(entries: &str) -> StoredIndex {
    let json = format!(r#"{{"version":1,"entries":[{}]}}"#, entries.replace("DIGEST", DIGEST));
    let (layer, blob) = layer(Made::ZstdChunked, json.as_bytes());
    stored(&layer, &indexed(open(&layer, &Counted::new(blob), &no_external, &NEVER_WHOLE)).unwrap())
}

fn tree(entries: &str) -> Entries {
    index(entries).entries().unwrap()
}

/// The tree as text: `path kind`, one a line; nodes with several names show the first.
fn shown(entries: &Entries) -> Vec<String> {
    let mut lines = Vec::new();
    let mut seen = std::collections::BTreeMap::new();
    show(entries, Entries::ROOT, "", &mut seen, &mut lines);
    lines
}

fn show(
    entries: &Entries,
    dir: NodeId,
    path: &str,
    seen: &mut std::collections::BTreeMap<NodeId, String>,
    lines: &mut Vec<String>,
) {
    for (name, child) in entries.children(dir) {
        let path = format!("{path}/{}", String::from_utf8_lossy(name));
        let node = match child {
            Child::Whiteout => {
                lines.push(format!("{path} whiteout"));
                continue;
            }
            Child::LinkBelow(target) => {
                lines.push(format!("{path} below {}", String::from_utf8_lossy(target)));
                continue;
            }
            Child::Node(node) => node,
        };
        if let Some(first) = seen.get(&node) {
            lines.push(format!("{path} = {first}"));
            continue;
        }
        seen.insert(node, path.clone());
        lines.push(format!("{path} {}", kind(entries, node)));
        show(entries, node, &path, seen, lines);
    }
}

fn kind(entries: &Entries, node: NodeId) -> String {
    match entries.kind(node) {
        Kind::Dir { opaque, implied } => {
            format!("dir{}{}", if opaque { " opaque" } else { "" }, if implied { " implied" } else { "" })
        }
        Kind::File { size, .. } => format!("file {size}"),
        Kind::Symlink(target) => format!("-> {}", String::from_utf8_lossy(target)),
        Kind::Char { major, minor } => format!("char {major}:{minor}"),
        Kind::Block { major, minor } => format!("block {major}:{minor}"),
        Kind::Fifo => "fifo".to_owned(),
        Kind::Socket => "socket".to_owned(),
    }
}

#[test]
fn entries_and_what_they_come_to() {
    let cases: &[(&str, &[&str])] = &[
        // Missing parents are made; names come sorted by their bytes.
        (
            r#"{"name":"b/c/","type":"dir"},{"name":"a.b","type":"fifo"},{"name":"a/x","type":"fifo"},{"name":"a-","type":"fifo"}"#,
            &["/a dir implied", "/a/x fifo", "/a- fifo", "/a.b fifo", "/b dir implied", "/b/c dir"],
        ),
        (
            r#"{"name":"c","type":"char","devMajor":1,"devMinor":3},{"name":"b","type":"block","devMajor":4095,"devMinor":1048575}"#,
            &["/b block 4095:1048575", "/c char 1:3"],
        ),
        // The last of two with one name counts; a directory keeps its children, unless it becomes something else.
        (r#"{"name":"x","type":"fifo"},{"name":"./x","type":"symlink","linkName":"y"}"#, &["/x -> y"]),
        (
            r#"{"name":"d/","type":"dir"},{"name":"d/x","type":"fifo"},{"name":"d","type":"dir"}"#,
            &["/d dir", "/d/x fifo"],
        ),
        (r#"{"name":"d/x","type":"fifo"},{"name":"d","type":"dir"}"#, &["/d dir", "/d/x fifo"]),
        (r#"{"name":"d/x","type":"fifo"},{"name":"d","type":"fifo"},{"name":"d/","type":"dir"}"#, &["/d dir"]),
        (
            r#"{"name":"d/x","type":"fifo"},{"name":"d","type":"fifo"},{"name":"d","type":"dir"},{"name":"d/y","type":"fifo"}"#,
            &["/d dir", "/d/y fifo"],
        ),
        (r#"{"name":"a/b/c","type":"fifo"},{"name":"a","type":"fifo"}"#, &["/a fifo"]),
        // Whiteouts, in either order with what stands beside them.
        (r#"{"name":"d/.wh.x","type":"reg"}"#, &["/d dir implied", "/d/x whiteout"]),
        (r#"{"name":".wh.x","type":"reg"},{"name":"x","type":"fifo"}"#, &["/x fifo"]),
        (r#"{"name":"x","type":"dir"},{"name":".wh.x","type":"reg"}"#, &["/x dir opaque"]),
        (r#"{"name":".wh.x","type":"reg"},{"name":"x/y","type":"fifo"}"#, &["/x dir opaque", "/x/y fifo"]),
        (
            r#"{"name":".wh.b","type":"reg"},{"name":"a","type":"fifo"},{"name":"c","type":"fifo"}"#,
            &["/a fifo", "/b whiteout", "/c fifo"],
        ),
        (r#"{"name":".wh..x","type":"reg"},{"name":".wh....","type":"reg"}"#, &["/... whiteout", "/.x whiteout"]),
        // Of AUFS whiteouts are hard links of each other.
        (
            r#"{"name":".wh..wh.aufs","type":"reg"},{"name":".wh.x","type":"hardlink","linkName":".wh..wh.aufs"}"#,
            &["/x whiteout"],
        ),
        // Opaque markers, before and after their directory's own entry.
        (r#"{"name":"d/.wh..wh..opq","type":"reg"},{"name":"d","type":"dir"}"#, &["/d dir opaque"]),
        (
            r#"{"name":"d","type":"dir"},{"name":"d/.wh..wh..opq","type":"reg"},{"name":"d","type":"dir"}"#,
            &["/d dir opaque"],
        ),
        (r#"{"name":"d/.wh..wh..opq","type":"reg"}"#, &["/d dir opaque implied"]),
        (r#"{"name":"d/.wh..wh..opq","type":"reg"},{"name":"d","type":"fifo"},{"name":"d","type":"dir"}"#, &["/d dir"]),
        // AUFS's own and the landmarks are hidden; what is linked to them is not.
        (
            r#"{"name":".wh..wh.plnk/7.8","type":"fifo"},{"name":"x","type":"hardlink","linkName":".wh..wh.plnk/7.8"},{"name":"y","type":"hardlink","linkName":"x"}"#,
            &["/x fifo", "/y = /x"],
        ),
        (
            r#"{"name":".no.prefetch.landmark","type":"fifo"},{"name":"d/.prefetch.landmark","type":"fifo"}"#,
            &["/d dir implied", "/d/.prefetch.landmark fifo"],
        ),
        // Hard links: to other spellings, to links, to what comes later, to what is replaced, to what is not here.
        (
            r#"{"name":"a","type":"hardlink","linkName":"/b//c"},{"name":"b/c","type":"fifo"},{"name":"d","type":"hardlink","linkName":"./a"}"#,
            &["/a fifo", "/b dir implied", "/b/c = /a", "/d = /a"],
        ),
        (
            r#"{"name":"s","type":"symlink","linkName":"t"},{"name":"r","type":"hardlink","linkName":"s"}"#,
            &["/r -> t", "/s = /r"],
        ),
        (
            r#"{"name":"old","type":"fifo"},{"name":"link","type":"hardlink","linkName":"old"},{"name":"old","type":"char","devMajor":5}"#,
            &["/link fifo", "/old char 5:0"],
        ),
        (
            r#"{"name":"x","type":"hardlink","linkName":"./lower/y"},{"name":"w","type":"hardlink","linkName":"x"}"#,
            &["/w below lower/y", "/x below lower/y"],
        ),
        (r#"{"name":"x","type":"fifo"},{"name":"x","type":"hardlink","linkName":"x"}"#, &["/x fifo"]),
        // A path leads through symlinks of the layer as they are then, and not out of the root.
        (
            r#"{"name":"usr/lib","type":"dir"},{"name":"lib","type":"symlink","linkName":"usr/lib"},{"name":"lib/x","type":"fifo"},{"name":"lib/d/y","type":"fifo"}"#,
            &[
                "/lib -> usr/lib",
                "/usr dir implied",
                "/usr/lib dir",
                "/usr/lib/d dir implied",
                "/usr/lib/d/y fifo",
                "/usr/lib/x fifo",
            ],
        ),
        (
            r#"{"name":"e","type":"dir"},{"name":"a/l","type":"symlink","linkName":"../../../../e"},{"name":"a/l/x","type":"fifo"},{"name":"m","type":"symlink","linkName":"/a/l/."},{"name":"m/y","type":"fifo"}"#,
            &["/a dir implied", "/a/l -> ../../../../e", "/e dir", "/e/x fifo", "/e/y fifo", "/m -> /a/l/."],
        ),
        (
            r#"{"name":"l","type":"symlink","linkName":"a"},{"name":"l/x","type":"fifo"},{"name":"l","type":"symlink","linkName":"b"},{"name":"l/x","type":"char"},{"name":"l","type":"dir"},{"name":"l/x","type":"block"}"#,
            &["/a dir implied", "/a/x fifo", "/b dir implied", "/b/x char 0:0", "/l dir", "/l/x block 0:0"],
        ),
        (
            r#"{"name":"l/x","type":"fifo"},{"name":"l","type":"symlink","linkName":"a"},{"name":"l/y","type":"fifo"}"#,
            &["/a dir implied", "/a/y fifo", "/l -> a"],
        ),
        // Where a symlink leads nowhere, what is missing is made there; what a later name leaves again is not.
        (
            r#"{"name":"l","type":"symlink","linkName":"no/../a"},{"name":"l/x","type":"fifo"}"#,
            &["/a dir implied", "/a/x fifo", "/l -> no/../a"],
        ),
        // Hard links through symlinks, and to what only lower layers can have; the last name is not followed.
        (
            r#"{"name":"d/x","type":"fifo"},{"name":"l","type":"symlink","linkName":"d"},{"name":"h","type":"hardlink","linkName":"l/x"},{"name":"l/k","type":"hardlink","linkName":"h"},{"name":"m","type":"hardlink","linkName":"l"},{"name":"m/z","type":"hardlink","linkName":"m/x"}"#,
            &["/d dir implied", "/d/k fifo", "/d/x = /d/k", "/d/z = /d/k", "/h = /d/k", "/l -> d", "/m = /l"],
        ),
        (
            r#"{"name":"l","type":"symlink","linkName":"d/e"},{"name":"h","type":"hardlink","linkName":"l/x"},{"name":"k","type":"hardlink","linkName":"l/y"},{"name":"d/e/y","type":"fifo"}"#,
            &["/d dir implied", "/d/e dir implied", "/d/e/y fifo", "/h below d/e/x", "/k = /d/e/y", "/l -> d/e"],
        ),
        // Whiteouts follow no symlink, and what is below something else than a directory is hidden by that.
        (
            r#"{"name":"d","type":"dir"},{"name":"l","type":"symlink","linkName":"d"},{"name":"l/.wh.x","type":"reg"},{"name":"l/.wh..wh..opq","type":"reg"},{"name":"l/s/.wh.y","type":"reg"}"#,
            &["/d dir", "/l -> d"],
        ),
        (
            r#"{"name":"f","type":"fifo"},{"name":"f/.wh.x","type":"reg"},{"name":"f/s/.wh..wh..opq","type":"reg"},{"name":"h","type":"hardlink","linkName":"f"},{"name":"h/.wh.x","type":"hardlink","linkName":"f"}"#,
            &["/f fifo", "/h = /f"],
        ),
        (r#"{"name":"f/.wh.x","type":"reg"},{"name":"f","type":"fifo"}"#, &["/f fifo"]),
        // What was only made for whiteouts goes with a whiteout of it.
        (
            r#"{"name":".wh.d","type":"reg"},{"name":"d/.wh.x","type":"reg"},{"name":"d/e/.wh..wh..opq","type":"reg"}"#,
            &["/d whiteout"],
        ),
        (r#"{"name":"d/.wh.x","type":"reg"},{"name":".wh.d","type":"reg"}"#, &["/d whiteout"]),
        (
            r#"{"name":".wh.d","type":"reg"},{"name":"d/.wh.x","type":"reg"},{"name":"d/e/y","type":"fifo"}"#,
            &["/d dir opaque", "/d/e dir implied", "/d/e/y fifo", "/d/x whiteout"],
        ),
        // Names that were not UTF-8 all became U+FFFD.
        (r#"{"name":"\ufffd","type":"fifo"},{"name":"\ufffd","type":"char"}"#, &["/\u{fffd} char 0:0"]),
    ];
    for (entries, want) in cases {
        assert_eq!(shown(&tree(entries)), *want, "{entries}");
    }
}

#[test]
fn attributes_are_those_of_the_last_entry() {
    let tree = tree(
        r#"{"name":"d","type":"dir","mode":448,"uid":9,"xattrs":{"user.a":"YQ=="}},
           {"name":"./","type":"dir","mode":33261,"uid":4294967295,"gid":11,"modtime":"1969-12-31T23:59:58.5Z"},
           {"name":"d","type":"dir","mode":1517,"xattrs":{"user.overlay.opaque":"eQ==","user.b":"","user.c":null}}"#,
    );
    let root = tree.meta(Entries::ROOT);
    assert_eq!((root.mode, root.uid, root.gid), (0o755, u32::MAX, 11));
    assert_eq!(root.mtime, Time { secs: -2, nanos: 500_000_000 });
    assert_eq!(tree.kind(Entries::ROOT), Kind::Dir { opaque: false, implied: false });
    let (_, Child::Node(dir)) = tree.children(Entries::ROOT).next().unwrap() else { panic!() };
    assert_eq!((tree.meta(dir).mode, tree.meta(dir).uid), (0o2755, 0));
    let xattrs: Vec<_> = tree.xattrs(dir).collect();
    assert_eq!(xattrs, [(&b"user.b"[..], &b""[..]), (b"user.c", b"")]);
    assert_eq!(tree.len(), 2);
}

#[test]
fn the_last_header_of_a_file_describes_it_whichever_of_its_names_has_it() {
    let tree = tree(
        r#"{"name":"f","type":"reg","mode":420,"uid":1,"gid":2,"modtime":"1970-01-01T00:00:01Z","xattrs":{"user.a":"YQ==","user.b":"Yg=="}},
           {"name":"g","type":"hardlink","linkName":"f","mode":2541,"uid":3,"gid":4,"modtime":"1970-01-01T00:00:02.5Z","xattrs":{"user.b":"Yw=="}},
           {"name":"h","type":"hardlink","linkName":"f"},
           {"name":"s","type":"symlink","linkName":"f","mode":511,"modtime":"1970-01-01T00:00:03Z"},
           {"name":"t","type":"hardlink","linkName":"s","mode":0,"uid":5,"modtime":"1970-01-01T00:00:04Z"},
           {"name":"late","type":"hardlink","linkName":"z","mode":1,"uid":6},
           {"name":"z","type":"fifo","mode":2,"uid":7}"#,
    );
    let node = |name: &[u8]| match tree.children(Entries::ROOT).find(|(other, _)| *other == name).unwrap().1 {
        Child::Node(node) => node,
        other => panic!("{other:?}"),
    };
    let said = |name: &[u8]| {
        let Meta { mode, uid, gid, mtime } = tree.meta(node(name));
        (mode, (uid, gid), (mtime.secs, mtime.nanos))
    };
    assert_eq!(said(b"f"), (0o4755, (3, 4), (2, 500_000_000)));
    assert_eq!((said(b"f"), said(b"f")), (said(b"g"), said(b"h")));
    let xattrs: Vec<_> = tree.xattrs(node(b"f")).collect();
    assert_eq!(xattrs, [(&b"user.a"[..], &b"a"[..]), (b"user.b", b"c")]);
    assert_eq!(said(b"s"), (0o777, (5, 0), (3, 0)), "of a symlink only the owner");
    assert_eq!(said(b"late"), (2, (7, 0), (0, 0)), "what comes last is the file itself");
}

#[test]
fn the_mode_of_a_later_hard_link_narrows_an_acl_as_chmod_does() {
    let acl = |owner: u8, mask: u8, other: u8| {
        let entries = [(1, owner), (2, 6), (4, 4), (0x10, mask), (0x20, other)];
        let entries = entries.iter().flat_map(|(tag, bits)| [*tag, 0, *bits, 0, 1, 0, 0, 0]);
        [2, 0, 0, 0].into_iter().chain(entries).collect::<Vec<u8>>()
    };
    let base64 = |bytes: &[u8]| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
    let kept = |link: &str| {
        let xattrs = format!(r#""xattrs":{{"system.posix_acl_access":"{}","user.a":"YQ=="}}"#, base64(&acl(6, 6, 0)));
        let tree = tree(&format!(
            r#"{{"name":"f","type":"reg","mode":416,{xattrs}}},{{"name":"g","type":"hardlink","linkName":"f",{link}}}"#
        ));
        let Child::Node(node) = tree.children(Entries::ROOT).next().unwrap().1 else { panic!() };
        tree.xattrs(node).find(|(name, _)| *name == b"system.posix_acl_access").unwrap().1.to_vec()
    };
    assert_eq!(kept(r#""mode":384"#), acl(6, 0, 0));
    assert_eq!(kept(r#""mode":493"#), acl(7, 5, 5));
    let own = format!(r#""mode":384,"xattrs":{{"system.posix_acl_access":"{}"}}"#, base64(&acl(4, 4, 4)));
    assert_eq!(kept(&own), acl(4, 4, 4), "one of its own counts");
}

#[test]
fn whiteouts_hide_the_longest_names_and_dots_are_cleaned_away() {
    for len in [251, 252, 255] {
        let name = "x".repeat(len);
        assert_eq!(
            shown(&tree(&format!(r#"{{"name":"d/.wh.{name}","type":"reg"}},{{"name":"a/../d/y","type":"fifo"}}"#))),
            ["/d dir implied".to_owned(), format!("/d/{name} whiteout"), "/d/y fifo".to_owned()]
        );
    }
    let link = r#"{"name":"b","type":"fifo"},{"name":"c/.././d/../f","type":"hardlink","linkName":"x/../b"}"#;
    assert_eq!(shown(&tree(link)), ["/b fifo", "/f = /b"]);
}

#[test]
fn files_keep_their_place_in_the_layer_file_whatever_replaces_them() {
    let index = index(
        r#"{"name":".prefetch.landmark","type":"reg","size":1,"offset":700,"digest":"DIGEST"},
           {"name":"a","type":"reg","size":5000,"offset":800,"digest":"DIGEST"},
           {"name":"empty","type":"reg"},
           {"name":".wh.b","type":"reg","size":2,"offset":900,"digest":"DIGEST"},
           {"name":"a","type":"reg","size":3,"offset":1000,"digest":"DIGEST","endOffset":1010},
           {"name":"last","type":"reg","size":4096,"offset":2000,"chunkType":"zeros"}"#,
    );
    let tree = index.entries().unwrap();
    let summary = index.summary();
    assert_eq!(summary.prefetch, Some(ByteRange { start: 0, end: 700 }));
    assert_eq!((summary.units, summary.checks, summary.entries), (4, 5, 4));
    assert_eq!(summary.layer_file_len, 4096 + 8192 + 4096 + 4096 + 4096);
    let names: Vec<_> = tree.children(Entries::ROOT).collect();
    let start = |at: usize| match names[at].1 {
        Child::Node(node) => tree.kind(node),
        other => panic!("{other:?}"),
    };
    assert_eq!(start(0), Kind::File { start: 4 * 4096, size: 3 });
    assert_eq!(names[1], (&b"b"[..], Child::Whiteout));
    assert_eq!(start(2), Kind::File { start: 3 * 4096, size: 0 });
    assert_eq!(start(3), Kind::File { start: 5 * 4096, size: 4096 });
    assert_eq!(index.unit(3).unwrap().compressed, ByteRange { start: 1000, end: 1010 });
    assert_eq!(index.unit(2).unwrap().compressed, ByteRange { start: 900, end: 1000 });
    let (hole, before) = (ByteRange { start: 5 * 4096, end: 6 * 4096 }, ByteRange { start: 0, end: 5 * 4096 });
    assert_eq!((index.holes().unwrap().from(0), index.holes().unwrap().bytes_in(before)), (Some(hole), 0));
}

/// Blocks that a chunk of zeros has in part are none.
#[test]
fn chunks_of_zeros_are_holes() {
    let index = index(
        r#"{"name":"f","type":"reg","size":30000,"offset":100,"chunkSize":5000,"chunkDigest":"DIGEST"},
           {"name":"f","type":"chunk","chunkOffset":5000,"chunkSize":15000,"chunkType":"zeros"},
           {"name":"f","type":"chunk","offset":200,"chunkOffset":20000,"chunkSize":10000,"chunkDigest":"DIGEST"},
           {"name":"zeros","type":"reg","size":5000,"chunkType":"zeros"},
           {"name":"small","type":"reg","size":5000,"offset":300,"digest":"DIGEST"}"#,
    );
    let holes = index.holes().unwrap();
    assert_eq!(holes.from(0), Some(ByteRange { start: 8192, end: 16_384 }));
    assert_eq!(holes.from(16_384), Some(ByteRange { start: 32_768, end: 40_960 }), "a file of nothing else");
    assert_eq!(holes.from(40_960), None);
}

#[test]
fn a_landmark_asks_for_nothing_outside_of_the_payload() {
    let index = index(r#"{"name":".prefetch.landmark","type":"fifo","offset":9223372036854775807}"#);
    assert_eq!(index.summary().prefetch, Some(ByteRange { start: 0, end: 10_000 }));
}
