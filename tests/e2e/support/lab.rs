//! A place for one test: a directory of its own, with caches and mount points, on a machine that can mount.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use super::busy;
use super::command::{Finished, run, run_counted};
use super::counts;
use super::mount::Mount;
use crate::fixtures::fixtures;

pub(crate) const CRFS: &str = env!("CARGO_BIN_EXE_crfs");

/// One test's own directory. Everything in it is gone when the test ends.
pub(crate) struct Lab {
    dir: TempDir,
    made: AtomicUsize,
}

impl Lab {
    /// `None`, said on stderr, where this machine cannot run the test.
    pub(crate) fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            return skip("only root can mount, and compare owners and trusted xattrs");
        }
        if !Path::new("/dev/fuse").exists() {
            return skip("there is no /dev/fuse");
        }
        let dir = tempfile::Builder::new().prefix("crfs-e2e-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Some(Self { dir, made: AtomicUsize::new(0) })
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The layout of a fixture, or of the image to run programs in, which is made here.
    pub(crate) fn dir_of(&self, image: &str) -> PathBuf {
        if image == busy::NAME { busy::layout() } else { fixtures().join(image) }
    }

    /// A new empty directory.
    pub(crate) fn fresh(&self, what: &str) -> PathBuf {
        let path = self.path(format!("{what}{}", self.made.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&path).unwrap();
        path
    }

    /// `crfs ARGUMENTS`, run to its end.
    #[track_caller]
    pub(crate) fn crfs(&self, arguments: &[impl AsRef<OsStr>]) -> Finished {
        run(Command::new(CRFS).args(arguments))
    }

    /// Mounts an image at a directory and with a cache of their own; the test fails where that does not work.
    #[track_caller]
    pub(crate) fn mount(&self, image: &str, options: &[&str]) -> Mount {
        self.mount_with(image, &self.fresh("cache"), options)
    }

    /// The same, with the cache of an earlier mount.
    #[track_caller]
    pub(crate) fn mount_with(&self, image: &str, cache: &Path, options: &[&str]) -> Mount {
        self.try_mount(image, cache, options).unwrap_or_else(|finished| panic!("{finished}"))
    }

    /// The same; what `crfs mount` said where it failed.
    #[track_caller]
    pub(crate) fn try_mount(&self, image: &str, cache: &Path, options: &[&str]) -> Result<Mount, Finished> {
        let dir = self.fresh("mount");
        let mut command = Command::new(CRFS);
        command.arg("mount").arg("--cache-dir").arg(cache).args(options).arg(image).arg(&dir);
        counts::mounting(image);
        let finished = run_counted(&mut command);
        counts::mounted(image, finished.good().then_some(&*dir));
        if finished.good() { Ok(Mount::new(dir, finished.stdout)) } else { Err(finished) }
    }

    /// How a tree differs from its expected listing (`big.expected.jsonl`), by tests/fixtures/compare.py; `Ok` where it does not.
    #[track_caller]
    pub(crate) fn differences(&self, dir: &Path, tree: &str, flags: &[&str]) -> Result<(), String> {
        let expected = fixtures().join(format!("{tree}.expected.jsonl"));
        let script = fixtures().join("compare.py");
        super::compare::differences(&script, dir, &expected, flags)
    }

    #[track_caller]
    pub(crate) fn assert_equal(&self, dir: &Path, tree: &str, flags: &[&str]) {
        if let Err(difference) = self.differences(dir, tree, flags) {
            panic!("{difference}");
        }
    }
}

/// Skips a test for something that CI has: there it fails.
pub(crate) fn skip<T>(why: &str) -> Option<T> {
    assert!(std::env::var_os("CI").is_none_or(|value| value != "true"), "may not be skipped in CI: {why}");
    say_skipped(why);
    None
}

/// Said past the test harness, which keeps what a passing test prints to itself.
pub(crate) fn say_skipped(why: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "skipped: {name}: {why}");
}
