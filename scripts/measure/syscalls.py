"""Processes that are killed at each of their system calls. Called by scripts/soak-syscalls."""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from slots import OPTIONS, STUCK, Image, Point, Slot, children, until
from world import run

HERE = pathlib.Path(__file__).parent


class Mounted:
    """The scenarios of a mount."""

    IS_DONE_BEFORE = True

    def __init__(self, slot):
        self.slot = slot
        self.cache, self.dir = slot.fresh("cache"), slot.fresh("mount")
        self.paths = slot.paths(self.dir)
        self.early = dict(list(self.paths.items())[::2])
        # Whether everything was read, and so is cached.
        self.has_all = False

    def run(self):
        slot = self.slot
        if self.IS_DONE_BEFORE:
            if slot.crfs_ends(*slot.mount_options(self.cache), slot.name, self.dir) != 0:
                slot.violation("it cannot be mounted")
                return
            keeper = slot.keepers()[0]
            self.harm(keeper, children(keeper)[0])
        else:
            self.harm(None, None)
        slot.traced_out()
        self.take_away()
        self.again()

    def may_fail(self):
        """Without its keeper, a mount ends with its server, and may do so before it was made."""
        return self.slot.point.role == "keeper"

    def take_away(self):
        """By one command or the other, as a user would."""
        slot, by = self.slot, random.choice(["dir", "all"])
        if slot.mounted() and slot.crfs_ends("umount", *(["--all"] if by == "all" else [self.dir])) != 0:
            slot.violation(f"crfs umount ({by}) failed")
        # Something that had begun when its command was killed may have come to its end since.
        until(lambda: not slot.processes() or slot.mounted(), 15)
        if slot.mounted():
            slot.crfs_ends("umount", self.dir)
        slot.crfs_ends("umount", "--all")
        slot.nothing_left(is_last=False)

    def again(self):
        """By the same cache, and without a registry once all has been read."""
        slot, again = self.slot, self.slot.fresh("again")
        slot.registry.is_off = self.has_all
        how = f"again, registry {'off' if self.has_all else 'on'}"
        if slot.crfs_ends(*slot.mount_options(self.cache), slot.name, again) != 0:
            slot.violation(f"it cannot be mounted {how}")
        else:
            slot.read(slot.paths(again), how)
            if slot.crfs_ends("umount", again) != 0:
                slot.violation("it cannot be unmounted again")
        if slot.crfs_ends("cache", "verify", "--cache-dir", self.cache) != 0:
            slot.violation("the cache is wrong")
        slot.nothing_left()


class Mounting(Mounted):
    IS_DONE_BEFORE = False

    def harm(self, *_):
        slot = self.slot
        command = slot.gated(slot.crfs, *slot.mount_options(self.cache), slot.name, self.dir)
        slot.trace(command.pid)
        slot.go(command)
        status = slot.ended(command, "crfs mount")
        if status == 0:
            self.has_all = slot.read(self.paths, "after the mount", self.may_fail())
        elif status and status > 0:
            if slot.mounted():
                slot.violation("crfs mount failed, and the mount is there")
        else:
            until(lambda: slot.mounted() or not slot.processes(), 5)
            self.has_all = slot.read(self.paths, "after the killed command", True)


class FirstRead(Mounted):
    def harm(self, keeper, worker):
        slot = self.slot
        slot.trace(keeper, worker)
        slot.read(self.early, "the first read")
        slot.traced_out()
        # Whoever serves goes on also without a keeper.
        self.has_all = slot.read(self.paths, "behind the first read")


class TakeOver(Mounted):
    def harm(self, keeper, worker):
        slot = self.slot
        slot.read(dict(list(self.early.items())[:2]), "before")
        slot.trace(keeper)
        os.kill(worker, signal.SIGKILL)
        slot.read(self.early, "while another server takes over", self.may_fail())
        slot.traced_out()
        self.has_all = slot.read(self.paths, "behind", self.may_fail())


class Upgrade(Mounted):
    def harm(self, keeper, worker):
        slot = self.slot
        command = slot.gated(slot.crfs, "upgrade", self.dir)
        slot.trace(keeper, worker, command.pid)
        slot.go(command)
        slot.read(self.early, "while it is upgraded", self.may_fail())
        if slot.ended(command, "crfs upgrade") != 0 and not slot.point.role:
            slot.violation("the upgrade failed")
        slot.traced_out()
        self.has_all = slot.read(self.paths, "behind", self.may_fail())


class Renewal(Mounted):
    """The keeper becomes another program, 10 s after an upgrade."""

    def harm(self, keeper, worker):
        slot = self.slot
        if slot.crfs_ends("upgrade", self.dir) != 0:
            slot.violation("the upgrade failed")
        time.sleep(8.5)
        slot.trace(keeper, *children(keeper))
        time.sleep(2.5)
        slot.read(self.early, "after the renewal", self.may_fail())
        slot.traced_out()
        self.has_all = slot.read(self.paths, "behind", self.may_fail())


class Unmounting(Mounted):
    def harm(self, keeper, worker):
        slot = self.slot
        slot.read(self.early, "before")
        command = slot.gated(slot.crfs, "umount", self.dir)
        slot.trace(keeper, worker, command.pid)
        slot.go(command)
        status = slot.ended(command, "crfs umount")
        if status == 0 and slot.mounted():
            slot.violation("crfs umount was done, and the mount is there")
        if not slot.point.role and status != 0:
            slot.violation("crfs umount failed")
        # Its server ends behind it.
        until(lambda: not slot.processes() or slot.mounted(), 5)
        if slot.mounted():
            self.has_all = slot.read(self.paths, "behind", True)


class Stored:
    """The scenarios of podman's store."""

    def __init__(self, slot):
        self.slot = slot
        self.cache, self.root = slot.fresh("cache"), slot.fresh("store")
        self.root.chmod(0o700)
        self.paths = {self.root / name: slot.image.files[file] for file, name in slot.image.stored.items()}
        self.early = dict(list(self.paths.items())[::2])
        self.has = True

    def served(self):
        return [self.slot.crfs, "store", "serve", "--root", self.root, "--cache-dir", self.cache]

    def serve(self, what, process=None):
        """Whether it came up."""
        slot = self.slot
        at = (slot.dir / "log").stat().st_size if (slot.dir / "log").exists() else 0
        self.server = process or slot.spawn(*self.served())
        if process:
            slot.go(process)

        def came():
            with open(slot.dir / "log", "rb") as log:
                log.seek(at)
                return b"serving " in log.read() or self.server.poll() is not None

        if not until(came):
            slot.violation(f"stuck: the store does not come up ({what})")
        return self.server.poll() is None

    def store(self, command, *arguments):
        return self.slot.crfs_ends("store", command, "--root", self.root, *arguments)

    def add(self):
        return self.store("add", *OPTIONS, "--name", "localhost/a:1", self.slot.name)

    def images(self):
        done = subprocess.run([self.slot.crfs, "store", "ls", "--json", "--root", self.root], capture_output=True, text=True, timeout=STUCK, check=False)
        if done.returncode:
            self.slot.violation(f"store ls: {done.stderr[-200:]}")
            return []
        return json.loads(done.stdout)

    def may_fail(self):
        return self.slot.point.role == "keeper"

    def stop(self, what):
        """Its keeper, or its server where that one is gone."""
        slot = self.slot
        left = slot.keepers() or slot.processes()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if not until(lambda: not slot.processes(), 20):
            slot.violation(f"stuck: the store does not end ({what}): {[slot.seen(pid) for pid in slot.processes()]}")

    def run(self):
        slot = self.slot
        self.harm()
        slot.traced_out()
        self.stop("behind the point")
        if not self.serve("again"):
            slot.violation("the store does not come up again")
            return
        there = bool(self.images())
        if self.has is not None and there != self.has:
            slot.violation(f"the image is {'' if there else 'not '}there")
        if not there and self.add() != 0:
            slot.violation("the image cannot be added again")
        slot.read(self.paths, "again")
        if random.random() < 0.5:
            slot.registry.is_off = True
            self.stop("the registry is off")
            if not self.serve("the registry is off"):
                slot.violation("the store does not come up without a registry")
            slot.read(self.paths, "again, registry off")
        if self.store("rm", "localhost/a:1") != 0:
            slot.violation("the image cannot be removed")
        self.stop("at the end")
        if slot.crfs_ends("cache", "verify", "--cache-dir", self.cache) != 0:
            slot.violation("the cache is wrong")
        slot.nothing_left()
        self.compare()

    def compare(self):
        """With what is left where nothing was killed."""
        found = {name for name in self.slot.listing() if name.startswith("/store/")}
        # A tar-split is there where there was time to take it, and stays for a minute behind its image.
        found -= {f"/store/overlay-layers/{layer}.tar-split.gz" for layer in self.slot.image.layers}
        normal = self.slot.normal.setdefault("store", found)
        if found - normal:
            self.slot.violation(f"files are left in the store: {sorted(found - normal)[:4]}")


class Serving(Stored):
    def harm(self):
        slot = self.slot
        if self.serve("before") and self.add() != 0:
            slot.violation("it cannot be added")
        self.stop("before")
        process = slot.gated(*self.served())
        slot.trace(process.pid)
        if self.serve("the point", process):
            slot.read(self.paths, "served", self.may_fail())


class Adding(Stored):
    def harm(self):
        slot = self.slot
        self.serve("before")
        command = slot.gated(slot.crfs, "store", "add", "--root", self.root, *OPTIONS, "--name", "localhost/a:1", slot.name)
        slot.trace(self.server.pid, *children(self.server.pid), command.pid)
        slot.go(command)
        status = slot.ended(command, "crfs store add")
        slot.traced_out()
        if status == 0:
            slot.read(self.paths, "added", self.may_fail())
        self.has = True if status == 0 else None


class Reading(Stored):
    def harm(self):
        slot = self.slot
        self.serve("before")
        self.add()
        slot.trace(self.server.pid, *children(self.server.pid))
        slot.read(self.early, "the first read")
        slot.traced_out()
        # Whoever serves goes on also without a keeper.
        slot.read(self.paths, "behind the first read")


class Removing(Stored):
    def harm(self):
        slot = self.slot
        self.serve("before")
        self.add()
        slot.read(self.early, "before")
        command = slot.gated(slot.crfs, "store", "rm", "--root", self.root, "localhost/a:1")
        slot.trace(self.server.pid, *children(self.server.pid), command.pid)
        slot.go(command)
        status = slot.ended(command, "crfs store rm")
        slot.traced_out()
        self.has = False if status == 0 else None
        if status != 0:
            slot.read(self.paths, "not removed, or all of it", True)


SCENARIOS = {
    "mount": Mounting, "read": FirstRead, "take-over": TakeOver, "upgrade": Upgrade, "umount": Unmounting,
    "store-serve": Serving, "store-add": Adding, "store-read": Reading, "store-rm": Removing, "renewal": Renewal,
}  # fmt: skip


def counted(slot, scenario, names):
    """How often each role makes each call; the most of three runs."""
    most = collections.Counter()
    for turn in range(1 if scenario == "renewal" else 3):
        seen = slot.run(Point(scenario, "", "", 0), counts=True)
        if slot.violations:
            print(f"VIOLATION: {scenario} without a kill: {slot.violations}", flush=True)
            raise SystemExit
        lines = [line.rsplit(" ", 1) for line in seen.splitlines() if line.count(" ")]
        for what, count in collections.Counter(map(tuple, lines)).items():
            most[what] = max(most[what], count)
    # What waits at the gate, and what it starts that is none of ours.
    ours = ("command", "keeper", "worker", "next", "reader")
    return {(role, names[int(call)]): count for (role, call), count in most.items() if role.removesuffix("-child") in ours}


def recorded(record):
    """The points that were tried before."""
    if not record or not pathlib.Path(record).exists():
        return set()
    return {Point(*json.loads(line)["point"]) for line in pathlib.Path(record).read_text().splitlines()}


def sampled(points, room, pick, tried):
    """The first of each kind, in any order, and then others as there is room."""
    first = [point for point in points if point.number == 1]
    rest = [point for point in points if point.number > 1]
    chosen = pick.sample(first, len(first)) + pick.sample(rest, max(0, min(len(rest), room - len(first))))
    return [point for point in chosen if point not in tried]


def work(slot, points, out, end):
    for point in points:
        start = time.monotonic()
        if end and start > end:
            break
        try:
            seen = slot.run(point)
        except Exception as error:  # A fault of the script is a violation, too: somebody has to look at it.
            slot.violation(f"the script: {error!r}")
            slot.clear_away()
            seen = ""
        done = {"point": point, "killed": "killed" in seen, "seconds": time.monotonic() - start, "violations": slot.violations}
        out.write(json.dumps(done) + "\n")
        out.flush()


def parallel(chosen, place, image, shares):
    """Each share in a process of its own; what they say, as it comes."""
    reading, writing = os.pipe()
    for number, share in enumerate(shares):
        if os.fork() == 0:
            os.close(reading)
            code = 1
            try:
                slot = Slot(chosen, SCENARIOS, place, image, number)
                # What is normal is known before anything is killed.
                slot.run(Point("store-rm", "", "", 0))
                work(slot, share, os.fdopen(os.dup(writing), "w"), chosen.end)
                code = 0
            finally:
                os._exit(code)
    os.close(writing)
    yield from map(json.loads, os.fdopen(reading))
    for _ in shares:
        if os.wait()[1]:
            sys.exit("a part of it has failed")


def plan(chosen, place, image):
    """What there is to kill at, counted in a process of its own, which has a namespace of its own."""
    if chosen.plan and pathlib.Path(chosen.plan).exists():
        points = [Point(*point) for point in json.loads(pathlib.Path(chosen.plan).read_text())]
        return [point for point in points if point.scenario in chosen.scenario]
    reading, writing = os.pipe()
    if os.fork() == 0:
        code = 1
        try:
            slot = Slot(chosen, SCENARIOS, place, image, "count")
            names = {number: name for name, number in slot.calls.items()}
            with os.fdopen(writing, "w") as out:
                for scenario in chosen.scenario:
                    for (role, call), count in counted(slot, scenario, names).items():
                        out.write(json.dumps([scenario, role, call, count]) + "\n")
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    found = [Point(scenario, role, call, number + 1) for scenario, role, call, count in map(json.loads, os.fdopen(reading)) for number in range(count)]
    if os.wait()[1]:
        sys.exit("the counting has failed")
    if chosen.plan:
        pathlib.Path(chosen.plan).write_text(json.dumps(found))
    return found


def report(done, seconds):
    print(f"{len(done)} points in {seconds:.0f} s")
    for scenario in SCENARIOS:
        those = [one for one in done if one["point"][0] == scenario]
        if those:
            roles = collections.Counter(one["point"][1] for one in those if one["killed"])
            calls = len({tuple(one["point"][1:3]) for one in those})
            bad = sum(bool(one["violations"]) for one in those)
            each = ", ".join(f"{role} {count}" for role, count in roles.most_common())
            print(f"  {scenario:12} {len(those):5} points, {sum(roles.values()):5} killed ({each}), {calls} kinds, {bad} with violations")
    print(f"{sum(len(one['violations']) for one in done)} violations")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--crfs", required=True)
    parser.add_argument("--points", type=int, default=5000)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--minutes", type=float, help="no point is begun after that time")
    parser.add_argument("--plan", help="a file with the system calls that there are; it is made where it is not there")
    parser.add_argument("--point", action="append", help="SCENARIO:ROLE:CALL:N, and nothing else")
    parser.add_argument("--record", help="a file to which what came of each point is added; those that it has are left out")
    parser.add_argument("scenario", nargs="*", help=" ".join(SCENARIOS))
    chosen = parser.parse_args()
    chosen.crfs, chosen.scenario = str(pathlib.Path(chosen.crfs).resolve()), chosen.scenario or list(SCENARIOS)
    place = pathlib.Path(tempfile.mkdtemp(prefix="crfs-syscalls-", dir="/var/tmp"))
    start, pick = time.monotonic(), random.Random(chosen.seed)
    chosen.end = start + 60 * chosen.minutes if chosen.minutes else None
    try:
        run("gcc", "-O1", "-o", place / "killer", HERE / "killer.c")
        image = Image(place / "layout")
        if chosen.point:
            points = [Point(*point.split(":")[:3], int(point.split(":")[3])) for point in chosen.point]
        else:
            points = plan(chosen, place, image)
            kinds = len({point[:3] for point in points})
            print(f"{len(points)} system calls of {kinds} kinds (scenario, process, call); seed {chosen.seed}", flush=True)
            points = sampled(points, chosen.points, pick, recorded(chosen.record))
        done = []
        for one in parallel(chosen, place, image, [points[at :: chosen.parallel] for at in range(chosen.parallel)]):
            done.append(one)
            for text in one["violations"]:
                print(f"VIOLATION: {text}\n    again: scripts/soak-syscalls --point {':'.join(map(str, one['point']))}", flush=True)
            if chosen.record:
                with open(chosen.record, "a") as file:
                    file.write(json.dumps(one) + "\n")
            if len(done) % 250 == 0:
                print(f"{time.monotonic() - start:7.0f} s: {len(done)} of {len(points)} points", flush=True)
        report(done, time.monotonic() - start)
        sys.exit(1 if any(one["violations"] for one in done) else 0)
    finally:
        subprocess.run(["rm", "-rf", "--one-file-system", place], check=False)


if __name__ == "__main__":
    main()
