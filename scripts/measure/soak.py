"""The rows of the fault table that have a duration or a count, on the bench image. Called by scripts/soak; fails where one does not hold."""

import argparse
import contextlib
import os
import pathlib
import random
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time

from lying import Proxy
from link import blobs
from world import World, drop_caches

# The layers of the bench image: what is below these directories is in the second one.
SECOND = ("usr/lib/python3", "usr/lib/python3.11", "usr/lib/x86_64-linux-gnu")
BATCH = 100
STUCK = 10_000


def say(text):
    print(f"\n== {text}", flush=True)


def fail(text):
    sys.exit(f"scripts/soak: {text}")


def files(tree, of_second_layer):
    """Files of one layer of up to 64 KiB, in an order that is always the same."""
    found = []
    for place, _, names in os.walk(tree):
        paths = [pathlib.Path(place, name) for name in names]
        found += [path.relative_to(tree) for path in paths if path.is_file() and not path.is_symlink() and 0 < path.stat().st_size < 1 << 16]
    found = sorted(path for path in found if str(path).startswith(SECOND) == of_second_layer)
    random.Random(1).shuffle(found)
    return found


def read_right(mount, tree, paths):
    """Seconds that reading these files takes, which must be as they are in the tree."""
    start = time.monotonic()
    contents = [(mount.path / path).read_bytes() for path in paths]
    seconds = time.monotonic() - start
    for path, content in zip(paths, contents):
        if content != (tree / path).read_bytes():
            fail(f"{path} is wrong")
    return seconds


def stuck_readers(mount, paths):
    """A process with a thread for each of STUCK reads, and how many of them wait in the kernel."""
    code = """if True:
        import sys, threading
        threading.stack_size(1 << 16)
        def read(path):
            with open(path, 'rb', buffering=0) as file: file.read(1)
        paths = sys.stdin.read().splitlines()
        for number in range(int(sys.argv[1])): threading.Thread(target=read, args=[paths[number % len(paths)]], daemon=True).start()
        print('all', flush=True)
        threading.Event().wait()
    """
    process = subprocess.Popen([sys.executable, "-c", code, str(STUCK)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdin.write("\n".join(str(mount.path / path) for path in paths))
    process.stdin.close()
    if process.stdout.readline() != "all\n":
        fail("the readers could not be started")
    return process


def timed_batches(mount, tree, cached, fresh):
    """Medians of the times for cached files, with the kernel's caches dropped, and for files that were not read yet."""
    of_cached, of_fresh = [], []
    for _ in range(5):
        drop_caches()
        of_cached.append(read_right(mount, tree, cached))
        of_fresh.append(read_right(mount, tree, [fresh.pop() for _ in range(BATCH)]))
    return statistics.median(of_cached), statistics.median(of_fresh)


def stuck(world, port):
    say(f"{STUCK} reads stuck on one layer: cached data and other layers at most twice as slow")
    tree, proxy = world.image / "tree", Proxy(port)
    mount = world.mount(f"127.0.0.1:{proxy.port}/bench:zc", world.fresh("cache"), "--prefetch", "none", "--io-deadline", "600s")
    fresh, held = files(tree, True), files(tree, False)
    cached = [fresh.pop() for _ in range(BATCH)]
    read_right(mount, tree, cached)
    before = timed_batches(mount, tree, cached, fresh)
    proxy.hold(blobs(world, "zc")[1])
    readers = stuck_readers(mount, held)
    time.sleep(2)
    during = timed_batches(mount, tree, cached, fresh)
    for name, was, now in zip(["cached", "of another layer"], before, during):
        print(f"{BATCH} files {name}: {was * 1000:.0f} ms alone, {now * 1000:.0f} ms beside them ({now / was:.2f})")
    print(f"server: {mount.memory()} KiB")
    start = time.monotonic()
    readers.kill()
    readers.wait()
    print(f"killed, all {STUCK} are gone after {(time.monotonic() - start) * 1000:.0f} ms")
    proxy.heal()
    read_right(mount, tree, held[:BATCH])
    mount.unmount()
    if any(now > 2 * was for was, now in zip(before, during)):
        fail("more than twice as slow")


def thousand(world, port):
    say("1,000 readers of one cold file: one request")
    tree, proxy = world.image / "tree", Proxy(port)
    mount = world.mount(f"127.0.0.1:{proxy.port}/bench:zc", world.fresh("cache"), "--prefetch", "none")
    path = files(tree, True)[0]
    proxy.blob, proxy.requests = blobs(world, "zc")[2], 0
    proxy.hold(proxy.blob)
    threads = [threading.Thread(target=read_right, args=[mount, tree, [path]]) for _ in range(1000)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    proxy.heal()
    for thread in threads:
        thread.join()
    print(f"requests: {proxy.requests}")
    mount.unmount()
    # Speculation may add some of its own for what is around it, never one for each reader.
    if proxy.requests > 4:
        fail("too many requests")


def down(world, storage, seconds):
    say(f"the registry down for {seconds} s: metadata and cached data go on, the rest is EIO within the deadline, and comes back by itself")
    tree, proxy = world.image / "tree", Proxy(world.registry(storage))
    mount = world.mount(f"127.0.0.1:{proxy.port}/bench:zc", world.fresh("cache"), "--prefetch", "none", "--io-deadline", "3s")
    fresh = files(tree, True)
    cached = [fresh.pop() for _ in range(BATCH)]
    read_right(mount, tree, cached)
    proxy.hold(None)
    end, slowest, errors = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        drop_caches()
        read_right(mount, tree, cached)
        subprocess.run(["ls", "-lR", mount.path], stdout=subprocess.DEVNULL, check=True)
        start = time.monotonic()
        with contextlib.suppress(OSError):
            (mount.path / fresh[-1]).read_bytes()
            fail("an uncached file was read without a registry")
        slowest, errors = max(slowest, time.monotonic() - start), errors + 1
    proxy.heal()
    read_right(mount, tree, fresh[-BATCH:])
    print(f"{errors} reads failed, the slowest after {slowest:.1f} s (deadline 3 s); after it all is well")
    mount.unmount()
    if slowest > 10:
        fail("an error took too long")


def faulty(world, port, what):
    say(f"{BATCH} files while answers are {what}: all right, and nobody notices but by the time")
    tree, proxy = world.image / "tree", Proxy(port)
    mount = world.mount(f"127.0.0.1:{proxy.port}/bench:zc", world.fresh("cache"), "--prefetch", "none", "--io-deadline", "60s")
    proxy.fault = what
    # A cut costs a wait before the next try, so not more of them.
    seconds = read_right(mount, tree, files(tree, True)[:BATCH])
    print(f"{BATCH} files in {seconds:.1f} s, {proxy.requests} requests")
    mount.unmount()


def main():
    parser = argparse.ArgumentParser()
    for name in ["--crfs", "--image"]:
        parser.add_argument(name, required=True)
    parser.add_argument("--seconds", type=int, default=60)
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("scripts/soak: ended by a signal"))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with World(chosen.crfs, chosen.image, "") as world:
        port = world.bench_registry()
        thousand(world, port)
        faulty(world, port, "cut")
        faulty(world, port, "trickling")
        down(world, world.image / "registry", chosen.seconds)
        stuck(world, port)


main()
