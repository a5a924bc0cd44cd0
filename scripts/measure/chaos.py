"""All that can go wrong around crfs, at once and at random; nothing that is read may be wrong. Called by scripts/soak-chaos."""

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
import urllib.request

import trees
from disks import Disk
from faults import OF_DISKS, OF_SERVERS, Chaos
from history import History
from report import Report
from servers import Mount, Store
from world import World, run

HERE = pathlib.Path(__file__).parent
# A server for each of them, and how it is mounted.
MOUNTS = {
    "estargz": ["--prefetch", "hints"],
    "zstd-chunked": ["--prefetch", "none", "--whole-layer-below", "0"],
    "gzip": ["--prefetch", "all"],
    "zstd": ["--prefetch", "none"],
    "soci": ["--prefetch", "hints", "--whole-layer-below", "0", "--platform", "linux/amd64"],
}
# Images of the store.
STORED = ["zstd-chunked-run", "gzip-run"]
READERS = 2
# Seconds beyond the deadline after which a read is stuck.
SLACK = 15
# Seconds that a disk which has failed for good is gone on with at the end of a phase.
BROKEN = 12


class Tally:
    """What the readers of one server have met."""

    def __init__(self):
        self.reads = self.bytes = self.wrong = self.unexplained = self.stuck = 0
        self.explained = collections.Counter()
        self.longest = 0.0

    def errors(self):
        return ", ".join(f"{count} {name}" for name, count in sorted(self.explained.items())) or "0"


class Reader:
    """A process that reads, and a thread that hears what it has met."""

    def __init__(self, lab, server, number):
        self.lab, self.server, self.tally = lab, server, lab.tallies[server.name]
        slot = lab.world.place / f"slot-{server.name}-{number}"
        slot.write_bytes(bytes(8))
        with open(slot, "r+b") as file:
            self.slot = mmap.mmap(file.fileno(), 8)
        self.stuck_since = self.reads = self.bytes = 0
        command = [sys.executable, "-B", HERE / "readers.py", server.path, server.tree, slot, f"{lab.seed}-{lab.phase}-{number}"]
        self.process = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.thread = threading.Thread(target=self._hear, daemon=True)
        self.thread.start()

    def _hear(self):
        for line in self.process.stdout:
            self.lab.met(self.server, self.tally, json.loads(line), self)

    def look(self):
        """Tells of a read that takes too long, once."""
        since, now = struct.unpack("<d", self.slot[:8])[0], time.monotonic()
        if since and since != self.stuck_since and self.lab.history.is_stuck(self.server.name, since, now, SLACK):
            self.stuck_since = since
            self.tally.stuck += 1
            stack = ""
            with contextlib.suppress(OSError):
                stack = pathlib.Path(f"/proc/{self.process.pid}/stack").read_text().replace("\n", " ")
            self.lab.history.violation(f"a reader of {self.server.name} is stuck for {now - since:.1f} s: {stack}")

    def end(self):
        self.process.stdin.close()
        try:
            self.process.wait(self.lab.history.deadline + SLACK)
        except subprocess.TimeoutExpired:
            self.process.kill()
            try:
                self.process.wait(10)
                self.lab.history.violation(f"a reader of {self.server.name} did not end by itself")
            except subprocess.TimeoutExpired:
                self.lab.history.violation(f"a reader of {self.server.name} cannot even be killed")
        self.thread.join(5)


class Containers(threading.Thread):
    """Runs containers from the store, one after the other, that read files past the kernel's memory."""

    def __init__(self, lab, store):
        super().__init__(daemon=True)
        self.lab, self.store, self.tally, self.pick = lab, store, lab.tallies["store"], random.Random(f"{lab.seed}-{lab.phase}")
        self.ends = threading.Event()

    def run(self):
        while not self.ends.is_set():
            self.one()

    def one(self):
        """Whether the container found everything as it should be."""
        image = self.pick.choice(STORED)
        sums = self.lab.sums[image]
        names = self.pick.sample(sorted(sums), 12)
        self.store.forget_pages([*names, "bin/busybox"])
        command = ["run", "--rm", *self.store.LIMITS, f"127.0.0.1:{self.lab.ports[self.store.number]}/{image}", "/bin/busybox", "sha256sum", *names]
        start, said = time.monotonic(), ""
        try:
            done = self.store.podman(*command, timeout=20 * self.lab.history.deadline)
            good, said, lines = done.returncode == 0, done.stderr.strip(), done.stdout.splitlines()
        except subprocess.TimeoutExpired:
            good, said, lines = False, "no end", []
        end = time.monotonic()
        found = dict(reversed(line.split(maxsplit=1)) for line in lines if len(line.split()) == 2)
        wrong = [name for name in names if name in found and found[name] != sums[name][1]]
        if wrong or (good and len(found) < len(names)):
            self.tally.wrong += 1
            self.lab.history.violation(f"WRONG BYTES in a container of {image}: {wrong}, {len(found)} of {len(names)}: {said[-300:]}")
        self.tally.reads += len(found) - len(wrong)
        self.tally.bytes += sum(sums[name][0] for name in found if name in sums)
        self.tally.longest = max(self.tally.longest, end - start)
        if not good:
            self.failed(start, end, said)
        return good

    def failed(self, start, end, said):
        """A container is many reads, and one of them may have failed at any time."""
        steps = [start + second for second in range(1, int(end - start) + 1)] + [end]
        names = {self.lab.history.explains("store", "EIO", start, step) for step in steps} - {None}
        if names:
            self.tally.explained[f"containers ({min(names)})"] += 1
        else:
            self.tally.unexplained += 1
            self.lab.history.violation(f"a container failed after {end - start:.1f} s: {said[-600:]}")


class Pulse(threading.Thread):
    """Asks the registry by a proxy that no fault is of, all the time. Where it is slow, the machine is, and proxies and registry with it."""

    SLOW = 0.5

    def __init__(self, lab):
        super().__init__(daemon=True)
        self.lab, self.url = lab, f"http://127.0.0.1:{lab.ports[-1]}/v2/"
        self.seconds = 0.0

    def run(self):
        while True:
            start = time.monotonic()
            with contextlib.suppress(OSError), urllib.request.urlopen(self.url) as answer:
                answer.read()
            end = time.monotonic()
            if end - start > self.SLOW:
                self.seconds += end - start
                self.lab.history.busy(start, end)
            time.sleep(0.2)


class Lab:
    CACHE = "48M"

    def __init__(self, world, chosen):
        self.world, self.seed, self.phase, self.refused = world, chosen.seed, 0, 0
        self.pick, self.history, self.only = random.Random(chosen.seed), History(chosen.deadline), chosen.faults
        self.memory = chosen.memory << 20
        self.logs = pathlib.Path("/var/tmp") / f"crfs-chaos-logs-{chosen.seed}"
        self.logs.mkdir(exist_ok=True)
        self.tallies = {name: Tally() for name in [*MOUNTS, "store"]}
        self.figures = {name: collections.Counter() for name in self.tallies}
        self.over = threading.Event()
        self.images()
        self.proxies()

    def images(self):
        self.history.say(f"making images of {len(MOUNTS)} formats")
        place = self.world.place
        self.sums = {name: trees.make(place, name) for name in MOUNTS}
        self.sums |= {name: trees.make(place, name, trees.busybox(), ["/bin/sh"]) for name in STORED}
        self.trees = {name: place / "tree" / name for name in self.sums}
        self.registry = self.world.registry(self.world.fresh("registry"))
        for name in self.sums:
            run(sys.executable, "-B", HERE / "push.py", place / "layout" / name, f"127.0.0.1:{self.registry}", name)

    def proxies(self):
        command = [sys.executable, "-B", HERE / "network.py", self.registry, len(MOUNTS) + 2]
        self.lies = subprocess.Popen([str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.ports = [int(self.lies.stdout.readline()) for _ in range(len(MOUNTS) + 2)]
        self.pulse = Pulse(self)
        self.pulse.start()

    def network(self, number, fault):
        self.lies.stdin.write(f"{number} {fault}\n")
        self.lies.stdin.flush()

    def pause(self, seconds):
        """Or until the phase is over."""
        self.over.wait(seconds)

    def met(self, server, tally, event, reader):
        if "reads" in event:
            tally.reads += event["reads"] - reader.reads
            tally.bytes += event["bytes"] - reader.bytes
            reader.reads, reader.bytes = event["reads"], event["bytes"]
            tally.longest = max(tally.longest, event["longest"])
            return
        what = f"{event['how']} of {event['name']} of {server.name}, {event['end'] - event['start']:.1f} s"
        if "wrong" in event:
            tally.wrong += 1
            self.history.violation(f"WRONG BYTES: {what}: {event['wrong']}")
        elif "errno" in event:
            why = self.history.explains(server.name, event["errno"], event["start"], event["end"])
            if why:
                tally.explained[f"{event['errno']} ({why})"] += 1
            else:
                tally.unexplained += 1
                self.history.violation(f"{event['errno']} that no fault explains: {what}, begun at {event['start'] - self.history.start:.1f} s")

    def run_phase(self, kind, seconds):
        self.phase += 1
        self.history.say(f"phase {self.phase}: the cache of the mounts on {kind}")
        place = self.world.fresh("phase")
        self.disks = [Disk(place, one) for one in sorted(["ext4", "xfs"], key=lambda one: one != kind)]
        self.disk = self.disks[0]
        self.servers = [Mount(self, number, name, options) for number, (name, options) in enumerate(MOUNTS.items())]
        store = Store(self, len(MOUNTS), self.disks[1])
        for server in self.servers:
            server.disk = self.disk
        self.servers.append(store)
        try:
            if self.start_all(store):
                self.harm(store, seconds)
        finally:
            self.end_all()

    def start_all(self, store):
        for server in self.servers:
            if said := server.start():
                self.history.violation(f"{server.name} does not start: {said}")
                return False
        for name in STORED:
            if said := store.add(f"127.0.0.1:{self.ports[store.number]}/{name}"):
                self.history.violation(f"store add: {said}")
                return False
        return True

    def harm(self, store, seconds):
        self.over.clear()
        readers = [Reader(self, server, number) for server in self.servers[:-1] for number in range(READERS)]
        containers, chaos = Containers(self, store), Chaos(self, self.only)
        containers.start()
        ends, next_fault = time.monotonic() + seconds - BROKEN, 0.0
        try:
            while time.monotonic() < ends:
                self.look(readers)
                if time.monotonic() > next_fault and chaos.begin_one():
                    next_fault = time.monotonic() + self.pick.uniform(0.3, 2.5)
                time.sleep(0.1)
            self.over.set()
            chaos.join()
            self.calm(readers, "all faults are over")
            self.break_down(readers)
        finally:
            self.over.set()
            chaos.join()
            containers.ends.set()
            for reader in readers:
                reader.end()
            containers.join(20 * self.history.deadline)
        self.finally_right(containers)

    def look(self, readers):
        for one in [*readers, *self.servers]:
            one.look()

    def calm(self, readers, why):
        """What waits goes on within a deadline; errors of faults that were are over."""
        self.history.say(why)
        ends = time.monotonic() + self.history.deadline
        while time.monotonic() < ends:
            self.look(readers)
            time.sleep(0.1)

    def break_down(self, readers):
        record = self.history.begin("broken", self.disk.kind, "read-only by an error" if self.disk.kind == "ext4" else "shut down: nothing but EIO")
        self.disk.break_down()
        ends = time.monotonic() + BROKEN
        while time.monotonic() < ends:
            self.look(readers)
            time.sleep(0.1)
        self.history.end(record, "it stays so until the end of the phase")

    def finally_right(self, containers):
        """Every file of every mount, while the cache's disk is broken."""
        for server in self.servers[:-1]:
            bad = []
            for name, (_, digest) in self.sums[server.name].items():
                try:
                    if hashlib.sha256((server.path / name).read_bytes()).hexdigest() != digest:
                        bad.append(f"{name} is wrong")
                except OSError as error:
                    bad.append(f"{name}: {error}")
            if bad:
                self.history.violation(f"{server.name}, read whole after all faults: {len(bad)} files, {bad[:3]}")
        for _ in STORED:
            containers.one()

    def end_all(self):
        for server in self.servers:
            server.look()
            figures = self.figures[server.name]
            figures["rss"] = max(figures["rss"], server.rss << 10)
            figures["peak"] = max(figures["peak"], server.group.peak())
            figures["kills"] += server.kills
            figures["deaths"] += server.deaths
            if server.rss << 10 > self.memory:
                self.history.violation(f"{server.name} had {server.rss >> 10} MiB resident")
            if said := server.end():
                self.history.violation(f"{server.name} does not end well: {said}")
            if not server.group.remove():
                self.history.violation(f"the cgroup of {server.name} is still in use by {server.group.processes()}")
        for disk in self.disks:
            if said := disk.remove():
                self.history.violation(f"the {disk.kind} disk is still in use: {said}")

    def close(self):
        self.lies.stdin.close()
        self.lies.wait(10)
        left = [line.split()[1] for line in pathlib.Path("/proc/self/mounts").read_text().splitlines() if str(self.world.place) in line]
        if left:
            self.history.violation(f"still mounted: {left}")
        # What libfaketime keeps for each process.
        for path in pathlib.Path("/dev/shm").glob("*faketime_s*"):
            pid = path.name.rsplit("_", 1)[-1]
            if pid.isdigit() and not pathlib.Path(f"/proc/{pid}").exists():
                path.unlink(missing_ok=True)

    def tell(self, report):
        rows = []
        for name, tally in self.tallies.items():
            figures = self.figures[name]
            row = [f"{tally.reads:,}", f"{tally.bytes >> 20:,}", str(tally.wrong), tally.errors(), str(tally.unexplained), str(tally.stuck)]
            rows.append([name, *row, f"{tally.longest:.1f}", str(figures["kills"]), str(figures["deaths"]), f"{figures['rss'] >> 20}", f"{figures['peak'] >> 20}"])
        head = ["", "right", "MiB", "wrong", "errors, explained", "not", "stuck", "longest s", "kills", "deaths", "RSS MiB", "cgroup MiB"]
        report.table(f"seed {self.seed}: what readers saw", head, rows)
        counts = self.history.counts()
        counts.pop("busy", None)
        report.note("faults: " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) + f"; read-only refused by the kernel: {self.refused}")
        report.note(f"a healthy proxy took more than {self.pulse.SLOW} s to answer for {self.pulse.seconds:.0f} s in all: the machine had too much to do")
        for text in self.history.violations:
            print(f"VIOLATION at {text}")
        if self.history.violations:
            print(f"the servers' logs: {self.logs}")
        return 1 if self.history.violations else 0


def options():
    parser = argparse.ArgumentParser(prog="scripts/soak-chaos", description=__doc__.split(" Called")[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31), help="which faults come in which order (default: another each time)")
    parser.add_argument("--minutes", type=float, default=10, help="how long (default: 10), in phases of some 2.5 minutes")
    parser.add_argument("--faults", nargs="*", metavar="FAULT", choices=[*OF_SERVERS, *OF_DISKS], help="only these; choices: " + ", ".join([*OF_SERVERS, *OF_DISKS]))
    parser.add_argument("--deadline", type=float, default=10, metavar="SECONDS", help="--io-deadline of the mounts (default: 10)")
    parser.add_argument("--memory", type=int, default=256, metavar="MIB", help="what a server may have resident (default: 256)")
    parser.add_argument("--json", metavar="FILE", help="write all figures to FILE, too")
    parser.add_argument("--crfs", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    chosen = options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("scripts/soak-chaos: ended by a signal"))
    report = Report(chosen.json)
    print(f"seed {chosen.seed}, {chosen.minutes:g} minutes, crfs {chosen.crfs}", flush=True)
    phases = max(2, round(chosen.minutes / 2.5))
    with World(chosen.crfs, "/", "") as world:
        lab = Lab(world, chosen)
        ends = time.monotonic() + chosen.minutes * 60
        for number in range(phases):
            left = (ends - time.monotonic()) / (phases - number)
            lab.run_phase(["ext4", "xfs"][number % 2], max(left - 25, 10 + BROKEN))
        lab.close()
    code = lab.tell(report)
    report.add("chaos", {name: vars(tally) | lab.figures[name] for name, tally in lab.tallies.items()}, violations=lab.history.violations)
    sys.exit(code)


if __name__ == "__main__":
    main()
