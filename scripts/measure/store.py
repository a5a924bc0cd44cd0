"""podman from a crfs store over the slow link: `crfs store add` or a lazy `podman pull`, then a run, beside podman's own pull and the same run."""

import os
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


def pulled_start(world, link, tag, serve):
    """podman pulls the bench image by itself, with a layer store that is served with an empty cache, and runs it. `serve` gives what serves, and where."""
    podman_root, runroot = (world.fresh(name) for name in ["podman", "podman-run"])
    server, store, places = serve()
    podman = ["podman", "--root", podman_root, "--runroot", runroot, "--runtime", "runc", "--storage-opt", f"overlay.additionallayerstore={store}:ref"]
    image = f"127.0.0.1:{link.port}/bench:{tag}"

    def work():
        start = time.monotonic()
        run(*podman, "pull", "-q", "--tls-verify=false", image)
        pulled = time.monotonic() - start
        run(*podman, "run", "--rm", *LIMITS, image, *PROGRAM)
        return {"pulled": pulled}

    figures = timed(link, work)
    lazy = [diff for diff in (podman_root / "overlay").glob("*/diff") if diff.is_symlink()]
    figures["lazy"] = len(lazy)
    run(*podman, "rmi", "-af")
    subprocess.run(["umount", "-l", podman_root / "overlay"], stderr=subprocess.DEVNULL, check=False)
    server.terminate()
    server.wait()
    for place in [podman_root, runroot, *places]:
        subprocess.run(["umount", "-l", place], stderr=subprocess.DEVNULL, check=False)
        world.remove(place)
    return figures


def crfs_layers(world):
    root, cache = world.fresh("store"), world.fresh("cache")
    places = ["--root", root / "root", "--cache-dir", cache]
    server = world.start_until(b"serving", world.crfs, "store", "serve", "--layers", *places)
    return server, root / "root" / "layers", [root, cache]


def stargz_store(world, link, program):
    """containerd's stargz-store, where CRFS_STARGZ_STORE names one. It knows eStargz alone."""
    state, mount = world.fresh("stargz"), world.fresh("stargz-mount")
    config = state / "config.toml"
    host = f"127.0.0.1:{link.port}"
    config.write_text(f'[[resolver.host."{host}".mirrors]]\nhost = "{host}"\ninsecure = true\n')
    server = world.start(program, "--config", config, "--root", state / "root", mount)
    while not os.path.ismount(mount):
        if server.poll() is not None:
            raise SystemExit(f"scripts/bench: {program} ended with {server.returncode}")
        time.sleep(0.05)
    return server, mount, [mount, state]


def layers(world, report, options):
    """The goal is 0.27 of podman's own. Of an eStargz image in the bench registry (bench:esgz) crfs and stargz-store are run as well."""
    link = world.link(world.bench_registry())
    has_estargz = (world.image / "registry/docker/registry/v2/repositories/bench/_manifests/tags/esgz").exists()
    mine = {"crfs --layers, zc": "zc"} | ({"crfs --layers, esgz": "esgz"} if has_estargz else {})
    other = os.environ.get("CRFS_STARGZ_STORE") if has_estargz else None
    samples = {name: [] for name in [*mine, *(["stargz-store, esgz"] if other else [])]} | {f"podman, {tag}": [] for tag in TAGS}
    for _ in range(options.runs or 3):
        for name, tag in mine.items():
            samples[name].append(pulled_start(world, link, tag, lambda: crfs_layers(world)))
        if other:
            serve = lambda: stargz_store(world, link, other)
            samples["stargz-store, esgz"].append(pulled_start(world, link, "esgz", serve))
        for tag in TAGS:
            samples[f"podman, {tag}"].append(podman_start(world, link, tag))
    best = min(median(samples[f"podman, {tag}"]) for tag in TAGS)
    report.table(
        "podman pull, then run, over 100 Mbit/s, 10 ms one way, with a layer store and without. Ratio: to podman's fastest",
        HEAD,
        [row(name, of, best) for name, of in samples.items()],
    )
    of_crfs = samples["crfs --layers, zc"]
    report.note(f"the pull alone: {median(of_crfs, 'pulled'):.2f} s; lazy layers: {of_crfs[-1]['lazy']}")
    report.add("layers", samples, ratio_to_fastest_podman=median(of_crfs) / best)
