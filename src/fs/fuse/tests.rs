//! The frontend on real mounts: as root with /dev/fuse, otherwise these say that they were skipped.

mod mounted;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;

use nix::sys::stat::{major, minor};
use nix::unistd::Whence;

use self::mounted::{Counting, Mounted, Never, Panics, SlowDisk, mount_overlay, skipped};
use super::*;
use crate::budget::Charge;
use crate::fs::fake::{FakeLayer, MADE_UP, Ramp, Spec, What, ramp};
use crate::fs::forest::{Grown, Made, ROOT, made, root_of};
use crate::fs::overlay::merge;
use crate::fs::tree::{Builder, Ino, NewNode, Tree};
use crate::fs::view::View;
use crate::index::{Meta, Time};

fn tree(spec: &Spec) -> Tree {
    merge(&[FakeLayer::new(spec)], None).unwrap()
}

fn view(spec: &Spec) -> View {
    View::new(tree(spec), Arc::new(Ramp::default()))
}

fn file(size: u64) -> What {
    What::File { size }
}

#[test]
fn a_mount_shows_everything_as_it_is() {
    if skipped() {
        return;
    }
    let at = |secs, nanos| Meta { mode: 0o4755, uid: 70_000, gid: 4_000_000_000, mtime: Time { secs, nanos } };
    let spec = Spec::default()
        .with("d/e/f", file(1_000_000))
        .meta("d/e/f", at(-1, 750_000_000))
        .with("d/again", What::Link(b"d/e/f".to_vec()))
        .with("empty", file(0))
        .meta("empty", at(-5_000_000_000, 999_999_999))
        .with("char", What::Char(259, 70_000))
        .with("block", What::Block(4095, 1))
        .with("fifo", What::Fifo)
        .with("link", What::Symlink(b"d/e/../again".to_vec()))
        .meta("link", at(5_000_000_000, 1));
    let mounted = Mounted::new(view(&spec));
    let stat = |path: &str| fs::symlink_metadata(mounted.path(path)).unwrap();

    let f = stat("d/e/f");
    assert_eq!((f.mtime(), f.mtime_nsec(), f.mode()), (-1, 750_000_000, 0o104_755));
    assert_eq!((f.uid(), f.gid(), f.size(), f.blocks(), f.nlink()), (70_000, 4_000_000_000, 1_000_000, 1954, 2));
    assert_eq!(stat("d/again").ino(), f.ino());
    assert_eq!((stat("empty").mtime(), stat("empty").mtime_nsec()), (-5_000_000_000, 999_999_999));
    assert_eq!((stat("link").mtime(), stat("link").mtime_nsec()), (5_000_000_000, 1));
    assert_eq!((stat("").ino(), stat("").nlink(), stat("d").nlink(), stat("d/e").nlink()), (1, 3, 3, 2));
    assert_eq!(stat("d").mode(), 0o40755);
    assert!(stat("fifo").file_type().is_fifo() && stat("block").file_type().is_block_device());
    assert_eq!((major(stat("char").rdev()), minor(stat("char").rdev())), (259, 70_000));
    assert_eq!((major(stat("block").rdev()), minor(stat("block").rdev())), (4095, 1));
    assert_eq!(fs::read_link(mounted.path("link")).unwrap().as_os_str(), "d/e/../again");
    let names: Vec<_> = fs::read_dir(mounted.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["block", "char", "d", "empty", "fifo", "link"]);
    assert_eq!(fs::read(mounted.path("link")).unwrap(), ramp(4096 * 3, 1_000_000));
    assert_eq!(fs::read(mounted.path("empty")).unwrap(), b"");
}

#[test]
fn files_are_read_and_sought_like_any_other_and_never_written() {
    if skipped() {
        return;
    }
    let mounted = Mounted::new(view(&Spec::default().with("f", file(3_000_000))));
    let mut f = File::open(mounted.path("f")).unwrap();
    let mut bytes = [0; 10];
    f.read_exact_at(&mut bytes, 2_999_990).unwrap();
    assert_eq!(bytes, ramp(2_999_990, 10)[..]);
    assert_eq!(f.read_at(&mut bytes, 2_999_995).unwrap(), 5);
    assert_eq!(f.read_at(&mut bytes, 3_000_000).unwrap(), 0);
    assert_eq!(nix::unistd::lseek(&f, 10, Whence::SeekData), Ok(10));
    assert_eq!(nix::unistd::lseek(&f, 10, Whence::SeekHole), Ok(3_000_000));
    assert_eq!(nix::unistd::lseek(&f, 3_000_000, Whence::SeekData), Err(nix::errno::Errno::ENXIO));
    f.seek(SeekFrom::End(-1)).unwrap();
    assert_eq!(f.read(&mut bytes).unwrap(), 1);
    f.sync_all().unwrap();
    assert_eq!(fs::write(mounted.path("new"), b"").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    let totals = nix::sys::statvfs::statvfs(&mounted.path("")).unwrap();
    assert_eq!((totals.blocks(), totals.files(), totals.blocks_free(), totals.name_max()), (733, 2, 0, 255));
}

#[test]
fn content_trouble_is_eio() {
    if skipped() {
        return;
    }
    let tree = tree(&Spec::default().with("f", file(9)));
    let mounted = Mounted::new(View::new(tree, Arc::new(Ramp { lost: 1, ..Ramp::default() })));
    let error = fs::read(mounted.path("f")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::EIO as i32));
}

#[test]
fn the_kernel_asks_nothing_twice() {
    if skipped() {
        return;
    }
    let spec = (0..20).fold(Spec::default(), |spec, n| spec.with(&format!("d/{n}"), file(5)));
    let counts = Arc::new(std::sync::Mutex::new(BTreeMap::new()));
    let mounted = Mounted::with(view(&spec), |frontend| Counting { frontend, counts: Arc::clone(&counts) });
    let asked = |what: &str| counts.lock().unwrap().get(what).copied().unwrap_or(0);
    for _ in 0..3 {
        assert_eq!(fs::metadata(mounted.path("missing")).unwrap_err().kind(), ErrorKind::NotFound);
        let listed = Command::new("ls").args(["-lR"]).arg(mounted.path("")).output().unwrap();
        assert_eq!(
            String::from_utf8(listed.stdout).unwrap().lines().filter(|line| line.starts_with("-rw-r--r--")).count(),
            20
        );
        for n in 0..20 {
            assert_eq!(fs::read(mounted.path(&format!("d/{n}"))).unwrap().len(), 5);
        }
    }
    assert_eq!(asked("lookup"), 1, "only the missing name: readdirplus brought the others");
    assert_eq!((asked("open"), asked("opendir"), asked("flush")), (1, 1, 1));
    assert!(asked("getxattr") <= 1);
    assert_eq!((asked("read"), asked("readdir")), (20, 0));
    assert!(asked("getattr") <= 1, "{counts:?}");
}

/// The kernel forgets what is below a name that is gone once somebody looks for that, as far as nobody has it open. It says so also to a process that
/// has not told it, and so has no counts.
#[test]
fn a_store_knows_what_the_kernel_remembers() {
    if skipped() {
        return;
    }
    let view = Arc::new(view(&Spec::default().with("d/f", file(5)).with("d/g", file(5))));
    let dir = |entries: &[(&str, u64)]| Made::Dir {
        entries: entries.iter().map(|(name, number)| (name.as_bytes().to_vec(), *number)).collect(),
        lasting: false,
    };
    let grown = |is_there: bool| {
        let root = if is_there { vec![("layer", made(7, 0))] } else { Vec::new() };
        let all = HashMap::from([(ROOT, dir(&root)), (made(7, 0), dir(&[("diff", root_of(7))]))]);
        Grown { views: HashMap::from([(7, Arc::clone(&view))]), made: all, changed: 0 }
    };
    for (is_open, is_counted) in [(true, true), (false, true), (true, false), (false, false)] {
        let forest = Arc::new(Forest::store(grown(true)));
        let mounted = Mounted::of(Arc::clone(&forest), |frontend| frontend);
        if !is_counted {
            let device = Arc::clone(&mounted.device);
            forest.ask_kernel(Box::new(move |number| known::is_known(&device, number)));
        }
        assert!(!forest.is_remembered(7));
        for name in ["f", "g"] {
            assert_eq!(fs::read(mounted.path("layer/diff/d").join(name)).unwrap().len(), 5);
        }
        assert_eq!(fs::read_dir(mounted.path("layer/diff/d")).unwrap().count(), 2);
        let open = is_open.then(|| File::open(mounted.path("layer/diff/d/f")).unwrap());
        if !is_counted {
            forest.forget(root_of(7), u64::MAX);
        }
        assert!(forest.is_remembered(7));
        forest.grow(grown(false));
        let look = || assert!(fs::symlink_metadata(mounted.path("layer")).is_err());
        look();
        let start = std::time::Instant::now();
        while open.is_none() && forest.is_remembered(7) {
            assert!(start.elapsed() < Duration::from_secs(30));
            // The kernel says so when it can.
            look();
        }
        assert_eq!(forest.is_remembered(7), is_open);
    }
}

#[test]
fn a_killed_reader_is_gone_although_nothing_ever_answers() {
    if skipped() {
        return;
    }
    let never = Arc::new(Never::default());
    let mounted = Mounted::new(View::new(tree(&Spec::default().with("f", file(1_000_000))), never.clone()));
    let mapped = "import mmap, sys; f = open(sys.argv[1]); mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[500000]";
    let path = mounted.path("f");
    let mut cat = Command::new("cat");
    let mut python = Command::new("python3");
    python.arg("-c").arg(mapped);
    for reader in [&mut cat, &mut python] {
        let asked = never.asked();
        let mut child = reader.arg(&path).stdout(Stdio::null()).spawn().unwrap();
        never.wait_for_more_than(asked);
        child.kill().unwrap();
        mounted::wait(&mut child);
    }
}

#[test]
fn a_disk_that_does_not_answer_holds_up_only_what_is_on_it() {
    if skipped() {
        return;
    }
    let disk = Arc::new(SlowDisk::default());
    let spec = (0..20).fold(Spec::default(), |spec, n| spec.with(&format!("{n:02}"), file(5)));
    let mounted = Mounted::new(View::new(tree(&spec), disk.clone()));
    let read = |n| Command::new("cat").arg(mounted.path(&format!("{n:02}"))).stdout(Stdio::piped()).spawn().unwrap();
    let readers: Vec<_> = (0..20).map(read).collect();
    disk.wait_for(20);
    assert_eq!(fs::metadata(mounted.path("missing")).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(fs::read_dir(mounted.path("")).unwrap().count(), 20);
    disk.answer();
    for (n, reader) in (0..).zip(readers) {
        assert_eq!(reader.wait_with_output().unwrap().stdout, ramp(4096 * n, 5));
    }
}

#[test]
fn a_disk_that_stops_costs_the_reads_that_wait_for_it_and_nothing_else() {
    if skipped() {
        return;
    }
    let disk = Arc::new(SlowDisk::with_patience(Duration::from_millis(10)));
    let mounted = Mounted::new(View::new(tree(&Spec::default().with("f", file(5))), disk.clone()));
    let error = fs::read(mounted.path("f")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EIO));
    assert_eq!(fs::read_dir(mounted.path("")).unwrap().count(), 1);
    assert!(disk.gave_up.load(Ordering::SeqCst) > 0, "who asks for the status sees it");
    // The thread that waited has nobody to answer any more.
    disk.answer();
    assert_eq!(fs::read(mounted.path("f")).unwrap(), ramp(0, 5));
}

#[test]
fn a_panic_costs_the_request_that_met_it_and_nothing_else() {
    if skipped() {
        return;
    }
    let spec = (0..5).fold(Spec::default(), |spec, n| spec.with(&n.to_string(), file(5)));
    let mounted = Mounted::new(View::new(tree(&spec), Arc::new(Panics)));
    for _ in 0..2 {
        for start in [Panics::IN_MEMORY, Panics::ON_DISK, Panics::ASKED, Panics::FETCHED] {
            let error = fs::read(mounted.path(&(start / 4096).to_string())).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(nix::libc::EIO), "{start}");
        }
        assert_eq!(fs::read(mounted.path("4")).unwrap(), ramp(4 * 4096, 5));
        assert_eq!(fs::read_dir(mounted.path("")).unwrap().count(), 5);
    }
}

#[test]
fn a_large_directory_is_listed_whole() {
    if skipped() {
        return;
    }
    let names: Vec<String> = (0..100_000).map(|n| format!("{n:06}")).collect();
    let mut builder = Builder::new(Charge::default());
    let root = builder.dir(MADE_UP).unwrap();
    builder.open(root).unwrap();
    for name in &names {
        let ino = builder.node(&NewNode::Fifo, MADE_UP).unwrap();
        builder.link(name.as_bytes(), ino).unwrap();
    }
    let mounted = Mounted::new(View::new(builder.finish().unwrap(), Arc::new(Ramp::default())));
    let listed: Vec<_> = fs::read_dir(mounted.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(listed == names);
}

#[test]
fn overlayfs_writes_on_top() {
    if skipped() {
        return;
    }
    let spec = (0..5).fold(Spec::default(), |spec, n| {
        spec.with(&format!("d/{n}"), file(100_000)).xattr(&format!("d/{n}"), "user.x", "1")
    });
    let mounted = Mounted::new(view(&spec));
    let overlay = mount_overlay(&mounted);
    let path = |name: &str| overlay.path(name);
    fs::set_permissions(path("d/0"), fs::Permissions::from_mode(0o600)).unwrap();
    File::options().append(true).open(path("d/1")).unwrap().write_all(b"more").unwrap();
    fs::rename(path("d/2"), path("renamed")).unwrap();
    fs::remove_file(path("d/3")).unwrap();
    fs::create_dir(path("d/new")).unwrap();
    let names: Vec<_> =
        fs::read_dir(path("d")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(names.iter().filter(|name| ["0", "1", "4", "new"].contains(&name.as_str())).count(), names.len());
    assert_eq!(fs::metadata(path("d/0")).unwrap().mode(), 0o100_600);
    assert_eq!(fs::read(path("d/1")).unwrap(), [ramp(4096, 100_000), b"more".to_vec()].concat());
    assert_eq!(fs::read(path("renamed")).unwrap(), ramp(2 * 4096, 100_000));
}
