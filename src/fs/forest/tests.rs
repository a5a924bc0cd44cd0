use super::*;
use crate::fs::fake::{FakeLayer, Ramp, Spec, What};
use crate::fs::overlay::merge;

fn view(spec: &Spec) -> Arc<View> {
    Arc::new(View::new(merge(&[FakeLayer::new(spec)], None).unwrap(), Arc::new(Ramp::default())))
}

fn dir(entries: &[(&str, u64)], lasting: bool) -> Made {
    Made::Dir { entries: entries.iter().map(|(name, number)| (name.as_bytes().to_vec(), *number)).collect(), lasting }
}

#[test]
fn a_view_is_remembered_until_all_of_it_is_forgotten() {
    let forest = Forest::store(grown(&Spec::default().with("f", What::File { size: 7 })));
    let (root, file) = (root_of(7), root_of(7) + 1);
    forest.remember(made(7, 0));
    assert!(!forest.is_remembered(7), "what is made is of no view");
    [root, file, file].into_iter().for_each(|number| forest.remember(number));
    forest.forget(file, 2);
    assert!(forest.is_remembered(7) && !forest.is_remembered(8));
    forest.forget(root, 1);
    assert!(!forest.is_remembered(7));
}

/// A root with a file, a symlink and a directory that holds the roots of two views, of which one is not there.
fn grown(spec: &Spec) -> Grown {
    let made = HashMap::from([
        (ROOT, dir(&[("d", made(7, 0)), ("f", made(7, 1)), ("s", made(7, 2))], false)),
        (made(7, 0), dir(&[("diff", root_of(7)), ("gone", root_of(8))], true)),
        (made(7, 1), Made::File(Bytes::from_static(b"hello"))),
        (made(7, 2), Made::Symlink(b"d/diff".to_vec())),
    ]);
    Grown { views: HashMap::from([(7, view(spec))]), made, changed: 5 }
}

fn number(forest: &Forest, parent: u64, name: &str) -> Option<(u64, bool)> {
    match forest.named(parent, name.as_bytes()).unwrap() {
        Named::Node(stat) => Some((stat.number, stat.lasting)),
        Named::Nothing { lasting } => {
            let may_come = matches!(forest.kind, Kind::Store(_)) && parent == ROOT;
            assert_ne!(lasting, may_come, "what may come is not remembered as missing");
            None
        }
        Named::Later(_) => panic!("it is waited for"),
    }
}

fn names(forest: &Forest, dir: u64, from: u64) -> Vec<(u64, String, u64)> {
    let mut all = Vec::new();
    let take = |next, name: &[u8], stat: &Stat| {
        all.push((next, String::from_utf8_lossy(name).into_owned(), stat.number));
        false
    };
    forest.entries(dir, from, take).unwrap();
    all
}

#[test]
fn views_stand_below_what_is_made() {
    let forest = Forest::store(grown(&Spec::default().with("a/b", What::File { size: 3 })));
    assert_eq!(number(&forest, ROOT, "d"), Some((made(7, 0), false)), "it may go");
    assert_eq!(number(&forest, made(7, 0), "diff"), Some((root_of(7), true)));
    let (a, lasting) = number(&forest, root_of(7), "a").unwrap();
    assert_eq!((a >> 32, lasting), (7, true));
    assert_eq!(number(&forest, a, "b").map(|(b, _)| b >> 32), Some(7));
    assert_eq!(number(&forest, root_of(7), "x"), None);
    assert_eq!(number(&forest, ROOT, "x"), None);
    assert_eq!(forest.target(made(7, 2)).unwrap(), b"d/diff");
    let mode = |number| forest.stat(number).unwrap().attr.mode;
    assert_eq!((mode(ROOT), mode(made(7, 0)), forest.stat(ROOT).unwrap().attr.mtime.secs), (0o700, 0o755, 5));
    let bytes = |offset, size| forest.node(made(7, 1)).unwrap().made_bytes(offset, size).unwrap();
    assert_eq!((&bytes(0, 100)[..], &bytes(1, 3)[..], &bytes(9, 9)[..]), (&b"hello"[..], &b"ell"[..], &b""[..]));
}

/// This is how the kernel finds again what it has forgotten.
#[test]
fn dots_lead_to_a_node_and_to_the_directory_above() {
    let forest = Forest::store(grown(&Spec::default().with("a/b", What::File { size: 3 })));
    let (a, _) = number(&forest, root_of(7), "a").unwrap();
    let (b, _) = number(&forest, a, "b").unwrap();
    for (node, lasting) in [(a, true), (b, true), (root_of(7), true), (made(7, 1), false), (made(7, 0), false)] {
        assert_eq!(number(&forest, node, "."), Some((node, lasting)), "{node:#x}");
    }
    let above = [(a, root_of(7)), (root_of(7), made(7, 0)), (made(7, 0), ROOT), (ROOT, ROOT)];
    for (node, above) in above {
        assert_eq!(number(&forest, node, "..").map(|found| found.0), Some(above), "{node:#x}");
    }
    assert!(matches!(forest.named(b, b".."), Err(Refused::NotADirectory)));
    assert!(matches!(forest.named(made(7, 1), b".."), Err(Refused::NotADirectory)));
    for unknown in [root_of(8), root_of(7) + 99] {
        assert!(matches!(forest.named(unknown, b"."), Ok(Named::Nothing { lasting: false })), "stale");
    }

    let alone = Forest::alone(view(&Spec::default().with("a/b", What::Fifo)), 3);
    let (a, _) = number(&alone, ROOT, "a").unwrap();
    let (b, _) = number(&alone, a, "b").unwrap();
    assert_eq!([a, b, ROOT].map(|node| number(&alone, node, ".").unwrap().0), [a, b, ROOT]);
    assert_eq!([a, ROOT].map(|node| number(&alone, node, "..").unwrap().0), [ROOT, ROOT]);
}

#[test]
fn names_that_no_filesystem_has_are_too_long() {
    let forest = Forest::alone(view(&Spec::default().with("a", What::Dir)), 3);
    let (a, _) = number(&forest, ROOT, "a").unwrap();
    for dir in [ROOT, a] {
        assert!(matches!(forest.named(dir, &[b'x'; 255]), Ok(Named::Nothing { lasting: true })));
        assert!(matches!(forest.named(dir, &[b'x'; 256]), Err(Refused::NameTooLong)));
    }
}

/// An empty directory would be an empty root.
#[test]
fn a_view_that_is_not_there_is_an_error() {
    let forest = Forest::store(grown(&Spec::default()));
    assert!(matches!(forest.named(made(7, 0), b"gone"), Err(Refused::UnknownInode)));
    assert!(matches!(forest.stat(root_of(8)), Err(Refused::UnknownInode)));
    assert!(forest.entries(root_of(8), 0, |_, _, _| false).is_err());
}

#[test]
fn listings_go_on_from_any_position() {
    let forest = Forest::store(grown(&Spec::default().with("x", What::Fifo)));
    let all = names(&forest, ROOT, 0);
    assert_eq!(all.iter().map(|(_, name, _)| name.as_str()).collect::<Vec<_>>(), [".", "..", "d", "f", "s"]);
    for (next, ..) in &all {
        assert_eq!(names(&forest, ROOT, *next), all[usize::try_from(*next).unwrap()..]);
    }
    assert_eq!(names(&forest, root_of(7), 2)[0].1, "x");
    assert_eq!(names(&forest, made(7, 0), 2).len(), 1, "without what is not there");
}

#[test]
fn what_was_removed_is_found_by_number_until_its_view_goes() {
    let spec = Spec::default().with("x", What::File { size: 1 });
    let forest = Forest::store(grown(&spec));
    let (x, _) = number(&forest, root_of(7), "x").unwrap();
    let views = HashMap::from([(7, view(&spec))]);
    forest.grow(Grown { views, made: HashMap::from([(ROOT, dir(&[], false))]), changed: 6 });
    assert_eq!(number(&forest, ROOT, "d"), None);
    assert!(forest.stat(x).is_ok());
    forest.grow(Grown::default());
    assert!(matches!(forest.stat(x), Err(Refused::UnknownInode)));
}

#[test]
fn a_view_alone_has_its_group_in_all_numbers_but_the_roots() {
    let forest = Forest::alone(view(&Spec::default().with("x", What::File { size: 1 })), 3);
    let (x, _) = number(&forest, ROOT, "x").map(|found| (found.0, ())).unwrap();
    assert_eq!(x >> 32, 3);
    assert!(forest.stat(x).is_ok() && forest.stat(ROOT).is_ok());
    for unknown in [x & u64::from(u32::MAX), root_of(3), root_of(4), 0] {
        assert!(matches!(forest.stat(unknown), Err(Refused::UnknownInode)), "{unknown:#x}");
    }
}
