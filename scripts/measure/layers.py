"""Writes layers and images in all formats, for the soaks. By the specifications, not by crfs: real tars, so that other programs can read them as well.

A layer is a list of entries; a writer makes a `Layer` of it. libzstd is there on every Debian.
"""

import ctypes
import dataclasses
import hashlib
import io
import json
import pathlib
import struct
import tarfile
import zlib

# Bytes of a chunk of a file, and of a span of a zTOC.
CHUNK, SPAN = 1 << 18, 1 << 20
TIME = 1_700_000_000

OCI = "application/vnd.oci.image."


@dataclasses.dataclass
class Entry:
    name: str
    data: bytes = b""
    kind: str = "reg"
    mode: int = 0o644
    link: str = ""

    def header(self):
        info = tarfile.TarInfo(self.name)
        info.type = {"reg": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE}[self.kind]
        info.size, info.mode, info.mtime, info.linkname = len(self.data), self.mode, TIME, self.link
        return info.tobuf(tarfile.PAX_FORMAT)


@dataclasses.dataclass
class Layer:
    blob: bytes
    media_type: str
    diff_id: str
    annotations: dict = dataclasses.field(default_factory=dict)
    # The zTOC of a layer of SOCI.
    ztoc: bytes = b""


def sha(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def padded(data):
    return data + bytes(-len(data) % 512)


def tar_of(entries):
    return b"".join(entry.header() + padded(entry.data) for entry in entries) + bytes(1024)


def gz(data, level=1):
    packer = zlib.compressobj(level, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


_zstd = ctypes.CDLL("libzstd.so.1")
_zstd.ZSTD_compressBound.restype = _zstd.ZSTD_compress.restype = ctypes.c_size_t
_zstd.ZSTD_compressBound.argtypes = [ctypes.c_size_t]
_zstd.ZSTD_compress.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int]


def zst(data, level=3):
    room = ctypes.create_string_buffer(_zstd.ZSTD_compressBound(len(data)))
    size = _zstd.ZSTD_compress(room, len(room), data, len(data), level)
    return room.raw[:size]


def plain_gz(entries):
    tar = tar_of(entries)
    return Layer(gz(tar), OCI + "layer.v1.tar+gzip", sha(tar))


def plain_zst(entries):
    tar = tar_of(entries)
    # Frames of 4 MiB, as `pzstd` makes them: a layer of one frame can only be read from its start.
    return Layer(b"".join(zst(tar[at : at + (4 << 20)]) for at in range(0, len(tar), 4 << 20)), OCI + "layer.v1.tar+zstd", sha(tar))


def plain_tar(entries):
    tar = tar_of(entries)
    return Layer(tar, OCI + "layer.v1.tar", sha(tar))


def chunks_of(entry, place, pack, write):
    """The entries of a table of contents for a file, whose chunks are written one after the other."""
    common = {"name": entry.name, "mode": entry.mode, "modtime": "2023-11-14T22:13:20Z"}
    if entry.kind != "reg":
        return [common | {"type": entry.kind} | ({"linkName": entry.link} if entry.link else {})]
    common |= {"type": "reg", "size": len(entry.data)}
    if not entry.data:
        return [common]
    found = []
    for at in range(0, len(entry.data), CHUNK):
        data = entry.data[at : at + CHUNK]
        one = {"name": entry.name, "type": "chunk"} if at else common | {"digest": sha(entry.data)}
        found.append(one | {"offset": place(), "chunkOffset": at, "chunkSize": len(data), "chunkDigest": sha(data)})
        write(pack(data))
        found[-1]["endOffset"] = place()
    return found


def with_toc(entries, pack, finish, media_type):
    """Headers and padding, and each chunk, are members or frames of their own. `finish` puts the JSON of the table of contents behind them."""
    out, toc, rest = io.BytesIO(), [], b""
    for entry in entries:
        out.write(pack(rest + entry.header()))
        toc += chunks_of(entry, out.tell, pack, out.write)
        rest = bytes(-len(entry.data) % 512)
    blob, annotations = finish(out.getvalue() + (pack(rest) if rest else b""), json.dumps({"version": 1, "entries": toc}).encode())
    return Layer(blob, media_type, sha(tar_of(entries)), annotations)


def finish_estargz(blob, toc):
    tail = Entry("stargz.index.json", toc)
    extra = b"SG\x16\0%016xSTARGZ" % len(blob)
    footer = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + len(extra).to_bytes(2, "little") + extra + b"\x01\0\0\xff\xff" + bytes(8)
    return blob + gz(tail.header() + padded(toc) + bytes(1024)) + footer, {"containerd.io/snapshot/stargz/toc.digest": sha(toc)}


def estargz(entries):
    return with_toc(entries, gz, finish_estargz, OCI + "layer.v1.tar+gzip")


def finish_chunked(blob, toc):
    blob, packed = blob + zst(bytes(1024)), zst(toc)
    skippable = lambda data: b"\x50\x2a\x4d\x18" + struct.pack("<I", len(data)) + data
    footer = struct.pack("<7Q", len(blob) + 8, len(packed), len(toc), 1, 0, 0, 0) + b"GNUlInUx"
    prefix, position = "io.github.containers.zstd-chunked.", "%d:%d:%d:1" % (len(blob) + 8, len(packed), len(toc))
    return blob + skippable(packed) + skippable(footer), {prefix + "manifest-checksum": sha(packed), prefix + "manifest-position": position}


def chunked(entries):
    return with_toc(entries, zst, finish_chunked, OCI + "layer.v1.tar+zstd")


def flatbuffer(root, shared=()):
    """A flatbuffer of nested values: a tuple is a table, whose fields are ("q", 5) for a number, bytes (a string or [ubyte]), a list (a vector of
    what has a place of its own), another tuple, or None for a field that is left out. Values that are `shared` are there once."""
    out, later = bytearray(4), {id(value): (value, []) for value in shared}

    def align(size):
        out.extend(bytes(-len(out) % size))

    def table(fields):
        layout, at = [], 4
        for field in fields:
            size = struct.calcsize("<" + field[0]) if isinstance(field, tuple) and field and isinstance(field[0], str) else 4
            if field is None:
                layout.append(0)
                continue
            at += -at % size
            layout.append(at)
            at += size
        align(2)
        vtable = len(out)
        out.extend(struct.pack("<%dH" % (2 + len(layout)), 4 + 2 * len(layout), at, *layout))
        align(8)
        place = len(out)
        out.extend(struct.pack("<i", place - vtable) + bytes(at - 4))
        for field, offset in zip(fields, layout):
            if field is None:
                continue
            if isinstance(field, tuple) and isinstance(field[0], str):
                struct.pack_into("<" + field[0], out, place + offset, field[1])
            else:
                refer(place + offset, field)
        return place

    def refer(slot, value):
        if id(value) in later:
            later[id(value)][1].append(slot)
        else:
            point(slot, put(value))

    def point(slot, place):
        struct.pack_into("<I", out, slot, place - slot)

    def put(value):
        if isinstance(value, tuple):
            return table(value)
        align(4)
        place = len(out)
        if isinstance(value, bytes):
            out.extend(struct.pack("<I", len(value)) + value + b"\0")
        else:
            out.extend(struct.pack("<I", len(value)) + bytes(4 * len(value)))
            for number, item in enumerate(value):
                refer(place + 4 + 4 * number, item)
        return place

    refer(0, root)
    # Whatever is referred to lies behind.
    while later:
        value, slots = later.pop(next(iter(later)))
        place = put(value)
        for slot in slots:
            point(slot, place)
    align(8)
    return bytes(out)


def soci(entries):
    """tar+gzip, and a zTOC of it, whose checkpoints are where the writer flushed: whole bytes."""
    tar, packer, blob, checkpoints = tar_of(entries), zlib.compressobj(1, zlib.DEFLATED, 31), b"", [(10, 0)]
    parts = []
    for at in range(0, len(tar), SPAN):
        parts.append(packer.compress(tar[at : at + SPAN]) + packer.flush(zlib.Z_FULL_FLUSH))
        checkpoints.append((sum(map(len, parts)), at + len(tar[at : at + SPAN])))
    blob = b"".join(parts) + packer.flush()
    # The last one would have nothing behind it but the trailer.
    checkpoints.pop()
    ends = [start for start, _ in checkpoints[1:]] + [len(blob)]
    digests = [sha(blob[start:end]).encode() for (start, _), end in zip(checkpoints, ends)]
    windows = [struct.pack("<qqB", start, out, 0) + tar[max(0, out - 32768) : out].rjust(32768, b"\0") for start, out in checkpoints]
    metadata, at = [], 0
    for entry in entries:
        at += len(entry.header())
        fields = [entry.name.encode(), entry.kind.encode(), ("q", at), ("q", len(entry.data)), entry.link.encode(), ("q", entry.mode)]
        metadata.append((*fields, ("I", 0), ("I", 0), b"", b"", b"2023-11-14T22:13:20Z", ("q", 0), ("q", 0), []))
        at += len(padded(entry.data))
    info = (("b", 1), ("i", len(digests) - 1), digests, struct.pack("<iq", len(windows), SPAN) + b"".join(windows))
    ztoc = flatbuffer((b"0.9", b"crfs scripts/measure/layers.py", ("q", len(blob)), ("q", len(tar)), (metadata,), info))
    return Layer(blob, OCI + "layer.v1.tar+gzip", sha(tar), ztoc=ztoc)


WRITERS = {"estargz": estargz, "zstd-chunked": chunked, "gzip": plain_gz, "zstd": plain_zst, "soci": soci}


class Layout:
    """An OCI layout with one image."""

    def __init__(self, place):
        self.place = pathlib.Path(place)
        self.blobs = self.place / "blobs/sha256"
        self.blobs.mkdir(parents=True)
        (self.place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def put(self, media_type, data):
        if not isinstance(data, bytes):
            data = json.dumps(data).encode()
        (self.blobs / sha(data)[7:]).write_bytes(data)
        return {"mediaType": media_type, "digest": sha(data), "size": len(data)}

    def write(self, layers, command=()):
        described = [self.put(layer.media_type, layer.blob) | ({"annotations": layer.annotations} if layer.annotations else {}) for layer in layers]
        self.write_image(described, [layer.diff_id for layer in layers], [layer.ztoc for layer in layers], command)

    def write_image(self, described, diff_ids, ztocs, command=()):
        """`described`: the descriptors of the layers."""
        config = {"os": "linux", "architecture": "amd64", "config": {"Cmd": list(command)}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        manifest = {"schemaVersion": 2, "mediaType": OCI + "manifest.v1+json", "config": self.put(OCI + "config.v1+json", config), "layers": described}
        if any(ztocs):
            image = self._with_soci(manifest, described, ztocs)
        else:
            image = self.put(OCI + "manifest.v1+json", manifest)
        image["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
        (self.place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [image]}))

    def _with_soci(self, manifest, described, ztocs):
        """SOCI, version 2: the manifest names the index, and an image index holds both."""
        platform = {"platform": {"architecture": "amd64", "os": "linux"}}
        prefix = "com.amazon.soci."
        layers = []
        for layer, ztoc in zip(described, ztocs):
            notes = {prefix + "image-layer-digest": layer["digest"], prefix + "image-layer-mediaType": layer["mediaType"], prefix + "span-size": str(SPAN)}
            layers.append(self.put("application/octet-stream", ztoc) | {"annotations": notes})
        kind = "application/vnd.amazon.soci.index.v2+json"
        index = {"schemaVersion": 2, "mediaType": OCI + "manifest.v1+json", "config": self.put(kind, b"{}"), "layers": layers}
        index = self.put(OCI + "manifest.v1+json", index)
        image = self.put(OCI + "manifest.v1+json", manifest | {"annotations": {prefix + "index-digest": index["digest"]}})
        image |= {"annotations": {prefix + "index-digest": index["digest"]}} | platform
        index |= {"annotations": {prefix + "image-manifest-digest": image["digest"]}, "artifactType": kind} | platform
        return self.put(OCI + "index.v1+json", {"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": [image, index]})
