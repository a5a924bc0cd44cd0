#!/usr/bin/env bash
# crane 0.22.1 (go-containerregistry): `flatten` drops files that stand below a directory symlink of their own layer.
#
# The layer has `usr/lib/`, the symlink `lib -> usr/lib`, and `lib/new`. Who unpacks it (GNU tar, umoci, podman) gets `usr/lib/new`. crane takes
# `lib` for a file that hides what is below it, so the flattened layer has no `new` at all. It says nothing, and ends with 0.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
export HOME=$place GOBIN=$place/bin GOFLAGS='-modcacherw -trimpath' GOPATH=${GOPATH:-$(go env GOPATH)} GOCACHE=${GOCACHE:-$(go env GOCACHE)}
go install github.com/google/go-containerregistry/cmd/crane@v0.22.1
cd "$place"
bin/crane registry serve --address 127.0.0.1:0 2>registry.log &
registry=$!
trap 'kill $registry; rm -rf "$place"' EXIT
until port=$(sed -n 's/.* serving on port //p' registry.log) && [ -n "$port" ]; do sleep 0.1; done
mkdir -p tree/usr/lib other/lib
ln -s usr/lib tree/lib
echo new >other/lib/new
tar -cf layer.tar -C tree usr lib -C ../other lib/new
image=127.0.0.1:$port/image
bin/crane append -f layer.tar -t "$image:layers" >>log 2>&1
bin/crane flatten "$image:layers" -t "$image:flat" >>log 2>&1
names() { bin/crane export "$1" - | tar -t | sort | tr '\n' ' '; }
unpacked=$(mkdir unpacked && tar -xf layer.tar -C unpacked && cd unpacked && find usr lib | sort | tr '\n' ' ')
flat=$(names "$image:flat")
printf 'unpacked by tar: %s\nflattened: %s\n' "$unpacked" "$flat"
if [ "$unpacked" != "lib usr usr/lib usr/lib/new " ] || [ "$flat" != "lib usr usr/lib " ]; then
  echo "crane behaves otherwise now"
  exit 1
fi
echo "as found: a file is lost"
