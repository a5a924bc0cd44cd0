//! The FUSE frontend: a thin adapter; nothing outside of this file and its folder knows fuser.
//!
//! | request | answer |
//! |---|---|
//! | LOOKUP, GETATTR, READLINK, READDIR(PLUS), GET/LISTXATTR, STATFS | from memory, at once, on the FUSE thread: a process killed while it waits for one of these would stay |
//! | READ | what is in memory: at once; else by another thread, which may wait for the disk, or by a task, which may wait for the network: a reader that waits for a page can be killed |
//! | a name that is missing | an entry with inode 0: the kernel remembers that, too |
//! | OPEN, OPENDIR | ENOSYS: never sent again, the page cache is kept, and open() works even while nobody answers. In a store with layers OPEN is answered: EROFS to whoever wants to write |
//! | LSEEK where the view has holes, and in a store | from memory, at once; elsewhere ENOSYS: the kernel then sees each file as data up to its end |
//! | FLUSH, FSYNC, ACCESS, POLL and other things that the kernel does as well without us | ENOSYS, which it remembers |
//! | GETXATTR where the view has no xattr, but in a store | ENOSYS, which it remembers: `ls -l` asks for each file, and answers are not cached |
//! | LOOKUP, CREATE and RMDIR of what is there once it is asked for (forest/asked.rs) | by a task; whoever waits for it cannot be killed, so that it has a deadline |
//! | whatever else writes | EROFS (the superblock is read-only but in a store with layers, so it hardly ever gets here) |
//! | IOCTL | ENOTTY |
//!
//! No handle has state and an image never changes, so entries and attributes are valid for ever, and node ids are the tree's inode numbers
//! (forest.rs; what stands above the layers of a store may change, and is asked for again each time).
//! A panic while a request is answered costs that request, which gets EIO, and not the mount.
//!
//! fuser logs a warning for each request that is left to its default methods, hence all are written out here. It answers what it
//! does not know (STATX) with ENOSYS by itself.
//!
//! Who waits for a READ can be killed, since it waits for the pages; but for a page fault where read-ahead is off (madvise(MADV_RANDOM)): there
//! Linux 6.18 sends the READ from the fault itself and waits for its answer, so such a process stays until the read's deadline.
//!
//! LOOKUP of `.` and `..` is how the kernel finds a node by a file handle that it has forgotten, where it was told that it may
//! (`Options::nfs_export`); older kernels then ask for `/` of a node that they know no name of.
//!
//! Protocol: Linux `include/uapi/linux/fuse.h`, 7.31 and later as fuser 0.18 speaks it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, Config, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;

use self::asked::{RESENT, heard, later, remote, reply_entry};
use self::attr::{reply_attr, reply_xattr, wanted};
use self::overdue::Overdue;
use self::read::{Buffers, Late, Read};
use super::errno::Refused;
use super::forest::{Forest, NAME_MAX, Named, Node, Stat};
use super::view::BLOCK_SIZE;
use crate::threads;

mod asked;
mod attr;
mod known;
mod overdue;
mod read;
mod resume;

/// How long the kernel may remember entries and attributes: for ever (136 years).
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// The same for all nodes, since a number never comes to mean another one.
const GENERATION: Generation = Generation(0);

/// Requests that the kernel may have under way for pages read ahead, which most reads are to it: as many reads stalled on one layer freeze all
/// others. Its own 12 are few, and so are 4,096. Without root it allows no more than a part of the memory holds (fuse's `max_user_bgreq`).
/// Also its threshold for congestion: past that it sends small reads from the reader itself, who then cannot be killed while it waits.
const MAX_BACKGROUND: u16 = u16::MAX;

/// Bytes of a request's data: fuser makes this the longest READ, too. The kernel's own limit for it is 256 pages.
const MAX_REQUEST: u32 = 1 << 20;

/// What to ask the kernel for, each where it offers it.
///
/// Not READDIRPLUS_AUTO: it falls back to a LOOKUP for each name. Never AUTO_INVAL_DATA or WRITEBACK_CACHE, which cost requests for
/// nothing on an image, nor ABORT_ERROR, which fuser does not understand. ALLOW_IDMAP makes INIT fail on a mount without `default_permissions`.
/// POSIX_ACL is asked for only where ACLs may be: with it, the kernel asks for the ACL of each inode that another than its owner uses, once.
const CAPABILITIES: [InitFlags; 8] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_NO_OPEN_SUPPORT,
    InitFlags::FUSE_NO_OPENDIR_SUPPORT,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_ALLOW_IDMAP,
];

#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Show `trusted.*` xattrs in lists: the server has CAP_SYS_ADMIN in the initial user namespace.
    pub list_trusted: bool,
    /// File handles lead to nodes that the kernel has forgotten. Not for what is below an overlayfs that looks for the origin of its files
    /// (metacopy, redirect_dir, index, xino): Linux 6.18 takes the node that it finds so for invalid at the second look, and the file that was
    /// copied up is ESTALE from then on.
    pub nfs_export: bool,
}

/// Answers the kernel's requests from what is served.
pub struct Frontend {
    forest: Arc<Forest>,
    /// Where reads run that have to wait.
    runtime: Handle,
    buffers: Arc<Buffers>,
    overdue: Arc<Overdue<Late>>,
    options: Options,
    resends: Arc<AtomicBool>,
}

/// Whether the kernel gives out once more what was read and not answered (FUSE_HAS_RESEND, Linux 6.9). It has said so, or not, once the mount can be
/// used.
#[derive(Debug, Clone)]
pub struct Resends(Arc<AtomicBool>);

impl Resends {
    #[must_use]
    pub fn get(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl Frontend {
    #[must_use]
    pub fn new(forest: Arc<Forest>, runtime: Handle, options: Options) -> Self {
        let overdue = Arc::<Overdue<Late>>::default();
        let watched = Arc::clone(&overdue);
        runtime.spawn(async move { watched.watch(give_up).await });
        Self { forest, runtime, buffers: Arc::default(), overdue, options, resends: Arc::default() }
    }

    #[must_use]
    pub fn resends(&self) -> Resends {
        Resends(Arc::clone(&self.resends))
    }
}

/// A frontend that has agreed with the kernel on how to talk, and is ready to answer.
pub struct Server {
    session: Session<Frontend>,
}

impl Server {
    /// Waits for the kernel's INIT on a descriptor of /dev/fuse and answers it. The kernel sends it once the descriptor is mounted; mount(2)
    /// does not wait for the answer, but every other request does.
    ///
    /// The mount must have `default_permissions`: permissions are the kernel's to check, also through id-mapped mounts.
    ///
    /// # Errors
    /// Where the descriptor is no longer mounted, or the kernel's protocol is too old.
    pub fn handshake(frontend: Frontend, fd: OwnedFd) -> io::Result<Self> {
        session(frontend, fd).map(|session| Self { session })
    }

    /// Goes on with a descriptor on which another process has answered INIT in the same way. The kernel is to be asked for what that one left
    /// unanswered before this one runs.
    ///
    /// # Errors
    /// Where there are no descriptors for it.
    pub fn resumed(frontend: Frontend, fd: OwnedFd) -> io::Result<Self> {
        resume::resumed(frontend, fd).map(|session| Self { session })
    }

    /// Answers requests until the kernel is done with the mount, which may be long after it was unmounted (an overlayfs above it keeps it).
    ///
    /// # Errors
    /// Where the descriptor fails in another way, or there can be no thread for it.
    pub fn run(self) -> io::Result<()> {
        self.session.run().map_err(threads::explained)
    }
}

/// Has the kernel asked what it knows of a store, from now on, by a descriptor that another process has served.
///
/// # Errors
/// Where there are no descriptors for it.
pub fn ask_kernel(forest: &Forest, device: BorrowedFd<'_>) -> io::Result<()> {
    let device = device.try_clone_to_owned()?;
    forest.ask_kernel(Box::new(move |number| known::is_known(&device, number)));
    Ok(())
}

/// Who may use the mount is the kernel's to decide (`allow_other`), hence `All`: through an id-mapped mount requests come without a uid.
fn session<F: Filesystem>(filesystem: F, fd: OwnedFd) -> io::Result<Session<F>> {
    Session::from_fd(filesystem, fd, SessionACL::All, Config::default())
}

/// Answers a request, whose number all that is logged for it has. One that panics is dropped unanswered, which fuser makes EIO of; the panic itself
/// has been logged.
fn answered(request: &Request, operation: &'static str, node: INodeNo, answer: impl FnOnce()) {
    let span = tracing::debug_span!("fuse", operation, ino = node.0, request = request.unique().0);
    let _panicked = catch_unwind(AssertUnwindSafe(|| span.in_scope(answer)));
}

fn errno(refused: &Refused) -> Errno {
    Errno::from_i32(refused.errno() as i32)
}

/// The cache's disk has not answered in time.
fn give_up(late: Vec<Late>) {
    tracing::warn!(reads = late.len(), "the cache's disk does not answer; reads have failed");
    late.into_iter().for_each(Late::give_up);
}

impl Filesystem for Frontend {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.resends.store(config.capabilities().contains(InitFlags::FUSE_HAS_RESEND), Ordering::SeqCst);
        let acls = self.forest.has_acls().then_some(InitFlags::FUSE_POSIX_ACL);
        let export = self.options.nfs_export.then_some(InitFlags::FUSE_EXPORT_SUPPORT);
        for capability in CAPABILITIES.into_iter().chain(acls).chain(export) {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!(?capability, "the kernel does not offer it");
            }
        }
        let out_of_range = |nearest: u16| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("FUSE INIT: only {nearest} is possible"))
        };
        config.set_max_background(MAX_BACKGROUND).map_err(out_of_range)?;
        config.set_congestion_threshold(MAX_BACKGROUND).map_err(out_of_range)?;
        config.set_max_write(MAX_REQUEST).map_err(|nearest| out_of_range(nearest.try_into().unwrap_or(u16::MAX)))?;
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answered(req, "lookup", parent, || match self.forest.named(parent.0, name.as_bytes()) {
            Ok(Named::Later(found)) => drop(self.runtime.spawn(later(Arc::clone(&self.forest), found, reply))),
            named => reply_entry(&self.forest, named, reply),
        });
    }

    fn forget(&self, req: &Request, ino: INodeNo, times: u64) {
        answered(req, "forget", ino, || self.forest.forget(ino.0, times));
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        answered(req, "getattr", ino, || match self.forest.stat(ino.0) {
            Ok(stat) => {
                let (ttl, attr) = reply_attr(&stat);
                reply.attr(&ttl, &attr);
            }
            Err(refused) => reply.error(errno(&refused)),
        });
    }

    fn readlink(&self, req: &Request, number: INodeNo, reply: ReplyData) {
        answered(req, "readlink", number, || match self.forest.target(number.0) {
            Ok(target) => reply.data(&target),
            Err(refused) => reply.error(errno(&refused)),
        });
    }

    fn readdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        answered(req, "readdir", ino, || {
            let full = |next: u64, name: &[u8], stat: &Stat| {
                let (_, attr) = reply_attr(stat);
                reply.add(attr.ino, next, attr.kind, OsStr::from_bytes(name))
            };
            match self.forest.entries(ino.0, offset, full) {
                Ok(()) => reply.ok(),
                Err(refused) => reply.error(errno(&refused)),
            }
        });
    }

    fn readdirplus(&self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        answered(req, "readdirplus", ino, || {
            let full = |next: u64, name: &[u8], stat: &Stat| {
                let (ttl, attr) = reply_attr(stat);
                let is_full = reply.add(attr.ino, next, OsStr::from_bytes(name), &ttl, &attr, GENERATION);
                // The kernel knows these already.
                if !is_full && ![&b"."[..], b".."].contains(&name) {
                    self.forest.remember(stat.number);
                }
                is_full
            };
            match self.forest.entries(ino.0, offset, full) {
                Ok(()) => reply.ok(),
                Err(refused) => reply.error(errno(&refused)),
            }
        });
    }

    fn read(
        &self,
        req: &Request,
        number: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        answered(req, "read", number, || match self.forest.node(number.0) {
            Ok(Node::InView { view, ino, .. }) => {
                Read::new(ino, offset, size, reply).answer(&self.runtime, &view, &self.buffers, &self.overdue);
            }
            Ok(made) => match (made.made_bytes(offset, size), self.forest.asked(number.0)) {
                (None, Some(asked)) => drop(self.runtime.spawn(remote(asked.read(number.0, offset, size), reply))),
                (bytes, _) => reply.data(&bytes.unwrap_or_default()),
            },
            Err(refused) => reply.error(errno(&refused)),
        });
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        answered(req, "statfs", ino, || {
            let totals = self.forest.totals();
            reply.statfs(totals.blocks, 0, 0, totals.inodes, 0, BLOCK_SIZE, NAME_MAX, BLOCK_SIZE);
        });
    }

    fn getxattr(&self, req: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        answered(req, "getxattr", number, || {
            reply_xattr(reply, self.forest.xattr(number.0, self.options.list_trusted, name.as_bytes(), size));
        });
    }

    fn listxattr(&self, req: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        answered(req, "listxattr", number, || {
            reply_xattr(reply, self.forest.xattr_names(number.0, self.options.list_trusted, size));
        });
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(errno(&Refused::NoSuchIoctl));
    }

    fn lseek(&self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        answered(req, "lseek", ino, || {
            match wanted(offset, whence).and_then(|(offset, wanted)| self.forest.seek(ino.0, offset, wanted)) {
                Ok(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
                Err(refused) => reply.error(errno(&refused)),
            }
        });
    }

    // Left to the kernel.

    fn open(&self, _req: &Request, _ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match flags.acc_mode() {
            _ if !self.forest.is_asked() => reply.error(errno(&Refused::LeftToKernel)),
            // Into the kernel's copy, which all readers see, one could write by mmap, and nobody would be asked.
            OpenAccMode::O_RDONLY => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            _ => reply.error(errno(&Refused::ReadOnly)),
        }
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(errno(&Refused::LeftToKernel));
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.error(errno(&Refused::LeftToKernel));
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.error(errno(&Refused::LeftToKernel));
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.error(errno(&Refused::LeftToKernel));
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(errno(&Refused::LeftToKernel));
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(errno(&Refused::LeftToKernel));
    }

    fn bmap(&self, _req: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(errno(&Refused::LeftToKernel));
    }

    fn getlk(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        _start: u64,
        _end: u64,
        _typ: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        reply.error(errno(&Refused::LeftToKernel));
    }

    fn setlk(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        _start: u64,
        _end: u64,
        _typ: i32,
        _pid: u32,
        _sleep: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(errno(&Refused::LeftToKernel));
    }

    // An image cannot be changed.

    fn setattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(errno(&Refused::ReadOnly));
    }

    fn mknod(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(errno(&Refused::ReadOnly));
    }

    fn mkdir(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        reply.error(errno(&Refused::ReadOnly));
    }

    fn unlink(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(errno(&Refused::ReadOnly));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answered(req, "rmdir", parent, || match self.forest.asked(parent.0) {
            // A server that was killed may have counted it. To count one use too many is safe.
            Some(_) if req.unique().0 & RESENT != 0 => reply.error(Errno::ENOENT),
            Some(asked) => {
                drop(self.runtime.spawn(heard(asked.remove(parent.0, name.as_bytes()), reply, ReplyEmpty::error)))
            }
            None => reply.error(errno(&Refused::ReadOnly)),
        });
    }

    fn symlink(&self, _req: &Request, _parent: INodeNo, _link_name: &OsStr, _target: &Path, reply: ReplyEntry) {
        reply.error(errno(&Refused::ReadOnly));
    }

    fn rename(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _newparent: INodeNo,
        _newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(errno(&Refused::ReadOnly));
    }

    fn link(&self, _req: &Request, _ino: INodeNo, _newparent: INodeNo, _newname: &OsStr, reply: ReplyEntry) {
        reply.error(errno(&Refused::ReadOnly));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        answered(req, "create", parent, || match self.forest.asked(parent.0) {
            Some(asked) => {
                drop(self.runtime.spawn(heard(asked.create(parent.0, name.as_bytes()), reply, ReplyCreate::error)))
            }
            None => reply.error(errno(&Refused::ReadOnly)),
        });
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(errno(&Refused::ReadOnly));
    }

    fn setxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(errno(&Refused::ReadOnly));
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(errno(&Refused::ReadOnly));
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(errno(&Refused::ReadOnly));
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(errno(&Refused::ReadOnly));
    }
}

#[cfg(test)]
mod tests;
