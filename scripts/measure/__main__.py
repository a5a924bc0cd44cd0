"""The parts of scripts/bench, one after the other. Started by it, which finds the binary and makes the image."""

import argparse
import signal
import sys

import fast
import images
import link
import local
import plain
import store
from report import Report
from world import World

PARTS = {
    "start": link.start,
    "whole": link.whole,
    "store": store.store,
    "layers": store.layers,
    "plain": plain.plain,
    "small": local.small,
    "big": local.big,
    "fast": fast.fast,
    "memory": local.memory,
    "images": images.images,
}


def options():
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="How fast crfs is, beside podman, curl and ext4 in the same run.",
        epilog="CRFS: a binary to measure instead of building one. CRFS_BENCH_IMAGE: where the images are kept (default ~/.cache/crfs-bench). "
        "CRFS_TOOLS: where slowlink.py and bench-image.sh are (default ../shared/tools). CRFS_MKFS_EROFS: a mkfs.erofs of 1.8 or newer, for images of zstd.",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"what to measure: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--json", metavar="FILE", help="write all figures to FILE, too")
    parser.add_argument("--runs", type=int, metavar="N", help="runs of each measurement (default: 3 over the link, 5 on disk)")
    parser.add_argument("--without-podman", action="store_true", help="leave podman out of `start`: it takes most of the time")
    parser.add_argument("--heat", metavar="FILE", help="write a picture of a cold start, an SVG of `crfs heat`, to FILE")
    for name in ["crfs", "image", "slowlink"]:
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    for part in chosen.parts:
        if part not in PARTS:
            parser.error(f"there is no part {part!r}: {', '.join(PARTS)}")
    return chosen


def main():
    chosen = options()
    # So that everything is taken away then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("scripts/bench: ended by a signal"))
    report = Report(chosen.json)
    with World(chosen.crfs, chosen.image, chosen.slowlink) as world:
        for part in PARTS:
            if not chosen.parts or part in chosen.parts:
                PARTS[part](world, report, chosen)


main()
