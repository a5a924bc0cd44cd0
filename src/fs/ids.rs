//! The users and groups that this process's user namespace has numbers for (user_namespaces(7)). The kernel takes no ACL of others, and would refuse
//! every access to a file that has one.

use std::ops::Range;
use std::sync::OnceLock;

/// Ranges of numbers as they are inside.
#[derive(Debug)]
pub(super) struct Ids {
    users: Vec<Range<u64>>,
    groups: Vec<Range<u64>>,
}

impl Ids {
    /// Read once: the namespace of a process that has threads stays.
    pub(super) fn of_this_process() -> &'static Self {
        static IDS: OnceLock<Ids> = OnceLock::new();
        // A kernel without user namespaces has neither file, and all numbers.
        let read = |path| std::fs::read_to_string(path).unwrap_or_else(|_| "0 0 4294967295".to_owned());
        IDS.get_or_init(|| Self::parse(&read("/proc/self/uid_map"), &read("/proc/self/gid_map")))
    }

    /// From the two files: on each line the first number inside, the first outside, and how many.
    pub(super) fn parse(users: &str, groups: &str) -> Self {
        Self { users: ranges(users), groups: ranges(groups) }
    }

    pub(super) fn has_user(&self, id: u32) -> bool {
        self.users.iter().any(|range| range.contains(&id.into()))
    }

    pub(super) fn has_group(&self, id: u32) -> bool {
        self.groups.iter().any(|range| range.contains(&id.into()))
    }
}

fn ranges(map: &str) -> Vec<Range<u64>> {
    let range = |line: &str| {
        let mut numbers = line.split_whitespace().map(|number| u64::from(number.parse::<u32>().unwrap_or(0)));
        let (start, count) = (numbers.next()?, numbers.nth(1)?);
        Some(start..start.saturating_add(count))
    };
    map.lines().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_says_which_numbers_there_are() {
        let ids =
            Ids::parse("         0       1000          1\n         1     100000      65536\n", "0 0 4294967295\n");
        assert!([0, 1, 65_536].iter().all(|id| ids.has_user(*id)));
        assert!([65_537, 100_000, u32::MAX].iter().all(|id| !ids.has_user(*id)));
        assert!(ids.has_group(0) && ids.has_group(u32::MAX - 1) && !ids.has_group(u32::MAX));
        let none = Ids::parse("", "x\n");
        assert!(!none.has_user(0) && !none.has_group(0));
    }
}
