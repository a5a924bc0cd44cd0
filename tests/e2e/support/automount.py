"""Mounts over an autofs, as systemd does it:   automount.py CRFS IMAGE DIR, in an empty directory of its own and a mount namespace of its own."""

import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys

MNT_DETACH = 2
MISSING_DIRECT = 5  # linux/auto_fs.h
READY, FAIL = 0x9360, 0x9361
LIMIT = 60

crfs, image, directory = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
os.symlink(crfs, "mount.crfs")
# The group that may look into the autofs without waiting for it: that of the service manager.
os.setpgid(0, 0)


def autofs():
    """Who looks into DIR from elsewhere waits from now on. What asks for a mount, and a descriptor to answer by."""
    asked, told = os.pipe()
    options = f"fd={told},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
    if libc.mount(b"systemd-1", directory.encode(), b"autofs", 0, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.close(told)
    return asked, os.open(directory, os.O_RDONLY | os.O_DIRECTORY)


def mount(*before):
    command = [*before, os.path.abspath("mount.crfs"), image, directory, "-o", "rw,cache-dir=" + os.path.abspath("cache")]
    subprocess.run(command, check=True, timeout=LIMIT)


def unmount():
    while libc.umount2(directory.encode(), MNT_DETACH) == 0:
        pass


def servers():
    """The process groups of all that serves."""
    listed = subprocess.run(["ps", "-eo", "pgid,args"], check=True, capture_output=True, text=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "--over-autofs" in line]


def asked_for():
    asked, point = autofs()
    reader = subprocess.Popen(["setsid", "cat", directory + "/f"], stdout=subprocess.PIPE)
    kind, token = struct.unpack_from("iI", os.read(asked, 304), 4)
    assert kind == MISSING_DIRECT, kind
    answer = FAIL
    try:
        mount()
        answer = READY
    finally:
        fcntl.ioctl(point, answer, token)
        os.close(point)
    assert reader.communicate(timeout=LIMIT)[0] == b"hello"
    groups = servers()
    assert groups and os.getpgrp() not in groups, (os.getpgrp(), groups)
    unmount()


def by_hand():
    """Of somebody else, who has not looked into DIR. Mounting it asks for no other mount of it."""
    asked, point = autofs()
    os.close(point)
    mount("setsid")
    assert not select.select([asked], [], [], 0)[0], "something has asked for the mount"
    with open(directory + "/f") as file:
        assert file.read() == "hello"
    unmount()


asked_for()
by_hand()
