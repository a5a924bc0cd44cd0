//! Which limit keeps a process from having one more thread.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

/// Where the cgroups with a controller of processes are mounted: its own tree, or the one of all controllers.
const OWN_TREES: &[&str] = &["/sys/fs/cgroup/pids"];
const COMMON_TREES: &[&str] = &["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

#[derive(Debug, thiserror::Error)]
#[error("no thread or process can be made; {}", told(.limits))]
struct NoThread {
    limits: Vec<String>,
    source: io::Error,
}

/// An error of making a thread or a process, with the limits that it may be about.
#[must_use]
pub fn explained(source: io::Error) -> io::Error {
    if source.kind() != io::ErrorKind::WouldBlock {
        return source;
    }
    let limits = of_cgroup().into_iter().chain(of_user()).collect();
    io::Error::new(io::ErrorKind::WouldBlock, NoThread { limits, source })
}

fn told(limits: &[String]) -> String {
    match limits {
        [] => "see the limits kernel.threads-max and kernel.pid_max".to_owned(),
        limits => limits.join("; "),
    }
}

fn of_user() -> Option<String> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NPROC).ok()?;
    let counts = soft != RLIM_INFINITY && !nix::unistd::geteuid().is_root();
    counts.then(|| format!("the user may have {soft} (ulimit -u)"))
}

/// The limit of this process's cgroup, or of the one above it that has the least room.
fn of_cgroup() -> Option<String> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let limits = groups.lines().flat_map(|line| ancestors(line).into_iter().filter_map(|group| Limit::of(&group)));
    let least = limits.min_by_key(|limit| limit.most.saturating_sub(limit.has))?;
    Some(least.to_string())
}

/// The directories of a cgroup and those above it: of a line of /proc/self/cgroup, `HIERARCHY:CONTROLLERS:PATH`.
fn ancestors(line: &str) -> Vec<PathBuf> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { return Vec::new() };
    let trees = match controllers {
        "" => COMMON_TREES,
        _ if controllers.split(',').any(|controller| controller == "pids") => OWN_TREES,
        _ => &[],
    };
    let within = |tree: &&str| {
        let tree = PathBuf::from(tree);
        let group = tree.join(path.trim_start_matches('/'));
        group
            .ancestors()
            .take_while(|above| above.starts_with(&tree))
            .map(|above| above.components().collect())
            .collect::<Vec<_>>()
    };
    trees.iter().flat_map(within).collect()
}

#[derive(Debug)]
struct Limit {
    group: PathBuf,
    most: u64,
    has: u64,
}

impl Limit {
    /// `None` where there is none.
    fn of(group: &Path) -> Option<Self> {
        let number = |name| fs::read_to_string(group.join(name)).ok()?.trim().parse().ok();
        Some(Self { group: group.to_owned(), most: number("pids.max")?, has: number("pids.current")? })
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, most, has } = self;
        write!(f, "the cgroup {} may have {most} (pids.max) and has {has}", group.display())?;
        // What was refused was refused a moment ago.
        if has < most { f.write_str(" now; others may have come and gone") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_are_found_by_their_controllers() {
        let of = |line| ancestors(line).iter().map(|group| group.display().to_string()).collect::<Vec<_>>();
        assert_eq!(
            of("8:pids:/a/b"),
            ["/sys/fs/cgroup/pids/a/b", "/sys/fs/cgroup/pids/a", "/sys/fs/cgroup/pids"],
            "a tree of its own"
        );
        assert_eq!(of("0::/"), ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]);
        assert!(of("3:cpu,memory:/a").is_empty() && of("nonsense").is_empty());
    }

    #[test]
    fn only_what_a_limit_refused_is_explained() {
        let other = explained(io::ErrorKind::NotFound.into());
        assert_eq!(other.kind(), io::ErrorKind::NotFound);
        let text = explained(io::Error::from_raw_os_error(nix::libc::EAGAIN)).to_string();
        assert!(text.starts_with("no thread or process can be made; "), "{text}");
    }

    #[test]
    fn a_limit_has_a_number() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Limit::of(dir.path()).is_none());
        fs::write(dir.path().join("pids.current"), "3\n").unwrap();
        fs::write(dir.path().join("pids.max"), "max\n").unwrap();
        assert!(Limit::of(dir.path()).is_none());
        fs::write(dir.path().join("pids.max"), "5\n").unwrap();
        let mut limit = Limit::of(dir.path()).unwrap();
        assert_eq!((limit.most, limit.has), (5, 3));
        assert!(limit.to_string().ends_with("and has 3 now; others may have come and gone"), "{limit}");
        limit.has = 5;
        assert!(limit.to_string().ends_with("may have 5 (pids.max) and has 5"), "{limit}");
    }
}
