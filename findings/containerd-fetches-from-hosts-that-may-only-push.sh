#!/usr/bin/env bash
# containerd 2.4.2: hosts whose `capabilities` in hosts.toml lack "pull" are asked for manifests and blobs all the same.
#
# docs/hosts.md calls the capabilities the operations that a host may be trusted to perform. A host with `capabilities = ["push"]` is left out
# when a tag is resolved. What was resolved is then fetched from it: the fetcher looks only whether any host may be pulled from, and asks all
# hosts in order. The digest is checked later, so the bytes are right; but the host and its load were meant to be left alone.
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
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
)

var asked []string

func serve(name string) string {
	manifest := `{"schemaVersion":2}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		what := "digest"
		if strings.HasSuffix(r.URL.Path, "/tag") {
			what = "tag"
		}
		asked = append(asked, name+": "+r.Method+" "+what)
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		w.Header().Set("Docker-Content-Digest", digest.FromString(manifest).String())
		w.Header().Set("Content-Length", fmt.Sprint(len(manifest)))
		io.WriteString(w, manifest)
	}))
	return server.URL
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	check(log.SetLevel("panic"))
	text := fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"push\"]\n", serve("registry"), serve("push-only"))
	check(os.MkdirAll("hosts/example.test", 0o755))
	check(os.WriteFile("hosts/example.test/hosts.toml", []byte(text), 0o644))
	ctx := context.Background()
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: config.ConfigureHosts(ctx, config.HostOptions{HostDir: config.HostDirFromRoot("hosts")})})
	name, descriptor, err := resolver.Resolve(ctx, "example.test/image:tag")
	check(err)
	fetcher, err := resolver.Fetcher(ctx, name)
	check(err)
	reader, err := fetcher.Fetch(ctx, descriptor)
	check(err)
	_, err = io.ReadAll(reader)
	check(err)
	fmt.Println(strings.Join(asked, ", "))
}
GO
go run . | tee seen
[ "$(cat seen)" = "registry: HEAD tag, push-only: GET digest" ] || { echo "containerd behaves otherwise now"; exit 1; }
echo "as found: the manifest was fetched from the host that may only be pushed to"
