"""What the measurements run in: one temporary directory, a registry, a slow link before it, mounts, and the memory of their servers.

Everything that is started is stopped, and everything that is mounted is unmounted, when a `World` is left.
"""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

MBIT = 100
ONE_WAY_MS = 10


def run(*command, **options):
    """Runs a command whose output nobody wants, and fails with what it said."""
    done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, **options)
    if done.returncode:
        sys.exit(f"scripts/bench: {' '.join(map(str, command))}: exit {done.returncode}\n{done.stderr}")
    return done.stdout


def drop_caches():
    """Leaves no page of a file and no inode in the kernel that can be had from disk again."""
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")


def free_port(count=1):
    """The first of `count` ports in a row that nobody uses."""
    while True:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            try:
                for port in range(first + 1, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except (OSError, OverflowError):
                continue
            return first


def wait_for_port(port):
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    sys.exit(f"scripts/bench: nothing listens on port {port}")


class Link:
    """slowlink.py before a registry, and what it counts."""

    def __init__(self, port):
        self.port = port

    def _ask(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port + 1}/{path}") as answer:
            return json.load(answer)

    def reset(self):
        self._ask("reset")

    def counted(self):
        """Bytes from the registry, connections and requests since the last reset."""
        return self._ask("")


class Mount:
    """A crfs mount."""

    def __init__(self, crfs, path, pid):
        self.crfs, self.path, self.pid = crfs, path, pid

    def memory(self):
        """KiB that the server has resident, how much of it is no file's, and the most that it ever had."""
        lines = pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return {name: int(fields[key].split()[0]) for name, key in [("rss", "VmRSS"), ("anon", "RssAnon"), ("peak", "VmHWM")]}

    def unmount(self):
        run(self.crfs, "umount", self.path)
        while pathlib.Path(f"/proc/{self.pid}").exists():
            time.sleep(0.01)


def end(process):
    """A signal that it hears: nginx ends its workers then."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class World:
    def __init__(self, crfs, image, slowlink):
        self.crfs, self.image, self.slowlink = pathlib.Path(crfs), pathlib.Path(image), pathlib.Path(slowlink)
        self._stack = contextlib.ExitStack()
        self._numbers = iter(range(1 << 30))

    def __enter__(self):
        # Not /tmp: that may be memory, and the caches are to be on a disk.
        self.place = pathlib.Path(tempfile.mkdtemp(prefix="crfs-bench-", dir="/var/tmp"))
        self._stack.callback(run, "rm", "-rf", "--one-file-system", self.place)
        self._stack.callback(self._unmount_all)
        return self

    def __exit__(self, *error):
        self._stack.close()

    def _unmount_all(self):
        mounted = [line.split()[1] for line in pathlib.Path("/proc/mounts").read_text().splitlines()]
        for path in reversed([path for path in mounted if path.startswith(f"{self.place}/")]):
            subprocess.run(["umount", "-l", path], check=False)

    def fresh(self, name):
        """A new empty directory."""
        path = self.place / f"{name}-{next(self._numbers)}"
        path.mkdir()
        return path

    def start(self, *command):
        """Starts a server, which is ended with all else."""
        log = open(self.place / "log", "ab")
        process = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()
        self._stack.callback(end, process)
        return process

    def start_until(self, ready, *command):
        """Starts a server, and waits until a line of its stderr has `ready`."""
        process = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self._stack.callback(end, process)
        for line in process.stderr:
            if ready in line:
                return process
        sys.exit(f"scripts/bench: {' '.join(map(str, command))} ended with {process.wait()}")

    def registry(self, storage):
        """A registry that keeps everything below `storage`; its port."""
        port = free_port()
        config = self.place / f"registry-{port}.yml"
        config.write_text(
            f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {storage}}}}}\n"
            f'http: {{addr: "127.0.0.1:{port}"}}\n'
        )
        self.start("docker-registry", "serve", config)
        wait_for_port(port)
        return port

    def bench_registry(self):
        """A registry with the bench image, filled once."""
        storage = self.image / "registry"
        port = self.registry(storage)
        if not (storage / "filled").exists():
            for tag in ["zc", "zst", "gz"]:
                source, target = f"oci:{self.image}/layout:{tag}", f"docker://127.0.0.1:{port}/bench:{tag}"
                run("skopeo", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false", source, target)
            (storage / "filled").touch()
        return port

    def link(self, target):
        port = free_port(2)
        self.start(sys.executable, self.slowlink, port, target, MBIT, ONE_WAY_MS)
        wait_for_port(port + 1)
        return Link(port)

    def mount(self, image, cache, *options):
        path = self.fresh("mount")
        run(self.crfs, "mount", "--cache-dir", cache, *options, image, path)
        mounts = json.loads(run(self.crfs, "status", "--json"))
        return Mount(self.crfs, path, next(mount["pid"] for mount in mounts if mount["dir"] == str(path)))

    def remove(self, path):
        shutil.rmtree(path, ignore_errors=True)
