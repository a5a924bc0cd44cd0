//! FUSE: a thread of this process answers the kernel, on a descriptor of /dev/fuse.

use std::future::ready;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::Error;
use super::frontend::{Attached, Frontend, Keep, Mounted, looked_up, on_thread, panicked};
use crate::fs::forest::Forest;
use crate::fs::fuse::{self, Options, Server};
use crate::keeper;
use crate::kernel::Target;
use crate::kernel::fusedev::{self, Made};

/// How it answers.
pub(crate) struct Fuse(pub(crate) Options);

impl Frontend for Fuse {
    fn name(&self) -> &'static str {
        "fuse"
    }

    fn attach(&self, forest: Arc<Forest>, target: &Target<'_>) -> Result<Attached, Error> {
        let make = || fusedev::mount(target).map(|Made { device, identity, root }| (identity, (device, root)));
        let (mounted, (device, root)) = Mounted::by(target, make)?;
        let again = device.try_clone().map_err(|source| Error::Runtime { source })?;
        let answers = fuse::Frontend::new(forest, Handle::current(), self.0);
        let resends = answers.resends();
        // It is over when /dev/fuse says ENODEV, which may be long after it was unmounted.
        let ended = on_thread("fuse", move || Server::handshake(answers, device)?.run());
        let ended = ended.map_err(|source| Error::Runtime { source })?;
        let usable = looked_up(mounted.dir.clone(), root);
        let keep: Option<Keep> = Some(Box::new(move || resends.get().then_some(again)));
        Ok(Attached { mounted, usable: Box::pin(usable), ended: Box::pin(async move { why(ended.await) }), keep })
    }

    fn resume(&self, forest: Arc<Forest>, mounted: Mounted, device: OwnedFd) -> Result<Attached, Error> {
        let failed = |source| Error::Runtime { source };
        let again = device.try_clone().map_err(failed)?;
        let server = Server::resumed(fuse::Frontend::new(forest, Handle::current(), self.0), device).map_err(failed)?;
        keeper::resend(again.as_fd()).map_err(failed)?;
        let ended = on_thread("fuse", move || server.run()).map_err(failed)?;
        let ended = Box::pin(async move { why(ended.await) });
        // Who looks into it finds it answered, sooner or later.
        Ok(Attached { mounted, usable: Box::pin(ready(Ok(()))), ended, keep: None })
    }
}

fn why(ended: Result<io::Result<()>, oneshot::error::RecvError>) -> io::Error {
    match ended {
        Ok(Ok(())) => io::Error::new(io::ErrorKind::ConnectionAborted, "the kernel ended the connection"),
        Ok(Err(error)) => error,
        Err(_) => panicked(),
    }
}
