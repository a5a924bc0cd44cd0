//! /dev/fuse and the mount that belongs to it.
//!
//! Root mounts by itself. An ordinary user may not call mount(2) and asks fusermount3(1), which is setuid root: it mounts and
//! sends the open /dev/fuse over a socket, whose number it finds in _FUSE_COMMFD (fusermount3 of libfuse 3).

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::{getegid, geteuid};

use super::{Error, mounts};
use crate::sys::{self, limit};
use crate::threads;

const DEVICE: &str = "/dev/fuse";
const HELPER: &str = "fusermount3";

/// How long it may take: it looks at the mount point, whose filesystem may not answer.
const HELPER_LIMIT: Duration = Duration::from_secs(10);
const LONGEST_MESSAGE: u64 = 4096;

/// What is mounted where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    /// Absolute, without symbolic links.
    pub(crate) dir: &'a Path,
    /// What /proc/mounts shows: the image, pinned.
    pub(crate) source: &'a str,
    /// Whether other users may look into it.
    pub(crate) allow_other: bool,
}

/// Mounts, and gives the descriptor on which the kernel's requests arrive. Nobody else has it.
pub(crate) fn mount(target: &Target<'_>) -> Result<OwnedFd, Error> {
    match mount_directly(target)? {
        Some(device) => Ok(device),
        None => mount_by_helper(target),
    }
}

/// `None` where this user may not.
fn mount_directly(target: &Target<'_>) -> Result<Option<OwnedFd>, Error> {
    let device = match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(device) => device,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
        Err(error)
            if matches!(error.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ENODEV | nix::libc::ENXIO)) =>
        {
            return Err(Error::NoDevice);
        }
        Err(source) => return Err(Error::Device { source }),
    };
    let dir_mode =
        fs::metadata(target.dir).map_err(|source| Error::Directory { dir: target.dir.to_owned(), source })?.mode();
    let data = kernel_options(device.as_raw_fd(), dir_mode, target.allow_other);
    // The superblock, not only the mount, becomes read-only: else each read would cost a GETATTR for the access time.
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    match nix::mount::mount(Some(target.source), target.dir, Some(mounts::TYPE), flags, Some(data.as_str())) {
        Ok(()) => Ok(Some(device.into())),
        Err(Errno::EPERM) => Ok(None),
        Err(errno) => Err(Error::Mount { dir: target.dir.to_owned(), source: errno.into() }),
    }
}

/// The options that the kernel's fuse takes with mount(2) (Linux, Documentation/filesystems/fuse.rst, "Mount options").
fn kernel_options(device: RawFd, dir_mode: u32, allow_other: bool) -> String {
    let file_type = dir_mode & nix::libc::S_IFMT;
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
    format!("ro,nosuid,nodev,default_permissions,subtype=crfs,fsname={source}{other}").into()
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
pub(crate) enum Detach {
    /// Only where nothing uses it.
    IfIdle,
    /// From the directory at once; those who still use it keep it.
    Lazily,
}

/// Unmounts what is mounted at `dir`, as root or by the helper.
pub(crate) fn unmount(dir: &Path, how: Detach) -> Result<(), Error> {
    let asked = dir.to_owned();
    match mounts::answered(dir, move || unmount_directly(&asked, how))? {
        Some(()) => Ok(()),
        None => unmount_by_helper(dir, how),
    }
}

/// `None` where this user may not.
fn unmount_directly(dir: &Path, how: Detach) -> Result<Option<()>, Error> {
    let lazily = if how == Detach::Lazily { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    match nix::mount::umount2(dir, MntFlags::UMOUNT_NOFOLLOW | lazily) {
        Ok(()) => Ok(Some(())),
        Err(Errno::EPERM) => Ok(None),
        Err(Errno::EBUSY) => Err(Error::Busy { dir: dir.to_owned() }),
        Err(errno) => Err(Error::Unmount { dir: dir.to_owned(), source: errno.into() }),
    }
}

fn unmount_by_helper(dir: &Path, how: Detach) -> Result<(), Error> {
    let how = if how == Detach::Lazily { "-uz" } else { "-u" };
    let mut command = Command::new(HELPER);
    command.env("LC_ALL", "C").arg(how).arg("--").arg(dir).stdin(Stdio::null()).stdout(Stdio::null());
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
        let text = kernel_options(5, 0o40755, true);
        assert!(text.starts_with("fd=5,rootmode=40000,user_id="), "{text}");
        assert!(text.ends_with(",default_permissions,allow_other"), "{text}");
        assert!(kernel_options(5, 0o40755, false).ends_with(",default_permissions"));
    }

    #[test]
    fn names_with_commas_stay_one_option_of_the_helper() {
        let target = Target { dir: Path::new("/mnt"), source: "oci:/a,b\\c@sha256:00", allow_other: false };
        let expected = "ro,nosuid,nodev,default_permissions,subtype=crfs,fsname=oci:/a\\,b\\\\c@sha256:00";
        assert_eq!(helper_options(&target), expected);
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
