//! The only unsafe code of crfs: descriptors that are bare numbers, system calls that no library has, zlib, and zstd within a bounded memory. And what keeps crfs's files apart
//! from other people's (own.rs, trusted.rs, outside.rs), and its commands from waiting (limit.rs) and from unpacking
//! (expansion.rs) for ever.

pub(crate) mod expansion;
pub(crate) mod frames;
pub(crate) mod inflate;
pub(crate) mod limit;
pub(crate) mod outside;
pub(crate) mod own;
pub(crate) mod trusted;
pub(crate) mod xz;

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::libc;
use nix::sys::signal::Signal;

/// Takes over the descriptors of a received SCM_RIGHTS message (unix(7)), so that each is closed when it is dropped.
///
/// To be called with the numbers of one message, once: they are nobody's until then.
#[allow(unsafe_code)]
pub(crate) fn own_received(descriptors: Vec<RawFd>) -> Vec<OwnedFd> {
    let open = descriptors.into_iter().filter(|number| *number >= 0);
    // SAFETY: the kernel opened each of these descriptors for this process while it received the message; nothing else in the
    // process knows their numbers, and `descriptors` was consumed, so that each gets exactly one owner.
    open.map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect()
}

/// Takes over a descriptor that this process was started with, as that number. What it starts does not get it.
///
/// To be called once for a number, before anything else is opened: it is nobody's until then.
#[allow(unsafe_code)]
pub(crate) fn own_inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl(2) with F_SETFD touches no memory, and fails for what is no descriptor.
    if number < 3 || unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: it is open, whoever started this process opened it for this, and it is taken over once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Lets a descriptor that something else owns stand for another open file from now on (dup3(2)).
///
/// The owner of `of` is to do nothing with it but to read and write.
#[allow(unsafe_code)]
pub(crate) fn replace(of: BorrowedFd<'_>, by: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both are open as long as they are borrowed, and no memory is touched. The number stays open and its owner's.
    let done = unsafe { libc::dup3(by.as_raw_fd(), of.as_raw_fd(), libc::O_CLOEXEC) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A descriptor for a process (pidfd_open(2), Linux 5.3).
#[allow(unsafe_code)]
pub(crate) fn open_process(number: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two numbers and touches no memory.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, number, 0) };
    let opened = RawFd::try_from(opened).ok().filter(|number| *number >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just opened it for this process, and nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(opened) })
}

/// Kills the process of such a descriptor (pidfd_send_signal(2), Linux 5.1).
#[allow(unsafe_code)]
pub(crate) fn kill_process(process: BorrowedFd<'_>) -> io::Result<()> {
    let no_details = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: pidfd_send_signal(2) takes a descriptor that is open as long as it is borrowed, numbers, and no details of the signal.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), libc::SIGKILL, no_details, 0) };
    if sent == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets the ends of children be waited for, also where whoever started this process ignores those of its own.
#[allow(unsafe_code)]
pub(crate) fn hear_of_children() -> io::Result<()> {
    // SAFETY: signal(2) with SIG_DFL installs no handler.
    let before = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether a signal ends this process, and nobody has had it ignored.
#[allow(unsafe_code)]
pub(crate) fn ends_by(signal: Signal) -> bool {
    // SAFETY: an all-zero sigaction is a valid one (no handler, no flags), and only written to.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: sigaction(2) without a new action changes nothing, and writes to a structure that outlives the call.
    let asked = unsafe { libc::sigaction(signal as libc::c_int, std::ptr::null(), &raw mut now) };
    asked == 0 && now.sa_sigaction == libc::SIG_DFL
}

/// Ends this process by a signal, whatever listens for it, so that whoever waits for it sees that.
#[allow(unsafe_code)]
pub(crate) fn end_by(signal: Signal) {
    // SAFETY: signal(2) with SIG_DFL installs no handler.
    unsafe { libc::signal(signal as libc::c_int, libc::SIG_DFL) };
    let _ends_here = nix::sys::signal::kill(nix::unistd::Pid::this(), signal);
}

/// Gives this process, and all that it starts, a variable of the environment.
///
/// To be called while the process has one thread.
#[allow(unsafe_code)]
pub(crate) fn set_variable(name: &str, value: &OsStr) {
    // SAFETY: nobody else reads or changes the environment meanwhile, since there is no other thread.
    unsafe { std::env::set_var(name, value) }
}

/// Lets no program that this process starts inherit a descriptor but the standard three: what whoever started us left open (a lock, a pipe)
/// would stay open for as long as a server lives.
pub(crate) fn close_inherited_on_exec() {
    close_on_exec_from(3);
}

/// The same of those with such a number and greater ones.
#[allow(unsafe_code)]
pub(crate) fn close_on_exec_from(first: libc::c_uint) {
    // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC closes nothing and touches no memory; it sets a flag of descriptors. Where the kernel
    // does not know it (before Linux 5.11) it does nothing.
    let _unknown = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// Lets a mount that is nowhere yet show owners as a user namespace maps them (mount_setattr(2) with MOUNT_ATTR_IDMAP, Linux 5.12), read-only and
/// without devices and set-user-id.
#[allow(unsafe_code)]
pub(crate) fn map_owners(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?,
    };
    // SAFETY: the path is a string that ends in NUL, the attributes a structure of the size that is given, and both live until the call
    // returns; it changes nothing but the mount.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Keeps the heap of a server that lives for long as small as what is in use. glibc otherwise has up to eight arenas a CPU, each of which keeps
/// what its threads gave back, and after the first large block that is freed it takes all such blocks from arenas, too.
///
/// To be called before the process has threads.
#[allow(unsafe_code)]
pub(crate) fn keep_heap_small() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_ARENA_MAX, HEAP_ARENAS),
        (libc::M_MMAP_THRESHOLD, HEAP_LARGE_BLOCK),
        (libc::M_TRIM_THRESHOLD, HEAP_TRIMMED),
    ] {
        // SAFETY: mallopt(3) takes two numbers, and changes nothing but settings of the allocator, which it does under the allocator's lock.
        let _unchanged = unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives back to the kernel what of the heap is free, wherever in it that is. Takes some milliseconds.
#[allow(unsafe_code)]
pub(crate) fn give_back_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) changes nothing but the allocator's own free memory, which it does under its locks.
    let _whether_any = unsafe { libc::malloc_trim(0) };
}

/// Arenas of the heap: threads that allocate at the same time without waiting for each other.
#[cfg(target_env = "gnu")]
const HEAP_ARENAS: libc::c_int = 2;

/// Bytes of a block that is given back to the kernel as soon as it is freed. Smaller ones, those that bodies of answers come in among them, are used
/// again: the kernel makes each page of a new one anew, which took a fifth of the CPU of a large read.
#[cfg(target_env = "gnu")]
const HEAP_LARGE_BLOCK: libc::c_int = 1 << 20;

/// Free bytes at the end of an arena that are given back.
#[cfg(target_env = "gnu")]
const HEAP_TRIMMED: libc::c_int = 128 << 10;
