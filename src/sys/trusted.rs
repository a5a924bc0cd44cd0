//! Directories of crfs's own in places where others have theirs, such as /var/tmp: whoever makes one first, or a symlink, must not decide where
//! crfs writes and removes.
//!
//! What stands in a directory that somebody else may write to must be ours, or root's; that goes for symlinks, too, and for all that they lead through.
//! What others may not write to they cannot have prepared.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::geteuid;

/// Symlinks on the way, as in the kernel.
const MOST_LINKS: u32 = 40;

const FOUND: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Opens a directory that is there.
pub(crate) fn existing(path: &Path) -> io::Result<OwnedFd> {
    walk(path, None)
}

/// Opens a directory; it is made where it is missing, and so is what leads to it, each with that mode.
pub(crate) fn made(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    walk(path, Some(Mode::from_bits_truncate(mode)))
}

/// A directory on the way, or what is at its end.
struct Place {
    dir: File,
    meta: Metadata,
    path: PathBuf,
}

/// Finds a file (O_PATH) whose contents nobody else decides.
pub(crate) fn file(path: &Path) -> io::Result<File> {
    let found = find(path, None)?;
    if found.meta.is_file() {
        found.only_ours()?;
    }
    Ok(found.dir)
}

fn walk(path: &Path, missing: Option<Mode>) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(openat(&find(path, missing)?.dir, ".", flags, Mode::empty())?)
}

fn find(path: &Path, missing: Option<Mode>) -> io::Result<Place> {
    let root = || Place::new(open("/", FOUND | OFlag::O_DIRECTORY, Mode::empty())?.into(), "/".into());
    let (mut place, mut links) = (root()?, 0);
    // The next one last.
    let mut rest = names(&std::path::absolute(path)?);
    while let Some(name) = rest.pop() {
        let next = place.step(&name, missing)?;
        if next.meta.is_symlink() {
            links += 1;
            let target = PathBuf::from(readlinkat(&next.dir, "")?);
            if links > MOST_LINKS {
                return Err(Errno::ELOOP.into());
            }
            if target.is_absolute() {
                place = root()?;
            }
            rest.extend(names(&target));
        } else {
            place = next;
        }
    }
    Ok(place)
}

/// The names on a path, the first last.
fn names(path: &Path) -> Vec<OsString> {
    let names = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    let mut names: Vec<_> = names.collect();
    names.reverse();
    names
}

impl Place {
    fn new(dir: File, path: PathBuf) -> io::Result<Self> {
        Ok(Self { meta: dir.metadata()?, dir, path })
    }

    /// What a name in it stands for, if nobody else can have put it there.
    fn step(&self, name: &OsStr, missing: Option<Mode>) -> io::Result<Self> {
        let found = || openat(&self.dir, name, FOUND, Mode::empty());
        let found = match (found(), missing) {
            (Err(Errno::ENOENT), Some(mode)) => {
                // Another process may make it just now.
                mkdirat(&self.dir, name, mode).or_else(|errno| match errno {
                    Errno::EEXIST => Ok(()),
                    errno => Err(errno),
                })?;
                found()?
            }
            (found, _) => found?,
        };
        let next = Self::new(found.into(), self.path.join(name))?;
        let is_ours = [0, geteuid().as_raw()].contains(&next.meta.uid());
        if name == ".." || is_ours || !self.others_may_write()? {
            return Ok(next);
        }
        let why = format!(
            "{} belongs to user {}, who may have put it into a directory where others can write: it is not used",
            next.path.display(),
            next.meta.uid()
        );
        Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
    }

    fn others_may_write(&self) -> io::Result<bool> {
        Ok(self.meta.mode() & 0o022 != 0 || !self.is_trusted()?)
    }

    /// Those who may change the mode are its owner, and root. In a user namespace that does not have root, root is whoever has `/`.
    fn is_trusted(&self) -> io::Result<bool> {
        Ok([0, geteuid().as_raw(), owner_of_all()?].contains(&self.meta.uid()))
    }

    /// Many users have a group of their own, and files that it may write to. Root does not rely on that.
    fn only_ours(&self) -> io::Result<()> {
        let is_root = geteuid().is_root() && owner_of_all()? == 0;
        let others = if is_root { 0o022 } else { 0o002 };
        let (uid, mode) = (self.meta.uid(), self.meta.mode() & 0o7777);
        let why = match self.is_trusted()? {
            false => format!("it belongs to user {uid}, who could write anything into it: remove it, or chown it"),
            true if mode & others != 0 => format!("others may write to it (mode {mode:o}): chmod go-w it"),
            true => return Ok(()),
        };
        Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
    }
}

fn owner_of_all() -> io::Result<u32> {
    Ok(std::fs::symlink_metadata("/")?.uid())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    /// Somebody else.
    const OTHER: u32 = 4242;

    fn is_same(opened: io::Result<OwnedFd>, path: &Path) -> bool {
        let (opened, path) = (File::from(opened.unwrap()).metadata().unwrap(), path.metadata().unwrap());
        (opened.dev(), opened.ino()) == (path.dev(), path.ino())
    }

    #[test]
    fn directories_are_made_and_links_of_ones_own_followed() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a/b");
        assert_eq!(existing(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(is_same(made(&path, 0o700), &path) && is_same(existing(&path.join("../b/.")), &path));
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700);
        symlink("a", temp.path().join("relative")).unwrap();
        symlink(temp.path().join("relative/../a"), temp.path().join("absolute")).unwrap();
        assert!(is_same(made(&temp.path().join("absolute/b"), 0o700), &path));
        symlink("circle", temp.path().join("circle")).unwrap();
        assert!(existing(&temp.path().join("circle")).is_err());
        fs::write(temp.path().join("file"), "").unwrap();
        assert!(made(&temp.path().join("file"), 0o700).is_err() && made(&temp.path().join("file/x"), 0o700).is_err());
    }

    /// A directory that everybody may write to, as /var/tmp, with `mode`.
    fn shared(mode: u32) -> tempfile::TempDir {
        let temp = tempfile::tempdir().unwrap();
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(mode)).unwrap();
        temp
    }

    /// Gives a name to somebody else, as if they had made it. `false`: this user may not.
    fn give_away(path: &Path) -> bool {
        std::os::unix::fs::lchown(path, Some(OTHER), Some(OTHER)).is_ok()
    }

    #[test]
    fn what_somebody_else_may_have_prepared_is_refused() {
        for mode in [0o1777, 0o777, 0o1770] {
            let temp = shared(mode);
            let victims = temp.path().join("victims");
            fs::create_dir_all(victims.join("cache")).unwrap();
            for (planted, target) in [("link", victims.clone()), ("deep", victims.join("cache"))] {
                let link = temp.path().join(planted);
                symlink(&target, &link).unwrap();
                assert!(existing(&link).is_ok(), "ours");
                if !give_away(&link) {
                    return;
                }
                for refused in [existing(&link), made(&link, 0o700), made(&link.join("new"), 0o700)] {
                    let error = refused.unwrap_err();
                    assert!(error.to_string().contains(&format!("{planted} belongs to user {OTHER}")), "{error}");
                }
            }
            let theirs = temp.path().join("theirs");
            fs::create_dir_all(theirs.join("ours")).unwrap();
            chown(&theirs, Some(OTHER), None).unwrap();
            assert!(made(&theirs, 0o700).is_err() && existing(&theirs.join("ours")).is_err());
            assert!(!victims.join("new").exists() && !victims.join("cache/new").exists());
        }
    }

    #[test]
    fn a_file_that_somebody_else_could_write_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("file");
        fs::write(&path, "").unwrap();
        let refused = |path: &Path| file(path).map(drop).map_err(|error| error.to_string());
        for (mode, is_good) in [(0o644, true), (0o600, true), (0o664, !geteuid().is_root()), (0o646, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(refused(&path).is_ok(), is_good, "{mode:o}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        symlink(&path, temp.path().join("link")).unwrap();
        assert_eq!(refused(&temp.path().join("link")), Ok(()));
        if !give_away(&path) {
            return;
        }
        for theirs in [path.clone(), temp.path().join("link")] {
            let error = refused(&theirs).unwrap_err();
            assert!(error.contains(&format!("belongs to user {OTHER}")), "{error}");
        }
    }

    /// Whose directory it is, is who can change what is in it.
    #[test]
    fn a_link_in_somebody_elses_directory_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let theirs = temp.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        symlink("/usr", theirs.join("link")).unwrap();
        if !give_away(&theirs.join("link")) || !give_away(&theirs) {
            return;
        }
        assert!(existing(&theirs).is_ok(), "which nobody but us can have put here");
        assert!(existing(&theirs.join("link")).is_err());
    }
}
