#!/usr/bin/env bash
# umoci 0.6.0: `repack` writes whiteouts below what the same layer makes a file.
#
# A directory `turns` with `in` in it is replaced by a file of that name. The layer then has the file, and after it the whiteout
# `turns/.wh.in`, whose parent is no directory. The file hides the directory anyway. Who unpacks such a layer must ignore the whiteout, and not
# fail on it, nor follow `turns` where that became a symlink.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
export GOFLAGS=-modcacherw GOPATH=${GOPATH:-$(go env GOPATH)} GOCACHE=${GOCACHE:-$(go env GOCACHE)}
# Its go.mod replaces a module, which `go install` refuses.
source=$(cd "$place" && go mod download -json github.com/opencontainers/umoci@v0.6.0 | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
cp -r "$source" "$place/source"
chmod -R u+w "$place/source"
(cd "$place/source" && go build -mod=mod -o "$place/umoci" ./cmd/umoci)
cd "$place"
umoci() { ./umoci "$@" >>log 2>&1 || { cat log; exit 1; }; }
umoci init --layout image
umoci new --image image:new
umoci unpack --rootless --image image:new first
mkdir first/rootfs/turns
echo in >first/rootfs/turns/in
umoci repack --image image:one first
umoci unpack --rootless --image image:one second
rm -r second/rootfs/turns
echo "a file" >second/rootfs/turns
umoci repack --image image:two second
layer=$(python3 - <<'PYTHON'
import json
blob = lambda digest: json.load(open("image/blobs/" + digest.replace(":", "/")))
index = json.load(open("image/index.json"))["manifests"]
two = next(entry for entry in index if entry["annotations"]["org.opencontainers.image.ref.name"] == "two")
print("image/blobs/" + blob(two["digest"])["layers"][-1]["digest"].replace(":", "/"))
PYTHON
)
tar -tvzf "$layer"
names=$(tar -tzf "$layer" | grep turns | tr '\n' ' ')
[ "$names" = "turns turns/.wh.in " ] || { echo "umoci behaves otherwise now: $names"; exit 1; }
echo "as found: a whiteout below a file of its own layer"
