#!/usr/bin/env bash
# containerd 2.4.2: `server = "httpd.test:5000"` in hosts.toml is thrown away, and the registry itself is asked instead.
#
# A host may be written without a scheme: `server = "cache.test:5000"` means https. Whether it has one is told by whether it begins with "http", so
# that of hosts such as httpd.test or http-cache.test nothing is left but a path, and a server without a host is taken for none. The docs give
# `server` as the way to keep containerd away from the registry itself. A mirror of that name is left with an empty host.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
export GOFLAGS='-modcacherw -trimpath -mod=mod' GOPATH=${GOPATH:-$(go env GOPATH)} GOCACHE=${GOCACHE:-$(go env GOCACHE)}
cd "$place"

cat >go.mod <<'MOD'
module finding
go 1.26
require github.com/containerd/containerd/v2 v2.4.2
MOD
cat >main.go <<'GO'
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/core/remotes/docker/config"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	check(os.MkdirAll("hosts/example.test", 0o755))
	hosts := config.ConfigureHosts(context.Background(), config.HostOptions{HostDir: config.HostDirFromRoot("hosts")})
	for _, server := range []string{"cache.test:5000", "https://httpd.test:5000", "httpd.test:5000", "http-cache.test"} {
		check(os.WriteFile("hosts/example.test/hosts.toml", []byte(fmt.Sprintf("server = %q\n", server)), 0o644))
		found, err := hosts("example.test")
		check(err)
		last := found[len(found)-1]
		fmt.Printf("server = %q: %s://%s%s\n", server, last.Scheme, last.Host, last.Path)
	}
}
GO
go run . 2>/dev/null | tee seen
[ "$(sed 's/.*": //' seen | tr '\n' ' ')" = "https://cache.test:5000/v2 https://httpd.test:5000/v2 https://example.test/v2 https://example.test/v2 " ] ||
  { echo "containerd behaves otherwise now"; exit 1; }
echo "as found: a server whose name begins with http is replaced by the registry itself"
