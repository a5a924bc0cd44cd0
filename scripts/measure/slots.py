"""Where processes are killed at their system calls: a small image, its registry, and slots that see nothing of each other. For syscalls.py."""

import collections
import contextlib
import ctypes
import hashlib
import http.server
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

from layers import WRITERS, Entry, Layout
from world import run

DEADLINE = "20s"
# Far more than any pause, deadlines and a machine that has other work among them: then it is stuck.
STUCK = 60.0
# The errors that a reader may see where nobody can serve any more, as sha256sum says them.
GONE = ("Transport endpoint is not connected", "Input/output error", "Software caused connection abort", "No such file or directory")
OPTIONS = ["--whole-layer-below", "20K", "--io-deadline", DEADLINE]
SUBREAPER, NEW_NAMESPACE, PRIVATE = 36, 0x20000, 1 << 18 | 1 << 14

Point = collections.namedtuple("Point", "scenario role call number")


def call_numbers():
    text = subprocess.run(["gcc", "-E", "-dM", "-"], input="#include <sys/syscall.h>\n", capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in re.findall(r"^#define __NR_(\w+) (\d+)$", text, re.M)}


def children(pid):
    found = []
    with contextlib.suppress(OSError):
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def below(pid):
    found = children(pid)
    return found + [deeper for child in found for deeper in below(child)]


def text_of(pid, name):
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/{name}").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def until(what, seconds=STUCK):
    """Whether it came true. An ended child is waited for meanwhile."""
    end = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > end:
            return None
        time.sleep(0.004)
    return found


class Image:
    """A layer that is read lazily, and one that is read whole, as a layout whose blobs a `Registry` serves."""

    def __init__(self, place):
        pick = random.Random(1)
        lazy = [Entry("d", kind="dir", mode=0o755), *(Entry(f"d/f{at}", pick.randbytes(9_000)) for at in range(5)), Entry("d/big", pick.randbytes(90_000))]
        whole = [Entry("w", kind="dir", mode=0o755), *(Entry(f"w/g{at}", pick.randbytes(2_000)) for at in range(3))]
        layers = [WRITERS["zstd-chunked"](lazy), WRITERS["gzip"](whole)]
        Layout(place).write(layers, ["/bin/sh"])
        self.blobs = {f"sha256:{path.name}": path.read_bytes() for path in (place / "blobs/sha256").iterdir()}
        self.manifest = json.loads((place / "index.json").read_text())["manifests"][0]["digest"]
        self.files = {entry.name: hashlib.sha256(entry.data).hexdigest() for entry in lazy + whole if entry.kind == "reg"}
        # What podman calls the layers: by what lies below them.
        first, second = (layer.diff_id for layer in layers)
        chain = hashlib.sha256(f"{first[7:]}+{second[7:]}".encode()).hexdigest()
        self.layers = [first[7:], chain]
        self.stored = {name: f"overlay/{self.layers[name.startswith('w')]}/diff/{name}" for name in self.files}


class Registry(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, image):
        self.image, self.is_off = image, False
        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, args=[0.05], daemon=True).start()

    def handle_error(self, request, client_address):
        """Whoever asks is killed while it does."""


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        if self.server.is_off:
            self.close_connection = True
            return
        image, name = self.server.image, self.path.rsplit("/", 1)[1]
        digest = image.manifest if name == "latest" else name
        body = image.blobs.get(digest)
        if body is None:
            self.answer(404 if name else 200, b"{}", "application/json")
            return
        kind = json.loads(body).get("mediaType") if "/manifests/" in self.path else "application/octet-stream"
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not asked:
            self.answer(200, body, kind, **{"Docker-Content-Digest": digest})
            return
        first, last = int(asked[1]), min(int(asked[2]), len(body) - 1)
        self.answer(206, body[first : last + 1], kind, **{"Content-Range": f"bytes {first}-{last}/{len(body)}"})

    do_HEAD = do_GET

    def answer(self, status, body, kind, **headers):
        headers |= {"Content-Type": kind, "Content-Length": len(body)}
        head = f"HTTP/1.1 {status} X\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        # In one piece: else the other side waits for the rest of it.
        self.wfile.write(head.encode() + (b"" if self.command == "HEAD" else body))


class Slot:
    """One of those that work beside each other: its mounts, state directories and temporary files are seen by nobody else."""

    def __init__(self, chosen, scenarios, place, image, number):
        self.crfs, self.scenarios, self.killer, self.image = chosen.crfs, scenarios, place / "killer", image
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(NEW_NAMESPACE) or libc.mount(None, b"/", None, PRIVATE, None) or libc.prctl(SUBREAPER, 1, 0, 0, 0):
            sys.exit(f"no mount namespace: {os.strerror(ctypes.get_errno())}")
        self.place = place / f"slot-{number}"
        self.place.mkdir()
        for path in (self.place, "/run", "/tmp"):
            run("mount", "-t", "tmpfs", "-o", "size=700m,mode=755", "tmpfs", path)
        for name in ("XDG_RUNTIME_DIR", "TMPDIR", "XDG_CACHE_HOME", "CRFS_LOG"):
            os.environ.pop(name, None)
        os.environ["XDG_CACHE_HOME"] = str(self.place / "no-cache")
        self.registry = Registry(image)
        self.name = f"127.0.0.1:{self.registry.server_address[1]}/a@{image.manifest}"
        self.numbers, self.calls, self.normal = iter(range(1 << 30)), call_numbers(), {}

    def fresh(self, name):
        path = self.dir / name
        path.mkdir()
        return path

    def violation(self, text):
        self.violations.append(text)

    def spawn(self, *command, **options):
        log = open(self.dir / "log", "ab")
        process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, **{"stdin": subprocess.DEVNULL} | options)
        log.close()
        return process

    def gated(self, *command):
        """A command that begins when `go` is told."""
        return self.spawn("/bin/sh", "-c", 'read _; exec "$@" </dev/null', "sh", *command, stdin=subprocess.PIPE)

    def go(self, process):
        with contextlib.suppress(OSError):
            process.stdin.write(b"\n")
            process.stdin.close()

    def ended(self, process, what):
        """Its status; one that does not end is said to be stuck."""
        try:
            return process.wait(STUCK)
        except subprocess.TimeoutExpired:
            self.violation(f"stuck: {what}: {self.seen(process.pid)}")
            process.kill()
            process.wait()
            return None

    def seen(self, pid):
        return f"{text_of(pid, 'cmdline')[:120]} in {text_of(pid, 'wchan')}"

    def crfs_ends(self, *arguments):
        process = self.spawn(self.crfs, *arguments)
        return self.ended(process, f"crfs {arguments[0]}")

    def trace(self, *pids):
        """Kills at the point, or counts."""
        point, options = self.point, []
        if point.role:
            options = ["-r", point.role, "-c", str(self.calls[point.call]), "-n", str(point.number)]
        elif not self.counts:
            self.tracer = None
            return
        self.traced = open(self.dir / "traced", "w+")
        self.tracer = subprocess.Popen([self.killer, *options, *map(str, pids)], stdout=self.traced, stderr=subprocess.STDOUT)
        until(lambda: "ready" in (self.dir / "traced").read_text() or self.tracer.poll() is not None)

    def traced_out(self):
        """Lets go of everybody; what was seen."""
        if self.tracer is None:
            return ""
        self.tracer.terminate()
        self.tracer.wait()
        self.tracer = None
        return (self.dir / "traced").read_text()

    def read(self, paths, what, may_fail=False):
        """Reads files; whether all were right."""
        process = subprocess.Popen(["sha256sum", *map(str, paths)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, errors = process.communicate(timeout=STUCK)
        except subprocess.TimeoutExpired:
            self.violation(f"stuck: a reader ({what}): {self.seen(process.pid)}")
            return False
        found = dict(reversed(line.split("  ", 1)) for line in out.splitlines())
        wrong = [str(path) for path, digest in paths.items() if found.get(str(path), digest) != digest]
        if wrong:
            self.violation(f"wrong bytes ({what}): {wrong}")
        lines = [line for line in errors.splitlines() if not may_fail or not line.endswith(GONE)]
        if lines:
            self.violation(f"errors ({what}): {lines[:2]}")
        return process.returncode == 0 and not wrong

    def mounted(self):
        lines = pathlib.Path("/proc/self/mounts").read_text().splitlines()
        return [line.split()[1] for line in lines if " fuse" in line and line.split()[1].startswith(f"{self.place}/")]

    def processes(self):
        """All that are left but the slot's own."""
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        tracer = self.tracer.pid if self.tracer else 0
        return [pid for pid in below(os.getpid()) if pid != tracer and text_of(pid, "stat").split(") ")[-1][:1] not in ("Z", "")]

    def keepers(self):
        return [pid for pid in self.processes() if text_of(pid, "comm") == "crfs-keeper"]

    def mount_options(self, cache):
        return ["mount", *OPTIONS, "--mount-deadline", "15s", "--cache-dir", cache]

    def paths(self, dir):
        return {dir / name: digest for name, digest in self.image.files.items()}

    def listing(self):
        """The files that are left, with numbers and random names left out."""
        found = set()
        for place in (self.dir, "/run", "/tmp"):
            for path, dirs, files in os.walk(place):
                found |= {f"{path.removeprefix(str(self.dir))}/{name}" for name in dirs + files}
        return found

    def nothing_left(self, is_last=True):
        """After everything was asked to end."""
        if not until(lambda: not self.processes(), 15):
            self.violation(f"processes are left: {[self.seen(pid) for pid in self.processes()]}")
        if self.mounted():
            self.violation(f"mounts are left: {self.mounted()}")
        # What is half written in a cache goes when that is opened the next time.
        left = [name for name in self.listing() if re.search(r"^/(run|tmp)/crfs[^/]*/.|\.tmp-|\.new|^/tmp/.", name)]
        left = [name for name in left if is_last or not name.startswith("/cache/")]
        if left:
            self.violation(f"files are left: {left[:4]}")

    def clear_away(self):
        """Whatever a violation has left."""
        for pid in reversed(self.processes()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for path in self.mounted():
            subprocess.run(["umount", "-l", path], check=False)
        until(lambda: not self.processes(), 5)
        for place in ("/run", "/tmp"):
            for path in pathlib.Path(place).iterdir():
                subprocess.run(["rm", "-rf", path], check=False)

    def run(self, point, counts=False):
        """One point. What was killed, or counted."""
        self.point, self.counts, self.violations, self.tracer = point, counts, [], None
        self.dir = self.place / f"{next(self.numbers)}"
        self.dir.mkdir()
        self.registry.is_off = False
        self.scenarios[point.scenario](self).run()
        seen = (self.dir / "traced").read_text() if (self.dir / "traced").exists() else ""
        if self.violations:
            self.clear_away()
            print(pathlib.Path(self.dir / "log").read_text()[-1500:], file=sys.stderr, flush=True)
        shutil.rmtree(self.dir, ignore_errors=True)
        return seen
