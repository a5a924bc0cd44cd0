"""A FUSE filesystem that takes requests and answers none:   hung.py DIR. Says "ready", and ends with its input. What waits for it cannot be killed."""

import ctypes
import os
import struct
import sys
import threading

MNT_DETACH = 2
INIT_OUT = "<IiQIIIIHHIIHH32x"  # linux/fuse.h: a header, and fuse_init_out

directory = sys.argv[1].encode()
libc = ctypes.CDLL(None, use_errno=True)
device = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
if libc.mount(b"hung", directory, b"fuse.hung", 0, options) != 0:
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
_, _, unique = struct.unpack_from("<IIQ", os.read(device, 1 << 17))
os.write(device, struct.pack(INIT_OUT, struct.calcsize(INIT_OUT), 0, unique, 7, 31, 0, 0, 0, 0, 4096, 1, 0, 0))


def take():
    while os.read(device, 1 << 17):
        pass


threading.Thread(target=take, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
libc.umount2(directory, MNT_DETACH)
# The device is closed, and whoever waits gets an error.
os._exit(0)
