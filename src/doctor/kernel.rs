//! What the kernel can do (probe.rs).

use super::probe::{self, Probed, Tried};
use super::{Finding, Setting};
use crate::errors::chain;

pub(super) fn look(setting: &Setting) -> Vec<Finding> {
    judge(&probe::ask_child().map_err(|error| chain(&error)), setting.uid == 0)
}

fn judge(probed: &Result<Probed, String>, is_root: bool) -> Vec<Finding> {
    let Probed { fuse, resend, overlay, idmap } = match probed {
        Ok(probed) => probed,
        Err(why) => {
            return vec![Finding::problem(
                format!("the kernel could not be probed: {why}"),
                "nobody knows whether crfs can mount here",
                "if it is about room, free some in the directory for temporary files ($TMPDIR, /tmp); else report it",
            )];
        }
    };
    let all = [judge_fuse(fuse), judge_resend(resend), judge_overlay(overlay, is_root), judge_idmap(idmap)];
    all.into_iter().flatten().collect()
}

fn judge_fuse(tried: &Tried) -> Option<Finding> {
    match tried {
        Tried::Not => None,
        Tried::Works => Some(Finding::ok("a FUSE filesystem was mounted here, and answers")),
        Tried::Fails(why) => Some(Finding::problem(
            format!("a FUSE filesystem cannot be mounted and used here: {why}"),
            "crfs cannot mount anything",
            "see the check fuse; in a container, run it with --device /dev/fuse --cap-add SYS_ADMIN, or as rootless podman does",
        )),
    }
}

fn judge_resend(tried: &Tried) -> Option<Finding> {
    match tried {
        Tried::Not => None,
        Tried::Works => Some(Finding::ok("the kernel gives requests out again: a mount outlives its server")),
        Tried::Fails(_) => Some(Finding::note(
            "the kernel gives no request out twice (Linux 6.9 does)",
            "a mount ends with its server, and `crfs upgrade` is refused",
            "nothing has to be done; a newer kernel lets mounts survive crashes and upgrades",
        )),
    }
}

fn judge_overlay(tried: &Tried, is_root: bool) -> Option<Finding> {
    match tried {
        Tried::Not if is_root => Some(Finding::note(
            "overlayfs was not tried: this process may not have a mount namespace of its own (no CAP_SYS_ADMIN)",
            "nobody knows whether podman can run containers from crfs's store here",
            "run `crfs doctor` as root outside of the container",
        )),
        Tried::Not => None,
        Tried::Works => Some(Finding::ok("overlayfs works over a FUSE filesystem, as podman's containers need it")),
        Tried::Fails(why) => Some(Finding::note(
            format!("overlayfs does not work over a FUSE filesystem here: {why}"),
            "podman cannot run containers from crfs's store, nor can `crfs mount --layer` be a lower directory",
            "load the kernel module: modprobe overlay; where that is forbidden, use fuse-overlayfs as mount_program",
        )),
    }
}

fn judge_idmap(tried: &Tried) -> Option<Finding> {
    match tried {
        Tried::Not => None,
        Tried::Works => Some(Finding::ok("owners of a FUSE mount can be mapped, as `crfs store share` needs it")),
        Tried::Fails(why) => Some(Finding::note(
            format!("owners of a FUSE mount cannot be mapped here: {why}"),
            "`crfs store share` does not work",
            "use Linux 6.12 or later, or let each user run a store of their own",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{self, Note, Ok as Good, Problem};
    use super::*;

    fn verdicts(probed: Probed, is_root: bool) -> Vec<Verdict> {
        judge(&Ok(probed), is_root).iter().map(|finding| finding.verdict).collect()
    }

    fn fails() -> Tried {
        Tried::Fails("why".to_owned())
    }

    #[test]
    fn only_what_nothing_works_without_is_a_problem() {
        use Tried::Works;
        let all = Probed { fuse: Works, resend: Works, overlay: Works, idmap: Works };
        assert_eq!(verdicts(all.clone(), true), [Good; 4]);
        let old = Probed { resend: fails(), overlay: fails(), idmap: fails(), ..all.clone() };
        assert_eq!(verdicts(old, true), [Good, Note, Note, Note]);
        assert_eq!(verdicts(Probed { fuse: fails(), ..Probed::default() }, false), [Problem]);
        let user = Probed { overlay: Tried::Not, idmap: Tried::Not, ..all };
        assert_eq!(verdicts(user.clone(), false), [Good; 2]);
        assert_eq!(verdicts(user, true), [Good, Good, Note]);
        assert_eq!(judge(&Err("full".into()), true)[0].verdict, Problem);
    }
}
