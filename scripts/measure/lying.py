"""A proxy before a registry that can hold a blob back, cut its answers or trickle them, and counts what is asked of it."""

import http.client
import http.server
import random
import threading
import time


class Proxy:
    """Faults hold from when they are set; `blob` is the digest that they are about, None for every blob."""

    def __init__(self, target):
        self.target, self.blob, self.requests = target, None, 0
        self.may_answer = threading.Event()
        self.fault = None
        self.heal()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                proxy.forward(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 1024

            def handle_error(self, *_):
                """Whoever hung up does not care."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def heal(self):
        self.fault = None
        self.may_answer.set()

    def hold(self, blob):
        self.blob = blob
        self.may_answer.clear()

    def forward(self, request):
        is_blob = "/blobs/" in request.path and (self.blob is None or self.blob in request.path)
        if is_blob:
            self.requests += 1
            self.may_answer.wait()
        if self.refuses(request):
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.target, timeout=60)
        upstream.request(request.command, request.path, headers={k: v for k, v in request.headers.items() if k != "Host"})
        answer = upstream.getresponse()
        request.send_response(answer.status)
        for key, value in answer.getheaders():
            request.send_header(key, value)
        request.end_headers()
        self.send(request, answer, is_blob)
        upstream.close()

    def refuses(self, request):
        """For those who build on this: whether the request was answered, or hung up on, without the registry."""
        return False

    def send(self, request, answer, is_blob):
        left = int(answer.headers["Content-Length"] or 0)
        if is_blob and self.fault == "cut" and random.random() < 0.3:
            request.wfile.write(answer.read(random.randrange(left + 1)))
            request.close_connection = True
        elif is_blob and self.fault == "trickling" and random.random() < 0.02:
            request.wfile.write(answer.read(left // 2))
            # A byte a second is less than crfs takes for progress.
            for _ in range(8):
                request.wfile.write(answer.read(1))
                request.wfile.flush()
                time.sleep(1)
            request.close_connection = True
        elif request.command == "GET":
            while part := answer.read(1 << 16):
                request.wfile.write(part)
