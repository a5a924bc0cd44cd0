#!/usr/bin/env bash
# regctl 0.11.7: `image mod --layer-time` and `--layer-compress` rewrite layers and keep the annotations of their tables of contents.
#
# Input: tests/data/sample, an eStargz layer and two zstd:chunked layers. The annotations name a digest of a table of contents, and where it
# stands in the blob. After regctl the blobs have none: of a layer of 221 bytes the annotation says that its table stands at byte 442.
# Whoever believes the annotations has to read what is not there. Layers that were not rewritten keep theirs by right.
set -euo pipefail
sample=$(cd "$(dirname "$0")/../tests/data/sample" && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
export HOME=$place GOBIN=$place/bin GOFLAGS=-modcacherw GOPATH=${GOPATH:-$(go env GOPATH)} GOCACHE=${GOCACHE:-$(go env GOCACHE)}
go install github.com/regclient/regclient/cmd/regctl@v0.11.7
cd "$place"
cp -r "$sample" image
chmod -R u+w image
bin/regctl image mod ocidir://image:latest --create compressed --layer-compress zstd >/dev/null
bin/regctl image mod ocidir://image:latest --create timed --layer-time set=2022-02-03T04:05:06Z >/dev/null
for tag in latest compressed timed; do bin/regctl manifest get --format raw-body "ocidir://image:$tag" >$tag.json; done
python3 - <<'PYTHON'
import json, sys
KEYS = {"containerd.io/snapshot/stargz/toc.digest", "io.github.containers.zstd-chunked.manifest-position"}
before, *after = ([layer for layer in json.load(open(tag + ".json"))["layers"]] for tag in ("latest", "compressed", "timed"))
kept = []
for layers in after:
    for old, new in zip(before, layers):
        if old["digest"] != new["digest"]:
            same = {key: value for key, value in new.get("annotations", {}).items() if key in KEYS and old["annotations"].get(key) == value}
            print(new["mediaType"], new["size"], "bytes, rewritten, still says", same)
            kept.append(bool(same))
beyond = [layer for layer in after[1][1:] if int(layer["annotations"].get("io.github.containers.zstd-chunked.manifest-position", "0").split(":")[0]) > layer["size"]]
if kept != [True] * 4 or len(beyond) != 2:
    sys.exit("regctl behaves otherwise now")
PYTHON
echo "as found: annotations of tables of contents stay on layers that have none any more"
