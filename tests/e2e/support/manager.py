"""A service manager that keeps descriptors, for a test: starts a command, and again with what it keeps where that was killed.

manager.py SOCKET COMMAND... says what happens, a line each: started PID, ready, kept NAME, removed NAME, ended STATUS.
"""

import array
import fcntl
import os
import select
import signal
import socket
import sys

FIRST = 3
kept = []


def say(*words):
    print(*words, flush=True)


def start(command, path):
    pid = os.fork()
    if pid:
        say("started", pid)
        return pid
    # Out of the way of the numbers that they are to have.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 200) for _, fd in kept]
    os.closerange(FIRST, 200)
    for number, fd in enumerate(high):
        os.dup2(fd, FIRST + number, inheritable=True)
    os.closerange(200, 400)
    if kept:
        os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(kept)), "LISTEN_FDNAMES": ":".join(name for name, _ in kept)}
    os.environ["NOTIFY_SOCKET"] = path
    os.execvp(command[0], command)


def hear(listener):
    data, control, _, _ = listener.recvmsg(4096, socket.CMSG_SPACE(64))
    fds = array.array("i")
    for level, kind, bytes_of in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(bytes_of[: len(bytes_of) - len(bytes_of) % fds.itemsize])
    told = dict(line.split("=", 1) for line in data.decode().splitlines())
    name = told.get("FDNAME")
    if told.get("FDSTORE") == "1":
        kept.extend((name, fd) for fd in fds)
        say("kept", name)
    if told.get("FDSTOREREMOVE") == "1":
        for at in [at for at in kept if at[0] == name]:
            os.close(at[1])
            kept.remove(at)
        say("removed", name)
    if told.get("READY") == "1":
        say("ready")


def main():
    path, command = sys.argv[1], sys.argv[2:]
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(path)
    waking, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running = start(command, path)
    while True:
        ready, _, _ = select.select([listener, waking], [], [])
        if listener in ready:
            hear(listener)
            continue
        os.read(waking, 64)
        done, status = os.waitpid(-1, os.WNOHANG)
        if done != running:
            continue
        say("ended", os.waitstatus_to_exitcode(status))
        if not os.WIFSIGNALED(status):
            return
        running = start(command, path)


main()
