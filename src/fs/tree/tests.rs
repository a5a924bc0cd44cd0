use super::*;

const META: Meta = Meta { mode: 0o644, uid: 1, gid: 2, mtime: Time { secs: -1, nanos: 750_000_000 } };

fn ino(number: u64) -> Ino {
    Ino::new(number).unwrap()
}

fn tree() -> Tree {
    let mut builder = Builder::new(Charge::default());
    let root = builder.dir(META).unwrap();
    builder.open(root).unwrap();
    let a = builder.dir(META).unwrap();
    builder.link(b"a", a).unwrap();
    let b = builder.node(&NewNode::File { layer: 3, start: 4096, size: 10 }, META).unwrap();
    builder.xattr(b"user.x", b"1").unwrap();
    builder.link(b"b", b).unwrap();
    builder.open(a).unwrap();
    builder.link(b"again", b).unwrap();
    let link = builder.node(&NewNode::Symlink(b"../b"), META).unwrap();
    builder.link(b"link", link).unwrap();
    builder.finish().unwrap()
}

#[test]
fn directories_are_found_listed_and_counted() {
    let tree = tree();
    let root = tree.root();
    let (a, b) = (tree.lookup(root, b"a").unwrap(), tree.lookup(root, b"b").unwrap());
    assert_eq!((root.get(), a.get(), b.get()), (1, 2, 3));
    assert_eq!(tree.lookup(a, b"again"), Some(b));
    for missing in [&b""[..], b"0", b"again", b"bb", b"link"] {
        assert_eq!(tree.lookup(root, missing), None);
    }
    assert_eq!(tree.lookup(b, b"a"), None);
    assert_eq!(tree.children(a, 1).collect::<Vec<_>>(), [(&b"link"[..], ino(4))]);
    assert_eq!(tree.children(a, 7).count(), 0);
    assert_eq!((tree.parent(a), tree.parent(root), tree.parent(b)), (Some(root), Some(root), None));
    let nlink = |ino| tree.attr(ino).unwrap().nlink;
    assert_eq!((nlink(root), nlink(a), nlink(b)), (3, 2, 2));
}

#[test]
fn nodes_say_what_they_are() {
    let tree = tree();
    let (b, link) = (ino(3), ino(4));
    assert_eq!(tree.extent(b), Some(Extent { layer: 3, start: 4096, len: 10 }));
    assert_eq!((tree.extent(link), tree.readlink(b)), (None, None));
    assert_eq!(tree.readlink(link), Some(&b"../b"[..]));
    assert_eq!(tree.attr(link).unwrap().size, 4);
    assert_eq!(tree.attr(b).unwrap().mtime, META.mtime);
    assert_eq!(tree.xattrs(b).collect::<Vec<_>>(), [(&b"user.x"[..], &b"1"[..])]);
    assert_eq!(tree.xattrs(link).count(), 0);
    assert_eq!(tree.attr(ino(5)), None);
    assert_eq!(tree.totals(), (4, 10));
}

/// The budget of docs/design.md is 100 bytes; the module's text says 64.
#[test]
fn an_entry_takes_64_bytes_and_a_new_name_its_length() {
    let entries = 100_000;
    let mut builder = Builder::new(Charge::default());
    let root = builder.dir(META).unwrap();
    builder.open(root).unwrap();
    for entry in 0..entries {
        let ino = builder.node(&NewNode::File { layer: 0, start: 0, size: 0 }, META).unwrap();
        builder.link(format!("{entry:08}").as_bytes(), ino).unwrap();
    }
    let tree = builder.finish().unwrap();
    let held = tree.inodes.capacity() * size_of::<Inode>()
        + tree.dentries.capacity() * size_of::<Dentry>()
        + tree.names.capacity()
        + tree.bytes.capacity()
        + tree.xattrs.capacity() * size_of::<Xattr>();
    assert_eq!(held - size_of::<Inode>(), entries * (64 + 9));
    assert_eq!(size_of::<Xattr>(), 20);
}

#[test]
fn equal_names_targets_and_xattrs_are_kept_once() {
    let mut builder = Builder::new(Charge::default());
    let root = builder.dir(META).unwrap();
    builder.open(root).unwrap();
    let dirs: Vec<_> = (0..9).map(|_| builder.dir(META).unwrap()).collect();
    for (number, dir) in dirs.iter().enumerate() {
        builder.link(format!("{number}").as_bytes(), *dir).unwrap();
    }
    for dir in &dirs {
        builder.open(*dir).unwrap();
        let link = builder.node(&NewNode::Symlink(b"to"), META).unwrap();
        builder.xattr(b"trusted.x", &[7; 60_000]).unwrap();
        builder.link(b"same", link).unwrap();
    }
    let tree = builder.finish().unwrap();
    assert_eq!(tree.names.len(), 9 * 2 + 5);
    assert_eq!(tree.bytes.len(), 2 + 9 + 60_000);
    for dir in dirs {
        let link = tree.lookup(dir, b"same").unwrap();
        assert_eq!(tree.readlink(link), Some(&b"to"[..]));
        assert_eq!(tree.xattrs(link).collect::<Vec<_>>(), [(&b"trusted.x"[..], &[7; 60_000][..])]);
    }
}

#[test]
fn trees_that_the_kernel_can_tell_apart_have_other_fingerprints() {
    let of = |name: &[u8], mode: u16, value: &[u8], target: &[u8], start: u64| {
        let mut builder = Builder::new(Charge::default());
        let root = builder.dir(META).unwrap();
        builder.open(root).unwrap();
        let file = builder.node(&NewNode::File { layer: 0, start, size: 10 }, Meta { mode, ..META }).unwrap();
        builder.xattr(b"user.x", value).unwrap();
        builder.link(name, file).unwrap();
        let link = builder.node(&NewNode::Symlink(target), META).unwrap();
        builder.link(b"link", link).unwrap();
        builder.finish().unwrap().fingerprint()
    };
    let one = of(b"a", 0o644, b"1", b"t", 0);
    assert_eq!(one, of(b"a", 0o644, b"1", b"t", 8192), "where contents are is not to be seen");
    let others = [
        of(b"b", 0o644, b"1", b"t", 0),
        of(b"a", 0o600, b"1", b"t", 0),
        of(b"a", 0o644, b"2", b"t", 0),
        of(b"a", 0o644, b"1", b"u", 0),
    ];
    assert!(!others.contains(&one) && others.iter().collect::<std::collections::HashSet<_>>().len() == 4);
}
