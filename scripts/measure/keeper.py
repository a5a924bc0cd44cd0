"""Servers of mounts that die, or are upgraded, while everything is read. Called by scripts/soak-keeper."""

import argparse
import collections
import contextlib
import hashlib
import json
import mmap
import os
import pathlib
import random
import signal
import struct
import subprocess
import sys
import threading
import time

import trees
from world import World, run

HERE = pathlib.Path(__file__).parent
MOUNTS = {
    "zstd-chunked-run": ["--whole-layer-below", "0"],
    "gzip-run": ["--whole-layer-below", "0", "--prefetch", "none"],
}
READERS = 4
# Far more than any pause: then a reader is stuck.
STUCK = 30.0


def children(pid):
    with contextlib.suppress(OSError):
        return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


class Soak:
    def __init__(self, world, chosen):
        self.world, self.pick, self.cycles = world, random.Random(chosen.seed), chosen.cycles
        self.how = {"kill": ["kill"], "upgrade": ["upgrade"], "both": ["kill", "upgrade"]}[chosen.how]
        self.seed, self.reads, self.bytes, self.programs = chosen.seed, 0, 0, 0
        self.violations, self.over = [], threading.Event()
        self.stalls = collections.defaultdict(list)
        self.registry = world.registry(world.fresh("registry"))
        self.names, self.is_store, self.runs, self.changes = chosen.image or list(MOUNTS), chosen.store, 0, 0
        self.sums = {name: trees.make(world.place, name, trees.busybox(), ["/bin/sh"]) for name in self.names}
        for name in self.names:
            run(sys.executable, "-B", HERE / "push.py", world.place / "layout" / name, f"127.0.0.1:{self.registry}", name)

    def violation(self, text):
        print(f"VIOLATION: {text}", flush=True)
        self.violations.append(text)

    def status(self, path):
        known = json.loads(run(self.world.crfs, "status", "--json", "--root", path if self.is_store else "/nonexistent"))
        return next(one for one in known if one["dir"] == str(path))

    def mount(self, name):
        options = ["--cache-size", "48M", "--io-deadline", "20s", *MOUNTS[name]]
        path = self.world.mount(f"127.0.0.1:{self.registry}/{name}:latest", self.world.fresh("cache"), *options).path
        return Mounted(self, name, path, self.status(path)["keeper"])

    def run(self):
        mounts = [Stored(self, self.names[0], self.names[1:])] if self.is_store else [self.mount(name) for name in self.names]
        for one in mounts:
            one.begin()
        start = time.monotonic()
        try:
            for cycle in range(self.cycles):
                one = self.pick.choice(mounts)
                one.harm(self.pick.choice(self.how))
                if cycle % 500 == 499:
                    print(f"{time.monotonic() - start:7.0f} s: {cycle + 1} cycles, {len(self.violations)} violations", flush=True)
                if len(self.violations) > 20:
                    break
        finally:
            self.over.set()
            for one in mounts:
                one.end()
        self.report(mounts, time.monotonic() - start)
        return 1 if self.violations else 0

    def report(self, mounts, seconds):
        cycles = sum(len(stalls) for stalls in self.stalls.values())
        print(f"{cycles} cycles in {seconds:.0f} s, seed {self.seed}: {self.reads} reads and {self.bytes >> 20} MiB compared, {self.programs} programs run")
        for how, stalls in self.stalls.items():
            stalls.sort()
            at = [f"p{part} {stalls[min(len(stalls) - 1, len(stalls) * part // 100)] * 1000:.0f}" for part in (50, 90, 99)]
            print(f"  {how:8} {len(stalls):6} cycles; longest pause in ms: {', '.join(at)}, max {stalls[-1] * 1000:.0f}")
        if self.is_store:
            print(f"  {self.runs} containers run, {self.changes} images added and removed")
        for one in mounts:
            print(f"  {one.name}: restarts {one.restarts}, keeper {one.memory}")
        print(f"{len(self.violations)} violations")


class Mounted:
    """A mount, and those who use it."""

    def __init__(self, soak, name, path, keeper):
        self.soak, self.name, self.path, self.keeper = soak, name, path, keeper
        self.tree, self.sums = soak.world.place / "tree" / name, soak.sums[name]
        # When the probe began what was answered last, and the longest that it has waited since it was looked at.
        self.began, self.longest, self.lock = time.monotonic(), 0.0, threading.Lock()
        self.restarts, self.memory = 0, ""

    def begin(self):
        self.readers = [self.reader(number) for number in range(READERS)]
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self.probe, self.programs)]
        self.threads += [threading.Thread(target=self.hear, args=[reader], daemon=True) for reader in self.readers]
        for thread in self.threads:
            thread.start()

    def reader(self, number):
        slot = self.soak.world.place / f"slot-{self.name}-{number}"
        slot.write_bytes(bytes(8))
        command = [sys.executable, "-B", HERE / "readers.py", self.path, self.tree, slot, f"{self.soak.seed}-{number}"]
        process = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        with open(slot, "r+b") as file:
            process.slot = mmap.mmap(file.fileno(), 8)
        process.reads = process.bytes = 0
        return process

    def hear(self, process):
        for line in process.stdout:
            event = json.loads(line)
            if "reads" in event:
                self.soak.reads += event["reads"] - process.reads
                self.soak.bytes += event["bytes"] - process.bytes
                process.reads, process.bytes = event["reads"], event["bytes"]
            elif "wrong" in event or "errno" in event:
                self.soak.violation(f"{self.name}: {event}")

    def probe(self):
        """A small read past the kernel's memory, or a name that it does not know, again and again."""
        pick, names, room = random.Random(self.soak.seed), sorted(self.sums), mmap.mmap(-1, 4096)
        files = [(name, os.open(self.path / name, os.O_RDONLY | os.O_DIRECT)) for name in pick.sample(names, 20)]
        number = 0
        while not self.soak.over.is_set():
            start, number = time.monotonic(), number + 1
            try:
                if number % 4:
                    os.preadv(pick.choice(files)[1], [room], 0)
                elif os.path.exists(self.path / f"missing-{number}"):
                    self.soak.violation(f"{self.name}: missing-{number} is there")
            except OSError as error:
                self.soak.violation(f"{self.name}: the probe: {error}")
            with self.lock:
                self.longest, self.began = max(self.longest, time.monotonic() - start), start
            time.sleep(0.001)
        for _, file in files:
            os.close(file)

    def programs(self):
        pick = random.Random(self.soak.seed + 1)
        while not self.soak.over.is_set():
            names = pick.sample(sorted(self.sums), 3)
            command = [str(self.path / "bin/busybox"), "sha256sum", *(str(self.path / name) for name in names)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            found = [line.split()[0] for line in done.stdout.splitlines()]
            if done.returncode or found != [self.sums[name][1] for name in names]:
                self.soak.violation(f"{self.name}: a program: {done.returncode} {done.stderr[-200:]} {found}")
            self.soak.programs += 1

    def harm(self, how):
        soak = self.soak
        time.sleep(soak.pick.choice([0, soak.pick.uniform(0, 0.05), soak.pick.uniform(0, 0.3)]))
        before = children(self.keeper)
        with self.lock:
            self.longest = 0.0
        harmed, served = time.monotonic(), None
        with contextlib.suppress(ProcessLookupError):
            if how == "upgrade":
                os.kill(self.keeper, signal.SIGHUP)
            else:
                for worker in before:
                    os.kill(worker, signal.SIGKILL)
        # Until another one answers.
        while time.monotonic() - harmed < STUCK:
            time.sleep(0.002)
            now = children(self.keeper)
            if served is None and len(now) == 1 and now != before and self.is_served(now[0]):
                served = time.monotonic()
            with self.lock:
                # What was asked since is answered by it.
                if served is not None and self.began > served:
                    soak.stalls[how].append(self.longest)
                    break
            if not pathlib.Path(f"/proc/{self.keeper}").exists():
                soak.violation(f"{self.name}: the keeper is gone")
                break
        else:
            soak.violation(f"{self.name}: nobody serves {STUCK:.0f} s after {how}")
        self.look()

    def is_served(self, worker):
        """Whether that process has taken over: it has a thread then that answers the kernel."""
        with contextlib.suppress(OSError):
            return any((task / "comm").read_text().startswith("fuser-") for task in pathlib.Path(f"/proc/{worker}/task").iterdir())
        return False

    def look(self):
        for reader in self.readers:
            since = struct.unpack("<d", reader.slot[:8])[0]
            if since and time.monotonic() - since > STUCK:
                self.soak.violation(f"{self.name}: a reader waits for {time.monotonic() - since:.0f} s")

    def end(self):
        for reader in self.readers:
            reader.stdin.close()
            try:
                reader.wait(STUCK)
            except subprocess.TimeoutExpired:
                self.soak.violation(f"{self.name}: a reader does not end")
                reader.kill()
        for thread in self.threads:
            thread.join(STUCK)
            if thread.is_alive():
                self.soak.violation(f"{self.name}: {thread.name} does not end")
        wrong = [name for name, (_, digest) in self.sums.items() if hashlib.sha256((self.path / name).read_bytes()).hexdigest() != digest]
        if wrong:
            self.soak.violation(f"{self.name}: wrong at the end: {wrong[:3]}")
        self.restarts = self.soak.status(self.place())["restarts"]
        lines = pathlib.Path(f"/proc/{self.keeper}/status").read_text().splitlines()
        self.memory = ", ".join(" ".join(line.split()) for line in lines if line.split(":")[0] in ("VmRSS", "RssAnon", "Threads"))
        self.take_away()

    def place(self):
        """What `crfs status` knows it by."""
        return self.path

    def take_away(self):
        run(self.soak.world.crfs, "umount", self.path)


class Stored(Mounted):
    """A store, from which podman runs containers of one image. Other images come and go."""

    LIMITS = ["--ulimit", "nofile=20000:20000", "--ulimit", "nproc=1000:1000", "--network", "none"]

    def __init__(self, soak, name, others):
        world, self.others, self.binary = soak.world, others, soak.world.crfs
        self.root, self.graph, self.runroot = (world.fresh(place) for place in ("store", "podman", "podman-run"))
        self.root.chmod(0o700)
        self.image = f"127.0.0.1:{soak.registry}/{name}:latest"
        serve = ["store", "serve", "--root", self.root, "--cache-dir", world.fresh("cache"), "--cache-size", "48M"]
        self.process = world.start_until(b"serving", world.crfs, *serve)
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        self.crfs("add", "--whole-layer-below", "0", self.image)
        # It is mounted as for a container, and read through the overlay.
        container = self.podman("create", *self.LIMITS, self.image, "/bin/busybox").stdout.strip()
        path = pathlib.Path(self.podman("mount", container).stdout.strip())
        super().__init__(soak, name, path, self.process.pid)

    def crfs(self, command, *arguments):
        run(self.binary, "store", command, "--root", self.root, *arguments)

    def podman(self, *arguments, check=True):
        options = ["--root", self.graph, "--runroot", self.runroot, "--runtime", "runc", "--storage-opt", f"overlay.imagestore={self.root}"]
        command = [str(part) for part in ["podman", *options, *arguments]]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=check)

    def begin(self):
        super().begin()
        more = [threading.Thread(target=work, daemon=True) for work in (self.containers, self.images)]
        for thread in more:
            thread.start()
        self.threads += more

    def containers(self):
        pick = random.Random(self.soak.seed + 2)
        while not self.soak.over.is_set():
            names = pick.sample(sorted(self.sums), 3)
            done = self.podman("run", "--rm", *self.LIMITS, self.image, "/bin/busybox", "sha256sum", *names, check=False)
            found = [line.split()[0] for line in done.stdout.splitlines()]
            if done.returncode or found != [self.sums[name][1] for name in names]:
                self.soak.violation(f"a container: {done.returncode} {done.stderr[-300:]} {found}")
            self.soak.runs += 1

    def images(self):
        """Whoever asks while the server dies is told so, and asks again."""
        while not self.soak.over.is_set():
            for name in self.others:
                self.change(["add", "--whole-layer-below", "0", f"127.0.0.1:{self.soak.registry}/{name}:latest"], None)
                self.change(["rm", "--podman-root", str(self.graph), f"127.0.0.1:{self.soak.registry}/{name}:latest"], "has no image")
                self.soak.changes += 1

    def change(self, arguments, is_done):
        for _ in range(1000):
            command = [str(self.soak.world.crfs), "store", arguments[0], "--root", str(self.root), *arguments[1:]]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            if done.returncode == 0 or (is_done and is_done in done.stderr) or self.soak.over.is_set():
                return
            if "ended before it had answered" not in done.stderr:
                self.soak.violation(f"{arguments}: {done.stderr[-300:]}")
                return

    def harm(self, how):
        # Now and then there is time for a change of the store.
        if self.soak.pick.random() < 0.1:
            time.sleep(self.soak.pick.uniform(0.5, 2))
        super().harm(how)

    def place(self):
        return self.root

    def take_away(self):
        self.podman("rm", "-a", "-f", "-t", "0", check=False)
        subprocess.run(["umount", "-l", self.graph / "overlay"], stderr=subprocess.DEVNULL, check=False)
        self.process.terminate()
        self.process.wait(STUCK)
        if any(str(self.root) in line for line in pathlib.Path("/proc/self/mounts").read_text().splitlines()):
            self.soak.violation("the store's mount is still there")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--crfs", required=True)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--how", choices=["kill", "upgrade", "both"], default="both")
    parser.add_argument("--store", action="store_true")
    parser.add_argument("--image", action="append", choices=list(MOUNTS))
    chosen = parser.parse_args()
    with World(chosen.crfs, "/nonexistent", "/nonexistent") as world:
        sys.exit(Soak(world, chosen).run())


if __name__ == "__main__":
    main()
