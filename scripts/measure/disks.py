"""A small filesystem for a cache, on a loop device: it can be filled, frozen, and made to fail. For scripts/soak-chaos."""

import os
import pathlib
import subprocess

from world import run

# Bytes by type: XFS has none smaller than 300 MB.
SIZES = {"ext4": 160 << 20, "xfs": 320 << 20}
MAKE = {"ext4": ["mkfs.ext4", "-q", "-F", "-m", "0"], "xfs": ["mkfs.xfs", "-q", "-f"]}


class Disk:
    def __init__(self, place, kind):
        self.kind, self.place, self.file = kind, place / f"{kind}-disk", place / f"{kind}.img"
        with open(self.file, "wb") as file:
            file.truncate(SIZES[kind])
        run(*MAKE[kind], self.file)
        self.place.mkdir()
        self.loop = run("losetup", "--find", "--show", self.file).strip()
        run("mount", *(["-o", "errors=remount-ro"] if kind == "ext4" else []), self.loop, self.place)
        self.cache = self.place / "cache"
        self.cache.mkdir()

    def clear(self):
        """As somebody does who knows nothing of crfs."""
        subprocess.run(["sh", "-c", 'rm -rf --one-file-system "$0"/* 2>/dev/null', self.cache], check=False)

    def fill(self):
        """Bytes that were free."""
        count = 0
        with open(self.place / "filler", "wb") as file:
            for part in (1 << 20, 1 << 12):
                while True:
                    try:
                        os.posix_fallocate(file.fileno(), count, part)
                    except OSError:
                        break
                    count += part
        return count

    def empty(self):
        (self.place / "filler").unlink(missing_ok=True)

    def freeze(self):
        run("fsfreeze", "--freeze", self.place)

    def thaw(self):
        run("fsfreeze", "--unfreeze", self.place)

    def read_only(self):
        """Whether it could be: not while files are open for writing."""
        return subprocess.run(["mount", "-o", "remount,ro", self.place], stderr=subprocess.DEVNULL, check=False).returncode == 0

    def writable(self):
        run("mount", "-o", "remount,rw", self.place)

    def break_down(self):
        """For good: an ext4 finds an error and is read-only from then on, an XFS answers nothing but EIO."""
        if self.kind == "ext4":
            pathlib.Path(f"/sys/fs/ext4/{pathlib.Path(self.loop).name}/trigger_fs_error").write_text("scripts/soak-chaos")
        else:
            run("xfs_io", "-x", "-c", "shutdown", self.place)

    def used(self):
        return int(run("du", "-sB1", self.cache).split()[0])

    def remove(self):
        """What went wrong, or nothing."""
        said = []
        for command in (["umount", self.place], ["losetup", "--detach", self.loop]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            said += [done.stderr.strip()] if done.returncode else []
        if said:
            subprocess.run(["umount", "-l", self.place], capture_output=True, check=False)
            subprocess.run(["losetup", "--detach", self.loop], capture_output=True, check=False)
        self.file.unlink()
        return "; ".join(said)
