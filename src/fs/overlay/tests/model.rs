//! The reference: a map of paths, to which one layer after the other is applied.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::fs::fake::{Item, parent};

/// Which file it is: hard links have the same.
type Identity = (usize, Vec<u8>);

#[derive(Debug, Clone)]
enum Here {
    Dir(Item),
    File(Identity, Item, u64),
    /// A hard link that names nothing.
    Broken,
}

type State = BTreeMap<Vec<u8>, Here>;

fn made_up() -> Here {
    Here::Dir(Item { what: What::Dir, meta: MADE_UP, xattrs: Vec::new() })
}

fn is_under(path: &[u8], dir: &[u8]) -> bool {
    path != dir && (dir.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/")))
}

/// Makes the directories that lead to `path`, in place of what is there and none.
fn make_way(state: &mut State, path: &[u8]) {
    let Some(dir) = parent(path) else { return };
    make_way(state, dir);
    if !matches!(state.get(dir), Some(Here::Dir(_))) {
        state.insert(dir.to_vec(), made_up());
    }
}

fn apply(state: &mut State, number: usize, spec: &Spec) {
    let before = state.clone();
    for path in &spec.whiteouts {
        state.retain(|other, _| other != path && !is_under(other, path));
    }
    for dir in &spec.opaque {
        state.retain(|other, _| !is_under(other, dir));
    }
    for path in spec.whiteouts.iter().chain(&spec.opaque) {
        make_way(state, path);
    }
    for dir in &spec.opaque {
        if !matches!(state.get(dir), Some(Here::Dir(_))) {
            state.insert(dir.clone(), made_up());
        }
    }
    for (path, item) in &spec.entries {
        make_way(state, path);
        if item.what != What::Dir {
            state.retain(|other, _| !is_under(other, path));
        }
        state.insert(path.clone(), here(&before, number, spec, path, item));
    }
}

fn here(before: &State, number: usize, spec: &Spec, path: &[u8], item: &Item) -> Here {
    match &item.what {
        What::Dir => Here::Dir(item.clone()),
        What::Link(target) => match spec.entries.get(target) {
            Some(linked) => Here::File((number, target.clone()), linked.clone(), spec.start(target)),
            None => linked(before, target).unwrap_or(Here::Broken),
        },
        _ => Here::File((number, path.to_vec()), item.clone(), spec.start(path)),
    }
}

/// What the layers below have at the end of a path; a symlink there is not followed.
fn linked(state: &State, target: &[u8]) -> Option<Here> {
    let name = target.rsplit(|byte| *byte == b'/').next()?;
    let path = join(&real(state, parent(target)?, 40)?, name);
    state.get(&path).filter(|here| !matches!(here, Here::Dir(_))).cloned()
}

/// Where the path of a directory leads; `None`: to none.
fn real(state: &State, path: &[u8], symlinks: usize) -> Option<Vec<u8>> {
    let mut at = Vec::new();
    let mut names = path.split(|byte| *byte == b'/');
    while let Some(name) = names.next() {
        match name {
            b"" | b"." => continue,
            b".." => {
                at = parent(&at).unwrap_or_default().to_vec();
                continue;
            }
            _ => {}
        }
        let next = join(&at, name);
        match state.get(&next)? {
            Here::Dir(_) => at = next,
            Here::File(_, Item { what: What::Symlink(target), .. }, _) => {
                let base = if target.starts_with(b"/") { Vec::new() } else { at };
                let rest = names.collect::<Vec<_>>().join(&b'/');
                return real(state, &[&base[..], target, &rest].join(&b'/'), symlinks.checked_sub(1)?);
            }
            _ => return None,
        }
    }
    Some(at)
}

fn expected(specs: &[Spec]) -> Option<Listing> {
    let mut state = State::from([(Vec::new(), made_up())]);
    for (number, spec) in specs.iter().enumerate() {
        apply(&mut state, number, spec);
    }
    state.iter().map(|(path, here)| Some((path.clone(), expect(&state, path, here)?))).collect()
}

fn expect(state: &State, path: &[u8], here: &Here) -> Option<Shown> {
    let (item, start, identity) = match here {
        Here::Broken => return None,
        Here::Dir(item) => (item, 0, None),
        Here::File(identity, item, start) => (item, *start, Some(identity)),
    };
    let same = |other: &Here| matches!((identity, other), (Some(identity), Here::File(other, ..)) if identity == other);
    let names: Vec<_> = state.iter().filter(|(_, other)| same(other)).map(|(path, _)| path.clone()).collect();
    let subdirs =
        state.iter().filter(|(other, here)| parent(other) == Some(path) && matches!(here, Here::Dir(_))).count();
    let layer = identity.map_or(0, |identity| identity.0);
    let (kind, extent, target, device) = match &item.what {
        What::File { size } => (Type::File, Some(Extent { layer, start, len: *size }), None, (0, 0)),
        What::Symlink(target) => (Type::Symlink, None, Some(target.clone()), (0, 0)),
        What::Char(major, minor) => (Type::Char, None, None, (*major, *minor)),
        What::Block(major, minor) => (Type::Block, None, None, (*major, *minor)),
        What::Fifo => (Type::Fifo, None, None, (0, 0)),
        What::Dir | What::Link(_) => (Type::Dir, None, None, (0, 0)),
    };
    let nlink = u32::try_from(if kind == Type::Dir { 2 + subdirs } else { names.len() }).unwrap();
    let group = names.first().cloned().unwrap_or_else(|| path.to_vec());
    // They are all `user.x`.
    let xattrs = if matches!(kind, Type::Dir | Type::File) { item.xattrs.clone() } else { Vec::new() };
    Some(Shown { kind, meta: item.meta, nlink, extent, target, device, xattrs, group })
}

/// What no index lets through: things under what is no directory, links to directories or links, in the same layer.
fn well_formed(mut spec: Spec) -> Spec {
    let files: BTreeSet<_> =
        spec.entries.iter().filter(|(_, item)| item.what != What::Dir).map(|(path, _)| path.clone()).collect();
    let blocked = |path: &[u8]| files.iter().any(|file| is_under(path, file));
    spec.entries.retain(|path, _| !blocked(path));
    spec.whiteouts.retain(|path| !blocked(path));
    spec.opaque.retain(|path| !blocked(path) && !files.contains(path));
    let (entries, others) = (spec.entries.clone(), [&spec.whiteouts, &spec.opaque].map(Clone::clone));
    let is_dir = |target: &Vec<u8>| {
        let used = entries.keys().chain(others.iter().flatten()).any(|path| is_under(path, target));
        used || others[1].contains(target)
            || entries.get(target).is_some_and(|item| matches!(item.what, What::Dir | What::Link(_)))
    };
    spec.entries.retain(|_, item| !matches!(&item.what, What::Link(target) if is_dir(target)));
    spec
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    // `-` and `.` sort before `/`, letters after it.
    prop::collection::vec(prop::sample::select(vec!["a", "a.", "b"]), 1..4)
        .prop_map(|names| names.join("/").into_bytes())
}

fn symlink_target() -> impl Strategy<Value = Vec<u8>> {
    (prop::sample::select(vec!["", "/", "../", "../../"]), path())
        .prop_map(|(way, path)| [way.as_bytes(), &path].concat())
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        3 => Just(What::Dir),
        3 => (0..3u64).prop_map(|size| What::File { size }),
        2 => symlink_target().prop_map(What::Symlink),
        1 => (0..3u32, 0..3u32).prop_map(|(major, minor)| What::Char(major, minor)),
        1 => (0..3u32, 0..3u32).prop_map(|(major, minor)| What::Block(major, minor)),
        1 => Just(What::Fifo),
        3 => path().prop_map(What::Link),
    ]
}

prop_compose! {
    fn item()(what in what(), mode in 0..0o10000u16, uid in 0..9u32, secs in -2..2i64, nanos in 0..1_000_000_000u32, xattrs in prop::collection::vec(0..9u8, 0..2)) -> Item {
        let xattrs = xattrs.into_iter().map(|value| (b"user.x".to_vec(), vec![value])).collect();
        Item { what, meta: Meta { mode, uid, gid: uid * 2, mtime: Time { secs, nanos } }, xattrs }
    }
}

prop_compose! {
    fn spec()(
        root in prop::option::weighted(0.2, item()),
        entries in prop::collection::btree_map(path(), item(), 0..10),
        whiteouts in prop::collection::btree_set(path(), 0..3),
        opaque in prop::collection::btree_set(prop_oneof![9 => path(), 1 => Just(Vec::new())], 0..2),
    ) -> Spec {
        let mut entries = entries;
        entries.extend(root.map(|root| (Vec::new(), Item { what: What::Dir, ..root })));
        well_formed(Spec { entries, whiteouts, opaque })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, rng_seed: RngSeed::Fixed(3), ..ProptestConfig::default() })]

    #[test]
    fn merging_is_applying_one_layer_after_the_other(specs in prop::collection::vec(spec(), 1..5)) {
        match (merged(&specs), expected(&specs)) {
            (Ok(merged), Some(expected)) => prop_assert_eq!(merged, expected),
            (merged, expected) => prop_assert!(merged.is_err() && expected.is_none(), "{:?} {:?}", merged, expected),
        }
    }

    /// An image may have a layer several times; as copies of each other its layers are different ones.
    #[test]
    fn a_layer_that_an_image_has_again_is_one_more_layer(
        specs in prop::collection::vec(spec(), 1..4),
        order in prop::collection::vec(0..3usize, 1..6),
    ) {
        let all = layers(&specs);
        let order: Vec<_> = order.into_iter().map(|number| number % all.len()).collect();
        let copies: Vec<_> = order.iter().map(|number| FakeLayer::new(&specs[*number])).collect();
        let again = order.iter().map(|number| &all[*number]).collect();
        let (copies, again) = (merge(&copies, None), merge_over::<_, FakeLayer>(again, None, MADE_UP, &Budget::UNLIMITED));
        match (copies, again) {
            (Ok(copies), Ok(again)) => {
                prop_assert_eq!(list_numbers(&copies), list_numbers(&again));
                prop_assert_eq!(list(&copies), list(&again));
            }
            (copies, again) => prop_assert_eq!(copies.err(), again.err()),
        }
    }

    /// A layer alone above those that it belongs on: it has whiteouts in directories that those have, and numbers as without knowing them.
    #[test]
    fn a_whiteout_is_kept_where_overlayfs_merges(specs in prop::collection::vec(spec(), 1..4)) {
        let all = layers(&specs);
        let (top, lowers) = all.split_last().unwrap();
        let (Ok(below), Ok(unknown)) = (merge(lowers, None), alone(top, None)) else { return Ok(()) };
        let known = alone(top, Some(lowers)).unwrap();
        let (below, unknown, all) = (list(&below), list(&unknown), list(&known));
        let spec = specs.last().unwrap();
        // It has a whiteout for each name of theirs, which have numbers.
        prop_assume!(!spec.opaque.contains(&Vec::new()));
        for (path, shown) in &unknown {
            let is_closed = spec.opaque.iter().chain(&spec.whiteouts).any(|dir| is_under(path, dir));
            let is_whiteout = !spec.entries.contains_key(path) && shown.kind == Type::Char;
            let merges = |dir| !lowers.is_empty() && below.get(dir).is_some_and(|dir| dir.kind == Type::Dir);
            let is_kept = !is_closed && parent(path).is_some_and(merges);
            prop_assert_eq!(all.contains_key(path), !is_whiteout || is_kept, "{:?}", path);
        }
        for (path, shown) in &all {
            prop_assert_eq!(shown, &unknown[path]);
        }
        let numbers = |tree: Tree| list_numbers(&tree);
        let (known, unknown) = (numbers(known), numbers(alone(top, None).unwrap()));
        prop_assert!(known.iter().all(|(path, number)| unknown[path] == *number));
    }
}
