//! /dev/fuse and the mount that belongs to it.
//!
//! Root mounts by itself. An ordinary user may not call mount(2) and asks fusermount3(1), which is setuid root: it mounts and
//! sends the open /dev/fuse over a socket, whose number it finds in _FUSE_COMMFD (fusermount3 of libfuse 3).

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::{getegid, geteuid};

use super::mounts::{self, Identity, Mount};
use super::{Error, Target, attach};
use crate::errors::chain;
use crate::sys::{self, limit};
use crate::threads;

const DEVICE: &str = "/dev/fuse";
const HELPER: &str = "fusermount3";

/// How long it may take: it looks at the mount point, whose filesystem may not answer.
const HELPER_LIMIT: Duration = Duration::from_secs(10);
const LONGEST_MESSAGE: u64 = 4096;

/// What mounting gives.
pub(crate) struct Made {
    /// The descriptor on which the kernel's requests arrive. Nobody else has it.
    pub(crate) device: OwnedFd,
    pub(crate) identity: Identity,
    /// The mount's root directory, whatever is mounted on it. While it is open, the mount is busy.
    pub(crate) root: Option<OwnedFd>,
}

/// Mounts.
pub(crate) fn mount(target: &Target<'_>) -> Result<Made, Error> {
    let failed = |source| Error::Directory { dir: target.dir.to_owned(), source };
    if let Some(device) = open_device()? {
        match attach::mount(target, &kernel_options(device.as_raw_fd(), target.allow_other)) {
            Ok((identity, root)) => return Ok(Made { device: device.into(), identity, root: Some(root) }),
            // What is wrong with the target, mount(2) says as well.
            Err(error) => tracing::debug!(%error, "not mounted by fsmount(2)"),
        }
    }
    let before = mounts::all().map_err(failed)?;
    let device = match mount_directly(target)? {
        Some(device) => device,
        None => mount_by_helper(target)?,
    };
    let made = mounts::all().map_err(failed).and_then(|after| made_since(&before, &after, target));
    let made = made.inspect_err(|error| tracing::error!(error = chain(&error), "a mount may stay behind"));
    Ok(Made { device, identity: made?, root: None })
}

/// What was mounted since `before`. Of two mounts, nobody can tell whose is whose.
fn made_since(before: &[Mount], after: &[Mount], target: &Target<'_>) -> Result<Identity, Error> {
    let is_made = |mount: &&Mount| mount.is_ours() && mount.point == target.dir && mount.source == *target.source;
    let made: Vec<_> = after.iter().filter(is_made).filter(|mount| !before.contains(mount)).collect();
    let (dir, source) = (target.dir.to_owned(), target.source.to_owned());
    match made.as_slice() {
        [] => Err(Error::NotMounted { dir }),
        [one] => Ok(Identity { id: one.id, device: one.device, source, user: one.user() }),
        _ => Err(Error::AlreadyMounted { dir, image: source }),
    }
}

/// `None` where this user may not.
fn open_device() -> Result<Option<File>, Error> {
    match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(device) => Ok(Some(device)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        Err(error)
            if matches!(error.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ENODEV | nix::libc::ENXIO)) =>
        {
            Err(Error::NoDevice)
        }
        Err(source) => Err(Error::Device { source }),
    }
}

/// `None` where this user may not.
fn mount_directly(target: &Target<'_>) -> Result<Option<OwnedFd>, Error> {
    // One that a mount was made with cannot be used again.
    let Some(device) = open_device()? else { return Ok(None) };
    let data = kernel_options(device.as_raw_fd(), target.allow_other);
    // The superblock, not only the mount, becomes read-only: else each read would cost a GETATTR for the access time.
    let read_only = if target.is_asked_for_changes { MsFlags::empty() } else { MsFlags::MS_RDONLY };
    let flags = read_only | flags(target.noexec);
    match nix::mount::mount(Some(target.source), target.dir, Some(mounts::TYPE), flags, Some(data.as_str())) {
        Ok(()) => Ok(Some(device.into())),
        Err(Errno::EPERM) => Ok(None),
        Err(errno) => Err(Error::Mount { dir: target.dir.to_owned(), source: errno.into() }),
    }
}

fn flags(noexec: bool) -> MsFlags {
    let always = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if noexec { always | MsFlags::MS_NOEXEC } else { always }
}

/// Changes all of a mount that can be changed.
pub(crate) fn remount(mount: &Mount, noexec: bool) -> Result<(), Error> {
    let (dir, mount) = (mount.point.clone(), mount.clone());
    look_again(&dir, |now| *now == mount)?;
    // Of the mount alone: its filesystem stays as it is, which is read-only.
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | flags(noexec);
    let remounted = nix::mount::mount(None::<&str>, &dir, None::<&str>, flags, None::<&str>);
    remounted.map_err(|errno| Error::Remount { dir, source: errno.into() })
}

/// The target is a directory. It is not asked, since a mount that is there already may not answer yet.
///
/// The options that the kernel's fuse takes with mount(2) (Linux, Documentation/filesystems/fuse.rst, "Mount options").
fn kernel_options(device: RawFd, allow_other: bool) -> String {
    let file_type = nix::libc::S_IFDIR;
    let other = if allow_other { ",allow_other" } else { "" };
    let (uid, gid) = (geteuid(), getegid());
    format!("fd={device},rootmode={file_type:o},user_id={uid},group_id={gid},default_permissions{other}")
}

fn mount_by_helper(target: &Target<'_>) -> Result<OwnedFd, Error> {
    let talk = |source| Error::HelperTalk { source };
    let (ours, theirs) = UnixStream::pair().map_err(talk)?;
    ours.set_read_timeout(Some(HELPER_LIMIT)).map_err(talk)?;
    let helper = start_helper(target, theirs)?;
    let received = receive_device(&ours);
    let (is_done, message) = ended(helper).map_err(talk)?;
    match received {
        Ok(device) if is_done => Ok(device),
        Err(source) if is_done => Err(talk(source)),
        _ => Err(Error::Helper { dir: target.dir.to_owned(), message }),
    }
}

/// The helper gets its end of the socket as standard input: a descriptor that is inherited without further ado.
fn start_helper(target: &Target<'_>, socket: UnixStream) -> Result<Child, Error> {
    let mut command = Command::new(HELPER);
    command.env("_FUSE_COMMFD", "0").env("LC_ALL", "C").arg("-o").arg(helper_options(target)).arg("--").arg(target.dir);
    command.stdin(OwnedFd::from(socket)).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().map_err(no_helper)
}

fn no_helper(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::NoHelper,
        _ => Error::HelperTalk { source: threads::explained(error) },
    }
}

/// fusermount3 takes a comma or a backslash in a name with a backslash before it.
fn helper_options(target: &Target<'_>) -> OsString {
    let source = target.source.replace('\\', "\\\\").replace(',', "\\,");
    let other = if target.allow_other { ",allow_other" } else { "" };
    let access = if target.is_asked_for_changes { "rw" } else { "ro" };
    let noexec = if target.noexec { ",noexec" } else { "" };
    format!("{access},nosuid,nodev{noexec},default_permissions,subtype=crfs,fsname={source}{other}").into()
}

fn receive_device(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0u8];
    let mut data = [IoSliceMut::new(&mut byte)];
    let mut control = nix::cmsg_space!(RawFd);
    let message = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            message => break message?,
        }
    };
    let descriptors = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmRights(descriptors) => Some(sys::own_received(descriptors)),
        _ => None,
    });
    let missing = || io::Error::new(io::ErrorKind::UnexpectedEof, "no descriptor of /dev/fuse arrived");
    descriptors.and_then(|descriptors| descriptors.into_iter().next()).ok_or_else(missing)
}

/// What the helper complained of, on one line.
fn helper_message(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let text = text.trim().replace('\n', "; ");
    if text.is_empty() { format!("{HELPER} failed and did not say why") } else { text }
}

/// How a mount is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detach {
    /// Only where nothing uses it.
    IfIdle,
    /// From the directory at once; those who still use it keep it.
    Lazily,
    /// Only where nothing uses it, and what waits for an answer of it fails. For root alone; for others it is as if idle.
    ByForce,
    /// Both: from the directory at once, and what waits for an answer of it fails. For others than root it is as if lazily.
    LazilyByForce,
}

/// Unmounts what is mounted at `dir`, as root or by the helper, where `is_it` still knows it then.
pub(crate) fn unmount(dir: &Path, how: Detach, is_it: impl Fn(&Mount) -> bool + Send + 'static) -> Result<(), Error> {
    let asked = dir.to_owned();
    let unmounted = mounts::answered(dir, move || Ok((unmount_directly(&asked, how, &is_it)?, is_it)))?;
    match unmounted {
        (Some(()), _) => Ok(()),
        (None, is_it) => unmount_by_helper(dir, how, is_it),
    }
}

/// The kernel unmounts whatever is topmost: directly before, this is to be the mount that was meant.
fn look_again(dir: &Path, is_it: impl Fn(&Mount) -> bool) -> Result<(), Error> {
    match mounts::at(dir) {
        Ok(Some(mount)) if is_it(&mount) => Ok(()),
        Ok(_) => Err(Error::Replaced { dir: dir.to_owned() }),
        Err(source) => Err(Error::Directory { dir: dir.to_owned(), source }),
    }
}

/// `None` where this user may not.
fn unmount_directly(dir: &Path, how: Detach, is_it: impl Fn(&Mount) -> bool) -> Result<Option<()>, Error> {
    let how = match how {
        Detach::IfIdle => MntFlags::empty(),
        Detach::Lazily => MntFlags::MNT_DETACH,
        Detach::ByForce => MntFlags::MNT_FORCE,
        Detach::LazilyByForce => MntFlags::MNT_FORCE | MntFlags::MNT_DETACH,
    };
    look_again(dir, is_it)?;
    match nix::mount::umount2(dir, MntFlags::UMOUNT_NOFOLLOW | how) {
        Ok(()) => Ok(Some(())),
        Err(Errno::EPERM) => Ok(None),
        Err(Errno::EBUSY) => Err(Error::Busy { dir: dir.to_owned() }),
        Err(errno) => Err(Error::Unmount { dir: dir.to_owned(), source: errno.into() }),
    }
}

fn unmount_by_helper(dir: &Path, how: Detach, is_it: impl Fn(&Mount) -> bool) -> Result<(), Error> {
    let how = if matches!(how, Detach::Lazily | Detach::LazilyByForce) { "-uz" } else { "-u" };
    let mut command = Command::new(HELPER);
    command.env("LC_ALL", "C").arg(how).arg("--").arg(dir).stdin(Stdio::null()).stdout(Stdio::null());
    look_again(dir, is_it)?;
    let helper = command.stderr(Stdio::piped()).spawn().map_err(no_helper)?;
    match ended(helper).map_err(no_helper)? {
        (true, _) => Ok(()),
        (false, message) if message.contains("busy") => Err(Error::Busy { dir: dir.to_owned() }),
        (false, message) => Err(Error::HelperUnmount { dir: dir.to_owned(), message }),
    }
}

/// Waits for the helper. Whether it has done what it was to do, and what it complained of.
fn ended(mut helper: Child) -> io::Result<(bool, String)> {
    let Some(status) = limit::wait_for(&mut helper, HELPER_LIMIT)? else {
        return Ok((false, format!("{HELPER} has not ended within {} s", HELPER_LIMIT.as_secs())));
    };
    let mut stderr = Vec::new();
    if let Some(output) = helper.stderr.take() {
        output.take(LONGEST_MESSAGE).read_to_end(&mut stderr)?;
    }
    Ok((status.success(), helper_message(&stderr)))
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{ControlMessage, sendmsg};
    use std::io::{IoSlice, Write};

    use super::*;

    #[test]
    fn options_for_the_kernel() {
        let text = kernel_options(5, true);
        assert!(text.starts_with("fd=5,rootmode=40000,user_id="), "{text}");
        assert!(text.ends_with(",default_permissions,allow_other"), "{text}");
        assert!(kernel_options(5, false).ends_with(",default_permissions"));
    }

    #[test]
    fn what_is_not_meant_is_not_unmounted() {
        use nix::mount::{MntFlags, MsFlags, mount, umount2};
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().canonicalize().unwrap();
        let none = None::<&str>;
        if mount(Some("theirs"), &point, Some("tmpfs"), MsFlags::empty(), none).is_err() {
            return;
        }
        for how in [Detach::IfIdle, Detach::Lazily, Detach::LazilyByForce] {
            let refused = unmount(&point, how, |mount| mount.source == "mine");
            assert!(matches!(refused, Err(Error::Replaced { .. })), "{refused:?}");
            assert!(matches!(unmount_by_helper(&point, how, |_| false), Err(Error::Replaced { .. })));
            assert!(mounts::at(&point).unwrap().is_some_and(|mount| mount.source == "theirs"));
        }
        // Something else came between the first look and the last.
        let seen = mounts::at(&point).unwrap().unwrap();
        mount(Some("other"), &point, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        let (first, other) = (seen.clone(), mounts::at(&point).unwrap().unwrap());
        assert!(unmount(&point, Detach::Lazily, move |mount| *mount == first).is_err());
        unmount(&point, Detach::Lazily, move |mount| *mount == other).unwrap();
        unmount(&point, Detach::IfIdle, move |mount| *mount == seen).unwrap();
        assert!(mounts::at(&point).unwrap().is_none());
        assert!(umount2(&point, MntFlags::empty()).is_err());
    }

    #[test]
    fn what_was_mounted_is_told_from_what_was_there_and_what_others_mounted() {
        let mount = |id: u32, minor: u32, source: &str| Mount {
            id,
            parent: 1,
            device: mounts::Device { major: 0, minor },
            point: "/mnt".into(),
            kind: mounts::TYPE.into(),
            source: source.into(),
            options: "ro,user_id=7".into(),
        };
        let target = Target {
            dir: Path::new("/mnt"),
            source: "mine",
            allow_other: false,
            is_asked_for_changes: false,
            noexec: false,
        };
        let (old, theirs, mine) = (mount(5, 50, "mine"), mount(6, 51, "theirs"), mount(7, 52, "mine"));
        let made = |after: &[Mount]| made_since(std::slice::from_ref(&old), after, &target);
        let found = made(&[old.clone(), mine.clone(), theirs.clone()]).unwrap();
        assert!(found.is(&mine) && !found.is(&old) && !found.is(&theirs));
        assert!(matches!(made(&[old.clone(), theirs]), Err(Error::NotMounted { .. })));
        assert!(matches!(made(&[mine, mount(8, 53, "mine")]), Err(Error::AlreadyMounted { .. })));
        assert!(matches!(
            made(&[Mount { point: "/other".into(), ..mount(9, 54, "mine") }]),
            Err(Error::NotMounted { .. })
        ));
    }

    #[test]
    fn names_with_commas_stay_one_option_of_the_helper() {
        let target = Target {
            dir: Path::new("/mnt"),
            source: "oci:/a,b\\c@sha256:00",
            allow_other: false,
            is_asked_for_changes: false,
            noexec: false,
        };
        let expected = "ro,nosuid,nodev,default_permissions,subtype=crfs,fsname=oci:/a\\,b\\\\c@sha256:00";
        assert_eq!(helper_options(&target), expected);
        let more = helper_options(&Target { noexec: true, allow_other: true, ..target });
        assert!(more.to_string_lossy().contains(",noexec,"), "{more:?}");
    }

    #[test]
    fn a_descriptor_comes_over_the_socket() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let rights = [writer.as_raw_fd()];
        let parts = [ControlMessage::ScmRights(&rights)];
        sendmsg::<()>(theirs.as_raw_fd(), &[IoSlice::new(b"\0")], &parts, MsgFlags::empty(), None).unwrap();
        drop(writer);
        let received = receive_device(&ours).unwrap();
        UnixStream::from(received).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn a_helper_that_sends_nothing_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert_eq!(receive_device(&ours).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn complaints_of_the_helper_are_one_line() {
        assert_eq!(helper_message(b"fusermount3: a\nfusermount3: b\n"), "fusermount3: a; fusermount3: b");
        assert!(helper_message(b"\n").contains("did not say why"));
    }
}
