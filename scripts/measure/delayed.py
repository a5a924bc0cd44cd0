"""A registry on loopback that answers late and sends no faster than it is told: delayed.py LAYOUT DELAY_MS MBIT (0: as fast as it can).

Prints its port. Serves one OCI layout under any name, by sendfile(2), so that it costs little beside what is measured. Each answer begins DELAY_MS
after its request, as behind a link of that round trip; all bodies together get MBIT a second. GET /counted tells bytes and requests since the last.
"""

import http.server
import json
import os
import pathlib
import re
import sys
import threading
import time

PART = 256 << 10


class Pace:
    """When the next part of any body may go."""

    def __init__(self, mbit):
        self.rate, self.free, self.lock = mbit * 1e6 / 8, 0.0, threading.Lock()

    def wait(self, size):
        if self.rate:
            with self.lock:
                start = max(time.monotonic(), self.free)
                self.free = start + size / self.rate
            time.sleep(max(0, start - time.monotonic()))


class Registry(http.server.ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 1024

    def __init__(self, layout, delay, mbit):
        super().__init__(("127.0.0.1", 0), Handler)
        self.layout, self.delay, self.pace = pathlib.Path(layout), delay, Pace(mbit)
        self.lock, self.bytes, self.requests = threading.Lock(), 0, 0

    def count(self, size, requests=0):
        with self.lock:
            self.bytes, self.requests = self.bytes + size, self.requests + requests

    def counted(self):
        with self.lock:
            counted = {"bytes": self.bytes, "requests": self.requests}
            self.bytes = self.requests = 0
        return counted

    def blob(self, digest):
        return self.layout / "blobs" / pathlib.Path(*digest.split(":"))

    def manifest(self, reference):
        manifests = json.loads((self.layout / "index.json").read_text())["manifests"]
        tags = {manifest.get("annotations", {}).get("org.opencontainers.image.ref.name"): manifest["digest"] for manifest in manifests}
        return tags.get(reference, reference)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if self.path == "/counted":
            return self.tell(json.dumps(self.server.counted()).encode())
        time.sleep(self.server.delay)
        self.server.count(0, 1)
        kind = re.fullmatch(r"/v2/.+/(manifests|blobs)/([^/]+)", self.path.split("?")[0])
        if not kind:
            return self.tell(b"{}")
        digest = self.server.manifest(kind[2]) if kind[1] == "manifests" else kind[2]
        path = self.server.blob(digest)
        if not path.is_file():
            return self.tell(b"{}", 404)
        return self.send(path, digest, kind[1] == "manifests")

    def tell(self, body, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send(self, path, digest, is_manifest):
        size = path.stat().st_size
        part = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        start, end = 0, size
        if part and part[1]:
            start, end = int(part[1]), min(size, int(part[2]) + 1 if part[2] else size)
        elif part:
            start = max(0, size - int(part[2]))
        self.send_response(206 if part else 200)
        if part:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        kind = json.loads(path.read_bytes()).get("mediaType") if is_manifest else None
        self.send_header("Content-Type", kind or "application/octet-stream")
        self.send_header("Docker-Content-Digest", digest)
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "GET":
            self.body(path, start, end)

    def body(self, path, at, end):
        with path.open("rb") as file:
            while at < end:
                self.server.pace.wait(min(PART, end - at))
                sent = os.sendfile(self.connection.fileno(), file.fileno(), at, min(PART, end - at))
                self.server.count(sent)
                at += sent

    def handle(self):
        try:
            super().handle()
        except OSError:
            # Whoever asked has gone.
            pass

    def log_message(self, *_):
        pass


def main():
    registry = Registry(sys.argv[1], float(sys.argv[2]) / 1000, float(sys.argv[3]))
    print(registry.server_address[1], flush=True)
    registry.serve_forever()


if __name__ == "__main__":
    main()
