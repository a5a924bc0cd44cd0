"""Over the slow link: a cold start beside podman's, and reading a whole image beside a plain download."""

import json
import pathlib
import statistics
import subprocess
import time

from world import drop_caches, run

PROGRAM = ["python3", "-c", "import numpy"]
TAGS = ["gz", "zst", "zc"]
# Of podman run, so that it runs where the resource limits of this process cannot be raised.
LIMITS = ["--ulimit", "nofile=20000:20000", "--ulimit", "nproc=1000:1000", "--network", "none"]
PREFETCH = {"crfs": "hints", "crfs --prefetch all": "all"}


def timed(link, work):
    """Seconds, bytes, requests and connections of `work`, which starts with cold caches of the kernel, and what it gives besides."""
    drop_caches()
    link.reset()
    start = time.monotonic()
    more = work()
    seconds = time.monotonic() - start
    counted = link.counted()
    return {"seconds": seconds, "bytes": counted["down"], "requests": counted["requests"], "connections": counted["conns"], **more}


def crfs_run(world, link, prefetch, use, heat=None):
    """Mounts the bench image with an empty cache, and lets `use` do something with it."""
    cache, mounts = world.fresh("cache"), []

    def work():
        start = time.monotonic()
        mounts.append(world.mount(f"127.0.0.1:{link.port}/bench:zc", cache, "--prefetch", prefetch))
        ready = time.monotonic() - start
        use(mounts[0].path)
        return {"mounted": ready}

    figures = timed(link, work)
    figures["memory"] = mounts[0].memory()
    if heat:
        run(world.crfs, "heat", "--svg", heat, mounts[0].path)
    mounts[0].unmount()
    world.remove(cache)
    return figures


def crfs_start(world, link, prefetch, heat=None):
    return crfs_run(world, link, prefetch, lambda path: run("chroot", path, *PROGRAM), heat)


def podman_start(world, link, tag):
    root, runroot = world.fresh("podman"), world.fresh("podman-run")
    podman = ["podman", "--root", root, "--runroot", runroot, "--runtime", "runc"]
    image = f"127.0.0.1:{link.port}/bench:{tag}"

    def work():
        start = time.monotonic()
        run(*podman, "pull", "-q", "--tls-verify=false", image)
        pulled = time.monotonic() - start
        run(*podman, "run", "--rm", *LIMITS, image, *PROGRAM)
        return {"pulled": pulled}

    figures = timed(link, work)
    run(*podman, "rmi", "-af")
    subprocess.run(["umount", "-l", root / "overlay"], stderr=subprocess.DEVNULL, check=False)
    world.remove(root)
    world.remove(runroot)
    return figures


def median(samples, key="seconds"):
    return statistics.median(sample[key] for sample in samples)


def row(name, samples, best):
    seconds = [sample["seconds"] for sample in samples]
    figures = f"{min(seconds):.2f}-{max(seconds):.2f}"
    ratio = f"{median(samples) / best:.3f}" if best else ""
    return [name, f"{median(samples):.2f}", figures, ratio, f"{median(samples, 'bytes') / 1e6:.1f}", f"{median(samples, 'requests'):.0f}"]


HEAD = ["", "s", "from-to", "ratio", "MB", "requests"]


def start(world, report, options):
    """The cold start; podman's runs lie between those of crfs, so that all see the same machine."""
    link = world.link(world.bench_registry())
    samples = {name: [] for name in PREFETCH}
    tags = [] if options.without_podman else TAGS
    samples.update({f"podman, {tag}": [] for tag in tags})
    for _ in range(options.runs or 3):
        for name, prefetch in PREFETCH.items():
            samples[name].append(crfs_start(world, link, prefetch, options.heat if prefetch == "hints" else None))
        for tag in tags:
            samples[f"podman, {tag}"].append(podman_start(world, link, tag))
    best = min((median(samples[f"podman, {tag}"]) for tag in tags), default=None)
    report.table(
        "Cold start over 100 Mbit/s, 10 ms one way: `crfs mount`, then python3 -c 'import numpy'; podman pull, then run. Ratio: to podman's fastest",
        HEAD,
        [row(name, of, best) for name, of in samples.items()],
    )
    report.note("server's memory after it, KiB: " + json.dumps(samples["crfs"][-1]["memory"]))
    report.add("start", samples, ratio_to_fastest_podman=best and median(samples["crfs"]) / best)


def blobs(world, tag):
    """The digests of the blobs of an image of the bench layout, its config included."""
    layout = world.image / "layout"
    read = lambda digest: json.loads((layout / "blobs" / pathlib.Path(*digest.split(":"))).read_text())
    tagged = json.loads((layout / "index.json").read_text())["manifests"]
    named = {image["annotations"]["org.opencontainers.image.ref.name"]: image["digest"] for image in tagged}
    manifest = read(named[tag])
    return [manifest["config"]["digest"]] + [layer["digest"] for layer in manifest["layers"]]


def curl_whole(world, link, tag):
    out = world.fresh("curl")
    urls = [f"http://127.0.0.1:{link.port}/v2/bench/blobs/{digest}" for digest in blobs(world, tag)]
    targets = [part for number, url in enumerate(urls) for part in ["-o", out / str(number), url]]

    def work():
        run("curl", "-fsSLZ", *targets)
        return {}

    figures = timed(link, work)
    world.remove(out)
    return figures


def crfs_whole(world, link, prefetch):
    # To a pipe: tar does not read what goes to /dev/null.
    read = 'set -o pipefail; tar -C "$0" -cf - . | cat > /dev/null'
    return crfs_run(world, link, prefetch, lambda path: run("bash", "-c", read, path))


def whole(world, report, options):
    link = world.link(world.bench_registry())
    samples = {"curl": []} | {name: [] for name in PREFETCH}
    for _ in range(options.runs or 3):
        samples["curl"].append(curl_whole(world, link, "zc"))
        for name, prefetch in PREFETCH.items():
            samples[name].append(crfs_whole(world, link, prefetch))
    best = median(samples["curl"])
    report.table(
        "The whole image once, cold, same link: `crfs mount`, then tar of everything. Ratio: to curl of all blobs at once",
        HEAD,
        [row(name, of, best) for name, of in samples.items()],
    )
    report.note("server's memory after it, KiB: " + json.dumps(samples["crfs"][-1]["memory"]))
    report.add("whole", samples, ratio_to_curl=median(samples["crfs"]) / best)
