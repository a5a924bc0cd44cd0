//! What FUSE needs beside the kernel: /dev/fuse, and for users fusermount3 and /etc/fuse.conf (mount.fuse3(8)).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::stat::{major, minor};

use super::{Finding, Setting};
use crate::sys::outside;

const DEVICE: &str = "/dev/fuse";
/// Its number (Documentation/admin-guide/devices.txt of Linux).
const NUMBER: (u64, u64) = (10, 229);
const HELPER: &str = "fusermount3";
const CONF: &str = "/etc/fuse.conf";
const LONGEST_CONF: u64 = 1 << 20;

/// What was found of all that.
struct Facts {
    is_root: bool,
    device: Device,
    helper: Option<Helper>,
    no_new_privileges: bool,
    conf: Result<String, io::ErrorKind>,
}

#[derive(Clone, Copy)]
enum Device {
    Missing,
    /// Something else stands in its place.
    Other,
    Opened,
    Refused {
        errno: i32,
        mode: u32,
    },
}

struct Helper {
    path: PathBuf,
    /// It runs as root whoever starts it.
    is_set_user_id: bool,
}

pub(super) fn look(setting: &Setting) -> Vec<Finding> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let no_new_privileges = status.lines().any(|line| line.split_whitespace().eq(["NoNewPrivs:", "1"]));
    let conf = outside::read(Path::new(CONF), LONGEST_CONF).map_err(|error| error.kind());
    judge(&Facts {
        is_root: nix::unistd::geteuid().is_root(),
        device: device(),
        helper: setting.path.iter().find_map(|dir| helper(&dir.join(HELPER))),
        no_new_privileges,
        conf: conf.map(|text| String::from_utf8_lossy(&text).into_owned()),
    })
}

fn device() -> Device {
    let Ok(found) = fs::metadata(DEVICE) else { return Device::Missing };
    let number = (major(found.rdev()), minor(found.rdev()));
    if !found.file_type().is_char_device() || number != NUMBER {
        return Device::Other;
    }
    let opened: io::Result<File> = OpenOptions::new().read(true).write(true).open(DEVICE);
    match opened {
        Ok(_) => Device::Opened,
        Err(error) => Device::Refused { errno: error.raw_os_error().unwrap_or_default(), mode: found.mode() & 0o777 },
    }
}

fn helper(path: &Path) -> Option<Helper> {
    let found = fs::metadata(path).ok().filter(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)?;
    Some(Helper { path: path.to_owned(), is_set_user_id: found.mode() & libc::S_ISUID != 0 && found.uid() == 0 })
}

fn judge(facts: &Facts) -> Vec<Finding> {
    let device = judge_device(facts.device, facts.is_root);
    // Root mounts without it.
    let rest = if facts.is_root { Vec::new() } else { vec![judge_helper(facts), judge_conf(&facts.conf)] };
    std::iter::once(device).chain(rest).collect()
}

fn judge_device(device: Device, is_root: bool) -> Finding {
    const NOTHING: &str = "crfs cannot mount anything";
    const LOAD: &str = "load the kernel module: modprobe fuse; in a container, load it on the host";
    match device {
        Device::Opened => Finding::ok("/dev/fuse is there, and can be opened"),
        Device::Missing => Finding::problem(
            "there is no /dev/fuse",
            NOTHING,
            "load the kernel module: modprobe fuse; for a container: podman run --device /dev/fuse",
        ),
        Device::Other => Finding::problem(
            "/dev/fuse is not the device 10:229",
            NOTHING,
            "make it again: rm /dev/fuse && mknod -m 0666 /dev/fuse c 10 229",
        ),
        Device::Refused { errno: libc::ENODEV | libc::ENXIO, .. } => {
            Finding::problem("/dev/fuse is there, and the kernel has no FUSE", NOTHING, LOAD)
        }
        Device::Refused { errno: libc::EPERM, .. } => Finding::problem(
            "/dev/fuse may not be opened: the devices of this container or service do not have it",
            NOTHING,
            "allow the device: podman run --device /dev/fuse; for a systemd unit: DeviceAllow=/dev/fuse rw",
        ),
        Device::Refused { errno: libc::EACCES, mode } if !is_root => Finding::note(
            format!("/dev/fuse has the mode {mode:04o}, which does not let this user open it"),
            "only fusermount3 can open it for this user",
            "if mounts fail (see the check kernel): chmod 0666 /dev/fuse, as distributions have it",
        ),
        Device::Refused { errno, .. } => Finding::problem(
            format!("/dev/fuse cannot be opened: {}", io::Error::from_raw_os_error(errno)),
            NOTHING,
            "run as root, or see what confines this process: its container, SELinux or AppArmor",
        ),
    }
}

fn judge_helper(facts: &Facts) -> Finding {
    const NO_MOUNTS: &str = "this user cannot mount anything";
    match &facts.helper {
        None => Finding::problem(
            format!("there is no {HELPER} in $PATH"),
            NO_MOUNTS,
            "install the package fuse3 (apt install fuse3, dnf install fuse3)",
        ),
        Some(Helper { path, is_set_user_id: false }) => Finding::problem(
            format!("{} does not run as root (it is not set-user-ID, or not root's)", path.display()),
            NO_MOUNTS,
            format!("as root: chown root {0} && chmod u+s {0}, or install the package fuse3 again", path.display()),
        ),
        Some(Helper { path, .. }) if facts.no_new_privileges => Finding::problem(
            format!("{} cannot become root here: this process has no_new_privs", path.display()),
            NO_MOUNTS,
            "for a systemd unit: NoNewPrivileges=no; for a container: without --security-opt no-new-privileges",
        ),
        Some(Helper { path, .. }) => Finding::ok(format!("{} mounts for this user", path.display())),
    }
}

fn judge_conf(conf: &Result<String, io::ErrorKind>) -> Finding {
    match conf {
        Ok(text) if allows_others(text) => {
            Finding::ok(format!("{CONF} has user_allow_other: --allow-other lets others look into a mount"))
        }
        Ok(_) | Err(io::ErrorKind::NotFound) => Finding::ok(format!(
            "{CONF} has no user_allow_other: only this user sees their mounts; --allow-other needs it"
        )),
        Err(kind) => Finding::note(
            format!("{CONF} cannot be read: {kind}"),
            "nobody can tell whether --allow-other works for this user",
            format!("as root: chmod 0644 {CONF}"),
        ),
    }
}

/// A line says so, and `#` begins a comment.
fn allows_others(conf: &str) -> bool {
    conf.lines().any(|line| line.split('#').next().is_some_and(|line| line.trim() == "user_allow_other"))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn facts(is_root: bool) -> Facts {
        let helper = Helper { path: "/usr/bin/fusermount3".into(), is_set_user_id: true };
        Facts {
            is_root,
            device: Device::Opened,
            helper: Some(helper),
            no_new_privileges: false,
            conf: Ok(String::new()),
        }
    }

    fn verdicts(facts: &Facts) -> Vec<Verdict> {
        judge(facts).iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn a_good_machine_is_good() {
        assert_eq!(verdicts(&facts(true)), [Verdict::Ok]);
        assert_eq!(verdicts(&facts(false)), [Verdict::Ok; 3]);
        // What only users need does not matter to root.
        assert_eq!(verdicts(&Facts { helper: None, no_new_privileges: true, ..facts(true) }), [Verdict::Ok]);
    }

    #[test]
    fn what_is_wrong_with_the_device_is_told_apart() {
        let refused = |errno| Device::Refused { errno, mode: 0o600 };
        for (device, is_root, said) in [
            (Device::Missing, true, "modprobe fuse"),
            (Device::Other, true, "mknod"),
            (refused(libc::ENODEV), true, "modprobe fuse"),
            (refused(libc::EPERM), true, "--device /dev/fuse"),
            (refused(libc::EACCES), true, "SELinux"),
            (refused(libc::EPERM), false, "DeviceAllow"),
        ] {
            let found = judge_device(device, is_root);
            assert_eq!(found.verdict, Verdict::Problem, "{found:?}");
            assert!(found.advice.as_ref().is_some_and(|advice| advice.contains(said)), "{found:?}");
        }
        let found = judge_device(refused(libc::EACCES), false);
        assert!(found.verdict == Verdict::Note && found.found.contains("0600"), "{found:?}");
    }

    #[test]
    fn users_need_a_helper_that_may_become_root() {
        let of = |helper, no_new_privileges| judge_helper(&Facts { helper, no_new_privileges, ..facts(false) });
        let helper = |is_set_user_id| Some(Helper { path: "/h".into(), is_set_user_id });
        assert!(of(None, false).advice.unwrap().contains("fuse3"));
        assert!(of(helper(false), false).advice.unwrap().contains("chmod u+s /h"));
        assert!(of(helper(true), true).found.contains("no_new_privs"));
        assert_eq!(of(helper(true), false).verdict, Verdict::Ok);
    }

    #[test]
    fn user_allow_other_is_a_line_of_its_own() {
        assert!(
            allows_others("# x\n user_allow_other # y\n") && !allows_others("#user_allow_other\nuser_allow_others\n")
        );
        assert!(judge_conf(&Ok("user_allow_other".into())).found.contains("has user_allow_other"));
        assert_eq!(judge_conf(&Err(io::ErrorKind::NotFound)).verdict, Verdict::Ok);
        assert_eq!(judge_conf(&Err(io::ErrorKind::PermissionDenied)).verdict, Verdict::Note);
    }
}
