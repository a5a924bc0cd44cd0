//! The FUSE frontend: a thin adapter; nothing outside of this file and its folder knows fuser.
//!
//! | request | answer |
//! |---|---|
//! | LOOKUP, GETATTR, READLINK, READDIR(PLUS), GET/LISTXATTR, STATFS | from memory, at once, on the FUSE thread: a process killed while it waits for one of these would stay |
//! | READ | what is in memory: at once; else by another thread, which may wait for the disk, or by a task, which may wait for the network: a reader that waits for a page can be killed |
//! | a name that is missing | an entry with inode 0: the kernel remembers that, too |
//! | OPEN, OPENDIR | ENOSYS: never sent again, the page cache is kept, and open() works even while nobody answers |
//! | FLUSH, FSYNC, ACCESS, LSEEK, POLL and other things that the kernel does as well without us | ENOSYS, which it remembers |
//! | GETXATTR where the view has no xattr | ENOSYS, which it remembers: `ls -l` asks for each file, and answers are not cached |
//! | whatever writes | EROFS (the superblock is read-only, so it hardly ever gets here) |
//! | IOCTL | ENOTTY |
//!
//! No handle has state and an image never changes, so entries and attributes are valid for ever, and node ids are the tree's inode numbers.
//! fuser logs a warning for each request that is left to its default methods, hence all are written out here. It answers what it
//! does not know (STATX) with ENOSYS by itself.
//!
//! Who waits for a READ can be killed, since it waits for the pages; but for a page fault where read-ahead is off (madvise(MADV_RANDOM)): there
//! Linux 6.18 sends the READ from the fault itself and waits for its answer, so such a process stays until the read's deadline.
//!
//! LSEEK: left to the kernel, SEEK_DATA and SEEK_HOLE see each file as data up to its end, which is always right.
//!
//! Protocol: Linux `include/uapi/linux/fuse.h`, 7.31 and later as fuser 0.18 speaks it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, Config, CopyFileRangeFlags, Errno, FileAttr, FileHandle, Filesystem, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    Session, SessionACL, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;

use self::attr::{file_attr, no_entry};
use self::read::{Buffers, Read};
use super::errno::Refused;
use super::tree::Ino;
use super::view::{BLOCK_SIZE, View};
use super::xattr;

mod attr;
mod read;

/// How long the kernel may remember entries and attributes: for ever (136 years).
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// The same for all nodes, since a number never comes to mean another one.
const GENERATION: Generation = Generation(0);

/// The longest name, as Linux has it (NAME_MAX).
const NAME_MAX: u32 = 255;

/// Requests that the kernel may have under way for pages read ahead. At its own 12, that many reads stalled on one file would freeze all others.
const MAX_BACKGROUND: u16 = 4096;

/// Bytes of a request's data: fuser makes this the longest READ, too. The kernel's own limit for it is 256 pages.
const MAX_REQUEST: u32 = 1 << 20;

/// What to ask the kernel for, each where it offers it.
///
/// Not READDIRPLUS_AUTO: it falls back to a LOOKUP for each name. Never POSIX_ACL, AUTO_INVAL_DATA or WRITEBACK_CACHE, which cost requests for
/// nothing on an image, nor ABORT_ERROR, which fuser does not understand. ALLOW_IDMAP makes INIT fail on a mount without `default_permissions`.
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
    /// The upper half of every inode number but the root's. Single-layer views of one image get different ones: fuse-overlayfs shows the
    /// numbers of its lower directories as they are, and files of different layers would look like hard links of each other.
    pub inode_group: u32,
}

/// Answers the kernel's requests from a view.
pub struct Frontend {
    view: Arc<View>,
    /// Where reads run that have to wait.
    runtime: Handle,
    buffers: Arc<Buffers>,
    options: Options,
}

impl Frontend {
    #[must_use]
    pub fn new(view: Arc<View>, runtime: Handle, options: Options) -> Self {
        Self { view, runtime, buffers: Arc::default(), options }
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

    /// Answers requests until the kernel is done with the mount, which may be long after it was unmounted (an overlayfs above it keeps it).
    ///
    /// # Errors
    /// Where the descriptor fails in another way.
    pub fn run(self) -> io::Result<()> {
        self.session.run()
    }
}

/// Who may use the mount is the kernel's to decide (`allow_other`), hence `All`: through an id-mapped mount requests come without a uid.
fn session<F: Filesystem>(filesystem: F, fd: OwnedFd) -> io::Result<Session<F>> {
    Session::from_fd(filesystem, fd, SessionACL::All, Config::default())
}

fn errno(refused: &Refused) -> Errno {
    Errno::from_i32(refused.errno() as i32)
}

impl Frontend {
    /// The tree's number of an inode as the kernel knows it: the root is 1 (FUSE_ROOT_ID) in every group.
    fn ino(&self, number: INodeNo) -> Result<Ino, Refused> {
        let ino = number.0 & u64::from(u32::MAX);
        Ino::new(ino).filter(|ino| self.number(*ino) == number).ok_or(Refused::UnknownInode)
    }

    fn number(&self, ino: Ino) -> INodeNo {
        let group = if ino == Ino::ROOT { 0 } else { u64::from(self.options.inode_group) << 32 };
        INodeNo(group | ino.get())
    }

    fn attr_of(&self, ino: Ino) -> Option<FileAttr> {
        let attr = self.view.tree().attr(ino)?;
        Some(FileAttr { ino: self.number(ino), ..file_attr(&attr) })
    }

    fn attr(&self, number: INodeNo) -> Result<FileAttr, Refused> {
        self.attr_of(self.ino(number)?).ok_or(Refused::UnknownInode)
    }

    fn entry(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Refused> {
        let dir = self.ino(parent)?;
        if !self.view.is_dir(dir) {
            return Err(Refused::NotADirectory);
        }
        let found = self.view.tree().lookup(dir, name.as_bytes());
        found.map_or_else(|| Ok(no_entry()), |ino| self.attr_of(ino).ok_or(Refused::UnknownInode))
    }

    /// A directory's entries from a position on, each with the position after it.
    fn entries(&self, dir: INodeNo, from: u64) -> Result<impl Iterator<Item = (u64, &OsStr, FileAttr)>, Refused> {
        let start = usize::try_from(from).unwrap_or(usize::MAX);
        let entries = self.view.entries(self.ino(dir)?, start).ok_or(Refused::NotADirectory)?;
        Ok((from.saturating_add(1)..)
            .zip(entries)
            .filter_map(|(next, (name, ino))| Some((next, OsStr::from_bytes(name), self.attr_of(ino)?))))
    }
}

fn reply_xattr(reply: ReplyXattr, answer: Result<xattr::Answer<'_>, Refused>) {
    match answer {
        Ok(xattr::Answer::Size(size)) => reply.size(size),
        Ok(xattr::Answer::Bytes(bytes)) => reply.data(&bytes),
        Err(refused) => reply.error(errno(&refused)),
    }
}

impl Filesystem for Frontend {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in CAPABILITIES {
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

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.entry(parent, name) {
            Ok(attr) => reply.entry(&FOR_EVER, &attr, GENERATION),
            Err(refused) => reply.error(errno(&refused)),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Ok(attr) => reply.attr(&FOR_EVER, &attr),
            Err(refused) => reply.error(errno(&refused)),
        }
    }

    fn readlink(&self, _req: &Request, number: INodeNo, reply: ReplyData) {
        let target = self.ino(number).and_then(|ino| self.view.tree().readlink(ino).ok_or(Refused::NotASymlink));
        match target {
            Ok(target) => reply.data(target),
            Err(refused) => reply.error(errno(&refused)),
        }
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.entries(ino, offset) {
            Ok(mut entries) => {
                let full = |(next, name, attr): (u64, &OsStr, FileAttr)| reply.add(attr.ino, next, attr.kind, name);
                entries.any(full);
                reply.ok();
            }
            Err(refused) => reply.error(errno(&refused)),
        }
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        match self.entries(ino, offset) {
            Ok(mut entries) => {
                let full = |(next, name, attr): (u64, &OsStr, FileAttr)| {
                    reply.add(attr.ino, next, name, &FOR_EVER, &attr, GENERATION)
                };
                entries.any(full);
                reply.ok();
            }
            Err(refused) => reply.error(errno(&refused)),
        }
    }

    fn read(
        &self,
        _req: &Request,
        number: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let ino = match self.ino(number) {
            Ok(ino) => ino,
            Err(refused) => return reply.error(errno(&refused)),
        };
        let read = Read { ino, offset, size, reply };
        read.answer(&self.runtime, &self.view, &self.buffers);
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let totals = self.view.totals();
        reply.statfs(totals.blocks, 0, 0, totals.inodes, 0, BLOCK_SIZE, NAME_MAX, BLOCK_SIZE);
    }

    fn getxattr(&self, _req: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = self
            .ino(number)
            .and_then(|ino| xattr::get(&self.view, self.options.list_trusted, ino, name.as_bytes(), size));
        reply_xattr(reply, value);
    }

    fn listxattr(&self, _req: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self.ino(number).and_then(|ino| xattr::list(&self.view, self.options.list_trusted, ino, size));
        reply_xattr(reply, names);
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

    // Left to the kernel.

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(errno(&Refused::LeftToKernel));
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

    fn lseek(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _offset: i64, _whence: i32, reply: ReplyLseek) {
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

    fn rmdir(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(errno(&Refused::ReadOnly));
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
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(errno(&Refused::ReadOnly));
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
