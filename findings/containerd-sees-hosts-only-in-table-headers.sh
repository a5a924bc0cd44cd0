#!/usr/bin/env bash
# containerd 2.4.2: mirrors in hosts.toml that are not written as `[host."..."]` count for nothing, without a word.
#
# TOML has several ways to write the same tables: headers, dotted keys, inline tables. containerd decodes them all, but takes the list and order of
# hosts from the headers alone, by a parser of its own. With the other ways, only the registry itself is left, and is asked instead of the mirror.
# Nothing is logged, and an error elsewhere in the file would be.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
export GOFLAGS='-modcacherw -trimpath -mod=mod' GOPATH=${GOPATH:-$(go env GOPATH)} GOCACHE=${GOCACHE:-$(go env GOCACHE)}
cd "$place"

cat >go.mod <<'MOD'
module finding
go 1.26
require (
	github.com/containerd/containerd/v2 v2.4.2
	github.com/pelletier/go-toml/v2 v2.2.4
)
MOD
cat >main.go <<'GO'
package main

import (
	"context"
	"fmt"
	"os"
	"reflect"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/pelletier/go-toml/v2"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	var first map[string]any
	check(os.MkdirAll("hosts/example.test", 0o755))
	hosts := config.ConfigureHosts(context.Background(), config.HostOptions{HostDir: config.HostDirFromRoot("hosts")})
	for _, text := range []string{
		"[host.\"https://mirror.test\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
		"host.\"https://mirror.test\".capabilities = [\"pull\", \"resolve\"]\n",
		"host = {\"https://mirror.test\" = {capabilities = [\"pull\", \"resolve\"]}}\n",
		"[host]\n\"https://mirror.test\" = {capabilities = [\"pull\", \"resolve\"]}\n",
	} {
		var same map[string]any
		check(toml.Unmarshal([]byte(text), &same))
		if first == nil {
			first = same
		} else if !reflect.DeepEqual(first, same) {
			panic("not the same TOML")
		}
		check(os.WriteFile("hosts/example.test/hosts.toml", []byte(text), 0o644))
		found, err := hosts("example.test")
		check(err)
		var names []string
		for _, host := range found {
			names = append(names, host.Host)
		}
		line, _, _ := strings.Cut(text, "\n")
		fmt.Printf("%-70s -> %s\n", line, strings.Join(names, ", "))
	}
}
GO
go run . 2>log | tee seen
if [ "$(sed 's/.* -> //' seen | tr '\n' ';')" != "mirror.test, example.test;example.test;example.test;example.test;" ] || grep -q failed log; then
  echo "containerd behaves otherwise now"
  exit 1
fi
echo "as found: the same TOML, and the mirror is left out"
