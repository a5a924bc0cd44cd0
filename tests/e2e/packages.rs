//! What the packages hold (packaging/files), laid out by `scripts/package --stage` as for a release. scripts/soak-packages installs them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::lab::CRFS;
use crate::support::{Lab, run};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const KINDS: [&str; 3] = ["deb", "rpm", "tar"];

/// The files of a package by their paths; a link has what it points to.
type Tree = BTreeMap<PathBuf, Vec<u8>>;

fn stage(lab: &Lab, kind: &str) -> Tree {
    let dir = lab.path(format!("tree-{kind}"));
    let mut package = Command::new(format!("{ROOT}/scripts/package"));
    run(package.arg("--stage").arg(&dir).arg(kind).env("CRFS", CRFS)).ok();
    let mut tree = Tree::new();
    walk(&dir, &dir, &mut tree);
    tree
}

fn walk(root: &Path, dir: &Path, tree: &mut Tree) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let name = path.strip_prefix(root).unwrap().to_owned();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            walk(root, &path, tree);
        } else if kind.is_symlink() {
            tree.insert(name, fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes());
        } else {
            tree.insert(name, fs::read(&path).unwrap());
        }
    }
}

#[track_caller]
fn holds(tree: &Tree, wanted: &[u8], what: &str) {
    assert!(tree.values().any(|bytes| bytes == wanted), "{what} is not in packaging/files: {:?}", tree.keys());
}

#[test]
fn every_package_has_all_that_belongs_to_the_program() {
    let Some(lab) = Lab::new() else { return };
    let pages = lab.fresh("pages");
    run(Command::new(CRFS).arg("man").arg(&pages)).ok();
    for kind in KINDS {
        let tree = stage(&lab, kind);
        let at =
            |path: &str| tree.get(Path::new(path)).unwrap_or_else(|| panic!("{kind} has no {path}: {:?}", tree.keys()));
        assert_eq!(*at("usr/bin/crfs"), fs::read(CRFS).unwrap());
        for entry in fs::read_dir(format!("{ROOT}/contrib")).unwrap().map(Result::unwrap) {
            holds(&tree, &fs::read(entry.path()).unwrap(), &format!("{kind}: {}", entry.path().display()));
        }
        for page in pages.read_dir().unwrap().map(|page| page.unwrap().file_name().into_string().unwrap()) {
            let section = page.rsplit('.').next().unwrap();
            at(&format!("usr/share/man/man{section}/{page}.gz"));
        }
        for shell in ["bash", "fish", "zsh"] {
            let script = run(Command::new(CRFS).args(["completions", shell])).ok();
            holds(&tree, script.as_bytes(), &format!("{kind}: the completions for {shell}"));
        }
        for helper in ["mount.crfs", "mount.fuse.crfs", "umount.crfs", "umount.fuse.crfs"] {
            assert_eq!(*at(&format!("usr/sbin/{helper}")), b"../bin/crfs", "{kind}: {helper}");
        }
        for document in ["NOTICES", "crfs.cdx.json", "README.md"] {
            let is_it = |path: &Path| path.to_str().unwrap().replace(".gz", "").ends_with(&format!("/crfs/{document}"));
            assert!(tree.keys().any(|path| is_it(path)), "{kind} has no {document}");
        }
    }
}

/// A word that is misspelt there would leave a file out in silence.
#[test]
fn the_list_of_files_knows_no_other_kind_of_package() {
    let list = fs::read_to_string(format!("{ROOT}/packaging/files")).unwrap();
    for line in list.lines().filter(|line| !line.starts_with('#')) {
        for kind in line.split_whitespace().skip(2) {
            assert!(KINDS.contains(&kind), "{line}");
        }
    }
}

/// One version, wherever it stands.
#[test]
fn the_version_has_a_section_in_the_changelog() {
    let changelog = fs::read_to_string(format!("{ROOT}/CHANGELOG.md")).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let released = format!("## [{version}] - ");
    assert!(changelog.lines().any(|line| line.starts_with(&released)), "CHANGELOG.md has no line \"{released}DATE\"");
}
