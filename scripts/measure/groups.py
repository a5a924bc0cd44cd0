"""A cgroup for a server or a command: limits of processes and memory, and the most memory that was in use. Version 1 and version 2."""

import contextlib
import os
import pathlib
import time

ROOT = pathlib.Path("/sys/fs/cgroup")


def _is_version_2(controller):
    return controller in (ROOT / "cgroup.controllers").read_text().split() if (ROOT / "cgroup.controllers").exists() else False


class Group:
    """Needs root. Version 1 has a directory for each controller, version 2 one for both."""

    # The files of a controller by version: (1, 2).
    FILES = {
        "limit": ("memory.limit_in_bytes", "memory.max"),
        "usage": ("memory.usage_in_bytes", "memory.current"),
        "peak": ("memory.max_usage_in_bytes", "memory.peak"),
        "events": ("memory.oom_control", "memory.events"),
    }

    def __init__(self, name):
        self._version = 2 if _is_version_2("memory") else 1
        if self._version == 2:
            # Nothing is changed where it is set already.
            (ROOT / "cgroup.subtree_control").write_text("+pids +memory")
            self._pids = self._memory = ROOT / name
        else:
            self._pids, self._memory = ROOT / "pids" / name, ROOT / "memory" / name
        for place in {self._pids, self._memory}:
            place.mkdir()

    def _file(self, what):
        return self._memory / self.FILES[what][self._version - 1]

    def enter(self):
        """For preexec_fn: the process, and all that it starts, belongs to this group."""
        for place in {self._pids, self._memory}:
            with open(place / "cgroup.procs", "w") as file:
                file.write(str(os.getpid()))

    def processes(self):
        return [int(pid) for pid in (self._memory / "cgroup.procs").read_text().split()]

    def count(self):
        """Processes and threads."""
        return int((self._pids / "pids.current").read_text())

    def limit_count(self, most):
        (self._pids / "pids.max").write_text("max" if most is None else str(most))

    def usage(self):
        return int(self._file("usage").read_text())

    def limit_memory(self, most):
        """False where the kernel cannot make it that little."""
        unlimited = "max" if self._version == 2 else "-1"
        try:
            self._file("limit").write_text(unlimited if most is None else str(most))
        except OSError:
            return False
        return True

    def peak(self):
        """The most memory that was in use, the page cache of its files included. Linux before 5.19 has none in version 2."""
        return int(self._file("peak").read_text())

    def start_peak(self):
        """Begins a new peak. In version 2 that needs Linux 6.12: without it, take a new group."""
        self._file("peak").write_text("0")

    def killed(self):
        """How many processes the kernel has killed here because of the limit."""
        fields = dict(line.split() for line in self._file("events").read_text().splitlines())
        return int(fields["oom_kill"])

    def remove(self):
        """False where something is left in it."""
        for place in {self._pids, self._memory}:
            for _ in range(50):
                with contextlib.suppress(OSError):
                    place.rmdir()
                    break
                if not place.exists():
                    break
                time.sleep(0.1)
            else:
                return False
        return True
