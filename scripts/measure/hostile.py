"""Random layers that nobody means well with: at most 100 KB compressed, and as much as may be of something once they are read. For scripts/soak-budget.

The same seed gives the same layers.
"""

import base64
import dataclasses
import json
import math

from layers import OCI, Layer, finish_chunked, finish_estargz, flatbuffer, gz, padded, sha, zst

# Bytes of a layer (of its zTOC, where it has one).
LARGEST = 100_000
# Decoded bytes of a table of contents or tar, mostly, and of some of what zstd packs: it makes twenty thousand bytes of one.
DECODED, DECODED_MOST = (4 << 10, 6 << 20), (192 << 20, 512 << 20)
# Entries that are made up at most: this is Python.
ENTRIES = 20_000


@dataclasses.dataclass
class Made:
    layer: Layer
    entries: int
    kind: str


def log_uniform(pick, low, high):
    return int(math.exp(pick.uniform(math.log(low), math.log(high))))


def decoded(pick, is_zstd):
    """Bytes, and whether they are many."""
    is_huge = is_zstd and pick.random() < 0.02
    return log_uniform(pick, *(DECODED_MOST if is_huge else DECODED)), is_huge


class Names:
    """Ways to name entries, each costly for someone."""

    def __init__(self, pick):
        self.how = pick.choice(["short", "long", "deep", "wide", "same", "stairs", "dots"])
        self.length, self.depth = log_uniform(pick, 1, 250), log_uniform(pick, 1, 1500)

    def name(self, number):
        match self.how:
            case "short":
                return f"f{number}"
            case "long":
                return "n" * self.length + f"{number}"
            case "deep":
                # No two share a directory.
                return f"{number}/" + "d/" * min(self.depth, 1900) + "f"
            case "wide":
                return f"{number % 251}/{number % 249}/{'w' * self.length}/{number}"
            case "same":
                return "s" * self.length + f"/{number % 3}"
            case "stairs":
                # Each goes a step deeper than the one before.
                return "t/" * (number % self.depth + 1) + "f"
            case "dots":
                return f"./{'x/../' * min(self.depth, 500)}//{number}"


class Xattrs:
    """Sets of xattrs: none, the same for all, or others in one byte."""

    def __init__(self, pick, is_huge=False):
        self.how = pick.choice(["none", "none", "same", "differ", "differ", "names"])
        self.count, self.size = log_uniform(pick, 1, 40), log_uniform(pick, 1, 60_000)
        if is_huge:
            # Much must be alike in them, or 100 KB do not hold it.
            self.how, self.count, self.size = pick.choice(["same", "differ", "differ"]), 1, pick.randint(10_000, 60_000)
        self.value = base64.b64encode(bytes(self.size)).decode()
        self.records = {}

    def of(self, number):
        """Names and values in base64."""
        match self.how:
            case "none":
                return {}
            case "same":
                return {f"user.{one}": self.value for one in range(self.count)}
            case "differ":
                # Nine bytes are twelve of base64, without padding.
                return {f"user.{one}": base64.b64encode(b"%09d" % number).decode() + self.value for one in range(min(self.count, 3))}
            case "names":
                return {f"user.{'n' * (self.size % 200)}{number}.{one}": "" for one in range(self.count)}

    def pax(self, number):
        """As records of pax."""
        number = number if self.how in ("differ", "names") else 0
        if number not in self.records:
            found = self.of(number).items()
            self.records = {number: b"".join(pax_record(b"SCHILY.xattr." + name.encode(), base64.b64decode(value)) for name, value in found)}
        return self.records[number]


def toc_entries(pick, is_huge):
    """A function that gives the JSON of the entries of a number."""
    names, xattrs = Names(pick), Xattrs(pick, is_huge)
    kind = pick.choice(["reg", "reg", "chunks", "dir", "symlink", "hardlink", "chain", "char", "mixed"])
    chunks, target, digest = log_uniform(pick, 1, 5000), "t" * log_uniform(pick, 1, 4000), sha(b"")

    def one(number):
        this = pick.choice(["reg", "dir", "symlink", "char"]) if kind == "mixed" else kind
        entry = {"name": names.name(number), "type": this, "mode": 0o644}
        if found := xattrs.of(number):
            entry["xattrs"] = found
        more = []
        match this:
            case "reg":
                entry |= {"size": 1, "offset": 20 + number // 1000, "innerOffset": number % 1000, "chunkSize": 0, "chunkDigest": digest, "digest": digest}
            case "chunks":
                at = [number * chunks + one for one in range(chunks)]
                place = [{"offset": 20 + one // 1000, "innerOffset": one % 1000 * 10, "chunkSize": 10, "chunkDigest": digest} for one in at]
                entry |= {"type": "reg", "size": chunks * 10, "digest": digest} | place[0]
                more = [{"name": entry["name"], "type": "chunk", "chunkOffset": at * 10} | place[at] for at in range(1, chunks)]
            case "symlink":
                entry["linkName"] = target
            case "hardlink":
                entry |= {"linkName": names.name(0)} if number else {"type": "reg", "size": 0}
            case "chain":
                # Each is a link of the one before.
                entry |= {"type": "hardlink", "linkName": names.name(number - 1)} if number else {"type": "reg", "size": 0}
            case "char":
                entry |= {"devMajor": 1, "devMinor": number % 256}
        return [entry, *more]

    return one, f"{kind} of {names.how} names, xattrs {xattrs.how}"


def fitted(pick, most, make):
    """`make(n)` gives a layer of n entries and its decoded size; the layer with as many as were rolled, or as fit."""
    each = make(2)[1] // 2 + 1
    count = max(1, min(ENTRIES, log_uniform(pick, max(1, most // each // 2), max(2, most * 2 // each))))
    # What is large is made once or twice: a few entries tell what one more takes.
    few, some = (size_of(make(min(count, number))[0]) for number in (50, 150))
    if count > 150 and some > few:
        count = max(1, min(count, 50 + (LARGEST - few) * 95 // (some - few)))
    for _ in range(8):
        layer, _ = make(count)
        if size_of(layer) <= LARGEST:
            return layer, count
        count = max(1, min(count - 1, count * LARGEST // size_of(layer) * 9 // 10))
    return make(1)[0], 1


def size_of(layer):
    return max(len(layer.blob), len(layer.ztoc))


def toc(pick, is_chunked):
    most, is_huge = decoded(pick, is_chunked)
    one, kind = toc_entries(pick, is_huge)
    is_fuzzed = pick.random() < 0.1

    def make(count):
        entries, size = [], 0
        for number in range(count):
            for entry in one(number):
                entries.append(entry)
                size += 400 if entry["type"] == "chunk" else len(entry["name"]) + 200 + sum(map(len, entry.get("xattrs", {}).values()))
            if size > most:
                break
        text = json.dumps({"version": 1, "entries": entries}).encode()
        blob, annotations = (finish_chunked if is_chunked else finish_estargz)(bytes(4096), fuzzed(pick, text) if is_fuzzed else text)
        made.append(len(entries))
        return Layer(blob, OCI + "layer.v1.tar+" + ("zstd" if is_chunked else "gzip"), sha(b""), annotations), size

    made = []
    layer, _ = fitted(pick, most, make)
    return Made(layer, made[-1], f"{'zstd:chunked' if is_chunked else 'estargz'}: {kind}{', fuzzed' if is_fuzzed else ''}")


def fuzzed(pick, text):
    """A few bytes of the JSON are others."""
    text = bytearray(text)
    for _ in range(pick.randint(1, 8)):
        at = pick.randrange(len(text))
        text[at : at + pick.randint(0, 2)] = pick.choice([b"", b'"', b"{", b"}", b"[", b"9" * 30, b"-", b"\0", b"\xff", b"1e999", b"null", b"\\u0000"])
    return bytes(text)


def header(name, size, kind=b"0"):
    """tarfile does this, too, twenty times as slowly."""
    out = bytearray(512)
    out[0 : min(100, len(name))] = name[:100]
    out[100:107], out[108:115], out[116:123] = b"0000644", b"0000000", b"0000000"
    out[124:135], out[136:147], out[156:157], out[257:265] = b"%011o" % size, b"00000000001", kind, b"ustar\x0000"
    out[148:156] = b" " * 8
    out[148:155] = b"%06o\0" % sum(out)
    return bytes(out)


def described(name, data, records=b"", kind=b"0"):
    """An entry, with the pax records that it needs."""
    if len(name) > 100:
        records += pax_record(b"path", name)
    extended = header(b"pax", len(records), b"x") + padded(records) if records else b""
    return extended + header(name, len(data), kind) + padded(data)


def tar_layer(pick):
    kind = pick.choice(["pax", "pax", "sparse 0.1", "sparse 1.0", "global", "plain", "zeros"])
    is_zstd = pick.random() < 0.5
    names, xattrs = Names(pick), Xattrs(pick)
    parts, zeros = log_uniform(pick, 1, 60_000), bytes(log_uniform(pick, 1 << 10, 64 << 20))
    most = min(decoded(pick, is_zstd)[0], 128 << 20)
    match kind:
        case "sparse 0.1":
            text = ",".join(f"{at * 3},1" for at in range(parts)).encode()
            records = [(b"GNU.sparse.size", b"%d" % (parts * 3)), (b"GNU.sparse.numblocks", b"%d" % parts), (b"GNU.sparse.map", text)]
            data = bytes(parts)
        case "sparse 1.0":
            records = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"%d" % (parts * 3))]
            data = padded(f"{parts}\n".encode() + b"".join(b"%d\n1\n" % (at * 3) for at in range(parts))) + bytes(parts)
        case _:
            records, data = [], b""
    records = b"".join(pax_record(*record) for record in records)

    def entry(number):
        name = names.name(number)[:4200].encode()
        match kind:
            case "pax":
                return described(name, b"", xattrs.pax(number))
            case "sparse 0.1" | "sparse 1.0":
                return described(name, data, records)
            case "global":
                return described(b"global", xattrs.pax(number)[: 1 << 20], kind=b"g") + described(name, b"")
            case "zeros":
                return described(name, zeros)
            case _:
                return described(name, b"")

    def make(count):
        out, size = [], 0
        for number in range(count):
            out.append(entry(number))
            size += len(out[-1])
            if size > most:
                break
        tar = b"".join(out) + bytes(1024)
        made.append(len(out))
        return Layer(zst(tar) if is_zstd else gz(tar, 5), OCI + "layer.v1.tar+" + ("zstd" if is_zstd else "gzip"), sha(tar)), size

    made = []
    layer, _ = fitted(pick, most, make)
    return Made(layer, made[-1], f"{'zstd' if is_zstd else 'gzip'}: {kind} of {names.how} names, xattrs {xattrs.how}")


def pax_record(key, value):
    """Its length counts itself."""
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def ztoc(pick):
    """A zTOC of a plain tar, whose entries share what they have: a flatbuffer need not have it twice."""
    names, blob = Names(pick), bytes(8192)
    record = (b"SCHILY.xattr.user.x", bytes(log_uniform(pick, 1, 60_000)))
    records, name, link = [record] * log_uniform(pick, 1, 2000), ("n" * log_uniform(pick, 1, 4000)).encode(), b"l" * log_uniform(pick, 1, 4000)
    is_one_name, kind, has_records = pick.random() < 0.3, pick.choice([b"reg", b"dir", b"symlink", b"hardlink"]), pick.random() < 0.7

    def make(count):
        none, when = b"", b"2023-11-14T22:13:20Z"
        metadata = [
            (name if is_one_name else names.name(number).encode(), kind, ("q", 512), ("q", 0), link if kind.endswith(b"link") else none, ("q", 0o644))
            + (("I", 0), ("I", 0), none, none, when, ("q", 0), ("q", 0), records if has_records else None)
            for number in range(count)
        ]
        zinfo = flatbuffer((("i", 1), ("q", len(blob)), ("q", len(blob))))
        info = (("b", 2), ("i", 0), [sha(blob).encode()], zinfo)
        document = (b"0.9", b"hostile", ("q", len(blob)), ("q", len(blob)), (metadata,), info)
        table = flatbuffer(document, [records, name, kind, link, none, when, record])
        return Layer(blob, OCI + "layer.v1.tar", sha(blob), ztoc=table), len(table)

    layer, count = fitted(pick, 400_000, make)
    return Made(layer, count, f"zTOC: {kind.decode()} of {'one name' if is_one_name else names.how + ' names'}, {len(records) if has_records else 0} records")


def one_layer(pick):
    kinds = [lambda: toc(pick, False), lambda: toc(pick, True), lambda: tar_layer(pick), lambda: ztoc(pick)]
    while True:
        made = pick.choices(kinds, [3, 4, 4, 1])[0]()
        # One entry may be too much already.
        if size_of(made.layer) <= LARGEST:
            return made


def image(pick):
    """Layers, how often each is named, and what kind of image it is."""
    roll = pick.random()
    if roll < 0.7:
        made = [one_layer(pick)]
        return made, [1], made[0].kind
    if roll < 0.95:
        made = [one_layer(pick) for _ in range(pick.randint(2, 12))]
        # SOCI is of a whole image.
        made = [one for one in made if bool(one.layer.ztoc) == bool(made[0].layer.ztoc)]
        return made, [1] * len(made), f"{len(made)} layers, the first {made[0].kind}"
    made = [one_layer(pick)]
    times = log_uniform(pick, 2, 5000)
    return made, [times], f"named {times} times: {made[0].kind}"
