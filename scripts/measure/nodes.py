"""What scripts/soak-fleet runs: registries and caches that can be killed, stopped and started again at their ports, and nodes that mount through them."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import caches
from registries import Meter
from world import run, wait_for_port


class Server:
    """One registry or cache. `config`: its file's text, of its port and of a directory of its own; `command`: what serves that file."""

    def __init__(self, world, name, command, config):
        self.name, self.command, self.process = name, command, None
        # Never listens: keeps the port from everybody else while it is down.
        self.held = world._stack.enter_context(socket.socket())
        self.held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.held.bind(("127.0.0.1", 0))
        self.port = self.held.getsockname()[1]
        self.place = world.fresh(re.sub("[^a-z]+", "-", name))
        self.place.chmod(0o777)
        self.log = self.place / "log"
        self.config = self.place / "config"
        self.config.write_text(config(self.port, self.place))
        world._stack.callback(self.kill)
        self.start()

    def start(self):
        """In a process group of its own: nginx has workers."""
        with open(self.log, "ab") as log:
            command = [str(part) for part in [*self.command, self.config]]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        wait_for_port(self.port)

    def signal(self, which):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, which)

    def kill(self):
        if self.process:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


class Places:
    """A registry with one image, and what may be put before it."""

    def __init__(self, world, distribution, layout, tag, files):
        self.world, self.distribution, self.files, self.tag = world, distribution, files, tag
        self.registry = Server(world, "registry", ["docker-registry", "serve"], caches.registry)
        name = f"{tag}/a:1"
        target = f"docker://127.0.0.1:{self.registry.port}/{name}"
        run("skopeo", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false", f"oci:{layout}:{tag}", target)
        manifest = json.loads(run("skopeo", "inspect", "--raw", "--tls-verify=false", target))
        self.size = sum(layer["size"] for layer in manifest["layers"])
        # By which nodes ask the registry itself.
        self.direct = Meter(self.registry.port)
        self.image = f"127.0.0.1:{self.direct.port}/{name}"

    def cache(self, kind, upstream):
        """One of `KINDS`, before that port."""
        proxied = lambda port, place: caches.registry(port, place / "data", upstream)
        start = {
            "nginx slice": (["nginx", "-c"], lambda port, place: caches.nginx_slices(port, place, upstream)),
            "nginx plain": (["nginx", "-c"], lambda port, place: caches.nginx_plain(port, place, upstream)),
            "haproxy": (["haproxy", "-db", "-f"], lambda port, _: caches.haproxy(port, upstream)),
            "distribution 3.1.2": ([self.distribution, "serve"], proxied),
            "docker-registry 2.8": (["docker-registry", "serve"], proxied),
        }
        return Server(self.world, kind, *start[kind])

    def registries_conf(self, mirrors, registry_too=True):
        """Mirrors in their order, and the registry last, or not at all."""
        primary = f"127.0.0.1:{self.direct.port}"
        text = f'[[registry]]\nprefix = "{primary}"\nlocation = "{primary}"\ninsecure = true\n' + ("" if registry_too else "blocked = true\n")
        text += "".join(f'[[registry.mirror]]\nlocation = "127.0.0.1:{port}"\ninsecure = true\n' for port in mirrors)
        path = self.world.fresh("conf") / "registries.conf"
        path.write_text(text)
        return os.environ | {"CONTAINERS_REGISTRIES_CONF": str(path)}

    def hosts_dir(self, mirrors, dial_timeout):
        primary = f"127.0.0.1:{self.direct.port}"
        text = f'server = "http://{primary}"\n' + "".join(f'[host."http://127.0.0.1:{port}"]\ndial_timeout = "{dial_timeout}"\n' for port in mirrors)
        path = self.world.fresh("hosts")
        (path / primary).mkdir()
        (path / primary / "hosts.toml").write_text(text)
        return path


# Nobody mounts or reads any more: what there is is about to be taken away.
ENDING = threading.Event()


def go_on():
    if ENDING.is_set():
        sys.exit("ended")


class Node:
    """One crfs mount with a cache of its own."""

    def __init__(self, places, environment, *options):
        go_on()
        self.places, self.crfs = places, places.world.crfs
        self.path, self.cache = places.world.fresh("mount"), places.world.fresh("cache")
        places.world._stack.callback(self.leave)
        start = time.monotonic()
        run(self.crfs, "mount", "--cache-dir", self.cache, *options, places.image, self.path, env=environment)
        self.mounted = time.monotonic() - start

    def wrong(self, order=None):
        """Reads all files; those that are not what they should be, and errors."""
        wrong = []
        for name in order or self.places.files:
            go_on()
            try:
                digest = hashlib.sha256((self.path / name).read_bytes()).digest()
            except OSError as error:
                wrong.append(f"{name}: {error}")
                continue
            if digest != self.places.files[name]:
                wrong.append(f"{name}: other bytes")
        return wrong

    def status(self):
        return next(mount for mount in json.loads(run(self.crfs, "status", "--json")) if mount["dir"] == str(self.path))

    def received(self):
        """Bytes of layers by the port that they came from: of its own metrics."""
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(f"/run/crfs/{self.status()['id']}/control.sock")
            server.sendall(b'"metrics"\n')
            line = server.makefile().readline()
        found = re.findall(r'crfs_received_bytes_total\{[^}]*host="[^"]*:(\d+)"\} (\d+)', json.loads(line)["metrics"])
        return {int(port): int(count) for port, count in found}

    def unmount(self):
        run(self.crfs, "umount", self.path)
        self.places.world.remove(self.cache)

    def leave(self):
        """Where something has failed."""
        if self.path.is_mount():
            subprocess.run([self.crfs, "umount", self.path], stderr=subprocess.DEVNULL, check=False)


def settle(*meters):
    """Waits until nothing passes any more: what a cache fetches for itself may come later."""
    before = None
    while before != [meter.bytes for meter in meters]:
        before = [meter.bytes for meter in meters]
        time.sleep(0.3)


def bench_image(place):
    """Its layout, and the digest of each file of its tree; None where it was not made."""
    place = pathlib.Path(place)
    if not (place / "layout/index.json").exists():
        return None
    files = {}
    for directory, _, names in os.walk(place / "tree"):
        for path in (pathlib.Path(directory) / name for name in names):
            if path.is_file() and not path.is_symlink():
                files[str(path.relative_to(place / "tree"))] = hashlib.sha256(path.read_bytes()).digest()
    return place / "layout", files
