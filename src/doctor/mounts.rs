//! The mounts of this user: how their servers are, and mounts that nobody knows.

use std::path::PathBuf;

use super::{Finding, Setting};
use crate::errors::chain;
use crate::kernel::mounts;
use crate::serve::holders::named;
use crate::serve::status::{State, Status, status};

/// What there is of mounts.
struct Facts {
    mounts: Vec<Status>,
    /// Why not all of them may be known.
    unasked: Option<String>,
}

pub(super) fn look(setting: &Setting) -> Vec<Finding> {
    judge(&facts(setting))
}

fn facts(setting: &Setting) -> Facts {
    let (mounts, unasked) = status(&setting.state_dirs);
    Facts { mounts, unasked: unasked.map(|error| chain(&error)) }
}

fn judge(facts: &Facts) -> Vec<Finding> {
    let mut found: Vec<_> = facts.mounts.iter().map(judge_mount).collect();
    if let Some(why) = &facts.unasked {
        found.push(Finding::problem(
            format!("not all mounts can be asked: {why}"),
            "`crfs status` and `crfs umount --all` do not know all mounts",
            "see the filesystem that is named; for others, $XDG_RUNTIME_DIR has to be that of the mount",
        ));
    } else if found.is_empty() {
        found.push(Finding::ok("nothing is mounted"));
    }
    found
}

fn judge_mount(mount: &Status) -> Finding {
    let dir = mount.dir.display();
    // Of one that does not answer, nobody knows.
    let keeper = mount.keeper.map(|keeper| format!(", kept by process {keeper}")).unwrap_or_default();
    let why = mount.activity.last_error.as_deref().unwrap_or("no reason is known");
    match mount.state {
        State::Dead => {
            let holders = mount.elsewhere.iter().flat_map(|elsewhere| elsewhere.holders.clone()).collect::<Vec<_>>();
            let users = if holders.is_empty() { String::new() } else { format!("; {} has it", named(&holders)) };
            Finding::problem(
                format!("the server of {dir} is gone{users}"),
                "readers get errors (ENOTCONN, EIO), and it stays so",
                format!("crfs umount {dir}, and mount it again; its log, if it is still there, says why"),
            )
        }
        State::Failing => Finding::problem(
            format!("the server of {dir} dies again and again{keeper}: {why}"),
            "readers wait, and get EIO after --io-deadline",
            format!(
                "see its server.log (docs/TROUBLESHOOTING.md); if nothing helps: crfs umount {dir}, and mount again"
            ),
        ),
        State::Silent => Finding::problem(
            format!("the server of {dir} does not answer{keeper}: {why}"),
            "readers of it may wait",
            format!("if it was stopped: kill -CONT {}; else see its disk and its log", or_pid(mount.pid)),
        ),
        State::Serving if mount.activity.stats.errors > 0 => Finding::note(
            format!("{dir}: {} reads have failed; the last: {why}", mount.activity.stats.errors),
            "whoever read got EIO; later reads are tried again",
            "look up the message in docs/TROUBLESHOOTING.md",
        ),
        State::Serving if mount.keeper.is_none() => Finding::note(
            format!("{dir} is served by process {}, and nobody keeps it", or_pid(mount.pid)),
            "the mount ends with that process, and cannot be upgraded",
            "mount it again when nothing uses it",
        ),
        State::Serving => Finding::ok(format!("{dir} is served by process {}{keeper}", or_pid(mount.pid))),
    }
}

fn or_pid(pid: Option<u32>) -> String {
    pid.map_or_else(|| "PID".to_owned(), |pid| pid.to_string())
}

pub(super) fn look_for_leftovers(setting: &Setting) -> Vec<Finding> {
    let known: Vec<PathBuf> = facts(setting).mounts.into_iter().map(|mount| mount.dir).collect();
    let uid = nix::unistd::geteuid().as_raw();
    let all = mounts::all().unwrap_or_default();
    // A store's mount, and users' clones of it, are the store's matter. What doctor itself tries is gone in a moment.
    let ours = all.iter().filter(|mount| mount.is_ours() && !mount.is_stores() && mount.user() == Some(uid));
    let unknown = ours.filter(|mount| !known.contains(&mount.point) && mount.source != super::probe::SOURCE);
    judge_leftovers(&unknown.map(|mount| mount.point.clone()).collect::<Vec<_>>())
}

fn judge_leftovers(unknown: &[PathBuf]) -> Vec<Finding> {
    if unknown.is_empty() {
        return vec![Finding::ok("every crfs mount that is seen here is known")];
    }
    let told = |dir: &PathBuf| {
        let dir = dir.display();
        Finding::note(
            format!("{dir} is a crfs mount, and nothing is known of its server"),
            "`crfs status` and `crfs umount` do not know it: another $XDG_RUNTIME_DIR has its state, or that is gone",
            format!(
                "ask with the $XDG_RUNTIME_DIR that it was mounted with, or: fusermount3 -u {dir}, as root: umount {dir}"
            ),
        )
    };
    unknown.iter().map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Note, Ok as Good, Problem};
    use super::*;
    use crate::serve::Activity;

    fn mount(state: State) -> Status {
        Status { keeper: Some(3), pid: Some(4), ..Status::unknown("mount", "i".into(), state, "/m".into()) }
    }

    #[test]
    fn each_state_has_its_verdict() {
        for (state, verdict, said) in [
            (State::Serving, Good, "kept by process 3"),
            (State::Dead, Problem, "crfs umount /m"),
            (State::Failing, Problem, "again and again, kept by process 3"),
            (State::Silent, Problem, "kill -CONT 4"),
        ] {
            let found = judge_mount(&mount(state));
            assert!(found.verdict == verdict && format!("{found:?}").contains(said), "{found:?}");
        }
        assert_eq!(judge_mount(&Status { keeper: None, ..mount(State::Serving) }).verdict, Note);
        let mut failed = mount(State::Serving);
        failed.activity = Activity { last_error: Some("gone".into()), ..failed.activity };
        failed.activity.stats.errors = 2;
        let found = judge_mount(&failed);
        assert!(found.verdict == Note && found.found.contains("2 reads have failed; the last: gone"), "{found:?}");
    }

    #[test]
    fn what_cannot_be_asked_and_what_is_unknown_is_told() {
        let none = Facts { mounts: Vec::new(), unasked: None };
        assert_eq!(judge(&none)[0].verdict, Good);
        assert_eq!(judge(&Facts { unasked: Some("/run".into()), ..none })[0].verdict, Problem);
        assert_eq!(judge_leftovers(&[])[0].verdict, Good);
        let found = judge_leftovers(&["/m".into()]);
        assert!(found[0].verdict == Note && found[0].advice.as_ref().unwrap().contains("umount /m"), "{found:?}");
    }
}
