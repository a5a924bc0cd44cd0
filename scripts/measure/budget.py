"""Random hostile layers of at most 100 KB never take more memory than the budget. Called by scripts/soak-budget."""

import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import hostile
from groups import Group
from layers import Layout
from report import Report

MIB = 1 << 20
# What crfs may have beside the budget: itself, its threads, buffers of what it reads.
BASE = 48 * MIB
# Bytes for each entry: what an honest tree costs.
ENTRY = 100
# Of a command that was ended, or of what nobody should ever see.
BAD = ["panicked", "this is a bug", "RUST_BACKTRACE", "stack overflow", "memory allocation"]


class Case:
    """One image: it is made, and crfs looks at it in a cgroup that has what the budget is and no more."""

    def __init__(self, chosen, number):
        self.chosen, self.number = chosen, number
        self.pick = random.Random(f"{chosen.seed}-{number}")

    def make(self, place):
        made, times, self.kind = hostile.image(self.pick)
        layout = Layout(place)
        described, diff_ids, ztocs = [], [], []
        for one, count in zip(made, times):
            layer = one.layer
            descriptor = layout.put(layer.media_type, layer.blob) | ({"annotations": layer.annotations} if layer.annotations else {})
            described += [descriptor] * count
            diff_ids += [layer.diff_id] * count
            ztocs += [layer.ztoc] * count
        layout.write_image(described, diff_ids, ztocs)
        self.layers, self.entries = len(made), sum(one.entries for one in made)
        self.size = max(len(one.layer.blob) + len(one.layer.ztoc) for one in made)

    def run(self):
        """A dictionary of what was seen."""
        with tempfile.TemporaryDirectory(prefix="crfs-budget-", dir="/var/tmp") as name:
            place = pathlib.Path(name)
            start = time.monotonic()
            self.make(place / "layout")
            made = time.monotonic() - start
            if self.chosen.keep:
                shutil.copytree(place / "layout", self.chosen.keep)
            self.bound = self.chosen.memory * MIB + self.entries * ENTRY + BASE
            group = Group(f"crfs-budget-{os.getpid()}-{self.number}")
            try:
                group.limit_memory(self.bound)
                seen = self.mount(place, group) if self.pick.random() < self.chosen.mounts else self.look(place, group)
                seen |= {"peak": group.peak(), "killed": group.killed()}
            finally:
                gone = group.remove()
        seen |= {"number": self.number, "kind": self.kind, "layers": self.layers, "entries": self.entries, "bound": self.bound, "size": self.size, "made": made}
        seen["violations"] = self.violations(seen) + ([] if gone else ["something is left in its cgroup"])
        return seen

    def command(self, group, *arguments):
        command = [str(part) for part in [self.chosen.crfs, *arguments]]
        seconds = self.chosen.seconds

        def prepare():
            group.enter()
            # Of the CPU, so that it is the same on a machine that has much else to do.
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))

        before = spent()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=prepare, errors="replace")
        try:
            said = process.communicate(timeout=20 * seconds)[1]
        except subprocess.TimeoutExpired:
            for pid in group.processes():
                os.kill(pid, signal.SIGKILL)
            process.wait()
            return {"code": None, "said": "", "seconds": spent() - before}
        return {"code": process.returncode, "said": said, "seconds": spent() - before}

    def options(self, place):
        limit = ["--memory-limit", f"{self.chosen.memory}M"] if self.chosen.has_limit else []
        return [*limit, "--cache-dir", place / "cache", "--platform", "linux/amd64", f"oci:{place}/layout:latest"]

    def look(self, place, group):
        return self.command(group, "ls", *self.options(place), "/")

    def mount(self, place, group):
        """The most that a server has is what it needed while it started."""
        (place / "mount").mkdir()
        seen = self.command(group, "mount", *self.options(place), place / "mount")
        if seen["code"] == 0:
            subprocess.run([self.chosen.crfs, "umount", place / "mount"], stdout=subprocess.DEVNULL, check=False)
        subprocess.run(["umount", "-l", place / "mount"], stderr=subprocess.DEVNULL, check=False)
        return seen

    def violations(self, seen):
        found = []
        if seen["killed"]:
            found.append(f"out of memory at {seen['bound'] // MIB} MiB")
        elif seen["code"] is None or seen["seconds"] >= self.chosen.seconds - 1:
            found.append(f"no end after {seen['seconds']:.0f} s of the CPU")
        elif seen["code"] not in (0, 1):
            found.append(f"exit code {seen['code']}: {seen['said'][-300:]}")
        elif seen["code"] == 1 and len(seen["said"].strip().splitlines()) < 1:
            found.append("refused without a word")
        found += [f"it said {word!r}: {seen['said'][-500:]}" for word in BAD if word in seen["said"]]
        return found


def spent():
    """Seconds of the CPU that the children of this process have had, as far as they have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_case(chosen, number):
    return Case(chosen, number).run()


def options():
    parser = argparse.ArgumentParser(prog="scripts/soak-budget", description=__doc__.split(" Called")[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31), help="(default: another each time)")
    parser.add_argument("--layers", type=int, default=10_000, help="how many (default: 10,000)")
    parser.add_argument("--parallel", type=int, default=2, help="images at a time (default: 2)")
    parser.add_argument("--memory", type=int, default=256, metavar="MIB", help="the budget, given as --memory-limit (default: 256)")
    parser.add_argument("--seconds", type=int, default=60, help="an image that takes the CPU for longer fails (default: 60)")
    parser.add_argument("--mounts", type=float, default=0.1, help="the part of the images that is mounted; crfs ls looks at the others (default: 0.1)")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="only this image of the seed")
    parser.add_argument("--keep", metavar="DIR", help="with --only: copies the image's OCI layout there")
    parser.add_argument("--json", metavar="FILE", help="write the figures of all images to FILE, too")
    parser.add_argument("--crfs", help=argparse.SUPPRESS)
    return parser.parse_args()


def family(kind):
    return kind.split(":")[0].split(",")[0] if not kind[0].isdigit() else "several layers"


def summary(report, every, layers):
    kinds = collections.defaultdict(list)
    for seen in every:
        kinds[family(seen["kind"]) if not seen["kind"].startswith("named") else "one layer, many times"].append(seen)
    rows = []
    for kind, of in sorted(kinds.items()):
        peak, slow = max(of, key=lambda seen: seen["peak"]), max(of, key=lambda seen: seen["seconds"])
        counts = [sum(seen["code"] == code for seen in of) for code in (0, 1)]
        bad = sum(bool(seen["violations"]) for seen in of)
        rows.append([kind, str(len(of)), str(counts[0]), str(counts[1]), str(bad), f"{peak['peak'] // MIB}", f"{slow['seconds']:.1f}"])
    report.table(
        f"{layers} hostile layers in {len(every)} images; what crfs needed", ["", "images", "shown", "refused", "violations", "peak MiB", "most CPU s"], rows
    )


def run_all(chosen):
    """What was seen of each image, and how many layers they had."""
    every, layers, told, start = [], 0, time.monotonic(), time.monotonic()
    with concurrent.futures.ProcessPoolExecutor(chosen.parallel, initializer=signal.signal, initargs=(signal.SIGTERM, signal.SIG_IGN)) as pool:
        numbers, waiting = iter(range(chosen.layers)), set()
        while waiting or layers < chosen.layers:
            while layers < chosen.layers and len(waiting) < 2 * chosen.parallel:
                waiting.add(pool.submit(run_case, chosen, next(numbers)))
            done, waiting = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
            for seen in (one.result() for one in done):
                every.append(seen)
                layers += seen["layers"]
                for text in seen["violations"]:
                    print(f"VIOLATION: image {seen['number']} ({seen['kind']}; {seen['entries']} entries, {seen['size']} bytes): {text}", flush=True)
            if time.monotonic() - told > 20:
                told = time.monotonic()
                print(f"{told - start:6.0f} s: {layers} layers in {len(every)} images, {sum(bool(one['violations']) for one in every)} bad", flush=True)
    return every, layers


def main():
    chosen = options()
    # What is under way comes to its end then.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("scripts/soak-budget: ended by a signal"))
    help_text = subprocess.run([chosen.crfs, "ls", "--help"], capture_output=True, text=True, check=False).stdout
    chosen.has_limit = "--memory-limit" in help_text
    report = Report(chosen.json)
    print(f"seed {chosen.seed}, crfs {chosen.crfs}{'' if chosen.has_limit else ', which has no --memory-limit'}", flush=True)
    if chosen.only is not None:
        seen = run_case(chosen, chosen.only)
        print(json.dumps(seen, indent=1))
        sys.exit(1 if seen["violations"] else 0)
    every, layers = run_all(chosen)
    summary(report, every, layers)
    report.add("budget", every, seed=chosen.seed)
    bad = [seen for seen in every if seen["violations"]]
    if bad:
        print(f"{len(bad)} images are bad; to see one again: scripts/soak-budget --seed {chosen.seed} --only {bad[0]['number']}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
