//! Random layers against a reference: a small filesystem that is unpacked into entry by entry, as podman does, whatever the format.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::layers::{Made, layer};
use super::{Counted, NEVER_WHOLE, indexed, no_external, stored};
use crate::blob::Digest;
use crate::budget::Charge;
use crate::index::tar::tests::Head;
use crate::index::{Child, Entries, Format, Identity, Kind, LayerKey, NodeId, StoredIndex, Unpacker, make, open};

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Dir,
    Fifo,
    Symlink(String),
    Link(String),
    /// An empty file, as whiteouts are.
    Marker,
}

/// An entry: name, kind, mode.
type Entry = (String, What, u16);

/// What a reader of the index sees, by path.
type Listing = BTreeMap<String, String>;

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

#[derive(Debug, Clone)]
enum Here {
    Dir {
        opaque: bool,
        implied: bool,
    },
    /// Which file it is: hard links have the same.
    Leaf(usize),
    Late(String),
}

/// A layer that is being unpacked, by paths without symlinks on them.
#[derive(Default)]
struct Disk {
    tree: BTreeMap<String, Here>,
    whiteouts: BTreeSet<String>,
    leaves: Vec<(What, u16)>,
    /// The targets of hard links that came before them.
    late: Vec<String>,
}

#[derive(Debug)]
struct Refused;

impl Disk {
    /// realpath(1) with --canonicalize-missing.
    fn real(&self, path: &str, symlinks: usize) -> Result<String, Refused> {
        let mut at = Vec::new();
        let names: Vec<_> = path.split('/').collect();
        for (number, name) in names.iter().enumerate() {
            match *name {
                "" | "." => continue,
                ".." => {
                    at.pop();
                    continue;
                }
                name => at.push(name),
            }
            match self.tree.get(&at.join("/")) {
                None | Some(Here::Dir { .. }) => {}
                Some(Here::Leaf(leaf)) => {
                    let What::Symlink(target) = &self.leaves[*leaf].0 else { return Err(Refused) };
                    at.pop();
                    let base = if target.starts_with('/') { String::new() } else { at.join("/") };
                    let rest = names[number + 1..].join("/");
                    return self.real(&format!("{base}/{target}/{rest}"), symlinks.checked_sub(1).ok_or(Refused)?);
                }
                Some(Here::Late(_)) => return Err(Refused),
            }
        }
        Ok(at.join("/"))
    }

    fn make_dirs(&mut self, path: &str) {
        if !path.is_empty() {
            self.make_dirs(split(path).0);
            self.tree.entry(path.to_owned()).or_insert(Here::Dir { opaque: false, implied: true });
        }
    }

    fn remove(&mut self, path: &str) {
        let below = format!("{path}/");
        self.tree.retain(|other, _| other != path && !other.starts_with(&below));
        self.whiteouts.retain(|other| !other.starts_with(&below));
    }

    fn unpack(&mut self, (name, what, mode): &Entry) -> Result<(), Refused> {
        let (dir, base) = split(name);
        if base.starts_with(".wh.") {
            self.mark(dir, base);
            return Ok(());
        }
        let dir = self.real(dir, 40)?;
        self.make_dirs(&dir);
        let path = join(&dir, base);
        match what {
            What::Dir => {
                if let Some(Here::Dir { implied, .. }) = self.tree.get_mut(&path) {
                    *implied = false;
                    return Ok(());
                }
                self.remove(&path);
                self.tree.insert(path, Here::Dir { opaque: false, implied: false });
            }
            What::Link(target) => {
                let here = match self.target(target) {
                    Some(Here::Dir { .. }) => return Err(Refused),
                    Some(Here::Leaf(leaf)) => {
                        if !matches!(self.leaves[leaf].0, What::Symlink(_)) {
                            self.leaves[leaf].1 = *mode;
                        }
                        Here::Leaf(leaf)
                    }
                    Some(Here::Late(_)) | None => {
                        self.late.push(target.clone());
                        Here::Late(target.clone())
                    }
                };
                self.remove(&path);
                self.tree.insert(path, here);
            }
            _ => {
                self.remove(&path);
                self.leaves.push((what.clone(), *mode));
                self.tree.insert(path, Here::Leaf(self.leaves.len() - 1));
            }
        }
        Ok(())
    }

    fn target(&self, path: &str) -> Option<Here> {
        let (dir, name) = split(path);
        self.tree.get(&join(&self.real(dir, 40).ok()?, name)).cloned()
    }

    fn mark(&mut self, dir: &str, name: &str) {
        let mut ways = (0..=dir.len()).filter(|end| dir[*end..].starts_with('/') || *end == dir.len());
        let blocked = |end: usize| matches!(self.tree.get(&dir[..end]), Some(Here::Leaf(_) | Here::Late(_)));
        if ways.any(blocked) {
            return;
        }
        self.make_dirs(dir);
        match (name, self.tree.get_mut(dir)) {
            (".wh..wh..opq", Some(Here::Dir { opaque, .. })) => *opaque = true,
            (".wh..wh..opq", _) => {}
            _ => {
                self.whiteouts.insert(join(dir, &name[4..]));
            }
        }
    }

    /// Whether there is something in a directory but for whiteouts.
    fn is_bare(&self, dir: &str) -> bool {
        let below = format!("{dir}/");
        let mut inside = self.tree.iter().filter(|(path, _)| *path == dir || path.starts_with(&below));
        inside.all(|(_, here)| matches!(here, Here::Dir { implied: true, .. }))
    }

    fn settle(&mut self) {
        for whiteout in self.whiteouts.clone() {
            if !self.whiteouts.contains(&whiteout) {
                continue;
            }
            if self.tree.contains_key(&whiteout) && self.is_bare(&whiteout) {
                self.remove(&whiteout);
            } else if let Some(Here::Dir { opaque, implied }) = self.tree.get_mut(&whiteout) {
                (*opaque, *implied) = (true, false);
            }
        }
    }

    /// What a late link leads to.
    fn follow(&self, target: &str, links: usize) -> Result<Here, Refused> {
        match self.target(target) {
            Some(Here::Dir { .. }) => Err(Refused),
            Some(Here::Late(target)) => self.follow(&target, links.checked_sub(1).ok_or(Refused)?),
            Some(leaf) => Ok(leaf),
            None => {
                let (dir, name) = split(target);
                Ok(Here::Late(self.real(dir, 40).map_or_else(|_| target.to_owned(), |dir| join(&dir, name))))
            }
        }
    }

    fn list(mut self) -> Result<Listing, Refused> {
        self.late.iter().try_for_each(|target| self.follow(target, 40).map(drop))?;
        self.settle();
        let mut first = BTreeMap::new();
        let mut listing = Listing::new();
        for (path, here) in &self.tree {
            let here = if let Here::Late(target) = here { self.follow(target, 40)? } else { here.clone() };
            let text = match here {
                Here::Dir { opaque, implied } => dir_text(opaque, implied),
                Here::Late(path) => format!("below {path}"),
                Here::Leaf(leaf) => {
                    let first = first.entry(leaf).or_insert_with(|| path.clone());
                    leaf_text(&self.leaves[leaf].0, self.leaves[leaf].1, first)
                }
            };
            listing.insert(path.clone(), text);
        }
        for path in self.whiteouts {
            listing.entry(path).or_insert_with(|| "whiteout".to_owned());
        }
        Ok(listing)
    }
}

fn dir_text(opaque: bool, implied: bool) -> String {
    format!("dir{}{}", if opaque { " opaque" } else { "" }, if implied { " implied" } else { "" })
}

fn leaf_text(what: &What, mode: u16, first: &str) -> String {
    format!("{what:?} {mode:o} = {first}")
}

fn expected(entries: &[Entry]) -> Result<Listing, Refused> {
    let mut disk = Disk::default();
    entries.iter().try_for_each(|entry| disk.unpack(entry))?;
    disk.list()
}

/// The same of an index.
fn listed(entries: &Entries) -> Listing {
    let mut listing = Listing::new();
    let mut leaves: BTreeMap<NodeId, BTreeSet<String>> = BTreeMap::new();
    let mut todo = vec![(String::new(), Entries::ROOT)];
    while let Some((dir, node)) = todo.pop() {
        for (name, child) in entries.children(node) {
            let path = join(&dir, std::str::from_utf8(name).unwrap());
            let text = match child {
                Child::Whiteout => "whiteout".to_owned(),
                Child::LinkBelow(target) => format!("below {}", String::from_utf8_lossy(target)),
                Child::Node(node) => match entries.kind(node) {
                    Kind::Dir { opaque, implied } => {
                        todo.push((path.clone(), node));
                        dir_text(opaque, implied)
                    }
                    _ => {
                        leaves.entry(node).or_default().insert(path);
                        continue;
                    }
                },
            };
            listing.insert(path, text);
        }
    }
    for (node, paths) in leaves {
        let what = match entries.kind(node) {
            Kind::Symlink(target) => What::Symlink(String::from_utf8_lossy(target).into_owned()),
            Kind::Fifo => What::Fifo,
            other => panic!("{other:?}"),
        };
        let text = leaf_text(&what, entries.meta(node).mode, paths.first().unwrap());
        listing.extend(paths.iter().map(|path| (path.clone(), text.clone())));
    }
    listing
}

fn from_toc(made: Made, entries: &[Entry]) -> Option<Listing> {
    let entry = |(name, what, mode): &Entry| {
        let (kind, link) = match what {
            What::Dir => ("dir", ""),
            What::Fifo => ("fifo", ""),
            What::Symlink(target) => ("symlink", target.as_str()),
            What::Link(target) => ("hardlink", target.as_str()),
            What::Marker => ("reg", ""),
        };
        format!(r#"{{"name":"{name}","type":"{kind}","linkName":"{link}","mode":{mode}}}"#)
    };
    let entries: Vec<_> = entries.iter().map(entry).collect();
    let json = format!(r#"{{"version":1,"entries":[{}]}}"#, entries.join(","));
    let (layer, blob) = layer(made, json.as_bytes());
    let opened = indexed(open(&layer, &Counted::new(blob), &no_external, &NEVER_WHOLE)).ok()?;
    Some(listed(&stored(&layer, &opened).entries().unwrap()))
}

fn from_tar(entries: &[Entry]) -> Option<Listing> {
    let entry = |(name, what, mode): &Entry| {
        let (kind, link) = match what {
            What::Dir => (b'5', ""),
            What::Fifo => (b'6', ""),
            What::Symlink(target) => (b'2', target.as_str()),
            What::Link(target) => (b'1', target.as_str()),
            What::Marker => (b'0', ""),
        };
        let head = Head::new(kind, name.as_bytes()).put(157, link.as_bytes());
        head.put(100, format!("{mode:07o}\0").as_bytes()).with(b"")
    };
    let mut tar: Vec<u8> = entries.iter().flat_map(entry).collect();
    tar.extend([0; 1024]);
    let (mut events, blob) = (VecDeque::new(), Digest::of(&tar));
    let tell = &mut |event| {
        events.push_back(event);
        Ok(())
    };
    let mut unpacker = Unpacker::new(Format::Tar).unwrap();
    unpacker.push(&tar, tell).unwrap();
    unpacker.finish(tell).unwrap();
    let made =
        make(blob, Format::Tar, &mut || Ok(events.pop_front()), &mut |_: u64, _: &[u8]| {}, None, Charge::default())
            .ok()?;
    let key = LayerKey { blob, identity: Identity::Own };
    Some(listed(&StoredIndex::open(Arc::new(made.encoded), &blob, Some(&key)).unwrap().entries().unwrap()))
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|names| names.join("/"))
}

fn target() -> impl Strategy<Value = String> {
    let names = prop::sample::select(vec!["a", "b", "c", "..", "."]);
    (prop::sample::select(vec!["", "/"]), prop::collection::vec(names, 1..4))
        .prop_map(|(root, names)| format!("{root}{}", names.join("/")))
}

fn entry() -> impl Strategy<Value = Entry> {
    let what = prop_oneof![
        2 => Just(What::Dir),
        2 => Just(What::Fifo),
        4 => target().prop_map(What::Symlink),
        2 => path().prop_map(What::Link),
    ];
    let plain = (path(), what, 0..0o10000u16);
    let marker = (path(), prop::option::weighted(0.7, Just(()))).prop_map(|(path, is_whiteout)| {
        let (dir, name) = split(&path);
        let marker = is_whiteout.map_or_else(|| ".wh..wh..opq".to_owned(), |()| format!(".wh.{name}"));
        (join(dir, &marker), What::Marker, 0u16)
    });
    prop_oneof![4 => plain, 1 => marker]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, rng_seed: RngSeed::Fixed(12), ..ProptestConfig::default() })]

    #[test]
    fn a_layer_is_what_unpacking_it_makes(entries in prop::collection::vec(entry(), 1..12)) {
        let expected = expected(&entries).ok();
        prop_assert_eq!(&from_tar(&entries), &expected);
        prop_assert_eq!(&from_toc(Made::EStargz, &entries), &expected);
        prop_assert_eq!(&from_toc(Made::ZstdChunked, &entries), &expected);
    }
}
