//! What a service manager is told: a datagram to $NOTIFY_SOCKET (sd_notify(3)).

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

const PATIENCE: Duration = Duration::from_secs(5);

/// Says that the service is ready and that `server` is its main process. A name that starts with `@` is an abstract socket.
///
/// # Errors
/// Where the socket's name is unusable or nobody listens there.
pub fn notify(socket: &OsStr, server: u32) -> io::Result<()> {
    notify_within(PATIENCE, socket, server)
}

fn notify_within(patience: Duration, socket: &OsStr, server: u32) -> io::Result<()> {
    tell(patience, socket, &format!("MAINPID={server}\nREADY=1\n"), None)
}

/// Says something, and gives a descriptor along.
pub(super) fn tell(
    patience: Duration,
    socket: &OsStr,
    message: &str,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => UnixAddr::new_abstract(name)?,
        None => UnixAddr::new(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    // A manager that is stopped takes as many as its queue has.
    sender.set_write_timeout(Some(patience))?;
    let descriptors: Vec<_> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let control: &[_] = if descriptors.is_empty() { &[] } else { &rights };
    let data = [IoSlice::new(message.as_bytes())];
    sendmsg(sender.as_raw_fd(), &data, control, MsgFlags::MSG_NOSIGNAL, Some(&address))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 64];
        let len = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    #[test]
    fn the_manager_hears_of_it_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        notify(path.as_os_str(), 42).unwrap();
        assert_eq!(received(&manager), "MAINPID=42\nREADY=1\n");

        let name = format!("crfs-test-{}", std::process::id());
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        notify(OsStr::new(&format!("@{name}")), 43).unwrap();
        assert_eq!(received(&manager), "MAINPID=43\nREADY=1\n");
    }

    #[test]
    fn a_manager_that_does_not_listen_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let _manager = UnixDatagram::bind(&path).unwrap();
        let filler = UnixDatagram::unbound().unwrap();
        filler.set_nonblocking(true).unwrap();
        while filler.send_to(b"x", &path).is_ok() {}
        assert!(notify_within(Duration::from_millis(1), path.as_os_str(), 1).is_err());
    }

    #[test]
    fn nobody_listening_is_an_error() {
        assert!(notify(OsStr::new("/nonexistent/notify"), 1).is_err());
    }
}
