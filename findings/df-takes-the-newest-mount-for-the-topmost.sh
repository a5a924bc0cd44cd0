#!/usr/bin/env bash
# df of coreutils 9.1 names a mount that is buried, where the one on top was made earlier (Linux 6.18).
#
# fsmount(2) makes a mount, and move_mount(2) attaches it, which may come much later. /proc/self/mountinfo has mounts in
# the order in which they were made. Two are made here, and attached to one directory the other way round: the first one
# is on top. df takes the last line of that directory for the mount that its path leads to, and names the second one.
# What is on top is told by the parents in mountinfo, or by the mount id of an open file (/proc/self/fdinfo).
#
# Needs root, and Debian 12 for that version of coreutils.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
chmod 755 . # apt downloads as a user of its own
apt-get download -qq coreutils=9.1-1 >/dev/null 2>apt.log || { cat apt.log; exit 1; }
dpkg -x coreutils_9.1-1_*.deb coreutils
mkdir at
cat >stack.py <<'PYTHON'
import ctypes, os, platform, subprocess, sys

FSOPEN, FSCONFIG, FSMOUNT, MOVE_MOUNT = 430, 431, 432, 429
SET_STRING, CREATE, EMPTY_PATH, AT_FDCWD = 1, 6, 4, -100
df, at = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)


def call(number, *arguments):
    result = libc.syscall(number, *arguments)
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result


def make(source):
    context = call(FSOPEN, b"tmpfs", 0)
    call(FSCONFIG, context, SET_STRING, b"source", source, 0)
    call(FSCONFIG, context, CREATE, None, None, 0)
    return call(FSMOUNT, context, 0, 0)


first, second = make(b"first"), make(b"second")
for mount in (second, first):
    call(MOVE_MOUNT, mount, b"", AT_FDCWD, at.encode(), EMPTY_PATH)
table = [line.split() for line in open("/proc/self/mountinfo")]
source = {fields[0]: fields[fields.index("-") + 2] for fields in table}
listed = [source[fields[0]] for fields in table if fields[4] == at]
directory = os.open(at, os.O_RDONLY)
top = next(source[line.split()[1]] for line in open(f"/proc/self/fdinfo/{directory}") if line.startswith("mnt_id:"))
named = subprocess.check_output([df, "--output=source", at], text=True).split()[-1]
print(f"Linux {platform.release().split('-')[0]}: mountinfo lists {listed}; on top is {top}; df names {named}")
if (listed, top, named) != (["first", "second"], "first", "second"):
    sys.exit("df or Linux behaves otherwise now")
print("as found: the mount that df names is buried")
PYTHON
unshare --mount --propagation private python3 stack.py coreutils/bin/df "$place/at"
