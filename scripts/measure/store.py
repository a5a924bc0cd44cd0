"""podman from a crfs store over the slow link: `crfs store add`, then a run, beside `podman pull`, then the same run."""

import subprocess
import time

from link import HEAD, LIMITS, PROGRAM, TAGS, median, podman_start, row, timed
from world import run


def store_start(world, link):
    """Adds the bench image to an empty store that is served with an empty cache, and lets podman run it."""
    root, podman_root, runroot = (world.fresh(name) for name in ["store", "podman", "podman-run"])
    state = root / "state"
    state.mkdir(mode=0o700)
    places = ["--root", root / "root", "--state", state]
    server = world.start_until(b"serving", world.crfs, "store", "serve", *places, "--cache-dir", world.fresh("cache"))
    podman = ["podman", "--root", podman_root, "--runroot", runroot, "--runtime", "runc", "--storage-opt", f"overlay.imagestore={root / 'root'}"]
    image = f"127.0.0.1:{link.port}/bench:zc"

    def work():
        start = time.monotonic()
        run(world.crfs, "store", "add", *places, image)
        added = time.monotonic() - start
        run(*podman, "run", "--rm", *LIMITS, image, *PROGRAM)
        return {"added": added}

    figures = timed(link, work)
    subprocess.run(["umount", "-l", podman_root / "overlay"], stderr=subprocess.DEVNULL, check=False)
    server.terminate()
    server.wait()
    for place in [podman_root, runroot, root]:
        world.remove(place)
    return figures


def store(world, report, options):
    """The runs of podman alone lie between those of the store, so that all see the same machine."""
    link = world.link(world.bench_registry())
    samples = {"crfs store": []} | {f"podman, {tag}": [] for tag in TAGS}
    for _ in range(options.runs or 3):
        samples["crfs store"].append(store_start(world, link))
        for tag in TAGS:
            samples[f"podman, {tag}"].append(podman_start(world, link, tag))
    best = min(median(samples[f"podman, {tag}"]) for tag in TAGS)
    report.table(
        "podman from a store over 100 Mbit/s, 10 ms one way: `crfs store add`, then podman run; podman pull, then run. Ratio: to podman's fastest",
        HEAD,
        [row(name, of, best) for name, of in samples.items()],
    )
    report.note(f"`crfs store add` alone: {median(samples['crfs store'], 'added'):.2f} s")
    report.add("store", samples, ratio_to_fastest_podman=median(samples["crfs store"]) / best)
