"""What scripts/soak-chaos harms: mounts and a store, each server in a cgroup of its own, behind a lying proxy of its own, with a clock of its own."""

import contextlib
import glob
import json
import os
import pathlib
import shutil
import signal
import subprocess
import threading
import time

from groups import Group

# Debian's libfaketime. Only the wall clock is faked: CLOCK_MONOTONIC never jumps.
FAKETIME = "/usr/lib/*/faketime/libfaketimeMT.so.1"


def status_of(pid):
    """KiB by name, of /proc/PID/status; empty where it is gone."""
    with contextlib.suppress(OSError):
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
        return {key: int(value.split()[0]) for key, value in (line.split(":", 1) for line in lines) if key in ("VmHWM", "RssAnon", "VmRSS")}
    return {}


def worker_of(keeper):
    """Who serves what a process keeps: it has a thread then that answers the kernel. None where nobody does."""
    with contextlib.suppress(OSError):
        for child in pathlib.Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split():
            if any((task / "comm").read_text().startswith("fuser-") for task in pathlib.Path(f"/proc/{child}/task").iterdir()):
                return int(child)
    return None


def is_mounted(path):
    return any(line.split()[1] == str(path) for line in pathlib.Path("/proc/self/mounts").read_text().splitlines())


class Server:
    """Starts, dies and is looked after; `number` is that of its proxy. `pid` serves, and `keeper` starts another one where that dies."""

    def __init__(self, lab, number, name):
        self.lab, self.number, self.name, self.pid, self.keeper = lab, number, name, None, None
        self.group = Group(f"crfs-chaos-{os.getpid()}-{number}-{lab.phase}")
        self.clock = lab.world.place / f"clock-{number}"
        self.clock.write_text("+0\n")
        self.rss = self.kills = self.deaths = 0
        # Held while it is on purpose not there.
        self.away = threading.Lock()

    def environment(self):
        """Time jumps as the file says, and is looked at each second."""
        more = {"FAKETIME_TIMESTAMP_FILE": str(self.clock), "FAKETIME_CACHE_DURATION": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}
        library = glob.glob(FAKETIME)
        return os.environ | (more | {"LD_PRELOAD": library[0]} if library else {})

    def command(self, *arguments, timeout=90):
        """A command of crfs outside of the group; what it said, and whether it worked."""
        command = [str(self.lab.world.crfs), *map(str, arguments)]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            return False, f"no end after {timeout} s"
        return done.returncode == 0, (done.stdout + done.stderr).strip()

    def is_alive(self):
        return pathlib.Path(f"/proc/{self.keeper}/exe").exists()

    def look(self):
        """Notes the memory, and a death that nobody wished for; called again and again."""
        self.pid = worker_of(self.keeper) or self.pid
        self.rss = max(self.rss, status_of(self.pid).get("VmHWM", 0))
        if not self.away.acquire(blocking=False):
            return
        try:
            if self.is_alive() and self.is_mounted():
                return
            self.deaths += 1
            killed = self.group.killed()
            self.lab.history.violation(f"{self.name} is dead ({killed} processes of its group were killed for memory); log: {self.log_end()}")
            record = self.lab.history.begin("dead", self.name)
            self.bring_back()
            self.lab.history.end(record)
        finally:
            self.away.release()

    def kill(self):
        """Readers see nothing but a pause."""
        with self.away:
            self.kills += 1
            before = self.pid
            os.kill(before, signal.SIGKILL)
            ends = time.monotonic() + self.lab.history.deadline
            while (now := worker_of(self.keeper)) in (None, before):
                if time.monotonic() > ends:
                    self.lab.history.violation(f"nobody serves {self.name} after its server was killed; log: {self.log_end()}")
                    return
                time.sleep(0.01)
            self.pid = now

    def bring_back(self):
        """The network is well, and there is no limit."""
        self.keep_log()
        self.take_away()
        for _ in range(20):
            said = self.start()
            if not said:
                return
            time.sleep(1)
        self.lab.history.violation(f"{self.name} does not start again: {said}")

    def keep_log(self):
        with contextlib.suppress(OSError):
            with open(self.lab.logs / f"{self.name}.log", "ab") as out:
                out.write(self.log().read_bytes())

    def log_end(self):
        try:
            return self.log().read_text(errors="replace")[-600:]
        except OSError as error:
            return str(error)


class Mount(Server):
    def __init__(self, lab, number, name, options):
        super().__init__(lab, number, name)
        self.options, self.id = options, ""
        self.path = lab.world.fresh(f"mount-{name}")
        self.tree = lab.trees[name]

    def start(self):
        """What went wrong, or nothing."""
        lab = self.lab
        image = f"127.0.0.1:{lab.ports[self.number]}/{self.name}:latest"
        command = [lab.world.crfs, "mount", "-v", "--cache-dir", lab.disk.cache, "--cache-size", lab.CACHE, "--io-deadline", f"{lab.history.deadline:.0f}s"]
        command = [str(part) for part in [*command, *self.options, image, self.path]]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=self.environment(), preexec_fn=self.group.enter, check=False
        )
        if done.returncode:
            return done.stderr.strip()
        good, said = self.command("status", "--json")
        mounts = [mount for mount in json.loads(said) if mount["dir"] == str(self.path)] if good else []
        if not mounts:
            return f"crfs status does not have it: {said[:300]}"
        self.pid, self.keeper, self.id = mounts[-1]["pid"], mounts[-1]["keeper"], mounts[-1]["id"]
        return ""

    def log(self):
        return pathlib.Path("/run/crfs", self.id, "server.log")

    def is_mounted(self):
        return is_mounted(self.path)

    def take_away(self):
        subprocess.run(["umount", "-l", self.path], stderr=subprocess.DEVNULL, check=False)
        self.command("umount", self.path)

    def end(self):
        """What went wrong, or nothing."""
        self.keep_log()
        good, said = self.command("umount", self.path)
        if not good:
            return f"crfs umount: {said}"
        return until_gone(self)


def until_gone(server):
    for _ in range(300):
        if not server.is_alive() and not server.group.processes():
            return ""
        time.sleep(0.1)
    left = server.group.processes()
    return f"its processes are still there after 30 s: {left}"


class Store(Server):
    """podman's store. `disk` has its cache."""

    # Of podman run, so that it runs where the resource limits of this process cannot be raised.
    LIMITS = ["--ulimit", "nofile=20000:20000", "--ulimit", "nproc=1000:1000", "--network", "none"]

    def __init__(self, lab, number, disk):
        super().__init__(lab, number, "store")
        place = lab.world.fresh("store")
        self.root, self.state, self.out, self.disk = place / "root", place / "state", place / "out", disk
        self.graph, self.runroot = lab.world.fresh("podman"), lab.world.fresh("podman-run")
        self.state.mkdir(mode=0o700)
        self.places = ["--root", self.root, "--state", self.state]
        self.process = None

    def start(self):
        command = [self.lab.world.crfs, "store", "serve", *self.places, "--cache-dir", self.disk.cache, "--cache-size", self.lab.CACHE]
        with open(self.out, "wb") as out:
            self.process = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.environment(), preexec_fn=self.group.enter
            )
        self.keeper = self.process.pid
        for _ in range(600):
            if b"serving" in self.out.read_bytes():
                self.pid = worker_of(self.keeper)
                return ""
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        self.process.kill()
        self.process.wait()
        return self.out.read_text(errors="replace")[-600:]

    def log(self):
        return self.state / "server.log"

    def add(self, image):
        good, said = self.command("store", "add", *self.places, "--io-deadline", f"{self.lab.history.deadline:.0f}s", image)
        return "" if good else said

    def is_alive(self):
        return self.process.poll() is None

    def is_mounted(self):
        return any(line.split()[1].startswith(f"{self.root}") for line in pathlib.Path("/proc/self/mounts").read_text().splitlines() if "fuse" in line)

    def take_away(self):
        self.process.kill()
        self.process.wait()

    def podman(self, *arguments, timeout):
        command = ["podman", "--root", self.graph, "--runroot", self.runroot, "--runtime", "runc", "--storage-opt", f"overlay.imagestore={self.root}"]
        command = [str(part) for part in [*command, *arguments]]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False)

    def forget_pages(self, names):
        """Takes files of images from the kernel's memory."""
        for path in [path for name in names for path in glob.glob(f"{self.root}/overlay/*/diff/{name}")]:
            with contextlib.suppress(OSError), open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def end(self):
        self.keep_log()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.podman("rm", "-a", "-f", "-t", "0", timeout=60)
        subprocess.run(["umount", "-l", self.graph / "overlay"], stderr=subprocess.DEVNULL, check=False)
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            return f"the store does not end on SIGTERM: {self.log_end()}"
        said = "its mount is still there" if self.is_mounted() else ""
        for place in (self.graph, self.runroot):
            shutil.rmtree(place, ignore_errors=True)
        return said or until_gone(self)
