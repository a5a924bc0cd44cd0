"""A reader of a mount that checks all that it reads, for scripts/soak-chaos: readers.py MOUNT TREE SLOT SEED.

TREE has the same files, and `TREE.sums` the sha256 of each. What the kernel has in memory is left aside: what the server gives is what is looked
at. SLOT is a file of 8 bytes that says since when a read has been waited for (0: none is). Tells in lines of JSON what it met; ends when its input
does, or is killed.
"""

import errno
import hashlib
import json
import mmap
import os
import random
import select
import struct
import sys
import time

LENGTHS = [1, 4096, 100_000, 131_072, 1 << 20]
# A read that takes longer is told, since it may have taken too long.
LONG = 2.0


class Wrong(Exception):
    pass


class Reader:
    def __init__(self, mount, tree, slot, seed):
        self.mount, self.tree, self.pick = mount, tree, random.Random(seed)
        with open(tree + ".sums") as file:
            self.sums = json.load(file)
        self.names = sorted(self.sums)
        self.weights = [self.sums[name][0] + 20_000 for name in self.names]
        with open(slot, "r+b") as file:
            self.slot = mmap.mmap(file.fileno(), 8)
        self.reads = self.bytes = 0
        self.longest = 0.0
        self.told = time.monotonic()

    def tell(self, **what):
        print(json.dumps(what), flush=True)

    def since(self, when):
        self.slot[:8] = struct.pack("<d", when)

    def expect(self, name, at, got, wanted):
        if got == wanted:
            self.reads, self.bytes = self.reads + 1, self.bytes + len(got)
            return
        same = next((i for i, (a, b) in enumerate(zip(got, wanted)) if a != b), min(len(got), len(wanted)))
        raise Wrong(f"{name}: at {at} there were {len(got)} bytes of {len(wanted)}, right up to {same}, then {got[same:same + 16]!r}")

    def whole(self, name):
        size, digest = self.sums[name]
        with open(f"{self.mount}/{name}", "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            got = hashlib.sha256()
            count = 0
            while part := file.read(1 << 17):
                got.update(part)
                count += len(part)
                # Each system call has the deadline, not all of them together.
                self.since(time.monotonic())
        if (count, got.hexdigest()) != (size, digest):
            raise Wrong(f"{name}: {count} bytes of {size}, sha256 {got.hexdigest()} and not {digest}")
        self.reads, self.bytes = self.reads + 1, self.bytes + count

    def part(self, name):
        size, length = self.sums[name][0], self.pick.choice(LENGTHS)
        at = self.pick.randrange(size + 1)
        wanted = self.reference(name, at, length)
        with open(f"{self.mount}/{name}", "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            got = b""
            while len(got) < length and (part := os.pread(file.fileno(), length - len(got), at + len(got))):
                got += part
                self.since(time.monotonic())
        self.expect(name, at, got, wanted)

    def direct(self, name):
        at, length = self.pick.randrange(self.sums[name][0] // 4096 + 1) * 4096, self.pick.choice([4096, 1 << 17])
        wanted = self.reference(name, at, length)
        descriptor = os.open(f"{self.mount}/{name}", os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, length) as room:
                count = os.preadv(descriptor, [room], at)
                got = room[:count]
        finally:
            os.close(descriptor)
        self.expect(name, at, got, wanted)

    def look(self, name):
        """Metadata: it comes from the server's memory."""
        there, here = os.lstat(f"{self.mount}/{name}"), os.lstat(f"{self.tree}/{name}")
        if (there.st_size, there.st_mode) != (here.st_size, here.st_mode):
            raise Wrong(f"{name}: it has {there.st_size} bytes and the mode {there.st_mode:o}")
        directory = os.path.dirname(name)
        there, here = sorted(os.listdir(f"{self.mount}/{directory}")), sorted(os.listdir(f"{self.tree}/{directory}"))
        if there != here:
            raise Wrong(f"{directory or '/'} lists {there}")
        self.reads += 1

    def reference(self, name, at, length):
        with open(f"{self.tree}/{name}", "rb") as file:
            return os.pread(file.fileno(), length, at)

    def step(self):
        name = self.pick.choices(self.names, self.weights)[0]
        how = self.pick.choices([self.whole, self.part, self.direct, self.look], [2, 10, 4, 1])[0]
        start, more = time.monotonic(), {}
        self.since(start)
        try:
            how(name)
        except OSError as error:
            more = {"errno": errno.errorcode.get(error.errno, str(error.errno))}
        except Wrong as wrong:
            more = {"wrong": str(wrong)}
        finally:
            self.since(0)
        end = time.monotonic()
        # A whole file is many reads.
        self.longest = max(self.longest, end - start if how != self.whole else 0)
        if more or (end - start > LONG and how != self.whole):
            self.tell(start=start, end=end, name=name, how=how.__name__, **more)
        if more:
            # An error comes at once where the server is gone, again and again.
            time.sleep(self.pick.uniform(0.05, 0.3))

    def run(self):
        while not select.select([sys.stdin], [], [], 0)[0]:
            self.step()
            if time.monotonic() - self.told > 1:
                self.told = time.monotonic()
                self.tell(reads=self.reads, bytes=self.bytes, longest=self.longest)
        self.tell(reads=self.reads, bytes=self.bytes, longest=self.longest)


if __name__ == "__main__":
    Reader(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4]).run()
