"""Small cold reads through two mirrors of which one hangs, or is slow now and then: how long they take, and how many bytes are sent twice."""

import contextlib
import os
import random
import signal
import socket
import threading
import time

from nodes import Node, Places, settle
from registries import Meter, TAGS, make_image

# Each file is read from a part of the layer of its own.
FILES = [[16_000] * 1500]
# Between reads, as a program has it that does something with them.
PAUSE = 0.004
DIAL_TIMEOUT = 1.0
OPTIONS = ["--prefetch", "none", "--whole-layer-below", "0"]


class Silent:
    """Takes connections, and never says anything."""

    def __init__(self, stack):
        self.server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        self.port, self.taken = self.server.getsockname()[1], []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                self.taken.append(self.server.accept()[0])


class Deaf:
    """Takes no connection: what it may have waiting is full, and the kernel drops what comes then."""

    def __init__(self, stack):
        self.server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        self.port = self.server.getsockname()[1]
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", self.port))


class Slow(Meter):
    """Passes some requests on later."""

    def __init__(self, target, share, late):
        self.share, self.late, self.pick = share, late, random.Random(17)
        super().__init__(target)

    def _asked(self, part):
        super()._asked(part)
        if b"/blobs/" in part and self.pick.random() < self.share:
            time.sleep(self.late)


def image(world, chosen):
    layout, files = make_image(world.fresh("image"), FILES, {"estargz": TAGS["estargz"]})
    return Places(world, chosen.distribution, layout, "estargz", files)


def read(places, mirrors, seed, reads, at_quarter=lambda: None):
    """Seconds that the mount took, and each read, of which some are asked for after `at_quarter`; bytes by port."""
    node = Node(places, os.environ, *OPTIONS, "--hosts-dir", places.hosts_dir(mirrors, f"{DIAL_TIMEOUT:.0f}s"))
    names = list(places.files)
    random.Random(seed).shuffle(names)
    took, wrong = [], 0
    for number, name in enumerate(names[:reads]):
        if number == reads // 4:
            at_quarter()
        start = time.monotonic()
        content = (node.path / name).read_bytes()
        took.append(time.monotonic() - start)
        wrong += len(content) != FILES[0][0]
        time.sleep(PAUSE)
    if wrong:
        raise OSError(f"{wrong} files were too short")
    received = node.received()
    node.unmount()
    return node.mounted, sorted(took), received


def percentile(took, share):
    return took[min(len(took) - 1, int(len(took) * share))]


def late(took):
    """Reads that waited for what hangs."""
    return sum(seconds > 0.5 for seconds in took)


def hangs(world, report, chosen):
    places = image(world, chosen)
    rows, figures = [], {}
    milliseconds = lambda seconds: f"{seconds * 1000:.1f}"
    with contextlib.ExitStack() as stack:
        good, other = (places.cache("nginx plain", places.registry.port) for _ in range(2))
        stack.callback(other.signal, signal.SIGCONT)
        cases = {
            "both are well": (other.port, lambda: None),
            "the first is stopped after a quarter (SIGSTOP)": (other.port, lambda: other.signal(signal.SIGSTOP)),
            "the first is stopped all the time (SIGSTOP)": (other.port, lambda: None),
            "the first takes connections and is silent": (Silent(stack).port, lambda: None),
            "the first takes no connections": (Deaf(stack).port, lambda: None),
        }
        for number in range(chosen.runs):
            for name, (first, at_quarter) in cases.items():
                if "all the time" in name:
                    other.signal(signal.SIGSTOP)
                mounted, took, _ = read(places, [first, good.port], number, chosen.reads, at_quarter)
                other.signal(signal.SIGCONT)
                figures.setdefault(name, []).append({"mounted": mounted, "p50": percentile(took, 0.5), "p99": percentile(took, 0.99), "most": took[-1], "late": late(took)})
                rows.append([f"{name}, run {number + 1}", f"{mounted:.2f}", *(milliseconds(of) for of in [percentile(took, 0.5), percentile(took, 0.99), took[-1]]), str(late(took))])
                print(" | ".join(rows[-1]), flush=True)
    rows.sort()
    report.table(f"{chosen.reads} cold reads of small files by one reader, two mirrors, then the registry; dial_timeout {DIAL_TIMEOUT:.0f} s", ["", "mounted s", "p50 ms", "p99 ms", "most ms", "over 0.5 s"], rows)
    report.add("hangs", figures)


def hedges(world, report, chosen):
    """All bytes that leave the mirrors and the registry, against those without any delay."""
    places = image(world, chosen)
    rows, figures = [], {}
    for number in range(chosen.runs):
        usual = None
        for name, share, late in [("no delay", 0, 0), ("1 % of requests 0.3 s late", 0.01, 0.3), ("10 % of requests 0.3 s late", 0.1, 0.3)]:
            meters = [Slow(places.registry.port, share, late), Meter(places.registry.port)]
            places.direct.reset()
            mounted, took, _ = read(places, [meter.port for meter in meters], number, chosen.reads)
            settle(*meters, places.direct)
            sent = sum(meter.bytes for meter in [*meters, places.direct])
            usual = usual or sent
            figures.setdefault(name, []).append({"bytes": sent, "more": sent / usual - 1, "p99": percentile(took, 0.99), "most": took[-1]})
            rows.append([f"{name}, run {number + 1}", str(sent), f"{(sent / usual - 1) * 100:.2f} %", f"{percentile(took, 0.99) * 1000:.1f}", f"{took[-1] * 1000:.1f}"])
            print(" | ".join(rows[-1]), flush=True)
    rows.sort()
    report.table(f"{chosen.reads} cold reads of small files, the first of two mirrors is slow now and then", ["", "bytes sent", "more than usual", "p99 ms", "most ms"], rows)
    report.add("hedges", figures)
