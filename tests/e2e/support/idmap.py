#!/usr/bin/env python3
"""Mounts an id-mapped clone of a mount: what `mount -o bind,X-mount.idmap=` does, for util-linux older than 2.39.

    idmap.py SOURCE TARGET FIRST COUNT      owner 0 is shown as FIRST, 1 as FIRST + 1, and so on for COUNT ids

mount_setattr(2), Linux 5.12. Python 3.9+, stdlib only.
"""
import ctypes
import os
import subprocess
import sys

OPEN_TREE, MOVE_MOUNT, MOUNT_SETATTR = 428, 429, 442  # the same number on every architecture
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 4
MOUNT_ATTR_IDMAP = 0x00100000

libc = ctypes.CDLL(None, use_errno=True)


class MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def syscall(name, number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        sys.exit(f"idmap.py: {name}: {os.strerror(ctypes.get_errno())}")
    return result


def user_namespace(first, count):
    """A descriptor of a user namespace with that map. The process that made it may go."""
    sleeper = subprocess.Popen(["unshare", "--user", "sh", "-c", "echo ready; exec sleep 60"], stdout=subprocess.PIPE)
    try:
        sleeper.stdout.readline()
        for kind in ("uid_map", "gid_map"):
            with open(f"/proc/{sleeper.pid}/{kind}", "w") as file:
                file.write(f"0 {first} {count}")
        return os.open(f"/proc/{sleeper.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        sleeper.kill()
        sleeper.wait()


def main():
    source, target, first, count = sys.argv[1:]
    flags = ctypes.c_uint(OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
    tree = syscall("open_tree", OPEN_TREE, ctypes.c_int(AT_FDCWD), os.fsencode(source), flags)
    attributes = MountAttr(attr_set=MOUNT_ATTR_IDMAP, userns_fd=user_namespace(first, count))
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    syscall("mount_setattr", MOUNT_SETATTR, ctypes.c_int(tree), b"", ctypes.c_uint(AT_EMPTY_PATH), ctypes.byref(attributes), size)
    where = (ctypes.c_int(AT_FDCWD), os.fsencode(target))
    syscall("move_mount", MOVE_MOUNT, ctypes.c_int(tree), b"", *where, ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH))


if __name__ == "__main__":
    main()
