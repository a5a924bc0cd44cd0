"""What servers of mounts live through, and what many and large mounts cost. Called by scripts/soak-lives."""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from groups import Group
from layers import WRITERS, Entry, Layout

# No read takes that long but one that is stuck.
STUCK = 120.0
# Fills the memory of its cgroup by a file in memory, which is no process's that could be killed, until that process is gone.
FILLER = """
import os, sys
with open(sys.argv[1], "wb") as file:
    os.unlink(sys.argv[1])
    while os.path.exists("/proc/" + sys.argv[2]):
        file.write(bytes(1 << 18))
"""


def until(what, seconds=STUCK):
    end = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > end:
            sys.exit(f"VIOLATION: never came: {what.__doc__ or what}")
        time.sleep(0.005)
    return found


class World:
    def __init__(self, crfs, place):
        self.crfs, self.place, self.violations = crfs, place, []

    def image(self, entries, kind):
        place = pathlib.Path(tempfile.mkdtemp(dir=self.place))
        Layout(place / "image").write([WRITERS[kind](entries)])
        return f"oci:{place}/image:latest"

    def mount(self, image, name, *options, **how):
        where = self.place / name
        where.mkdir()
        subprocess.run([self.crfs, "mount", "--cache-dir", self.place / f"cache-{name}", *options, image, where], check=True, stdout=subprocess.DEVNULL, **how)
        return where

    def status(self, where):
        told = subprocess.run([self.crfs, "status", "--json"], capture_output=True, text=True, check=False, timeout=STUCK)
        return next((one for one in json.loads(told.stdout or "[]") if one["dir"] == str(where)), None)

    def umount(self, where):
        subprocess.run([self.crfs, "umount", where], check=True)

    def serving(self, where, before=None):
        """Another server."""
        found = until(lambda: (told := self.status(where)) and told["state"] == "serving" and told["pid"] != before and told)
        return found["pid"], found["keeper"], found["restarts"]

    def violation(self, text):
        print(f"VIOLATION: {text}", flush=True)
        self.violations.append(text)


class Readers:
    """Some that read all of a mount again and again, past the page cache, and compare."""

    def __init__(self, world, where, sums, count=3):
        self.world, self.where, self.sums, self.ends, self.pauses, self.reads = world, where, sums, False, [], 0
        self.threads = [threading.Thread(target=self.read, daemon=True) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def read(self):
        names = list(self.sums)
        while not self.ends:
            random.shuffle(names)
            for name in names:
                start = time.monotonic()
                try:
                    with open(self.where / name, "rb") as file:
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                        data = file.read()
                    if hashlib.sha256(data).digest() != self.sums[name]:
                        self.world.violation(f"wrong bytes of {name}")
                except OSError as error:
                    self.world.violation(f"{name}: {error}")
                self.reads += 1
                self.pauses.append(time.monotonic() - start)
                if self.ends:
                    return

    def reads_on(self):
        before = self.reads
        until(lambda: self.reads > before + 2 * len(self.threads))

    def end(self, of):
        self.ends = True
        for thread in self.threads:
            thread.join(STUCK)
            if thread.is_alive():
                self.world.violation(f"{of}: a reader is stuck")
        return f"{self.reads} reads, longest {max(self.pauses):.2f} s"


def small(world, kind="zstd-chunked"):
    pick = random.Random(7)
    files = [Entry("d", kind="dir", mode=0o755), *(Entry(f"d/f{at}", pick.randbytes(60_000)) for at in range(20))]
    return world.image(files, kind), {entry.name: hashlib.sha256(entry.data).digest() for entry in files if entry.kind == "reg"}


def oom(world, chosen):
    """The kernel kills the server, since its cgroup has no more memory."""
    image, sums = small(world)
    group = Group(f"crfs-lives-{os.getpid()}")
    try:
        group.limit_memory(192 << 20)
        where = world.mount(image, "oom", "--io-deadline", "60s", preexec_fn=group.enter)
        readers, killed = Readers(world, where, sums), 0
        for _ in range(chosen.rounds):
            pid, _, _ = world.serving(where)
            readers.reads_on()
            filled = subprocess.run([sys.executable, "-c", FILLER, "/run/filled", str(pid)], preexec_fn=group.enter, check=False, timeout=STUCK)
            killed += not pathlib.Path(f"/proc/{pid}").exists()
            if filled.returncode:
                world.violation(f"what fills the memory ended with {filled.returncode}")
            world.serving(where, pid)
            readers.reads_on()
        restarts = world.serving(where)[2]
        seen = readers.end("oom")
        print(f"oom: {killed} servers killed for memory of their cgroup, {restarts} restarts; {seen}", flush=True)
        world.umount(where)
        until(lambda: not group.processes())
    finally:
        for place in {group._pids, group._memory}:
            place.rmdir()


def stopped(world, chosen):
    """A server that is stopped for a while goes on; one that has a successor by then does nothing any more."""
    image, sums = small(world)
    where = world.mount(image, "stopped", "--io-deadline", "60s")
    readers = Readers(world, where, sums)
    readers.reads_on()
    pid, keeper, _ = world.serving(where)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(chosen.stopped)
    os.kill(pid, signal.SIGCONT)
    readers.reads_on()
    for _ in range(chosen.rounds):
        pid, keeper, _ = world.serving(where)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(min(chosen.stopped, 2))
        os.kill(keeper, signal.SIGHUP)
        now, _, _ = world.serving(where, pid)
        try:
            # Beside its successor, if it was there.
            os.kill(pid, signal.SIGCONT)
            if pathlib.Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z":
                world.violation(f"the stopped server {pid} lives on beside {now}")
        except (ProcessLookupError, FileNotFoundError):
            pass
        readers.reads_on()
    print(f"stopped: {chosen.stopped:.0f} s and continued; {chosen.rounds} times with a successor; {readers.end('stopped')}", flush=True)
    world.umount(where)


def memory(pid):
    rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = collections.Counter()
    for line in rollup:
        name, size, *_ = line.split()
        sizes[name.rstrip(":")] = int(size)
    return {"rss": sizes["Rss"], "pss": sizes["Pss"], "private": sizes["Private_Clean"] + sizes["Private_Dirty"], "anonymous": sizes["Anonymous"]}


def many(world, chosen):
    """What that many mounts of an image take in all."""
    image, sums = small(world)
    cache = world.place / "cache-many"
    wheres, start = [], time.monotonic()
    before = int(next(line for line in open("/proc/meminfo") if line.startswith("MemAvailable")).split()[1])
    for number in range(chosen.mounts):
        where = world.place / f"many-{number}"
        where.mkdir()
        subprocess.run([world.crfs, "mount", "--cache-dir", cache, image, where], check=True, stdout=subprocess.DEVNULL)
        (where / "d/f0").read_bytes()
        wheres.append(where)
    seconds = time.monotonic() - start
    after = int(next(line for line in open("/proc/meminfo") if line.startswith("MemAvailable")).split()[1])
    told = json.loads(subprocess.run([world.crfs, "status", "--json"], capture_output=True, text=True, check=True).stdout)
    if len(told) != chosen.mounts:
        world.violation(f"{len(told)} mounts of {chosen.mounts} are in crfs status")
    for role in ("keeper", "pid"):
        each = [memory(one[role]) for one in told]
        text = ", ".join(f"{what} {statistics.median(one[what] for one in each):,.0f} KiB (all {sum(one[what] for one in each) / 1024:,.0f} MiB)" for what in each[0])
        print(f"many: {chosen.mounts} {'servers' if role == 'pid' else 'keepers'}, the median one: {text}", flush=True)
    print(f"many: {seconds / chosen.mounts * 1000:.0f} ms a mount; less memory available than before: {(before - after) / 1024:,.0f} MiB", flush=True)
    start = time.monotonic()
    subprocess.run([world.crfs, "umount", "--all"], check=True)
    print(f"many: unmounted in {time.monotonic() - start:.1f} s", flush=True)


def large(world, chosen):
    """How long a server takes that goes on with an image of many entries: until the first lookup that the kernel does not know is answered."""
    width = 1000
    dirs = [Entry(f"d{at}", kind="dir", mode=0o755) for at in range(chosen.entries // width)]
    files = [Entry(f"{where.name}/file-{at}") for where in dirs for at in range(width - 1)]
    image = world.image(dirs + files, "gzip")
    start = time.monotonic()
    where = world.mount(image, "large", "--io-deadline", "60s", "--memory-limit", "1GiB")
    print(f"large: {len(dirs) + len(files):,} entries; first mount {time.monotonic() - start:.1f} s", flush=True)
    times = []
    for number in range(chosen.rounds):
        pid, _, _ = world.serving(where)
        start = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        os.stat(where / f"d{number}/file-{number}")
        times.append(time.monotonic() - start)
        world.serving(where, pid)
        time.sleep(11)
    took = ", ".join(f"{seconds:.2f}" for seconds in times)
    print(f"large: from the kill to the answer of the next: {took} s; server {memory(world.serving(where)[0])}", flush=True)
    world.umount(where)


PARTS = {"oom": oom, "stopped": stopped, "many": many, "large": large}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--crfs", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stopped", type=float, default=600, help="seconds")
    parser.add_argument("--mounts", type=int, default=1000)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("part", nargs="*", help=" ".join(PARTS))
    chosen = parser.parse_args()
    place = pathlib.Path(tempfile.mkdtemp(prefix="crfs-lives-", dir="/var/tmp"))
    world = World(str(pathlib.Path(chosen.crfs).resolve()), place)
    try:
        for part in chosen.part or PARTS:
            PARTS[part](world, chosen)
    finally:
        subprocess.run([world.crfs, "umount", "--all"], check=False)
        subprocess.run(["rm", "-rf", "--one-file-system", place], check=False)
    print(f"{len(world.violations)} violations")
    sys.exit(1 if world.violations else 0)


if __name__ == "__main__":
    main()
