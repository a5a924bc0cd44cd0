"""One large file from a registry that is some round trip away, first read with an empty cache, beside curl with eight ranges of the same blob."""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
import urllib.request

from local import SIZE, dd
from world import drop_caches, end, run

# Round trips in ms and Mbit/s of the links; 0: as fast as it can.
LINKS = [(0, 0), (10, 0), (30, 0), (100, 0), (10, 1000), (10, 100)]
RANGES = 8
TICKS = os.sysconf("SC_CLK_TCK")


def layout(world):
    """An image with one file of 1 GiB of random bytes, as zstd:chunked, in an OCI layout that is made once."""
    place = world.image / "fast"
    if (place / "filled").exists():
        return place / "layout"
    run("rm", "-rf", place)
    (place / "tree").mkdir(parents=True)
    run("bash", "-c", f'openssl enc -aes-128-ctr -nosalt -K {"0" * 32} -iv {"1" * 32} < /dev/zero 2> /dev/null | head -c {SIZE} > "$0"; true', place / "tree/big")
    store = ["--root", world.fresh("store"), "--runroot", world.fresh("store-run"), "--storage-driver", "vfs"]
    base = run("buildah", *store, "from", "scratch").strip()
    run("buildah", *store, "copy", "-q", base, place / "tree", "/")
    run("buildah", *store, "commit", "-q", base, "big")
    port = world.registry(world.fresh("registry"))
    target = f"docker://127.0.0.1:{port}/big:zc"
    run("podman", *store, "push", "-q", "--tls-verify=false", "--compression-format", "zstd:chunked", "big", target)
    run("skopeo", "copy", "-q", "--preserve-digests", "--src-tls-verify=false", target, f"oci:{place / 'layout'}:zc")
    run("rm", "-rf", store[1], place / "tree")
    (place / "filled").touch()
    return place / "layout"


class Delayed:
    """delayed.py, until the end of a `with`."""

    def __init__(self, layout, round_trip, mbit):
        self.command = [sys.executable, pathlib.Path(__file__).with_name("delayed.py"), layout, str(round_trip), str(mbit)]

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())
        return self

    def __exit__(self, *_):
        end(self.process)
        self.process.stdout.close()

    def counted(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/counted") as answer:
            return json.load(answer)


def large_blob(layout, tag):
    """Digest and size of the one layer of an image."""
    read = lambda digest: json.loads((layout / "blobs" / pathlib.Path(*digest.split(":"))).read_text())
    tagged = json.loads((layout / "index.json").read_text())["manifests"]
    named = {image["annotations"]["org.opencontainers.image.ref.name"]: image["digest"] for image in tagged}
    layer = max(read(named[tag])["layers"], key=lambda layer: layer["size"])
    return layer["digest"], layer["size"]


def curl(registry, digest, size):
    """Seconds of curl with eight ranges at a time."""
    drop_caches()
    step = -(-size // RANGES)
    start = time.monotonic()
    url = f"http://127.0.0.1:{registry.port}/v2/big/blobs/{digest}"
    curls = [subprocess.Popen(["curl", "-fsS", "-o", "/dev/null", "-r", f"{at}-{min(at + step, size) - 1}", url]) for at in range(0, size, step)]
    if any(process.wait() for process in curls):
        sys.exit("scripts/bench: curl failed")
    return time.monotonic() - start


def cpu(pid):
    """CPU seconds of a process so far."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def crfs(world, registry, tag, read):
    """What it takes to read the file by `read` through a new mount."""
    cache = world.fresh("cache")
    mount = world.mount(f"127.0.0.1:{registry.port}/big:{tag}", cache)
    drop_caches()
    registry.counted()
    before, start = cpu(mount.pid), time.monotonic()
    read(mount.path / "big")
    figures = {"seconds": time.monotonic() - start, "cpu": cpu(mount.pid) - before, **registry.counted(), "memory": mount.memory()}
    mount.unmount()
    world.remove(cache)
    return figures


def fast(world, report, options):
    """A first sequential read of 1 GiB by links of several round trips."""
    images, samples, rows = layout(world), {}, []
    digest, size = large_blob(images, "zc")
    for round_trip, mbit in LINKS:
        with Delayed(images, round_trip, mbit) as registry:
            of = samples[f"{round_trip} ms, {mbit or 'any'} Mbit/s"] = {"curl": [], "crfs": []}
            for _ in range(options.runs or 3):
                of["curl"].append(curl(registry, digest, size))
                of["crfs"].append(crfs(world, registry, "zc", dd))
    for name, of in samples.items():
        median = lambda key: statistics.median(sample[key] for sample in of["crfs"])
        at_curl = statistics.median(of["curl"])
        peak = max(sample["memory"]["peak"] for sample in of["crfs"]) / 1024
        rows.append([name, f"{at_curl:.2f}", f"{median('seconds'):.2f}", f"{at_curl / median('seconds'):.2f}", f"{median('cpu'):.2f}", f"{median('bytes') / size:.3f}", f"{median('requests'):.0f}", f"{peak:.0f}"])
    report.table("A first read of 1 GiB of random bytes, zstd:chunked; rate: to curl's with eight ranges", ["", "curl, s", "crfs, s", "rate", "CPU, s", "bytes", "requests", "peak, MiB"], rows)
    report.add("fast", samples)
