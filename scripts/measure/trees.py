"""The images of scripts/soak-chaos: one of each format, each with contents of its own, and beside it the tree that it must look like."""

import hashlib
import json
import os
import pathlib
import random
import shutil
import stat

from layers import WRITERS, Entry, Layout

# How many files of how many bytes, of the lower layer.
SIZES = [(30, 3_000), (30, 20_000), (20, 70_000), (10, 300_001), (3, 3_000_000), (1, 9_000_000)]


def content(pick, size):
    """Noise, which does not compress, its hexadecimal, or words."""
    kind = pick.randrange(3)
    if kind == 0:
        return pick.randbytes(size)
    if kind == 1:
        return pick.randbytes(size // 2 + 1).hex()[:size].encode()
    words = [pick.randbytes(6).hex().encode() for _ in range(200)]
    return b" ".join(pick.choices(words, k=size // 13 + 1))[:size]


def lower(pick):
    entries = [Entry(f"data/{place}", kind="dir", mode=0o755) for place in "abc"]
    entries.insert(0, Entry("data", kind="dir", mode=0o755))
    for count, size in SIZES:
        for number in range(count):
            name = f"data/{pick.choice('abc')}/{size}-{number}"
            entries.append(Entry(name, content(pick, pick.randint(size * 3 // 4, size)), mode=pick.choice([0o644, 0o600, 0o755])))
    entries.append(Entry("data/a/empty"))
    return entries


def upper(pick, entries):
    """Some files are others, some are gone."""
    files = [entry for entry in entries if entry.kind == "reg" and entry.data]
    changed = pick.sample(files, 8)
    found = [Entry(entry.name, content(pick, len(entry.data) + 1), mode=entry.mode) for entry in changed[:5]]
    for entry in changed[5:]:
        place, name = os.path.split(entry.name)
        found.append(Entry(f"{place}/.wh.{name}"))
    return found


def merged(layers):
    files = {}
    for entry in (entry for layer in layers for entry in layer):
        place, name = os.path.split(entry.name)
        if name.startswith(".wh."):
            del files[f"{place}/{name[4:]}"]
        else:
            files[entry.name] = entry
    return files


def write_tree(place, files):
    """The tree, and the sha256 of each file beside it; the sums."""
    place.mkdir(parents=True)
    sums = {}
    for name, entry in files.items():
        path = place / name
        if entry.kind == "dir":
            path.mkdir(parents=True, exist_ok=True)
        elif entry.kind == "reg":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(entry.data)
            sums[name] = (len(entry.data), hashlib.sha256(entry.data).hexdigest())
        if entry.kind != "symlink":
            path.chmod(stat.S_IMODE(entry.mode))
    pathlib.Path(f"{place}.sums").write_text(json.dumps(sums))
    return sums


def make(place, name, more=(), command=()):
    """An image in the format that its name begins with, at `place`/layout/`name`; its tree is at `place`/tree/`name`. `more` goes into its lower
    layer and not into the tree."""
    # The same in each run, whatever the seed: only what happens to them is another.
    pick = random.Random(name)
    write = WRITERS[next(format for format in WRITERS if name.startswith(format))]
    below = lower(pick)
    above = upper(pick, below)
    Layout(place / "layout" / name).write([write([*more, *below]), write(above)], command)
    return write_tree(place / "tree" / name, merged([below, above]))


def busybox():
    """What a container needs."""
    with open(shutil.which("busybox") or "/bin/busybox", "rb") as file:
        program = Entry("bin/busybox", file.read(), mode=0o755)
    places = [Entry(place, kind="dir", mode=0o755) for place in ["bin", "dev", "etc", "proc", "sys", "tmp"]]
    return [*places, program, Entry("bin/sh", kind="symlink", mode=0o777, link="busybox")]
