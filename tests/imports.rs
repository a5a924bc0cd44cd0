//! Data flows one way, and so do the imports: what each part of src/ may use of the others (docs/design.md, "Data flows one way").
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

/// A part, and what it may use besides itself and what all share: `blob` (the words), `sys`, `threads`, `budget` and `metrics`.
const MAY_USE: [(&str, &[&str]); 13] = [
    ("blob", &[]),
    ("budget", &[]),
    ("metrics", &[]),
    ("sys", &[]),
    ("threads", &[]),
    ("registry", &[]),
    ("index", &[]),
    ("cache", &["index"]),
    ("fetch", &["registry", "index", "cache"]),
    ("fs", &["index", "fetch"]),
    ("mount", &["registry", "index", "cache", "fetch", "fs"]),
    ("store", &["registry", "index", "cache", "fetch", "fs", "mount"]),
    ("cli", &["registry", "index", "cache", "fetch", "fs", "mount", "store"]),
];

/// The parts that a line imports: `crate::PART`. A line may have several.
fn imported(line: &str) -> impl Iterator<Item = &str> {
    let code = line.split("//").next().unwrap();
    code.split("crate::").skip(1).map(|rest| rest.split(|c: char| !c.is_ascii_lowercase()).next().unwrap())
}

fn sources(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let entries = fs::read_dir(path).into_iter().flatten();
    entries.flat_map(|entry| sources(&entry.unwrap().path())).collect()
}

#[test]
fn imports_go_one_way() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (part, allowed) in MAY_USE {
        let files = [sources(&src.join(part)), sources(&src.join(part).with_extension("rs"))].concat();
        assert!(!files.is_empty(), "there is no src/{part}");
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            for (number, line) in text.lines().enumerate() {
                for used in imported(line).filter(|used| MAY_USE.iter().any(|(part, _)| part == used)) {
                    let fine = used == part
                        || ["blob", "sys", "threads", "budget", "metrics"].contains(&used)
                        || allowed.contains(&used);
                    assert!(fine, "{}:{}: {part} may not use {used}", file.display(), number + 1);
                }
            }
        }
    }
}

/// Deadlines are monotonic: a jump of the wall clock ends no read and evicts nothing. So it is asked only for what is none.
#[test]
fn the_wall_clock_decides_nothing() {
    // An image's times; names of temporary files; a Retry-After that is a date; when a mount was made.
    let may = [
        "src/fs/fuse.rs",
        "src/fs/fuse/attr.rs",
        "src/cache/dir/mod.rs",
        "src/registry/patience.rs",
        "src/registry/throttle.rs",
        "src/mount/server.rs",
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in sources(&root.join("src")) {
        let asks = fs::read_to_string(&file).unwrap().contains("SystemTime");
        let name = file.strip_prefix(root).unwrap().to_str().unwrap();
        assert!(!asks || may.contains(&name) || name.contains("test"), "{name} asks for the time of day");
    }
}

#[test]
fn imports_are_seen() {
    let line = "use crate::{blob}; fn f(x: crate::index::Unit, y: crate::fs::Tree) {} // crate::cli";
    assert_eq!(imported(line).collect::<Vec<_>>(), ["", "index", "fs"]);
    assert_eq!(imported("//! [`crate::cli`]").count(), 0);
}
