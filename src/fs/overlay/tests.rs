//! Each rule by example, and all of them against a model that applies one layer after the other, as layer.md words it.

mod model;

use std::collections::BTreeMap;

use super::*;
use crate::fs::fake::{FakeLayer, Spec, What};
use crate::fs::tree::{Attr, Extent, Type};

/// What a view shows at a path. `group` is the first of the names that share the inode.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    kind: Type,
    meta: Meta,
    nlink: u32,
    extent: Option<Extent>,
    target: Option<Vec<u8>>,
    device: (u32, u32),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    group: Vec<u8>,
}

type Listing = BTreeMap<Vec<u8>, Shown>;

fn shown(tree: &Tree, ino: Ino) -> Shown {
    let Attr { kind, mode, uid, gid, mtime, nlink, major, minor, .. } = tree.attr(ino).unwrap();
    Shown {
        kind,
        meta: Meta { mode, uid, gid, mtime },
        nlink,
        extent: tree.extent(ino),
        target: tree.readlink(ino).map(<[u8]>::to_vec),
        device: (major, minor),
        xattrs: tree.xattrs(ino).map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
        group: Vec::new(),
    }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// Everything in a tree by path. Holds the order of children and numbers as well.
fn list(tree: &Tree) -> Listing {
    let mut listing = Listing::new();
    let mut inos = BTreeMap::new();
    let mut todo = vec![(Vec::new(), tree.root())];
    while let Some((path, ino)) = todo.pop() {
        inos.insert(path.clone(), ino);
        listing.insert(path.clone(), shown(tree, ino));
        let children: Vec<_> = tree.children(ino, 0).collect();
        assert!(children.is_sorted_by(|a, b| a.0 < b.0), "{path:?}");
        for (name, child) in children {
            assert_eq!(tree.lookup(ino, name), Some(child));
            todo.push((join(&path, name), child));
        }
    }
    for (path, shown) in &mut listing {
        let first = inos.iter().find(|(_, ino)| *ino == &inos[path]).unwrap();
        shown.group = first.0.clone();
    }
    assert_eq!(tree.totals().0, inos.values().collect::<std::collections::BTreeSet<_>>().len() as u64);
    listing
}

/// One layer alone, above others where they are known.
fn alone(layer: &FakeLayer, lowers: Option<&[FakeLayer]>) -> Result<Tree, Error> {
    let lowers = lowers.map(|lowers| lowers.iter().collect());
    merge_over(vec![layer], Some(Alone { opaque: OpaqueXattr::Both, lowers }), MADE_UP, &Budget::UNLIMITED)
}

fn list_numbers(tree: &Tree) -> BTreeMap<Vec<u8>, Ino> {
    let mut numbers = BTreeMap::from([(Vec::new(), tree.root())]);
    let mut todo = vec![(Vec::new(), tree.root())];
    while let Some((path, ino)) = todo.pop() {
        for (name, child) in tree.children(ino, 0) {
            numbers.insert(join(&path, name), child);
            todo.push((join(&path, name), child));
        }
    }
    numbers
}

fn layers(specs: &[Spec]) -> Vec<FakeLayer> {
    specs.iter().map(FakeLayer::new).collect()
}

fn merged(specs: &[Spec]) -> Result<Listing, Error> {
    merge(&layers(specs), None).map(|tree| list(&tree))
}

fn paths(listing: &Listing) -> String {
    let paths: Vec<_> = listing.keys().map(|path| String::from_utf8(path.clone()).unwrap()).collect();
    paths.join(" ").trim_start().to_owned()
}

fn file() -> What {
    What::File { size: 7 }
}

#[test]
fn whiteouts_hide_what_is_below_and_nothing_of_their_own_layer() {
    let lower = Spec::default().with("d/old", file()).with("f", file()).with("g", file());
    let upper = Spec::default()
        .whiteout("d")
        .with("d", What::Dir)
        .with("d/new", file())
        .whiteout("f")
        .whiteout("g")
        .with("g", What::Fifo);
    let listing = merged(&[lower, upper]).unwrap();
    assert_eq!(paths(&listing), "d d/new g");
    assert_eq!(listing[&b"g"[..]].kind, Type::Fifo);
}

#[test]
fn an_opaque_directory_hides_what_lower_ones_hold_and_keeps_what_they_said() {
    let said = Meta { mode: 0o700, uid: 5, gid: 6, mtime: Time { secs: 9, nanos: 1 } };
    let lower = Spec::default().with("d", What::Dir).meta("d", said).xattr("d", "user.x", "1").with("d/old", file());
    let upper = Spec::default().opaque("d").with("d/new", file());
    let listing = merged(&[lower, upper]).unwrap();
    assert_eq!(paths(&listing), "d d/new");
    assert_eq!(listing[&b"d"[..]].meta, said);
    assert_eq!(listing[&b"d"[..]].xattrs.len(), 1);
}

#[test]
fn an_entry_for_a_directory_replaces_all_its_attributes_an_implied_one_none() {
    let lower = Spec::default().with("d", What::Dir).xattr("d", "user.x", "1").with("d/f", file());
    let said = Meta { mode: 0o1777, uid: 1, gid: 1, mtime: Time { secs: 1, nanos: 0 } };
    let middle = Spec::default().with("d", What::Dir).meta("d", said).with("", What::Dir).meta("", said);
    let upper = Spec::default().with("d/g", file()).with("e/f", file());
    let listing = merged(&[lower, middle, upper]).unwrap();
    assert_eq!((listing[&b"d"[..]].meta, listing[&b""[..]].meta), (said, said));
    assert_eq!(listing[&b"d"[..]].xattrs, []);
    assert_eq!(listing[&b"e"[..]].meta, MADE_UP);
    assert_eq!(paths(&listing), "d d/f d/g e e/f");
}

#[test]
fn files_and_directories_replace_one_another() {
    let lower = Spec::default().with("a/x", file()).with("b", file());
    let upper = Spec::default().with("a", file()).with("b/y", file());
    let top = Spec::default().with("a/z", file());
    assert_eq!(paths(&merged(&[lower.clone(), upper.clone()]).unwrap()), "a b b/y");
    assert_eq!(paths(&merged(&[lower, upper, top]).unwrap()), "a a/z b b/y");
}

#[test]
fn hard_links_share_an_inode_and_count_the_names_that_show() {
    let lower =
        Spec::default().with("a", file()).with("b", What::Link(b"a".to_vec())).with("c", What::Link(b"a".to_vec()));
    let upper = Spec::default().whiteout("a").with("d/e", What::Link(b"a".to_vec()));
    let listing = merged(&[lower, upper]).unwrap();
    assert_eq!(paths(&listing), "b c d d/e");
    for path in [&b"b"[..], b"c", b"d/e"] {
        assert_eq!((listing[path].nlink, &listing[path].group[..]), (3, &b"b"[..]));
    }
    assert_eq!(listing[&b"d/e"[..]].extent, Some(Extent { layer: 0, start: 0, len: 7 }));
}

#[test]
fn a_link_into_lower_layers_sees_them_merged_and_may_be_a_chain() {
    let lowest = Spec::default().with("d/f", file());
    let middle = Spec::default().opaque("d").with("d/g", What::Link(b"d/f".to_vec()));
    let upper = Spec::default().with("h", What::Link(b"d/g".to_vec()));
    let listing = merged(&[lowest.clone(), middle.clone(), upper]).unwrap();
    assert_eq!(paths(&listing), "d d/g h");
    assert_eq!(listing[&b"h"[..]].nlink, 2);
    let hidden = Spec::default().with("h", What::Link(b"d/f".to_vec()));
    let error = merged(&[lowest, middle, hidden]).unwrap_err();
    assert_eq!(error, Error::LinkToNothing { layer: 2, entry: "h".into(), target: "d/f".into() });
}

#[test]
fn a_link_into_lower_layers_leads_through_their_symlinks_and_not_out_of_the_root() {
    let lower = Spec::default()
        .with("usr/lib/f", file())
        .with("lib", What::Symlink(b"usr/lib".to_vec()))
        .with("usr/up", What::Symlink(b"../../../lib/.".to_vec()))
        .with("usr/abs", What::Symlink(b"/usr/up".to_vec()))
        .with("loop", What::Symlink(b"loop".to_vec()));
    for target in ["lib/f", "usr/up/f", "usr/abs/f"] {
        let upper = Spec::default().with("h", What::Link(target.into()));
        let listing = merged(&[lower.clone(), upper]).unwrap();
        assert_eq!((listing[&b"h"[..]].nlink, &listing[&b"usr/lib/f"[..]].group[..]), (2, &b"h"[..]), "{target}");
    }
    let last = Spec::default().with("h", What::Link(b"lib".to_vec()));
    assert_eq!(merged(&[lower.clone(), last]).unwrap()[&b"h"[..]].kind, Type::Symlink);
    for target in ["loop/f", "usr/lib/f/f", "lib/none"] {
        let upper = Spec::default().with("h", What::Link(target.into()));
        let error = merged(&[lower.clone(), upper]).unwrap_err();
        assert_eq!(error, Error::LinkToNothing { layer: 1, entry: "h".into(), target: target.into() });
    }
}

#[test]
fn what_is_below_a_symlink_of_a_lower_layer_hides_the_symlink() {
    let lower = Spec::default().with("usr/lib/f", file()).with("lib", What::Symlink(b"usr/lib".to_vec()));
    let upper = Spec::default().with("lib/new", file());
    let listing = merged(&[lower, upper]).unwrap();
    assert_eq!(paths(&listing), "lib lib/new usr usr/lib usr/lib/f");
    assert_eq!(listing[&b"lib"[..]].meta, MADE_UP);
}

#[test]
fn a_link_to_a_lower_directory_is_refused_by_name() {
    let lower = Spec::default().with("d/f", file());
    let upper = Spec::default().with("x/y/link", What::Link(b"d".to_vec()));
    let error = merged(&[lower, upper]).unwrap_err();
    assert_eq!(error, Error::LinkToDirectory { layer: 1, entry: "x/y/link".into(), target: "d".into() });
}

#[test]
fn a_single_layer_is_shown_the_way_overlayfs_wants_it() {
    let layer = Spec::default()
        .whiteout("a")
        .with("d", What::Dir)
        .opaque("d")
        .with("d/f", file())
        .whiteout("e")
        .with("e", What::Dir);
    for (opaque, name) in [(OpaqueXattr::Trusted, "trusted.overlay.opaque"), (OpaqueXattr::User, "user.overlay.opaque")]
    {
        let listing = list(&merge(&[FakeLayer::new(&layer)], Some(opaque)).unwrap());
        assert_eq!(paths(&listing), "a d d/f e");
        assert_eq!((listing[&b"a"[..]].kind, listing[&b"a"[..]].device), (Type::Char, (0, 0)));
        let xattrs = vec![(name.as_bytes().to_vec(), b"y".to_vec())];
        assert_eq!((&listing[&b"d"[..]].xattrs, &listing[&b"e"[..]].xattrs), (&xattrs, &xattrs));
        assert_eq!(listing[&b""[..]].xattrs, []);
    }
}

#[test]
fn an_opaque_root_has_a_whiteout_for_each_name_below() {
    let lowers = [
        Spec::default().with("a", file()).with("d/x", file()).with("gone", file()).with("z/deep/y", file()),
        Spec::default().whiteout("gone").with("e", file()).with("s", What::Dir),
    ];
    let layer = Spec::default().opaque("").whiteout("a").with("d/f", file()).with("e/g", file()).with("m", file());
    let [layer] = &layers(&[layer])[..] else { unreachable!() };
    let of = |lowers: Option<&[FakeLayer]>| list(&alone(layer, lowers).unwrap());
    let known = of(Some(&layers(&lowers)));
    assert_eq!(paths(&known), "a d d/f e e/g m s z");
    for (name, is_whiteout) in [("a", true), ("s", true), ("z", true), ("d", false), ("m", false)] {
        assert_eq!(known[name.as_bytes()].kind == Type::Char, is_whiteout, "{name}");
    }
    for dir in [&b"d"[..], b"e"] {
        assert!(!known[dir].xattrs.is_empty(), "what the layers below have in it is hidden as well");
    }
    assert_eq!(paths(&of(Some(&[]))), "d d/f e e/g m", "the lowest layer");
    assert_eq!(paths(&of(None)), "d d/f e e/g m");
    let trees: Vec<_> = layers(&lowers).iter().map(|layer| alone(layer, None).unwrap()).collect();
    let alone = Alone { opaque: OpaqueXattr::Both, lowers: Some(trees.iter().collect()) };
    assert_eq!(
        paths(&list(&merge_over(vec![layer], Some(alone), MADE_UP, &Budget::UNLIMITED).unwrap())),
        "a d d/f e e/g m s z"
    );
}

#[test]
fn a_single_layer_leaves_out_whiteouts_that_hide_nothing() {
    let lowers = [
        Spec::default().with("d/a", file()).with("gone/x", file()).with("m/here", file()).with("f", file()),
        Spec::default().whiteout("gone").with("o/y", file()),
    ];
    let layer = Spec::default()
        .whiteout("d/a")
        .whiteout("d/b")
        .whiteout("gone/x")
        .whiteout("m/here")
        .whiteout("new/z")
        .with("new/q", file())
        .opaque("o")
        .whiteout("o/y")
        .whiteout("o/deep/y")
        .whiteout("f/below")
        .whiteout("m/none");
    let [layer] = &layers(&[layer])[..] else { unreachable!() };
    let of = |lowers: Option<&[FakeLayer]>| paths(&list(&alone(layer, lowers).unwrap()));
    assert_eq!(of(Some(&layers(&lowers))), "d d/a d/b f gone m m/here m/none new new/q o o/deep");
    assert_eq!(of(Some(&[])), "d f gone m new new/q o o/deep", "the lowest layer");
    let unknown = "d d/a d/b f f/below gone gone/x m m/here m/none new new/q new/z o o/deep";
    assert_eq!(of(None), unknown, "only what an opaque directory holds is known to hide nothing");

    let trees: Vec<_> = layers(&lowers).iter().map(|layer| alone(layer, Some(&[])).unwrap()).collect();
    let of_trees = merge_over(
        vec![layer],
        Some(Alone { opaque: OpaqueXattr::Both, lowers: Some(trees.iter().collect()) }),
        MADE_UP,
        &Budget::UNLIMITED,
    );
    // Layer 1 hides nothing as the lowest one, so that its whiteout is not there.
    assert_eq!(paths(&list(&of_trees.unwrap())), "d d/a d/b f gone gone/x m m/here m/none new new/q o o/deep");
}

#[test]
fn xattrs_that_no_filesystem_could_have_are_left_out() {
    let spec = Spec::default()
        .with("d", What::Dir)
        .with("f", file())
        .with("link", What::Symlink(b"f".to_vec()))
        .with("pipe", What::Fifo);
    let spec = ["d", "f", "link", "pipe"].iter().fold(spec, |spec, path| {
        spec.xattr(path, "user.x", "1").xattr(path, "trusted.x", "1").xattr(path, "system.x", "1")
    });
    let listing = merged(&[spec]).unwrap();
    let names = |path: &str| {
        let names: Vec<_> = listing[path.as_bytes()].xattrs.iter().map(|(name, _)| &name[..]).collect();
        names.join(&b' ')
    };
    assert_eq!(["d", "f"].map(names), [b"user.x trusted.x"; 2]);
    assert_eq!(["link", "pipe"].map(names), [b"trusted.x"; 2]);
}

#[test]
fn an_acl_that_linux_refuses_is_refused_by_name() {
    let acl = String::from_utf8(b"\x02\0\0\0\x01\0\x06\0\0\0\0\0".to_vec()).unwrap();
    let lower = Spec::default().with("d/f", file()).xattr("d/f", "system.posix_acl_access", &acl);
    let error = merged(std::slice::from_ref(&lower)).unwrap_err();
    assert!(
        matches!(&error, Error::BadAcl { entry, xattr: "system.posix_acl_access", .. } if entry == "d/f"),
        "{error}"
    );
    let hidden = Spec::default().whiteout("d");
    assert!(merged(&[lower, hidden]).is_ok(), "nobody sees it");
}

#[test]
fn a_single_layer_refuses_links_that_leave_it() {
    let layer = Spec::default().with("d/link", What::Link(b"elsewhere".to_vec()));
    let error = merge(&[FakeLayer::new(&layer)], Some(OpaqueXattr::Trusted)).unwrap_err();
    assert_eq!(error, Error::LinkOutOfLayer { entry: "d/link".into(), target: "elsewhere".into() });
}

#[test]
fn no_layer_at_all_is_an_empty_root() {
    let listing = merged(&[]).unwrap();
    assert_eq!((listing.len(), listing[&b""[..]].meta), (1, MADE_UP));
}

#[test]
fn depth_costs_no_stack() {
    let path = vec!["d"; 2000].join("/");
    let lower = Spec::default().with(&path, What::Dir);
    let upper = Spec::default().with(&format!("{path}/f"), file());
    assert_eq!(merge(&layers(&[lower, upper]), None).unwrap().totals(), (2002, 7));
}

#[test]
fn a_tree_is_charged_to_the_image_that_it_is_of() {
    let (image, layer) = (Budget::of_process().of_image(1 << 20), Entries::default());
    let tree = Tree::merged(vec![&layer], &image).unwrap();
    assert!(image.used() > 0);
    drop(tree);
    assert_eq!(image.used(), 0);
    assert!(matches!(Tree::merged(vec![&layer], &image.another()), Ok(tree) if tree.totals().0 == 1));
    assert!(matches!(Tree::merged(vec![&layer], &Budget::of_process().of_image(0)), Err(Error::Memory(_))));
}
