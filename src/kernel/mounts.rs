//! Mount tables, mostly that of this process: /proc/self/mountinfo (proc_pid_mountinfo(5)).
//!
//! Reading it asks no filesystem anything, so that it works for a mount whose server is gone.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use nix::sys::stat::{fstat, major, minor};
use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, StatxFlags, flock, statx};
use rustix::io::Errno;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Error;
use crate::sys::limit;

/// The filesystem type of everything that crfs mounts.
pub(crate) const TYPE: &str = "fuse.crfs";

/// That of a directory whose contents are mounted for whoever looks into it: systemd.automount(5).
const AUTOFS: &str = "autofs";

/// The number of a superblock: st_dev of everything on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// The superblock that an open file is on.
pub(crate) fn device_of(file: impl AsFd) -> io::Result<Device> {
    let number = fstat(file)?.st_dev;
    let part = |part: u64| u32::try_from(part).map_err(io::Error::other);
    Ok(Device { major: part(major(number))?, minor: part(minor(number))? })
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for Device {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbers = text.split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        numbers.map(|(major, minor)| Self { major, minor }).ok_or("not a device number (major:minor)")
    }
}

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Device {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Device {
    /// Sets how far the kernel reads ahead: at most 128 KiB by FUSE_INIT, more only here, and only for root. For anybody else it stays.
    pub(crate) fn set_read_ahead(self, kib: u32) {
        if let Err(error) = fs::write(self.backing_device().join("read_ahead_kb"), kib.to_string()) {
            tracing::debug!(%error, "the kernel's read-ahead stays as it is");
        }
    }

    /// What tells the superblock from another one that had, or will have, its number: the kernel gives a number again at once, but not the inode of the
    /// backing device in sysfs. That is listed for as long as anything, in any mount namespace, uses it. `None`: there is none, or no sysfs.
    pub(crate) fn instance(self) -> Option<u64> {
        Some(fs::metadata(self.backing_device()).ok()?.ino())
    }

    fn backing_device(self) -> PathBuf {
        Path::new("/sys/class/bdi").join(self.to_string())
    }
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Of all mounts of all mount namespaces, only this one has it.
    pub(crate) id: u32,
    /// The mount that it is mounted on.
    pub(crate) parent: u32,
    pub(crate) device: Device,
    pub(crate) point: PathBuf,
    pub(crate) kind: OsString,
    pub(crate) source: OsString,
    /// What the filesystem has as its options, with commas between them.
    pub(crate) options: OsString,
}

impl Mount {
    pub(crate) fn is_ours(&self) -> bool {
        self.kind.as_bytes() == TYPE.as_bytes()
    }

    /// Whether it is a store's, and no image's.
    pub(crate) fn is_stores(&self) -> bool {
        self.is_ours() && self.source == STORE
    }

    /// Who mounted it, where it is a FUSE filesystem.
    pub(crate) fn user(&self) -> Option<u32> {
        let mut options = self.options.to_str()?.split(',');
        options.find_map(|option| option.strip_prefix("user_id="))?.parse().ok()
    }

    /// Whether both are places of one filesystem.
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        (self.device, &self.kind, &self.source) == (other.device, &other.kind, &other.source)
    }

    /// Whether it is an overlayfs whose lower directories are said to be at `dir`, or below it.
    pub(crate) fn has_lower(&self, dir: &Path) -> bool {
        let options = self.options.as_bytes().split(|byte| *byte == b',');
        let lowers = options
            .filter_map(|option| option.strip_prefix(b"lowerdir=").or_else(|| option.strip_prefix(b"lowerdir+=")));
        let mut lowers = lowers.flat_map(|lowers| lowers.split(|byte| *byte == b':'));
        self.kind == "overlay" && lowers.any(|lower| Path::new(OsStr::from_bytes(lower)).starts_with(dir))
    }
}

/// What tells a mount of crfs from all others that there are at the same time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub(crate) id: u32,
    pub(crate) device: Device,
    pub(crate) source: String,
    /// Who mounted it, as the mount table has it.
    pub(crate) user: Option<u32>,
}

impl Identity {
    /// Whether it is this very mount.
    pub(crate) fn is(&self, mount: &Mount) -> bool {
        mount.id == self.id && self.is_of(mount)
    }

    /// Whether it is a place of the same filesystem. The number alone may have been given to another one since.
    pub(crate) fn is_of(&self, mount: &Mount) -> bool {
        let is_its = mount.device == self.device && mount.source == *self.source && mount.user() == self.user;
        mount.is_ours() && is_its
    }
}

/// The source of a store's mount, and of users' clones of it.
pub(crate) const STORE: &str = "crfs-store";

/// All mounts that this process sees, in the order in which they were made. They need not have been attached in that order.
pub(crate) fn all() -> io::Result<Vec<Mount>> {
    read("/proc/self/mountinfo")
}

/// All mounts that a process sees.
pub(crate) fn of_process(pid: u32) -> io::Result<Vec<Mount>> {
    read(&format!("/proc/{pid}/mountinfo"))
}

fn read(table: &str) -> io::Result<Vec<Mount>> {
    let table = fs::read(table)?;
    Ok(table.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// What is mounted at exactly this path: the topmost, which is the one that the path leads to.
pub(crate) fn at(point: &Path) -> io::Result<Option<Mount>> {
    Ok(leads_to(&all()?, point).filter(|mount| mount.point == point).cloned())
}

/// The mount that an absolute path without symbolic links ends in.
fn leads_to<'a>(table: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let is_shown = |id: u32| table.iter().any(|mount| mount.id == id);
    // What the root directory of this process is mounted on is not in its table.
    let is_first = |mount: &&Mount| mount.parent == mount.id || !is_shown(mount.parent);
    let mut here: Option<&Mount> = None;
    // No mount is passed twice.
    for _ in table {
        let is_next = |mount: &&Mount| match here {
            None => is_first(mount),
            Some(over) => mount.parent == over.id && mount.id != over.id,
        };
        let on_the_way = table.iter().filter(is_next).filter(|mount| path.starts_with(&mount.point));
        match on_the_way.min_by_key(|mount| mount.point.as_os_str().len()) {
            Some(next) => here = Some(next),
            None => break,
        }
    }
    here
}

/// Another crfs mount at the directory of `mount`, below it.
pub(crate) fn ours_below<'a>(table: &'a [Mount], mount: &Mount) -> Option<&'a Mount> {
    let below = |upper: &Mount| table.iter().find(|lower| lower.id == upper.parent && lower.point == mount.point);
    // No mount is passed twice.
    std::iter::successors(below(mount), |lower| below(lower)).take(table.len()).find(|lower| lower.is_ours())
}

/// Where a new mount may go: `dir` without symbolic links. An image over an image would hide a server that nobody sees any
/// more, so that is refused, although the kernel would do it.
pub(crate) fn usable_point(dir: &Path) -> Result<PathBuf, Error> {
    let asked = dir.to_owned();
    answered(dir, move || find_point(&asked))
}

/// Keeps other `crfs mount` from `dir` for as long as what is given back lives, and makes sure that a mount may still go there. `None`: others cannot be
/// kept from it, since its filesystem has no locks, this user may not read it, or somebody else has it locked.
pub(crate) fn reserve(dir: &Path) -> Result<Option<File>, Error> {
    let asked = dir.to_owned();
    answered(dir, move || {
        // Before it is opened: what is mounted there may not answer.
        still_there(&asked)?;
        let reserved = lock(&asked);
        still_there(&asked)?;
        Ok(reserved)
    })
}

/// Whether a directory that was found without symbolic links has none now, either: somebody else may have put one into its path meanwhile.
fn still_there(dir: &Path) -> Result<(), Error> {
    match find_point(dir)? == dir {
        true => Ok(()),
        false => Err(Error::Replaced { dir: dir.to_owned() }),
    }
}

fn lock(dir: &Path) -> Option<File> {
    // To open it would ask for the mount that is being made.
    if is_autofs(dir) {
        return None;
    }
    let dir = File::open(dir).ok()?;
    let start = Instant::now();
    loop {
        match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(dir),
            Err(Errno::WOULDBLOCK) if start.elapsed() < RESERVED => std::thread::sleep(GLANCE),
            Err(_) => return None,
        }
    }
}

/// How long another `crfs mount` may keep a directory. It does so while it mounts, for milliseconds.
const RESERVED: Duration = Duration::from_secs(2);
const GLANCE: Duration = Duration::from_millis(5);

/// How long a filesystem may take that leads to a mount point.
const PATIENCE: Duration = Duration::from_secs(10);

/// Does what may wait for the server of a filesystem that `path` leads through.
pub(crate) fn answered<T: Send + 'static, E: From<Error> + Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    let unanswered = || Err(Error::Unanswered { path: path.to_owned(), seconds: PATIENCE.as_secs() }.into());
    limit::within(PATIENCE, work).unwrap_or_else(unanswered)
}

fn find_point(dir: &Path) -> Result<PathBuf, Error> {
    let unusable = |source| Error::Directory { dir: dir.to_owned(), source };
    let point = dir.canonicalize().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::Missing { dir: dir.to_owned() },
        _ => unusable(source),
    })?;
    // Before anything is asked of it: its server may be gone.
    if let Some(mount) = at(&point).map_err(unusable)?.filter(Mount::is_ours) {
        return Err(Error::AlreadyMounted { dir: point, image: mount.source.to_string_lossy().into_owned() });
    }
    match is_directory(&point).map_err(unusable)? {
        true => Ok(point),
        false => Err(Error::NotADirectory { dir: dir.to_owned() }),
    }
}

/// What is there, not what an autofs would mount there for whoever asks: that is what is about to be mounted.
fn is_directory(point: &Path) -> io::Result<bool> {
    let found = statx(CWD, point, AtFlags::NO_AUTOMOUNT, StatxFlags::TYPE)?;
    Ok(FileType::from_raw_mode(found.stx_mode.into()) == FileType::Directory)
}

/// Whether what is mounted at `point` mounts something else there for whoever looks into it.
pub(crate) fn is_autofs(point: &Path) -> bool {
    at(point).is_ok_and(|mount| mount.is_some_and(|mount| mount.kind == AUTOFS))
}

/// `36 35 98:0 /root /point options optional... - type source superoptions`; `None` for a line that is not of that form.
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let parent = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let point = PathBuf::from(unescape(fields.nth(1)?));
    let kind = unescape(fields.by_ref().skip_while(|field| *field != b"-").nth(1)?);
    let source = unescape(fields.next()?);
    let options = unescape(fields.next().unwrap_or_default());
    Some(Mount { id, parent, device, point, kind, source, options })
}

/// Space, tab, newline and backslash stand as a backslash and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let escaped = if first == b'\\' { after.get(..3).and_then(octal) } else { None };
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    OsString::from_vec(bytes)
}

fn octal(digits: &[u8]) -> Option<u8> {
    std::str::from_utf8(digits).ok().and_then(|text| u8::from_str_radix(text, 8).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_into_whose_path_a_link_has_come_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (theirs, other) = (root.join("theirs"), root.join("other"));
        std::fs::create_dir_all(theirs.join("etc")).unwrap();
        std::fs::create_dir_all(other.join("etc")).unwrap();
        let point = usable_point(&theirs.join("etc")).unwrap();
        assert!(reserve(&point).is_ok());
        std::fs::rename(&theirs, root.join("away")).unwrap();
        std::os::unix::fs::symlink(&other, &theirs).unwrap();
        assert!(matches!(reserve(&point), Err(Error::Replaced { dir }) if dir == point));
    }

    #[test]
    fn lines_of_the_kernel_are_understood() {
        let line = b"97 31 0:52 / /mnt/a\\040b\\134c ro,nosuid,nodev shared:7 master:3 - fuse.crfs docker.io/x@sha256:00 ro,user_id=0";
        let mount = parse(line).unwrap();
        assert_eq!((mount.id, mount.parent, mount.device), (97, 31, Device { major: 0, minor: 52 }));
        assert_eq!(mount.user(), Some(0));
        assert_eq!(mount.point, Path::new("/mnt/a b\\c"));
        assert!(mount.is_ours());
        assert_eq!(mount.source, "docker.io/x@sha256:00");
        let plain = parse(b"22 1 8:1 / / rw - ext4 /dev/sda1 rw").unwrap();
        assert!(!plain.is_ours());
        assert_eq!((plain.user(), plain.is_of(&mount)), (None, false));
        let over = b"99 31 0:60 / /merged rw - overlay overlay rw,lowerdir=/a:/mnt/a\\040b/x,upperdir=/u";
        let over = parse(over).unwrap();
        assert!(over.has_lower(Path::new("/mnt/a b")) && over.has_lower(Path::new("/a")));
        assert!(
            !over.has_lower(Path::new("/u"))
                && !over.has_lower(Path::new("/mnt/a"))
                && !plain.has_lower(Path::new("/"))
        );
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"22 1 8:1 / / rw ext4 /dev/sda1 rw"), None);
    }

    #[test]
    fn a_backslash_that_escapes_nothing_stays() {
        assert_eq!(unescape(b"a\\04"), "a\\04");
        assert_eq!(unescape(b"\\999\\"), "\\999\\");
        assert_eq!(unescape(b"\\777"), "\\777");
    }

    #[test]
    fn this_process_sees_its_mounts() {
        let proc = at(Path::new("/proc")).unwrap().unwrap();
        assert_eq!(proc.kind, "proc");
        assert_eq!(at(Path::new("/proc/self")).unwrap(), None);
    }

    fn table(lines: &[&str]) -> Vec<Mount> {
        lines.iter().filter_map(|line| parse(line.as_bytes())).collect()
    }

    #[test]
    fn a_path_is_followed_through_mounts_whatever_their_order_in_the_table() {
        let lines = [
            "20 1 8:1 / / rw - ext4 /dev/sda1 rw",
            "30 40 0:50 / /a/m ro - fuse.crfs made-first ro",
            "40 20 0:51 / /a/m ro - fuse.crfs attached-first ro",
            "50 20 0:52 / /b/c/m ro - fuse.crfs hidden ro",
            "60 20 0:53 / /b rw - tmpfs over rw",
            "70 60 0:54 / /b/d rw - tmpfs inner rw",
        ];
        for lines in [lines.to_vec(), lines.into_iter().rev().collect()] {
            let table = table(&lines);
            let ends_in = |path: &str| leads_to(&table, Path::new(path)).unwrap().id;
            assert_eq!(
                [ends_in("/"), ends_in("/a"), ends_in("/a/m"), ends_in("/a/m/x"), ends_in("/a/mm")],
                [20, 20, 30, 30, 20]
            );
            assert_eq!([ends_in("/b/c/m"), ends_in("/b"), ends_in("/b/d/e")], [60, 60, 70]);
        }
        // The root directory of a process, not itself a mount point.
        let inner = table(&["7 3 0:50 / /m ro - fuse.crfs x ro", "8 7 0:51 / /m/n rw - tmpfs y rw"]);
        assert_eq!(leads_to(&inner, Path::new("/m/n")).unwrap().id, 8);
        assert_eq!(leads_to(&inner, Path::new("/n")), None);
        // A table that was read while it changed.
        let circle = table(&["7 8 0:50 / / rw - tmpfs x rw", "8 7 0:51 / / rw - tmpfs y rw"]);
        assert_eq!(leads_to(&circle, Path::new("/")), None);
    }

    #[test]
    fn a_crfs_mount_that_another_covers_is_seen() {
        let table = table(&[
            "20 1 8:1 / / rw - ext4 /dev/sda1 rw",
            "30 50 0:50 / /m ro - fuse.crfs upper ro",
            "40 20 0:51 / /m ro - fuse.crfs lower ro",
            "50 40 0:52 / /m rw - tmpfs between rw",
            "60 30 0:53 / /m/n ro - fuse.crfs inner ro",
        ]);
        let below =
            |id: u32| ours_below(&table, table.iter().find(|mount| mount.id == id).unwrap()).map(|mount| mount.id);
        assert_eq!([below(30), below(50), below(40), below(60)], [Some(40), Some(40), None, None]);
    }

    #[test]
    fn a_mount_goes_on_a_directory_only() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert_eq!(usable_point(&link).unwrap(), dir.path().canonicalize().unwrap());
        assert!(matches!(usable_point(&file), Err(Error::NotADirectory { .. })));
        assert!(matches!(usable_point(&dir.path().join("missing")), Err(Error::Missing { .. })));
    }

    #[test]
    fn a_directory_is_reserved_by_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = reserve(dir.path()).unwrap();
        assert!(first.is_some());
        let second = {
            let dir = dir.path().to_owned();
            std::thread::spawn(move || reserve(&dir).unwrap().is_some())
        };
        drop(first);
        assert!(second.join().unwrap(), "it waits for the first");
        // Somebody who keeps it for ever keeps nobody from mounting.
        let kept = File::open(dir.path()).unwrap();
        flock(&kept, FlockOperation::LockExclusive).unwrap();
        assert!(reserve(dir.path()).unwrap().is_none());
        assert!(matches!(reserve(&dir.path().join("missing")), Err(Error::Missing { .. })));
    }

    #[test]
    fn device_numbers_are_read_as_they_are_written() {
        let device = Device { major: 0, minor: 52 };
        assert_eq!(device.to_string().parse(), Ok(device));
        assert!("0".parse::<Device>().is_err() && "0:x".parse::<Device>().is_err());
    }
}
