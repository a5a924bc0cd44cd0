//! The cache's directory and its filesystem: whether it can be used, what it can do, and how much room there is.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use nix::sys::statfs::{FsType, fstatfs};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::{AccessFlags, access};

use super::{Finding, Setting};
use crate::cache::{LAYOUT, Limits};
use crate::sys::trusted;

/// Layouts of earlier versions, below the directory.
const OLD_LAYOUTS: [&str; 1] = ["v1"];

/// Files that a small image may make.
const FEW_INODES: u64 = 1000;
/// Room that is soon gone.
const LITTLE_ROOM: u64 = 256 << 20;

/// By statfs(2). `false`: what another machine writes is not seen at once.
const FILESYSTEMS: [(FsType, &str, bool); 16] = [
    (FsType(0xef53), "ext4", true),
    (FsType(0x5846_5342), "xfs", true),
    (FsType(0x9123_683e), "btrfs", true),
    (FsType(0xf2f5_2010), "f2fs", true),
    (FsType(0x2fc1_2fc1), "zfs", true),
    (FsType(0x0102_1994), "tmpfs", true),
    (FsType(0x8584_58f6), "ramfs", true),
    (FsType(0x794c_7630), "overlay", true),
    (FsType(0x6573_5546), "FUSE", true),
    (FsType(0x4d44), "FAT", true),
    (FsType(0x6969), "NFS", false),
    (FsType(0x517b), "SMB", false),
    (FsType(0xff53_4d42), "CIFS", false),
    (FsType(0xfe53_4d42), "SMB2", false),
    (FsType(0x5346_414f), "AFS", false),
    (FsType(0x0102_1997), "9p", false),
];

struct Facts {
    dir: PathBuf,
    looked: Result<Place, String>,
    old: Vec<PathBuf>,
}

/// The directory, or the one that it will be made in.
struct Place {
    /// What crfs has in it belongs to this user.
    owner: Option<(u32, u32)>,
    is_there: bool,
    is_read_only: bool,
    is_writable: bool,
    kind: Option<(&'static str, bool)>,
    free: u64,
    limits: Option<Limits>,
    /// `None`: the filesystem does not count them.
    inodes: Option<u64>,
    tried: Result<Able, String>,
}

/// What can be done with a file there.
#[derive(Clone, Copy)]
struct Able {
    without_name: bool,
    with_holes: bool,
}

pub(super) fn look(setting: &Setting) -> Vec<Finding> {
    let dir = setting.cache_dir.clone();
    let old = OLD_LAYOUTS.iter().map(|name| dir.join(name)).filter(|old| old.is_dir()).collect();
    let looked = place(&dir, setting.cache_size).map_err(|error| error.to_string());
    judge(&Facts { dir, looked, old }, nix::unistd::geteuid().as_raw())
}

fn place(dir: &Path, size: Option<u64>) -> io::Result<Place> {
    let there = dir.ancestors().find(|place| place.symlink_metadata().is_ok()).unwrap_or(Path::new("/"));
    let opened = File::from(trusted::existing(there)?);
    let (kind, found) = (fstatfs(&opened)?.filesystem_type(), fstatvfs(&opened)?);
    let own = dir.join(LAYOUT);
    let owner = fs::symlink_metadata(&own).ok().map(|own| (own.uid(), own.mode() & 0o7777));
    let within = if owner.is_some() { own.as_path() } else { there };
    Ok(Place {
        owner,
        is_there: there == dir,
        is_read_only: found.flags().contains(FsFlags::ST_RDONLY),
        is_writable: access(within, AccessFlags::W_OK | AccessFlags::X_OK).is_ok(),
        kind: FILESYSTEMS.iter().find(|(magic, ..)| *magic == kind).map(|(_, name, local)| (*name, *local)),
        free: found.blocks_available().saturating_mul(found.fragment_size()),
        limits: Limits::of(&opened, size).ok(),
        inodes: (found.files() > 0).then(|| found.files_available()),
        tried: able(within).map_err(|error| error.to_string()),
    })
}

/// Tries it with a file that nobody sees.
fn able(dir: &Path) -> io::Result<Able> {
    const PAGE: usize = 4096;
    let unnamed = OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(dir);
    let (mut file, without_name) = match unnamed {
        Ok(file) => (file, true),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => (tempfile::tempfile_in(dir)?, false),
        Err(error) => return Err(error),
    };
    file.write_all(&[1; 2 * PAGE])?;
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let with_holes = fallocate(&file, flags, 0, libc::off_t::try_from(PAGE).unwrap_or_default()).is_ok();
    Ok(Able { without_name, with_holes })
}

fn judge(facts: &Facts, uid: u32) -> Vec<Finding> {
    let dir = facts.dir.display();
    let mut found = match &facts.looked {
        Err(why) => vec![unusable(format!("the cache {dir} cannot be used: {why}"), "give another with --cache-dir")],
        Ok(place) => judge_place(&facts.dir, place, uid),
    };
    found.extend(facts.old.iter().map(|old| {
        Finding::note(
            format!("{} is of an earlier version of crfs", old.display()),
            "it takes room on the disk, and this version does not read it",
            format!("when no older crfs runs: rm -r {}", old.display()),
        )
    }));
    found
}

/// Nothing would be kept.
fn unusable(found: String, advice: impl Into<String>) -> Finding {
    Finding::problem(found, "mounts work without a cache: all that is read is fetched again each time", advice)
}

fn judge_place(dir: &Path, place: &Place, uid: u32) -> Vec<Finding> {
    let dir = dir.display();
    if place.is_read_only {
        return vec![unusable(
            format!("the cache {dir} is on a read-only filesystem"),
            "give another with --cache-dir, or remount it rw",
        )];
    }
    if let Some((owner, mode)) = place.owner.filter(|(owner, mode)| *owner != uid || mode & 0o022 != 0) {
        let found = format!("{dir}/{LAYOUT} belongs to user {owner} and has the mode {mode:04o}");
        return vec![unusable(
            found,
            "give a directory of this user's own with --cache-dir, or make it theirs alone (chown, chmod 0700)",
        )];
    }
    if !place.is_writable {
        let what = if place.is_there { "cannot be written to" } else { "cannot be made" };
        return vec![unusable(
            format!("the cache {dir} {what} by this user"),
            "give another with --cache-dir, or make it this user's",
        )];
    }
    let able = match &place.tried {
        Ok(able) => able,
        Err(why) => {
            return vec![unusable(
                format!("nothing can be stored in the cache {dir}: {why}"),
                "free some room there, or give another with --cache-dir",
            )];
        }
    };
    let mut found = vec![judge_room(&dir.to_string(), place)];
    found.extend(judge_kind(&dir.to_string(), place.kind));
    found.extend(place.inodes.filter(|inodes| *inodes < FEW_INODES).map(|inodes| {
        Finding::problem(
            format!("the filesystem of the cache {dir} has {inodes} inodes left"),
            "new layers cannot be cached, although there may be room",
            "remove small files there (`df -i`), or give another with --cache-dir",
        )
    }));
    found.extend(judge_able(&dir.to_string(), *able));
    found
}

fn judge_room(dir: &str, place: &Place) -> Finding {
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let Some(Limits { limit, floor }) = place.limits else {
        return Finding::ok(format!("the cache {dir} can be used"));
    };
    match place.free.saturating_sub(floor) {
        0 => Finding::problem(
            format!("the disk of the cache {dir} has {} free, and crfs leaves {} free", mib(place.free), mib(floor)),
            "nothing more is stored: what is not cached yet is fetched each time it is read",
            "free some room there, `crfs cache clear`, or give another with --cache-dir",
        ),
        room if room < LITTLE_ROOM.min(limit) => Finding::note(
            format!("the cache {dir} can take {} more until its disk has no more than {} free", mib(room), mib(floor)),
            "an image may not fit, and parts of it are fetched again",
            "free some room there, or give another with --cache-dir",
        ),
        _ => Finding::ok(format!("the cache {dir} can be used, up to {}", mib(limit))),
    }
}

fn judge_kind(dir: &str, kind: Option<(&'static str, bool)>) -> Option<Finding> {
    match kind? {
        (name, false) => Some(Finding::note(
            format!("the cache {dir} is on a network filesystem ({name})"),
            "contents stay in it only while they are mounted",
            "give a directory on a local disk with --cache-dir",
        )),
        (name @ ("tmpfs" | "ramfs"), true) => Some(Finding::note(
            format!("the cache {dir} is in memory ({name})"),
            "it takes memory from all else, and is gone when the machine is started again",
            "give a directory on a local disk with --cache-dir, unless that is meant",
        )),
        (name @ "FUSE", true) => Some(Finding::note(
            format!("the cache {dir} is on a filesystem of a program ({name})"),
            "reads of cached files wait for that program",
            "give a directory on a local disk with --cache-dir",
        )),
        _ => None,
    }
}

fn judge_able(dir: &str, able: Able) -> Vec<Finding> {
    let advice = "give a directory on ext4, xfs or btrfs with --cache-dir";
    let holes = (!able.with_holes).then(|| {
        Finding::note(
            format!("the filesystem of the cache {dir} cannot make holes in files"),
            "of a layer all contents are evicted at once",
            advice,
        )
    });
    let unnamed = (!able.without_name).then(|| {
        Finding::note(
            format!("the filesystem of the cache {dir} has no files without a name (O_TMPFILE)"),
            "layers that are read whole are not kept, nor are archives unpacked",
            advice,
        )
    });
    holes.into_iter().chain(unnamed).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{self, Note, Ok as Good, Problem};
    use super::*;

    fn good() -> Place {
        Place {
            owner: Some((7, 0o700)),
            is_there: true,
            is_read_only: false,
            is_writable: true,
            kind: Some(("ext4", true)),
            free: 100 << 30,
            limits: Some(Limits { limit: 10 << 30, floor: 1 << 30 }),
            inodes: Some(1 << 20),
            tried: Ok(Able { without_name: true, with_holes: true }),
        }
    }

    fn verdicts(looked: Result<Place, String>) -> Vec<Verdict> {
        let facts = Facts { dir: "/c".into(), looked, old: Vec::new() };
        judge(&facts, 7).iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn what_cannot_be_used_is_a_problem() {
        assert_eq!(verdicts(Ok(good())), [Good]);
        assert_eq!(verdicts(Ok(Place { owner: None, is_there: false, inodes: None, limits: None, ..good() })), [Good]);
        for wrong in [
            Err("it belongs to user 9".to_owned()),
            Ok(Place { is_read_only: true, ..good() }),
            Ok(Place { owner: Some((8, 0o700)), ..good() }),
            Ok(Place { owner: Some((7, 0o722)), ..good() }),
            Ok(Place { is_writable: false, ..good() }),
            Ok(Place { is_writable: false, is_there: false, ..good() }),
            Ok(Place { tried: Err("No space left on device".into()), ..good() }),
            Ok(Place { free: 1 << 30, ..good() }),
        ] {
            assert_eq!(verdicts(wrong), [Problem]);
        }
        assert_eq!(verdicts(Ok(Place { inodes: Some(3), ..good() })), [Good, Problem]);
    }

    #[test]
    fn what_is_less_good_is_worth_a_note() {
        assert_eq!(verdicts(Ok(Place { free: (1 << 30) + (1 << 20), ..good() })), [Note]);
        for kind in [("NFS", false), ("tmpfs", true), ("FUSE", true)] {
            assert_eq!(verdicts(Ok(Place { kind: Some(kind), ..good() })), [Good, Note]);
        }
        let able = Able { without_name: false, with_holes: false };
        assert_eq!(verdicts(Ok(Place { tried: Ok(able), ..good() })), [Good, Note, Note]);
        let facts = Facts { dir: "/c".into(), looked: Ok(good()), old: vec!["/c/v1".into()] };
        assert!(judge(&facts, 7)[1].advice.as_ref().unwrap().contains("rm -r /c/v1"));
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_looked_for_above() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(&dir.path().join("a/b"), Some(1 << 20)).unwrap();
        assert!(!place.is_there && place.is_writable && place.limits.is_some_and(|limits| limits.limit == 1 << 20));
        assert!(place.tried.is_ok());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
    }
}
