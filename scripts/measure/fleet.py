"""A fleet of nodes behind one cache; mirrors that die under readers; mirrors that hang. Called by scripts/soak-fleet."""

import argparse
import os
import random
import signal
import sys
import threading
import time

import hanging
from nodes import ENDING, Node, Places, bench_image, settle
from registries import LAYERS, Meter, TAGS, make_image
from report import Report
from world import World

# Of a fleet's image: every node reads all of it.
SMALL = [[3_000_000] * 8, [40_000] * 150 + [1_000_000] * 4, [3_000] * 100]
CACHES = ["nginx slice", "haproxy", "distribution 3.1.2", "docker-registry 2.8"]


def all_at_once(work, count, pause=0.0):
    """Runs `work(number)` in as many threads; each begins `pause` after the one before it."""
    failed = []

    def one(number):
        try:
            time.sleep(number * pause)
            work(number)
        except BaseException as error:  # run() exits
            failed.append(f"{number}: {error}")

    threads = [threading.Thread(target=one, args=[number]) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:  # a signal
        ENDING.set()
        for thread in threads:
            thread.join()
        raise
    if failed:
        sys.exit("scripts/soak-fleet: " + "\n".join(failed))


def image(world, tag, layers):
    layout, files = make_image(world.fresh("image"), layers, {tag: TAGS[tag]})
    return layout, tag, files


STARTS = {
    "together": {},
    "staggered": {"pause": 0.5},
    "together, each in its own order": {"shuffled": True},
}


def read_by_fleet(places, environment, count, pause=0.0, shuffled=False):
    """Bytes that the nodes were sent, by port; what they say of the endpoints, together; and how long it took."""
    nodes, received, told, start = [None] * count, {}, {}, time.monotonic()

    def work(number):
        nodes[number] = Node(places, environment)
        order = list(places.files)
        if shuffled:
            random.Random(number).shuffle(order)
        if wrong := nodes[number].wrong(order):
            raise OSError("; ".join(wrong[:5]))

    all_at_once(work, count, pause)
    seconds = time.monotonic() - start
    for node in nodes:
        for endpoint in node.status().get("endpoints", []):
            of = told.setdefault("mirror" if endpoint["mirror"] else "registry", {})
            for name in ["asked", "refused", "failed", "overtaken"]:
                of[name] = of.get(name, 0) + endpoint[name]
            of["last_error"] = endpoint["last_error"] or of.get("last_error")
        for port, count_ in node.received().items():
            received[port] = received.get(port, 0) + count_
    all_at_once(lambda number: nodes[number].unmount(), count)
    return received, told, seconds


def fleet(world, report, chosen):
    places = Places(world, chosen.distribution, *image(world, "estargz", SMALL))
    rows, figures = [], {}
    ratio = lambda count: f"{count / places.size:.2f}"
    for kind in CACHES:
        for registry_too in [True, False]:
            for start, how in STARTS.items():
                name = f"{kind}, {'then the registry' if registry_too else 'alone'}, {start}"
                if not all(word in name for word in chosen.only):
                    continue
                behind = Meter(places.registry.port)
                cache = places.cache(kind, behind.port)
                received, told, seconds = read_by_fleet(places, places.registries_conf([cache.port], registry_too), chosen.nodes, **how)
                settle(behind)
                cache.kill()
                world.remove(cache.place)
                direct, of_cache = received.get(places.direct.port, 0), received.get(cache.port, 0)
                figures[name] = {"to_cache": behind.bytes, "requests_of_cache": behind.requests, "direct": direct, "of_cache": of_cache, "told": told, "seconds": seconds}
                rows.append([name, ratio(behind.bytes), ratio(direct), ratio(behind.bytes + direct), ratio(of_cache), f"{seconds:.1f}"])
                print(" | ".join(rows[-1]), told, flush=True)
    head = ["", "registry to cache", "registry to nodes", "registry in all", "cache to nodes", "s"]
    report.table(f"{chosen.nodes} nodes read all of one image, {places.size} bytes. Multiples of the image. All that was read was right", head, rows)
    report.add("fleet", figures, image=places.size, nodes=chosen.nodes)


class Killer:
    """Kills one mirror after the other, and starts each again."""

    def __init__(self, mirrors, every):
        self.mirrors, self.every, self.kills, self.end = mirrors, every, 0, threading.Event()
        self.thread, self.failed = threading.Thread(target=self._run), None

    def _run(self):
        try:
            self._kill()
        except BaseException as error:  # wait_for_port() exits
            self.failed = error

    def _kill(self):
        pick = random.Random(17)
        while not self.end.wait(pick.uniform(0.5, 1.5) * self.every):
            mirror = pick.choice(self.mirrors)
            mirror.kill()
            self.kills += 1
            self.end.wait(pick.uniform(0.5, 1.5) * self.every)
            mirror.start()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.end.set()
        self.thread.join()
        if self.failed:
            raise self.failed


def kills(world, report, chosen):
    """Three mirrors, each of which is the first one in turn."""
    bench = bench_image(os.environ.get("CRFS_BENCH_IMAGE", os.path.expanduser("~/.cache/crfs-bench")))
    places = Places(world, chosen.distribution, *((bench[0], "zc", bench[1]) if bench else image(world, "estargz", LAYERS)))
    kinds = ["distribution 3.1.2", "nginx slice", "haproxy"]
    rows, figures, failed = [], {}, []
    ratio = lambda count: f"{count / places.size:.2f}"
    for first in range(len(kinds)):
        turned = kinds[first:] + kinds[:first]
        behind = [Meter(places.registry.port) for _ in turned]
        mirrors = [places.cache(kind, meter.port) for kind, meter in zip(turned, behind)]
        environment = places.registries_conf([mirror.port for mirror in mirrors])
        received, wrong, start, reads = {}, [], time.monotonic(), 0
        with Killer(mirrors, chosen.every) as killer:
            # At least one, and until each has been killed some times.
            while reads < 1 or (killer.kills < 10 and not killer.failed):
                node = Node(places, environment)
                wrong += node.wrong()
                for port, count in node.received().items():
                    received[port] = received.get(port, 0) + count
                node.unmount()
                reads += 1
        settle(*behind)
        seconds = time.monotonic() - start
        for mirror, meter in zip(mirrors, behind):
            rows.append([f"{mirror.name}, {mirrors.index(mirror) + 1}. of {len(mirrors)}", ratio(meter.bytes), ratio(received.get(mirror.port, 0))])
            mirror.kill()
        rows.append([f"the registry: {reads} reads, {killer.kills} kills, {seconds:.0f} s, {len(wrong)} wrong", "", ratio(received.get(places.direct.port, 0))])
        failed += wrong
        figures[turned[0]] = {"received": [received.get(mirror.port, 0) for mirror in mirrors], "behind": [meter.bytes for meter in behind]}
        figures[turned[0]] |= {"direct": received.get(places.direct.port, 0), "reads": reads, "kills": killer.kills, "wrong": wrong, "seconds": seconds}
        print(rows[-1], wrong[:3], flush=True)
    head = ["", "from the registry", "to crfs"]
    report.table(f"Whole reads of {places.size} bytes, {len(places.files)} files, while mirrors are killed and started again. Multiples of the image", head, rows)
    report.add("kills", figures, image=places.size)
    if failed:
        sys.exit(f"scripts/soak-fleet: {len(failed)} reads were wrong: {failed[:5]}")


PARTS = {"fleet": fleet, "kills": kills, "hangs": hanging.hangs, "hedges": hanging.hedges}


def main():
    parser = argparse.ArgumentParser(prog="scripts/soak-fleet", description="crfs nodes behind caches and mirrors that are real, and that fail.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--nodes", type=int, default=20, metavar="N", help="nodes of the fleet (default 20)")
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="only the rows of the fleet whose names have this word, such as nginx")
    parser.add_argument("--every", type=float, default=0.7, metavar="S", help="seconds between kills (default 0.7)")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="runs of hangs and hedges (default 3)")
    parser.add_argument("--reads", type=int, default=1500, metavar="N", help="reads in each of these (default, and at most: 1500)")
    parser.add_argument("--json", metavar="FILE", help="write all figures to FILE, too")
    for name in ["--crfs", "--distribution"]:
        parser.add_argument(name, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    for part in chosen.parts:
        if part not in PARTS:
            parser.error(f"there is no part {part!r}: {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("scripts/soak-fleet: ended by a signal"))
    report = Report(chosen.json)
    with World(chosen.crfs, "/", "") as world:
        for name, part in PARTS.items():
            if not chosen.parts or name in chosen.parts:
                part(world, report, chosen)


if __name__ == "__main__":
    main()
