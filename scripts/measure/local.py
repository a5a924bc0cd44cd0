"""Against the same tree in a directory of the disk that crfs has its cache on: no link in between, only who serves."""

import json
import pathlib
import statistics
import time

from world import drop_caches, run

SIZE = 1 << 30
RANDOM = 64 << 20

# What is run in a tree: its name, the command, and what is there before: nothing in the kernel's caches ("cold") or everything ("warm").
FIND = ["find", "{tree}", "-printf", "%s %T@ %u %m %p\\n"]
LIST = ["ls", "-lR", "{tree}"]
# Finds nothing, and so reads everything.
GREP = ["grep", "-rs", "zzqqxx", "{tree}/usr/share", "{tree}/usr/lib/python3", "{tree}/etc"]
CAT = ["bash", "-c", "cd {tree} && xargs -a {place}/list cat"]
METADATA = [(f"{when} {name}", command, when) for name, command in [("find -printf", FIND), ("ls -lR", LIST)] for when in ["cold", "warm"]]
SMALL = [(f"{when} {name}", command, when) for name, command in [("grep -r", GREP), ("cat of 1,000 files", CAT)] for when in ["cached", "warm"]]


def hyperfine(world, command, tree, when):
    """Seconds of one run, or of several where that is quick."""
    out = world.place / "hyperfine.json"
    command = " ".join(f"'{part.format(tree=tree, place=world.place)}'" for part in command)
    runs = ["--runs", "3", "--warmup", "1"] if when == "warm" else ["--runs", "1"]
    if when != "warm":
        drop_caches()
    # -i: grep that finds nothing says so. To a file: find and grep are lazy where they write to /dev/null.
    run("hyperfine", "-N", "-i", "--style", "none", *runs, "--output", world.place / "output", "--export-json", out, command)
    return statistics.median(json.loads(out.read_text())["results"][0]["times"])


def dd(path):
    start = time.monotonic()
    run("dd", f"if={path}", "of=/dev/null", "bs=1M")
    return time.monotonic() - start


def fio(path, *options):
    """Seconds that fio needed to read."""
    job = ["--name=job", f"--filename={path}", "--readonly", "--invalidate=0", "--output-format=json", f"--size={SIZE}", *options]
    return json.loads(run("fio", *job))["jobs"][0]["read"]["runtime"] / 1000


def big_work(path):
    at_random = ["--rw=randread", "--bs=4k", f"--io_size={RANDOM}", "--randrepeat=1"]
    return [
        ("1 GB sequential", lambda: dd(path), ["cached", "warm"]),
        ("4 KiB random, 64 MB of 1 GB", lambda: fio(path, "--ioengine=psync", *at_random), ["cached", "warm"]),
        ("mmap, 1 GB sequential", lambda: fio(path, "--ioengine=mmap", "--rw=read", "--bs=64k"), ["cached", "warm"]),
        ("mmap, 4 KiB random, 64 MB", lambda: fio(path, "--ioengine=mmap", *at_random), ["cached", "warm"]),
    ]


def make_big(world):
    """An image with one file of 1 GB that halves when compressed, as zstd:chunked in a registry of its own; the storage of that."""
    place = world.image / "big"
    if (place / "filled").exists():
        return place
    run("rm", "-rf", place)
    (place / "tree").mkdir(parents=True)
    secret = ["openssl", "enc", "-aes-128-ctr", "-nosalt", "-K", "0" * 32, "-iv", "0" * 32]
    run("bash", "-c", f'{" ".join(secret)} < /dev/zero | od -An -v -tx4 | head -c {SIZE} > "$0"; true', place / "tree/big")
    store = ["--root", world.fresh("store"), "--runroot", world.fresh("store-run"), "--storage-driver", "vfs"]
    base = run("buildah", *store, "from", "scratch").strip()
    run("buildah", *store, "copy", "-q", base, place / "tree", "/")
    run("buildah", *store, "commit", "-q", base, "big")
    port = world.registry(place / "registry")
    target = f"docker://127.0.0.1:{port}/big:zc"
    run("podman", *store, "push", "-q", "--tls-verify=false", "--compression-format", "zstd:chunked", "big", target)
    run("rm", "-rf", store[1])
    (place / "filled").touch()
    return place


class Pair:
    """The same thing on disk and in a crfs mount, measured in turns."""

    def __init__(self, mount, runs):
        self.mount, self.runs, self.samples = mount, runs, {}

    def measure(self, name, on_disk, in_crfs):
        figures = {"disk": [], "crfs": []}
        for _ in range(self.runs):
            figures["disk"].append(on_disk())
            figures["crfs"].append(in_crfs())
        self.samples[name] = {**figures, "memory": self.mount.memory()}

    def rows(self):
        for name, of in self.samples.items():
            disk, crfs = statistics.median(of["disk"]), statistics.median(of["crfs"])
            yield [name, f"{disk * 1000:.0f}", f"{crfs * 1000:.0f}", f"{crfs / disk:.2f}", *memory_cells(of["memory"])]


def memory_cells(memory):
    return [f"{memory[key] / 1024:.1f}" for key in ["rss", "anon", "peak"]]


def head(world):
    return ["ms", run("stat", "-f", "-c", "%T", world.place).strip(), "crfs", "ratio", "RSS MiB", "anonymous", "peak"]


def read_everything(path):
    run("bash", "-c", 'set -o pipefail; tar -C "$0" -cf - . | cat > /dev/null', path)


def small(world, report, options):
    """Metadata, and small files."""
    port, cache, tree = world.bench_registry(), world.fresh("cache"), world.place / "tree"
    run("cp", "-a", world.image / "tree", tree)
    run("bash", "-c", 'cd "$0" && find usr -type f -size -16k | sort | head -n 1000 > "$1"', tree, world.place / "list")
    mounting, image = mount_times(world, f"127.0.0.1:{port}/bench:zc", cache, options.runs or 5)
    mount = world.mount(image, cache)
    pair = Pair(mount, options.runs or 5)
    read_everything(mount.path)
    for name, command, when in METADATA + SMALL:
        pair.measure(name, lambda: hyperfine(world, command, tree, when), lambda: hyperfine(world, command, mount.path, when))
    mount.unmount()
    report.table("Metadata and small files: the bench image (cold, cached: kernel's caches dropped; crfs has everything on disk)", head(world), list(pair.rows()))
    report.note(f"mount: {statistics.median(mounting['empty']) * 1000:.0f} ms, with the index cached {statistics.median(mounting['cached']) * 1000:.0f} ms")
    report.add("small", {**pair.samples, "mount": mounting})


def mount_times(world, image, cache, runs):
    """Seconds of `crfs mount` with an empty cache and with the index cached, from a registry on loopback."""
    times = {"empty": [], "cached": []}
    for _ in range(runs):
        empty = world.fresh("cache")
        for kind in times:
            start = time.monotonic()
            mount = world.mount(image, empty)
            times[kind].append(time.monotonic() - start)
            mount.unmount()
        world.remove(empty)
    return times, image


def big_cold(world, image):
    """Seconds to read the large file first, from a registry on loopback, with an empty cache."""
    cache = world.fresh("cache")
    drop_caches()
    mount = world.mount(image, cache)
    seconds = dd(mount.path / "big")
    memory = mount.memory()
    mount.unmount()
    world.remove(cache)
    return seconds, memory


def big(world, report, options):
    """One large file."""
    place, cache, runs = make_big(world), world.fresh("cache"), options.runs or 5
    image = f"127.0.0.1:{world.registry(place / 'registry')}/big:zc"
    run("cp", place / "tree/big", world.place / "big")
    mount = world.mount(image, cache)
    dd(mount.path / "big")
    pair = Pair(mount, runs)

    def after_drop(work, when):
        if when == "cached":
            drop_caches()
        return work()

    for (name, disk, whens), (_, crfs, _) in zip(big_work(world.place / "big"), big_work(mount.path / "big")):
        for when in whens:
            dd(mount.path / "big"), dd(world.place / "big")
            pair.measure(f"{when} {name}", lambda: after_drop(disk, when), lambda: after_drop(crfs, when))
    mount.unmount()
    cold = [big_cold(world, image) for _ in range(runs)]
    pair.samples["cold 1 GB sequential (from a registry on loopback)"] = {
        "disk": pair.samples["cached 1 GB sequential"]["disk"],
        "crfs": [seconds for seconds, _ in cold],
        "memory": cold[-1][1],
    }
    report.table("One file of 1 GB (cached: kernel's caches dropped; crfs has everything on disk)", head(world), list(pair.rows()))
    report.add("big", pair.samples)


def memory(world, report, options):
    """The server after it has fetched and served the whole bench image, by a registry on loopback."""
    port, rows, samples = world.bench_registry(), [], {}
    for name, times, *wanted in [
        ("reading everything", 1, "--prefetch", "none"),
        ("--prefetch all, reading everything", 1, "--prefetch", "all"),
        ("a cache of 64 MiB, reading everything three times", 3, "--cache-size", "64M"),
    ]:
        cache = world.fresh("cache")
        mount = world.mount(f"127.0.0.1:{port}/bench:zc", cache, *wanted)
        for _ in range(times):
            drop_caches()
            read_everything(mount.path)
        samples[name] = mount.memory()
        rows.append([name, *memory_cells(samples[name])])
        mount.unmount()
        world.remove(cache)
    report.table("The server's memory after the whole bench image, MiB", ["", "RSS", "anonymous", "peak"], rows)
    report.add("memory", samples)
