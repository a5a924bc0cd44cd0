//! How much memory there is.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of memory that this process may use: of the machine, and of its cgroups. `None` where nothing says.
pub(crate) fn memory() -> Option<u64> {
    let text = |path: &str| fs::read_to_string(path).ok();
    let machine = text("/proc/meminfo").and_then(|text| total(&text));
    let own = text("/proc/self/cgroup").unwrap_or_default();
    limit_files(&own).filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok()).chain(machine).min()
}

/// The files that limit the memory of cgroups, by /proc/self/cgroup: of version 2 and of version 1 (cgroups(7)). Within a container its path may be one of
/// the host.
fn limit_files(own: &str) -> impl Iterator<Item = PathBuf> {
    let of_line = |line: &str| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let dir = Path::new(root).join(path.trim_start_matches('/'));
        let groups = dir.ancestors().take_while(|dir| dir.starts_with(root));
        Some(groups.map(|group| group.join(file)).collect::<Vec<_>>())
    };
    own.lines().filter_map(of_line).flatten().collect::<Vec<_>>().into_iter()
}

/// `MemTotal` of /proc/meminfo.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        assert_eq!(total("MemFree: 1 kB\nMemTotal:       24122 kB\n"), Some(24122 * 1024));
        let files: Vec<_> = limit_files("4:cpu,memory:/a\n3:cpu:/x\n0::/b/c\n").collect();
        let expected = [
            "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/b/c/memory.max",
            "/sys/fs/cgroup/b/memory.max",
            "/sys/fs/cgroup/memory.max",
        ];
        assert_eq!(files, expected.map(PathBuf::from));
        assert!(memory().is_some_and(|bytes| bytes > 1 << 26));
    }
}
