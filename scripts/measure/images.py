"""Filesystem images: everything read through crfs from a full cache beside the kernel's own mount, and indexing beside reading the blob.

CPU time is that of the whole machine (/proc/stat), since the kernel unpacks in threads of its own: nothing else may run meanwhile.
"""

import hashlib
import json
import os
import statistics
import time

from local import read_everything
from world import drop_caches, run

MADE = {
    "erofs, plain": ["mkfs.erofs", "--quiet", "-Enoinline_data", "{image}", "{tree}"],
    "erofs, lz4hc": ["mkfs.erofs", "--quiet", "-zlz4hc", "-C65536", "{image}", "{tree}"],
    "squashfs, lz4": ["mksquashfs", "{tree}", "{image}", "-quiet", "-no-progress", "-xattrs", "-comp", "lz4"],
    "squashfs, zstd": ["mksquashfs", "{tree}", "{image}", "-quiet", "-no-progress", "-xattrs", "-comp", "zstd"],
    "erofs, zstd": ["{mkfs}", "--quiet", "-zzstd", "-C65536", "{image}", "{tree}"],
}
TYPES = {"erofs": "application/vnd.erofs.layer.v1", "squashfs": "application/vnd.stacker.image.layer.squashfs"}
HEAD = ["CPU s", "kernel", "crfs", "ratio", "wall, kernel", "wall, crfs"]
# A newer mkfs.erofs for what Debian 12's cannot make.
MKFS = os.environ.get("CRFS_MKFS_EROFS")


def busy():
    """Seconds of CPU that the machine has been busy."""
    fields = [int(field) for field in open("/proc/stat").readline().split()[1:]]
    idle, waiting = fields[3], fields[4]
    return (sum(fields[:8]) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def timed(work):
    before, start = busy(), time.monotonic()
    work()
    return {"cpu": busy() - before, "wall": time.monotonic() - start}


def layout(place, image, media_type):
    """An OCI layout of one layer."""
    blobs = place / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data):
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    oci = "application/vnd.oci.image"
    layer = put(image.read_bytes())
    rootfs = {"type": "layers", "diff_ids": [layer["digest"]]}
    config = put(json.dumps({"os": "linux", "architecture": "amd64", "os.features": ["erofs"], "config": {}, "rootfs": rootfs}).encode())
    manifest = {"schemaVersion": 2, "mediaType": f"{oci}.manifest.v1+json"}
    manifest |= {"config": config | {"mediaType": f"{oci}.config.v1+json"}, "layers": [layer | {"mediaType": media_type}]}
    entry = put(json.dumps(manifest).encode()) | {"mediaType": f"{oci}.manifest.v1+json"}
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return f"oci:{place}"


def by_the_kernel(world, image, kind, runs):
    mount = world.fresh("kernel")
    run("mount", "-t", kind, "-o", "loop,ro", image, mount)
    samples = []
    for _ in range(runs):
        drop_caches()
        samples.append(timed(lambda: read_everything(mount)))
    run("umount", mount)
    return samples


def by_crfs(world, source, runs):
    cache = world.fresh("cache")
    index = timed(lambda: run(world.crfs, "index", "--cache-dir", cache, source))
    mount = world.mount(source, cache, "--prefetch", "none")
    read_everything(mount.path)
    samples = []
    for _ in range(runs):
        drop_caches()
        samples.append(timed(lambda: read_everything(mount.path)))
    mount.unmount()
    world.remove(cache)
    return index, samples


def images(world, report, options):
    rows, all_samples, indexes = [], {}, []
    for name, command in MADE.items():
        if "{mkfs}" in command and not MKFS:
            report.note(f"{name}: left out; CRFS_MKFS_EROFS names no mkfs.erofs of 1.8 or newer")
            continue
        kind, place = name.split(",")[0], world.fresh("image")
        image = place / "image"
        run(*[part.format(image=image, tree=world.image / "tree", mkfs=MKFS) for part in command])
        source = layout(place / "layout", image, TYPES[kind])
        kernel = by_the_kernel(world, image, kind, options.runs or 5)
        drop_caches()
        read = timed(lambda: run("sha256sum", image))
        drop_caches()
        index, crfs = by_crfs(world, source, options.runs or 5)
        of = lambda samples, what: statistics.median(sample[what] for sample in samples)
        cpu = [of(kernel, "cpu"), of(crfs, "cpu")]
        rows.append([name, *(f"{cpu_of:.2f}" for cpu_of in cpu), f"{cpu[1] / cpu[0]:.2f}", *(f"{of(who, 'wall'):.2f}" for who in [kernel, crfs])])
        indexes.append([name, f"{image.stat().st_size / 1e6:.0f}", f"{read['wall']:.2f}", f"{index['wall']:.2f}", f"{index['wall'] / read['wall']:.2f}"])
        all_samples[name] = {"kernel": kernel, "crfs": crfs, "sha256sum": read, "index": index}
        world.remove(place)
    report.table("Everything of a filesystem image, from disk: the kernel's mount, and crfs from a full cache", HEAD, rows)
    report.table("`crfs index` of an image in a layout, beside sha256sum of it", ["s", "MB", "sha256sum", "crfs", "ratio"], indexes)
    report.add("images", all_samples)
