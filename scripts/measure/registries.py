"""crfs behind real registries and caches: what goes over the wire before and behind each, cold and warm, and that all that is read is right.
Called by scripts/soak-registries."""

import argparse
import gzip
import hashlib
import io
import json
import pathlib
import re
import signal
import socket
import sys
import tarfile
import threading
import time

import caches
from report import Report
from world import World, free_port, run, wait_for_port

# Bytes of the files of each layer: one has more than 64 MiB also when it is compressed.
LAYERS = [[9_000_000] * 16, [40_000] * 400 + [4_000_000] * 6, [3_000] * 100]


# Bytes of an eStargz chunk.
CHUNK = 1 << 18


class Meter:
    """A TCP relay before a server, and what passes through it."""

    def __init__(self, target):
        self.target, self.requests, self.bytes = target, 0, 0
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self):
        self.requests = self.bytes = 0

    def _accept(self):
        while True:
            client = self._server.accept()[0]
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                client.close()
                continue
            for ends in [(client, server, self._asked), (server, client, self._answered)]:
                threading.Thread(target=self._relay, args=ends, daemon=True).start()

    def _relay(self, source, sink, count):
        try:
            while part := source.recv(1 << 16):
                count(part)
                sink.sendall(part)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def _asked(self, part):
        with self._lock:
            self.requests += len(re.findall(rb"(?:^|\r\n\r\n)(?:GET|HEAD) ", part))

    def _answered(self, part):
        with self._lock:
            self.bytes += len(part)


def content(name, size):
    """Half as many bytes of noise, in hexadecimal: the same in each run."""
    return hashlib.shake_256(name.encode()).hexdigest(size // 2).encode()


def named_digest(content_):
    return "sha256:" + hashlib.sha256(content_).hexdigest()


def plain(tar, _):
    return gzip.compress(tar, 1, mtime=0), {}


def estargz(tar, files):
    """An eStargz blob: a gzip member for each chunk of a file, a table of contents, and a footer that says where that is."""
    blob, entries, at = io.BytesIO(), [], 0
    member = lambda part: blob.write(gzip.compress(part, 1, mtime=0))
    for name, size in files:
        member(tar[at : at + 512])
        data, at = tar[at + 512 : at + 512 + size], at + 512 + (size + 511) // 512 * 512
        for start in range(0, size, CHUNK):
            chunk = data[start : start + CHUNK]
            entry = {"name": name, "type": "chunk", "offset": blob.tell(), "chunkOffset": start, "chunkSize": len(chunk), "chunkDigest": named_digest(chunk)}
            if start == 0:
                entry |= {"type": "reg", "size": size, "mode": 0o644, "digest": named_digest(data), "chunkSize": len(chunk) if size > CHUNK else 0}
            entries.append(entry)
            member(chunk + bytes(-size % 512 if start + CHUNK >= size else 0))
    toc, place = json.dumps({"version": 1, "entries": entries}).encode(), blob.tell()
    entry = tarfile.TarInfo("stargz.index.json")
    entry.size = len(toc)
    member(entry.tobuf() + toc + bytes(-len(toc) % 512 + 1024))
    extra = b"SG\x16\0%016xSTARGZ" % place
    blob.write(b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + len(extra).to_bytes(2, "little") + extra + b"\x01\0\0\xff\xff" + bytes(8))
    return blob.getvalue(), {"containerd.io/snapshot/stargz/toc.digest": named_digest(toc)}


TAGS = {"gz": plain, "estargz": estargz}


def make_image(place, layers=LAYERS, tags=TAGS):
    """An OCI layout with the same image plain and as eStargz, and the digest of each file. `layers`: the sizes of the files of each."""
    layout, digests, index = place / "layout", {}, []
    (layout / "blobs/sha256").mkdir(parents=True)

    def put(media_type, blob):
        digest = hashlib.sha256(blob).hexdigest()
        (layout / "blobs/sha256" / digest).write_bytes(blob)
        return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": f"sha256:{digest}", "size": len(blob)}

    tars = []
    for number, sizes in enumerate(layers):
        out, files = io.BytesIO(), [(f"layer{number}-{at}", size) for at, size in enumerate(sizes)]
        with tarfile.open(fileobj=out, mode="w") as tar:
            for name, size in files:
                data, entry = content(name, size), tarfile.TarInfo(name)
                entry.size, digests[name] = size, hashlib.sha256(data).digest()
                tar.addfile(entry, io.BytesIO(data))
        tars.append((out.getvalue(), files))
    for tag, write in tags.items():
        written = []
        for blob, annotations in (write(*tar) for tar in tars):
            written.append(put("layer.v1.tar+gzip", blob) | {"annotations": annotations})
        # Of layers with a table of contents nobody compares the diffIDs.
        diff_ids = [named_digest(tar) for tar, _ in tars]
        config = {"os": "linux", "architecture": "amd64", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        config = put("config.v1+json", json.dumps(config).encode())
        manifest = put("manifest.v1+json", json.dumps({"schemaVersion": 2, "config": config, "layers": written}).encode())
        index.append(manifest | {"annotations": {"org.opencontainers.image.ref.name": tag}})
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": index}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return layout, digests


class Lab:
    def __init__(self, world, distribution):
        self.world, self.distribution = world, distribution
        layout, self.files = make_image(world.place)
        self.storage = world.fresh("origin")
        self.origin = world.registry(self.storage)
        target = f"127.0.0.1:{self.origin}"
        for tag in TAGS:
            run("skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:{tag}", f"docker://{target}/{tag}/a:1")
        self.behind = Meter(self.origin)

    def _config(self, name, text):
        path = self.world.place / name
        path.write_text(text)
        return path

    def _start(self, port, *command):
        self.world.start(*command)
        wait_for_port(port)
        return port

    def _registry(self, command, proxied):
        port, storage = free_port(), self.world.fresh("mirror") if proxied else self.storage
        text = caches.registry(port, storage, self.behind.port if proxied else None)
        return self._start(port, command, "serve", self._config(f"registry-{port}.yml", text))

    def _nginx(self, location):
        port, place = free_port(), self.world.fresh("nginx")
        place.chmod(0o777)
        server = f"location / {{ proxy_pass http://127.0.0.1:{self.behind.port}; proxy_cache z; proxy_cache_valid 200 206 1h; {location} }}"
        config = self._config(f"nginx-{port}.conf", caches.nginx(port, place, server))
        return self._start(port, "nginx", "-c", config)

    def haproxy(self):
        port = free_port()
        config = self._config("haproxy.cfg", caches.haproxy(port, self.behind.port))
        return self._start(port, "haproxy", "-db", "-f", config)

    def squid(self):
        port, place = free_port(), self.world.fresh("squid")
        place.chmod(0o777)
        self.world.place.chmod(0o755)
        config = self._config("squid.conf", f"""
http_port 127.0.0.1:{port} accel defaultsite=127.0.0.1:{self.behind.port} no-vhost
cache_peer 127.0.0.1 parent {self.behind.port} 0 no-query originserver
http_access allow all
maximum_object_size 1 GB
range_offset_limit none
cache_dir ufs {place}/cache 2000 16 256
pid_filename {place}/pid
cache_log {place}/cache.log
access_log none
shutdown_lifetime 1 seconds
""")
        run("squid", "-z", "-N", "-f", config)
        return self._start(port, "squid", "-N", "-f", config)

    def places(self):
        """Each name with what starts it."""
        return {
            "docker-registry 2.8": lambda: self._registry("docker-registry", False),
            "distribution 3.1.2": lambda: self._registry(self.distribution, False),
            "docker-registry 2.8, pull-through": lambda: self._registry("docker-registry", True),
            "distribution 3.1.2, pull-through": lambda: self._registry(self.distribution, True),
            "nginx proxy_cache": lambda: self._nginx(""),
            "nginx slice 1m": lambda: self._nginx("slice 1m; proxy_cache_key $uri$slice_range; proxy_set_header Range $slice_range;"),
            "haproxy cache": self.haproxy,
            "squid": self.squid,
        }

    def size(self, tag):
        """Bytes of the layers."""
        text = run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://127.0.0.1:{self.origin}/{tag}/a:1")
        return sum(layer["size"] for layer in json.loads(text)["layers"])

    def measure(self, meter, tag):
        """Mounts with an empty cache, and reads everything."""
        for one in (meter, self.behind):
            one.reset()
        cache, start = self.world.fresh("cache"), time.monotonic()
        mount = self.world.mount(f"127.0.0.1:{meter.port}/{tag}/a:1", cache)
        ready = time.monotonic() - start
        for name, digest in self.files.items():
            if hashlib.sha256((mount.path / name).read_bytes()).digest() != digest:
                sys.exit(f"scripts/soak-registries: {name} is wrong")
        seconds = time.monotonic() - start
        mount.unmount()
        self.world.remove(cache)
        # What a cache fetches for itself may come later.
        before = None
        while before != self.behind.bytes:
            before = self.behind.bytes
            time.sleep(0.5)
        figures = {"mounted": ready, "seconds": seconds, "requests": meter.requests, "bytes": meter.bytes}
        return figures | {"behind": self.behind.bytes, "requests_behind": self.behind.requests}


def main():
    parser = argparse.ArgumentParser(prog="scripts/soak-registries", description="crfs behind real registries and caches.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only those whose names hold one of these")
    parser.add_argument("--json", metavar="FILE", help="write all figures to FILE, too")
    for name in ["--crfs", "--distribution"]:
        parser.add_argument(name, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("scripts/soak-registries: ended by a signal"))
    report = Report(chosen.json)
    rows, all_figures = [], {}
    with World(chosen.crfs, "/", "") as world:
        lab = Lab(world, chosen.distribution)
        for name, start in lab.places().items():
            if chosen.names and not any(wanted in name for wanted in chosen.names):
                continue
            meter = Meter(start())
            for tag in TAGS:
                size = lab.size(tag)
                for state in ["cold", "warm"]:
                    figures = all_figures[f"{name}, {tag}, {state}"] = lab.measure(meter, tag)
                    behind = f"{figures['behind'] / size:.2f}" if figures["behind"] else "-"
                    mounted, seconds = f"{figures['mounted']:.2f}", f"{figures['seconds']:.2f}"
                    rows.append([f"{name}, {tag}, {state}", f"{figures['bytes'] / size:.2f}", str(figures["requests"]), behind, mounted, seconds])
                    print(" ".join(rows[-1]), flush=True)
    head = ["", "to crfs", "requests", "to the cache", "mounted s", "all read s"]
    report.table("Mounted with an empty cache and read whole. Bytes as a multiple of the layers'. All that was read was right", head, rows)
    report.add("registries", all_figures)


if __name__ == "__main__":
    main()
