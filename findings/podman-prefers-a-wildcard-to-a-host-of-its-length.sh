#!/usr/bin/env bash
# go.podman.io/image 5.42.1 (podman, skopeo, buildah): the prefix `*.example.test` wins over the prefix `a.example.test`.
#
# containers-registries.conf(5) says that the longest match is used. What is compared is the length of the prefix as written, with the star for one
# character, and of two of one length the first in the order of bytes is taken: the star comes before all letters. So the entry for one host beats
# a wildcard if the first part of its name has two letters, and loses if it has one. The order in the file does not matter.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
export GOFLAGS='-modcacherw -trimpath -mod=mod' GOPATH=${GOPATH:-$(go env GOPATH)} GOCACHE=${GOCACHE:-$(go env GOCACHE)}
cd "$place"

cat >go.mod <<'MOD'
module finding
go 1.26
require go.podman.io/image/v5 v5.42.1
MOD
cat >main.go <<'GO'
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/types"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	for number, host := range []string{"ab.example.test", "a.example.test"} {
		path, err := filepath.Abs(fmt.Sprint(number, ".conf"))
		check(err)
		text := fmt.Sprintf("[[registry]]\nprefix = %q\nlocation = \"for-this-host.test\"\n[[registry]]\nprefix = \"*.example.test\"\nlocation = \"for-any-host.test\"\n", host)
		check(os.WriteFile(path, []byte(text), 0o644))
		context := &types.SystemContext{SystemRegistriesConfPath: path, SystemRegistriesConfDirPath: filepath.Join(filepath.Dir(path), "none")}
		name, err := reference.ParseNormalizedNamed(host + "/image:tag")
		check(err)
		registry, err := sysregistriesv2.FindRegistry(context, name.Name())
		check(err)
		sources, err := registry.PullSourcesFromReference(name)
		check(err)
		fmt.Printf("%s -> %s\n", name, sources[0].Reference)
	}
}
GO
go run -tags containers_image_openpgp . | tee seen
[ "$(sed 's/.* -> //' seen | tr '\n' ' ')" = "for-this-host.test/image:tag for-any-host.test/image:tag " ] || { echo "the package behaves otherwise now"; exit 1; }
echo "as found: the wildcard is preferred to the host itself"
