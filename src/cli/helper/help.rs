//! What `mount.crfs --help` says after the options. Lines are broken here, for 80 columns.

macro_rules! exit_help {
    ($what:literal) => {
        concat!(
            "\n\
Exit status, as mount(8) has it:
  0   it worked
  1   wrong usage: an unknown option, a wrong value, no image
  2   no process, thread or memory could be had
  8   interrupted
  32  ",
            $what,
            " failed; one line on standard error says why"
        )
    };
}

pub(super) const MOUNT: &str = concat!(
    "\
Examples:
  mount -t crfs docker://docker.io/library/alpine /mnt
  mount -t crfs -o prefetch=all,noexec docker://a.io/b:1 /mnt
  mount -o remount,noexec /mnt

A line of fstab:
  docker://a.io/b:1 /srv/b crfs _netdev,nofail,x-systemd.automount 0 0

Options:
  NAME=VALUE            as `crfs mount --NAME=VALUE`; see its --help
  NAME                  as `crfs mount --NAME`; _ is as good as -
  noexec, exec          whether programs may be started from the mount
  ro, nosuid, nodev     always so; rw, suid and dev change nothing
  remount               changes noexec, and says what cannot be changed
  _netdev, nofail, user, x-systemd.*, ...
                        for mount(8) and systemd
A comma of a value has a backslash before it, or double quotes around it all.

Environment:
  HOME, XDG_*, ...      as for `crfs mount`; without HOME the directory that the
                        user has in passwd(5), so that root's credentials are
                        found at boot as well
",
    exit_help!("mounting")
);

pub(super) const UMOUNT: &str = concat!(
    "\
Examples:
  umount /mnt
  umount -l /mnt
",
    exit_help!("unmounting")
);

#[cfg(test)]
mod tests {
    #[test]
    fn lines_fit_a_terminal() {
        for line in super::MOUNT.lines().chain(super::UMOUNT.lines()) {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}
