//! Real mounts for tests. Whatever happens, none is left behind.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use super::*;
use crate::blob::ByteRange;
use crate::fetch;
use crate::fetch::Disk;
use crate::fs::view::Contents;

/// A test that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(30);

/// Whether this machine cannot mount; says so.
pub(super) fn skipped() -> bool {
    let able = nix::unistd::geteuid().is_root() && File::options().read(true).write(true).open("/dev/fuse").is_ok();
    if !able {
        // Said past the test harness, which keeps what a passing test prints to itself.
        let name = std::thread::current().name().unwrap_or("a test").to_owned();
        let _ = writeln!(std::io::stderr(), "skipped: {name}: a real mount needs root and /dev/fuse");
    }
    !able
}

/// Mounted at a directory of its own until dropped.
pub(super) struct Mounted {
    dir: TempDir,
    pub(super) device: Arc<OwnedFd>,
    server: Option<JoinHandle<io::Result<()>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Mounted {
    pub(super) fn new(view: View) -> Self {
        Self::with(view, |frontend| frontend)
    }

    pub(super) fn with<F: Filesystem>(view: View, around: impl FnOnce(Frontend) -> F) -> Self {
        Self::of(Arc::new(Forest::alone(Arc::new(view), 3)), around)
    }

    pub(super) fn of<F: Filesystem>(forest: Arc<Forest>, around: impl FnOnce(Frontend) -> F) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        let frontend =
            Frontend::new(forest, runtime.handle().clone(), Options { list_trusted: true, nfs_export: true });
        let dir = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(File::options().read(true).write(true).open("/dev/fuse").unwrap());
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
            std::os::fd::AsRawFd::as_raw_fd(&fd)
        );
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("crfs-test"), dir.path(), Some("fuse.crfs"), flags, Some(data.as_str())).unwrap();
        let device = Arc::new(fd.try_clone().unwrap());
        let mut mounted = Self { dir, device, server: None, _runtime: runtime };
        let session = session(around(frontend), fd).unwrap();
        mounted.server = Some(std::thread::spawn(move || session.run()));
        mounted
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = umount2(self.dir.path(), MntFlags::MNT_DETACH);
        let server = self.server.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            unmounted.unwrap();
            server.unwrap().unwrap().unwrap();
        }
    }
}

/// An overlayfs over a mount, on directories of its own.
pub(super) struct Overlay {
    dir: TempDir,
}

pub(super) fn mount_overlay(lower: &Mounted) -> Overlay {
    let dir = tempfile::tempdir().unwrap();
    for name in ["upper", "work", "merged"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    let at = |name: &str| dir.path().join(name).display().to_string();
    let data = format!("lowerdir={},upperdir={},workdir={}", lower.dir.path().display(), at("upper"), at("work"));
    mount(Some("crfs-test"), at("merged").as_str(), Some("overlay"), MsFlags::empty(), Some(data.as_str())).unwrap();
    Overlay { dir }
}

impl Overlay {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("merged").join(name)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let unmounted = umount2(&self.dir.path().join("merged"), MntFlags::MNT_DETACH);
        assert!(unmounted.is_ok() || std::thread::panicking(), "{unmounted:?}");
    }
}

/// Waits for a process that was killed.
pub(super) fn wait(child: &mut Child) {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < LIMIT, "{} cannot be killed", child.id());
        std::thread::yield_now();
    }
}

/// Contents that never come.
#[derive(Default)]
pub(super) struct Never {
    asked: Mutex<usize>,
    more: Condvar,
}

impl Never {
    pub(super) fn asked(&self) -> usize {
        *self.asked.lock().unwrap()
    }

    pub(super) fn wait_for_more_than(&self, asked: usize) {
        let now = self.asked.lock().unwrap();
        let (_count, timeout) = self.more.wait_timeout_while(now, LIMIT, |now| *now <= asked).unwrap();
        assert!(!timeout.timed_out(), "nothing was read");
    }
}

impl Contents for Never {
    fn layers(&self) -> usize {
        usize::MAX
    }

    fn read(
        self: Arc<Self>,
        _layer: usize,
        _ino: Ino,
        _range: ByteRange,
    ) -> BoxFuture<'static, Result<Bytes, fetch::Error>> {
        *self.asked.lock().unwrap() += 1;
        self.more.notify_all();
        Box::pin(std::future::pending())
    }
}

/// Contents that are all in the cache, on a disk that does not answer until it is told to.
#[derive(Default)]
pub(super) struct SlowDisk {
    /// How many reads came, and whether they are answered.
    state: Mutex<(usize, bool)>,
    changed: Condvar,
    /// How long a read may wait that is not answered at once.
    patience: Option<Duration>,
    /// Reads that have waited for longer.
    pub(super) gave_up: AtomicUsize,
}

impl SlowDisk {
    pub(super) fn with_patience(patience: Duration) -> Self {
        Self { patience: Some(patience), ..Self::default() }
    }

    pub(super) fn wait_for(&self, reads: usize) {
        let state = self.state.lock().unwrap();
        let (_state, timeout) = self.changed.wait_timeout_while(state, LIMIT, |state| state.0 < reads).unwrap();
        assert!(!timeout.timed_out(), "too few reads came");
    }

    pub(super) fn answer(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}

impl Contents for SlowDisk {
    fn layers(&self) -> usize {
        usize::MAX
    }

    fn read(
        self: Arc<Self>,
        layer: usize,
        ino: Ino,
        range: ByteRange,
    ) -> BoxFuture<'static, Result<Bytes, fetch::Error>> {
        Arc::new(Ramp::default()).read(layer, ino, range)
    }

    fn read_cached(self: Arc<Self>, _layer: usize, _ino: Ino, range: ByteRange, buffer: &mut [u8], disk: Disk) -> bool {
        if disk == Disk::InMemory {
            return false;
        }
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        self.changed.notify_all();
        let (_state, timeout) = self.changed.wait_timeout_while(state, LIMIT, |state| !state.1).unwrap();
        buffer.copy_from_slice(&ramp(range.start, buffer.len()));
        !timeout.timed_out()
    }

    fn gave_up(&self, _layer: usize) {
        self.gave_up.fetch_add(1, Ordering::SeqCst);
    }

    fn patience(&self) -> Duration {
        let is_answered = self.state.lock().unwrap().1;
        self.patience.filter(|_| !is_answered).unwrap_or(Duration::MAX)
    }
}

/// Contents of files that panic, each at another place on the way to its answer: by where they start.
pub(super) struct Panics;

impl Panics {
    pub(super) const IN_MEMORY: u64 = 0;
    pub(super) const ON_DISK: u64 = 4096;
    pub(super) const ASKED: u64 = 2 * 4096;
    pub(super) const FETCHED: u64 = 3 * 4096;
}

impl Contents for Panics {
    fn layers(&self) -> usize {
        usize::MAX
    }

    fn read(
        self: Arc<Self>,
        layer: usize,
        ino: Ino,
        range: ByteRange,
    ) -> BoxFuture<'static, Result<Bytes, fetch::Error>> {
        assert_ne!(range.start, Self::ASKED, "on purpose");
        Box::pin(async move {
            assert_ne!(range.start, Self::FETCHED, "on purpose");
            Arc::new(Ramp::default()).read(layer, ino, range).await
        })
    }

    fn read_cached(self: Arc<Self>, _layer: usize, _ino: Ino, range: ByteRange, _: &mut [u8], disk: Disk) -> bool {
        match disk {
            Disk::InMemory => assert_ne!(range.start, Self::IN_MEMORY, "on purpose"),
            Disk::MayWait => assert_ne!(range.start, Self::ON_DISK, "on purpose"),
        }
        false
    }
}

/// Counts requests on their way to the frontend.
pub(super) struct Counting {
    pub(super) frontend: Frontend,
    pub(super) counts: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

impl Counting {
    fn count(&self, what: &'static str) -> &Frontend {
        *self.counts.lock().unwrap().entry(what).or_default() += 1;
        &self.frontend
    }
}

impl Filesystem for Counting {
    fn init(&mut self, req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.frontend.init(req, config)
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count("lookup").lookup(req, parent, name, reply);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        self.count("getattr").getattr(req, ino, fh, reply);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.count("open").open(req, ino, flags, reply);
    }

    fn opendir(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.count("opendir").opendir(req, ino, flags, reply);
    }

    fn flush(&self, req: &Request, ino: INodeNo, fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty) {
        self.count("flush").flush(req, ino, fh, lock_owner, reply);
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.count("read").read(req, ino, fh, offset, size, flags, lock_owner, reply);
    }

    fn readdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.count("readdir").readdir(req, ino, fh, offset, reply);
    }

    fn readdirplus(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        self.count("readdirplus").readdirplus(req, ino, fh, offset, reply);
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.count("getxattr").getxattr(req, ino, name, size, reply);
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.count("listxattr").listxattr(req, ino, size, reply);
    }
}
