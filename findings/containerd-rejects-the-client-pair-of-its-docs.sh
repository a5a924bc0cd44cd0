#!/usr/bin/env bash
# containerd 2.4.2: `client = [["client.pem", ""]]` in hosts.toml, which its docs show, makes every pull fail.
#
# docs/hosts.md gives `[["/etc/certs/client.cert", "/etc/certs/client.key"], ["/etc/certs/client.pem", ""]]` as the form for pairs: an empty second
# path stands for a key in the first file. The empty path is made absolute before it is looked at, and so becomes the directory of hosts.toml, which
# is then read as a key. `client = "client.pem"` and `client = ["client.pem"]` work.
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
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker/config"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	directory, err := filepath.Abs("hosts/example.test")
	check(err)
	check(os.MkdirAll(directory, 0o755))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	check(err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	check(err)
	both := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...)
	check(os.WriteFile(filepath.Join(directory, "client.pem"), both, 0o600))
	hosts := config.ConfigureHosts(context.Background(), config.HostOptions{HostDir: config.HostDirFromRoot("hosts")})
	for _, client := range []string{`"client.pem"`, `["client.pem"]`, `[["client.pem", "client.pem"]]`, `[["client.pem", ""]]`} {
		check(os.WriteFile(filepath.Join(directory, "hosts.toml"), []byte("[host.\"https://mirror.test\"]\nclient = "+client+"\n"), 0o644))
		_, err := hosts("example.test")
		said := "is taken"
		if err != nil {
			said = strings.ReplaceAll(err.Error(), filepath.Dir(directory), "hosts")
			said = strings.ReplaceAll(said, "hosts/example.test", "DIRECTORY")
		}
		fmt.Printf("client = %s: %s\n", client, said)
	}
}
GO
go run . 2>/dev/null | tee seen
if [ "$(grep -c ': is taken$' seen)" != 3 ] || ! tail -1 seen | grep -q '^client = \[\["client.pem", ""\]\]: unable to read CERT file .*is a directory$'; then
  echo "containerd behaves otherwise now"
  exit 1
fi
echo "as found: the form that the docs show is refused"
