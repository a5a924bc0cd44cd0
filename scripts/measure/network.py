"""Lying proxies in a process of their own, for scripts/soak-chaos: network.py TARGET COUNT.

Prints the ports, one a line. Each line of its input is then `NUMBER FAULT`: what that proxy does from now on, to what is under way as well.
"""

import random
import resource
import socket
import struct
import sys
import threading
import time

from lying import Proxy

# Nothing gets through; what waits for the network waits for its deadline.
DEAD = ["reset", "silent", "503", "trickle"]
# It gets through in the end.
HARD = ["cut", "slow", "some-503", "some-reset"]
# Wrong bytes: EIO where they were wrong twice.
LYING = ["flip"]

# A bit flips in that many answers.
FLIPPED = 0.3
# Bytes of a part and seconds between them, of a link that is slow.
SLOW = (1 << 14, 0.05)


class Chaos(Proxy):
    def __init__(self, target):
        self.changed = threading.Condition()
        super().__init__(target)

    def set(self, fault):
        with self.changed:
            self.fault = None if fault == "heal" else fault
            self.changed.notify_all()

    def wait_while(self, fault, seconds=None):
        with self.changed:
            return self.changed.wait_for(lambda: self.fault != fault, seconds)

    def hang_up(self, request):
        """A reset, and no orderly end."""
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.connection.close()
        request.close_connection = True

    def refuses(self, request):
        fault, luck = self.fault, random.random()
        if fault == "silent":
            self.wait_while("silent")
            # Whoever asked has gone long since.
            self.hang_up(request)
        elif fault == "reset" or (fault == "some-reset" and luck < 0.3):
            self.hang_up(request)
        elif fault == "503" or (fault == "some-503" and luck < 0.3):
            request.send_response(503)
            request.send_header("Content-Length", "0")
            request.end_headers()
        else:
            return False
        return True

    def send(self, request, answer, is_blob):
        if request.command != "GET" or self.fault == "cut":
            return super().send(request, answer, is_blob)
        data = answer.read()
        if is_blob and data and self.fault == "flip" and random.random() < FLIPPED:
            at = random.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
        part = SLOW[0]
        for at in range(0, len(data), part):
            # What is under way notices as well.
            if self.fault in ("reset", "503"):
                return self.hang_up(request)
            if self.fault == "silent":
                self.wait_while("silent")
            if self.fault == "trickle":
                return self.trickle(request, data[at:])
            if self.fault == "slow":
                time.sleep(SLOW[1])
            request.wfile.write(data[at : at + part])
        return None

    def trickle(self, request, data):
        for at in range(len(data)):
            request.wfile.write(data[at : at + 1])
            request.wfile.flush()
            if self.wait_while("trickle", 1):
                break
        request.close_connection = True


def main():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    target, count = int(sys.argv[1]), int(sys.argv[2])
    proxies = [Chaos(target) for _ in range(count)]
    print(*(proxy.port for proxy in proxies), sep="\n", flush=True)
    for line in sys.stdin:
        number, fault = line.split()
        proxies[int(number)].set(fault)


if __name__ == "__main__":
    main()
