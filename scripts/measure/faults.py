"""The faults of scripts/soak-chaos: each begins, stays a while, and ends. None knows of the others; `Chaos` sees to it that they can be told apart."""

import os
import signal
import threading

from network import DEAD, HARD, LYING
from servers import status_of

# Bytes that a squeezed server may have: what it has of its own, and room for what it keeps aside when the cache is full (64 MiB).
SQUEEZED = 128 << 20


def network(kind):
    def fault(lab, server):
        deadline = lab.history.deadline
        record = lab.history.begin(kind, server.name)
        lab.network(server.number, kind)
        lab.pause(lab.pick.uniform(0.2, 1.8) * deadline if kind in DEAD else lab.pick.uniform(3, 15))
        lab.network(server.number, "heal")
        lab.history.end(record)

    return fault


def stop(lab, server):
    record = lab.history.begin("stop", server.name)
    os.kill(server.pid, signal.SIGSTOP)
    lab.pause(lab.pick.uniform(0.5, 1.4 * lab.history.deadline))
    os.kill(server.pid, signal.SIGCONT)
    lab.history.end(record)


def kill(lab, server):
    record = lab.history.begin("kill", server.name)
    server.kill()
    lab.history.end(record)


def pids(lab, server):
    count = server.group.count()
    record = lab.history.begin("pids", server.name, f"{count} processes and threads, and no more")
    server.group.limit_count(count)
    lab.pause(lab.pick.uniform(3, 20))
    server.group.limit_count(None)
    lab.history.end(record)


def memory(lab, server):
    anon, usage = status_of(server.pid).get("RssAnon", 0), server.group.usage()
    record = lab.history.begin("memory", server.name, f"of {usage >> 20} MiB in use, {anon >> 10} of the server's own, {SQUEEZED >> 20} may stay")
    good = server.group.limit_memory(SQUEEZED)
    lab.pause(lab.pick.uniform(3, 20))
    server.group.limit_memory(None)
    lab.history.end(record, "" if good else "the kernel could not take the rest")


def clock(lab, server):
    jump = lab.pick.choice(["+3650d", "-3650d", "+1d", "-1d", "+1h", "-1h"])
    record = lab.history.begin("clock", server.name, jump)
    server.clock.write_text(jump + "\n")
    lab.pause(lab.pick.uniform(3, 10))
    server.clock.write_text("+0\n")
    lab.history.end(record)


def command(kind, *arguments):
    """Of the cache, by crfs itself: it works whatever else there is."""

    def fault(lab, disk):
        record = lab.history.begin(kind, disk.kind)
        good, said = lab.servers[0].command(*arguments, "--cache-dir", disk.cache, timeout=120)
        lab.history.end(record, said.splitlines()[-1] if said else "")
        if not good:
            lab.history.violation(f"crfs {' '.join(arguments)} on {disk.kind}: {said}")

    return fault


def rm(lab, disk):
    record = lab.history.begin("rm", disk.kind)
    disk.clear()
    lab.history.end(record)


def full(lab, disk):
    record = lab.history.begin("full", disk.kind)
    count = disk.fill()
    lab.pause(lab.pick.uniform(3, 15))
    disk.empty()
    lab.history.end(record, f"{count >> 20} MiB of it were free")


def freeze(lab, disk):
    record = lab.history.begin("freeze", None, disk.kind)
    disk.freeze()
    # Less than the deadline: nobody's read fails for it.
    lab.pause(lab.pick.uniform(0.5, 0.4 * lab.history.deadline))
    disk.thaw()
    lab.history.end(record)


def read_only(lab, disk):
    if not disk.read_only():
        lab.history.say(f"{disk.kind} cannot be made read-only: files are open for writing")
        lab.refused += 1
        return
    record = lab.history.begin("read-only", disk.kind)
    lab.pause(lab.pick.uniform(2, 10))
    disk.writable()
    lab.history.end(record)


def drop(lab, _):
    """The kernel's caches of everything."""
    lab.history.end(lab.history.begin("drop", None))
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write(lab.pick.choice("23"))


# Of a server: name, weight, what it needs alone.
OF_SERVERS = {
    **{kind: (network(kind), 3, ["net"]) for kind in [*DEAD, *HARD, *LYING]},
    "stop": (stop, 4, ["life"]),
    "kill": (kill, 5, ["life", "net", "pids", "memory", "clock", "disk"]),
    "pids": (pids, 5, ["pids"]),
    "memory": (memory, 5, ["memory"]),
    "clock": (clock, 4, ["clock"]),
}
# Of a disk: name, weight, whether it must be alone with its servers.
OF_DISKS = {
    "clear": (command("clear", "cache", "clear"), 2, False),
    "clear-contents": (command("clear-contents", "cache", "clear", "--contents"), 2, False),
    "verify": (command("verify", "cache", "verify"), 2, False),
    "rm": (rm, 2, False),
    "full": (full, 3, False),
    "freeze": (freeze, 2, True),
    "read-only": (read_only, 1, False),
    "drop": (drop, 1, False),
}


class Chaos:
    """Lets faults begin, several at a time, as long as none needs what another has."""

    MOST = 4

    def __init__(self, lab, only):
        self.lab, self.busy, self.threads = lab, set(), []
        self._lock = threading.Lock()
        self._choices = [
            (name, weight)
            for table in (OF_SERVERS, OF_DISKS)
            for name, (_, weight, _) in table.items()
            if not only or name in only
        ]

    def choose(self):
        """A fault, what it is of, and what it needs."""
        lab = self.lab
        names, weights = zip(*self._choices)
        name = lab.pick.choices(names, weights)[0]
        if name in OF_SERVERS:
            fault, _, parts = OF_SERVERS[name]
            server = lab.pick.choice(lab.servers)
            return fault, server, {f"{part}:{server.disk.kind if part == 'disk' else server.name}" for part in parts}
        fault, _, is_alone = OF_DISKS[name]
        disk = lab.pick.choice([lab.disk, lab.disk, *lab.disks])
        needs = {f"disk:{disk.kind}"}
        if is_alone:
            needs |= {f"{part}:{server.name}" for server in lab.servers if server.disk is disk for part in ("life", "memory")}
        return fault, disk, needs

    def begin_one(self):
        fault, target, needs = self.choose()
        with self._lock:
            self.threads = [thread for thread in self.threads if thread.is_alive()]
            if self.busy & needs or len(self.threads) >= self.MOST:
                return False
            self.busy |= needs
            self.threads.append(threading.Thread(target=self._run, args=[fault, target, needs]))
        self.threads[-1].start()
        return True

    def _run(self, fault, target, needs):
        try:
            fault(self.lab, target)
        except Exception as error:  # noqa: BLE001 (the soak itself is wrong then, which must not go unseen)
            self.lab.history.violation(f"the script: {fault}: {error!r}")
        finally:
            with self._lock:
                self.busy -= needs

    def join(self):
        for thread in self.threads:
            thread.join()
