//! Limits of this process that a server would inherit.

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::{Finding, Setting};
use crate::budget;

/// Descriptors that a server of one large image, with many connections and readers, has at once.
const FEW_DESCRIPTORS: u64 = 1024;

/// What the server of a large image takes, with what is on its way.
const LITTLE_MEMORY: u64 = 128 << 20;

struct Facts {
    /// The hard limit, up to which a server raises its own.
    descriptors: u64,
    /// Of the machine or the cgroup; `None` where nothing says.
    memory: Option<u64>,
}

pub(super) fn look(_: &Setting) -> Vec<Finding> {
    let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(RLIM_INFINITY, |(_, hard)| hard);
    judge(&Facts { descriptors, memory: budget::memory() })
}

fn judge(facts: &Facts) -> Vec<Finding> {
    let descriptors = match facts.descriptors {
        few if few < FEW_DESCRIPTORS => Finding::note(
            format!("a process may have {few} descriptors (ulimit -Hn)"),
            "a server keeps less in its cache, and fails to read where it runs out of them",
            "raise the limit: LimitNOFILE= of a systemd unit, /etc/security/limits.conf, or --ulimit nofile of a container",
        ),
        _ => Finding::ok("a process may have enough descriptors"),
    };
    let memory = match facts.memory {
        Some(little) if little < LITTLE_MEMORY => Finding::note(
            format!("this process may use {} MiB of memory", little >> 20),
            "large images are refused, and the kernel may kill a server that serves them",
            "give it 128 MiB and more: MemoryMax= of a systemd unit, or --memory of a container",
        ),
        Some(_) => Finding::ok("there is enough memory"),
        None => Finding::ok("memory has no limit that is known"),
    };
    vec![descriptors, memory]
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn little_is_worth_a_note() {
        let verdicts = |descriptors, memory| {
            judge(&Facts { descriptors, memory }).iter().map(|finding| finding.verdict).collect::<Vec<_>>()
        };
        assert_eq!(verdicts(1 << 20, Some(8 << 30)), [Verdict::Ok; 2]);
        assert_eq!(verdicts(RLIM_INFINITY, None), [Verdict::Ok; 2]);
        assert_eq!(verdicts(256, Some(64 << 20)), [Verdict::Note; 2]);
    }
}
