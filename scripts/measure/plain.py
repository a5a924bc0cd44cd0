"""Layers without a table of contents: the first mount beside a plain download, later ones beside podman."""

import hashlib
import json
import subprocess
import time

from link import HEAD, PROGRAM, curl_whole, median, podman_start, row, timed
from world import drop_caches, run

PLAIN = ["gz", "zst"]

# The large layer: so many copies of the tree of the bench image, one after the other.
COPIES = 5
PACK = {"gz": ["gzip", "-6c"], "zst": ["zstd", "-3qc"]}

# What it takes to look at the same bytes as a mount does, with the programs that everyone has.
PIPES = {
    "gz": "curl -fsS {url} | gzip -dc > /dev/null",
    "zst": "curl -fsS {url} | tee >(sha256sum > /dev/null) | zstd -dcq | tee {out} | sha256sum > /dev/null",
}


def first_mount(world, link, tag, cache):
    """Mounts with a cache that may have nothing, and unmounts."""
    mounts = []

    def work():
        mounts.append(world.mount(f"127.0.0.1:{link.port}/bench:{tag}", cache))
        return {}

    figures = timed(link, work)
    figures["memory"] = mounts[0].memory()
    mounts[0].unmount()
    return figures


def later_start(world, link, tag, cache):
    """The cold start by an index that is there, without contents."""
    run(world.crfs, "cache", "clear", "--contents", "--cache-dir", cache)
    mounts = []

    def work():
        mounts.append(world.mount(f"127.0.0.1:{link.port}/bench:{tag}", cache))
        run("chroot", mounts[0].path, *PROGRAM)
        return {}

    figures = timed(link, work)
    mounts[0].unmount()
    return figures


def over_the_link(world, report, options):
    link = world.link(world.bench_registry())
    firsts = {f"{name}, {tag}": [] for tag in PLAIN for name in ["curl", "crfs, first mount"]}
    starts = {"podman pull + run, gz": [], "crfs, second mount + run, gz": []}
    for _ in range(options.runs or 3):
        for tag in PLAIN:
            firsts[f"curl, {tag}"].append(curl_whole(world, link, tag))
            cache = world.fresh("cache")
            firsts[f"crfs, first mount, {tag}"].append(first_mount(world, link, tag, cache))
            if tag == "gz":
                starts["crfs, second mount + run, gz"].append(later_start(world, link, tag, cache))
            world.remove(cache)
        if not options.without_podman:
            starts["podman pull + run, gz"].append(podman_start(world, link, "gz"))
    rows = [row(name, of, median(firsts[f"curl, {name.split(', ')[-1]}"])) for name, of in firsts.items()]
    report.table("Plain layers over 100 Mbit/s, 10 ms one way: the first mount, to ready. Ratio: to curl of all blobs at once", HEAD, rows)
    report.note("server's memory after it, KiB: " + json.dumps(firsts["crfs, first mount, gz"][-1]["memory"]))
    measured = {name: of for name, of in starts.items() if of}
    best = median(starts["podman pull + run, gz"]) if starts["podman pull + run, gz"] else None
    report.table("The same, cold start with an index and no contents. Ratio: to podman", HEAD, [row(name, of, best) for name, of in measured.items()])
    report.add("plain", firsts | measured)


def make_large(world):
    """Layouts of one large layer, made once."""
    place = world.image / "plain"
    if (place / "made").exists():
        return place
    place.mkdir(exist_ok=True)
    tar = place / "layer.tar"
    tar.unlink(missing_ok=True)
    for copy in range(COPIES):
        run("tar", "-rf", tar, f"--transform=s,^tree,copy{copy},", "-C", world.image, "tree")
    diff_id = run("sha256sum", tar).split()[0]
    for tag, pack in PACK.items():
        with open(place / f"layer.{tag}", "wb") as out:
            subprocess.run([*pack, tar], stdout=out, check=True)
        layout(place, tag, diff_id)
    tar.unlink()
    (place / "made").touch()
    return place


def layout(place, tag, diff_id):
    blobs_of = place / tag / "blobs" / "sha256"
    blobs_of.mkdir(parents=True, exist_ok=True)
    blob = place / f"layer.{tag}"
    layer = {"digest": "sha256:" + run("sha256sum", blob).split()[0], "size": blob.stat().st_size}
    blob.rename(blobs_of / layer["digest"].removeprefix("sha256:"))

    def put(document):
        text = json.dumps(document).encode()
        digest = hashlib.sha256(text).hexdigest()
        (blobs_of / digest).write_bytes(text)
        return {"digest": f"sha256:{digest}", "size": len(text)}

    oci = "application/vnd.oci.image"
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]}
    config = put({"os": "linux", "architecture": "amd64", "config": {}, "rootfs": rootfs})
    kind = {"gz": "gzip", "zst": "zstd"}[tag]
    manifest = put({
        "schemaVersion": 2,
        "mediaType": f"{oci}.manifest.v1+json",
        "config": {"mediaType": f"{oci}.config.v1+json", **config},
        "layers": [{"mediaType": f"{oci}.layer.v1.tar+{kind}", **layer}],
    })
    named = {"mediaType": f"{oci}.manifest.v1+json", **manifest, "annotations": {"org.opencontainers.image.ref.name": "latest"}}
    (place / tag / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    (place / tag / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (place / tag / "layer").write_text(layer["digest"])


def at_full_speed(world, report, options):
    place = make_large(world)
    port = world.registry(world.fresh("registry"))
    for tag in PLAIN:
        target = f"docker://127.0.0.1:{port}/large:{tag}"
        run("skopeo", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false", f"oci:{place / tag}:latest", target)
    samples = {f"{name}, {tag}": [] for tag in PLAIN for name in ["curl | unpack", "crfs, first mount"]}
    for _ in range(options.runs or 5):
        for tag in PLAIN:
            out, cache = world.fresh("out"), world.fresh("cache")
            url = f"http://127.0.0.1:{port}/v2/large/blobs/{(place / tag / 'layer').read_text()}"
            pipe = PIPES[tag].format(url=url, out=out / "out")
            samples[f"curl | unpack, {tag}"].append(alone(lambda: run("bash", "-c", f"set -o pipefail; {pipe}")))
            mounts = []
            samples[f"crfs, first mount, {tag}"].append(
                alone(lambda: mounts.append(world.mount(f"127.0.0.1:{port}/large:{tag}", cache)))
            )
            mounts[0].unmount()
            world.remove(out)
            world.remove(cache)
    rows = []
    for name, of in samples.items():
        seconds, best = [sample["seconds"] for sample in of], median(samples[f"curl | unpack, {name.split(', ')[-1]}"])
        rows.append([name, f"{median(of):.2f}", f"{min(seconds):.2f}-{max(seconds):.2f}", f"{median(of) / best:.3f}"])
    report.table("A layer of 1.1 GB from a registry on loopback: the first mount, contents stored. Ratio: to the pipe", HEAD[:4], rows)
    report.add("plain large", samples)


def alone(work):
    drop_caches()
    start = time.monotonic()
    work()
    return {"seconds": time.monotonic() - start}


def plain(world, report, options):
    over_the_link(world, report, options)
    at_full_speed(world, report, options)
