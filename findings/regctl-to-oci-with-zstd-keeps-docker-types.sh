#!/usr/bin/env bash
# regctl 0.11.7: `image mod --to-oci --layer-compress zstd` gives an OCI manifest whose config and layers have docker's types.
#
# Each option alone does what it says, and so do both in two commands. Together the config stays
# application/vnd.docker.container.image.v1+json in a manifest of the type application/vnd.oci.image.manifest.v1+json. podman 4.3.1 and 5.4.2
# take that for an artifact: "unsupported image-specific operation on artifact with type application/vnd.docker.container.image.v1+json".
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
export HOME=$place GOBIN=$place/bin GOFLAGS=-modcacherw GOPATH=${GOPATH:-$(go env GOPATH)} GOCACHE=${GOCACHE:-$(go env GOCACHE)}
go install github.com/regclient/regclient/cmd/regctl@v0.11.7
cd "$place"
mkdir -p image/blobs/sha256
# An image of one file, with docker's types.
python3 - <<'PYTHON'
import gzip, hashlib, io, json, tarfile
def blob(data, kind):
    digest = hashlib.sha256(data).hexdigest()
    open("image/blobs/sha256/" + digest, "wb").write(data)
    return {"mediaType": kind, "digest": "sha256:" + digest, "size": len(data)}
tar = io.BytesIO()
with tarfile.open(fileobj=tar, mode="w") as archive:
    member = tarfile.TarInfo("file")
    member.size = 5
    archive.addfile(member, io.BytesIO(b"text\n"))
tar = tar.getvalue()
docker = "application/vnd.docker."
config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(tar).hexdigest()]}}
manifest = {
    "schemaVersion": 2,
    "mediaType": docker + "distribution.manifest.v2+json",
    "config": blob(json.dumps(config).encode(), docker + "container.image.v1+json"),
    "layers": [blob(gzip.compress(tar, mtime=0), docker + "image.rootfs.diff.tar.gzip")],
}
entry = blob(json.dumps(manifest).encode(), manifest["mediaType"])
entry["annotations"] = {"org.opencontainers.image.ref.name": "docker"}
json.dump({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}, open("image/index.json", "w"))
json.dump({"imageLayoutVersion": "1.0.0"}, open("image/oci-layout", "w"))
PYTHON
mod() { bin/regctl image mod "ocidir://image:$1" --create "$2" "${@:3}" >/dev/null; }
mod docker oci --to-oci
mod oci two-steps --layer-compress zstd
mod docker one-step --to-oci --layer-compress zstd
types() {
  bin/regctl manifest get --format raw-body "ocidir://image:$1" |
    python3 -c 'import json, sys; m = json.load(sys.stdin); print(m["mediaType"], m["config"]["mediaType"], m["layers"][0]["mediaType"])'
}
for tag in oci two-steps one-step; do printf '%s: %s\n' $tag "$(types $tag)"; done
oci=application/vnd.oci.image
if [ "$(types two-steps)" != "$oci.manifest.v1+json $oci.config.v1+json $oci.layer.v1.tar+zstd" ] ||
  [ "$(types one-step)" != "$oci.manifest.v1+json application/vnd.docker.container.image.v1+json application/vnd.docker.image.rootfs.diff.tar.zstd" ]; then
  echo "regctl behaves otherwise now"
  exit 1
fi
echo "as found: an OCI manifest with docker's types, from both options in one command"
