package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/log"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// askContainerd resolves an image and fetches its manifest, config and layer, as containerd's CRI plugin does: a directory of
// hosts, and credentials by the host that is asked ($CREDENTIALS: lines of `HOST USER:SECRET`).
func askContainerd(hosts, image string) {
	check(log.SetLevel("panic"))
	if err := pull(context.Background(), hosts, image); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func pull(ctx context.Context, hosts, image string) error {
	options := config.HostOptions{HostDir: config.HostDirFromRoot(hosts), Credentials: credentials}
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: config.ConfigureHosts(ctx, options)})
	name, manifest, err := resolver.Resolve(ctx, image)
	if err != nil {
		return err
	}
	fetcher, err := resolver.Fetcher(ctx, name)
	if err != nil {
		return err
	}
	fetch := func(descriptor ocispec.Descriptor) ([]byte, error) {
		reader, err := fetcher.Fetch(ctx, descriptor)
		if err != nil {
			return nil, err
		}
		defer reader.Close()
		content, err := io.ReadAll(reader)
		if err == nil && descriptor.Digest.Algorithm().FromBytes(content) != descriptor.Digest {
			err = fmt.Errorf("%s: wrong bytes", descriptor.Digest)
		}
		return content, err
	}
	text, err := fetch(manifest)
	if err != nil {
		return err
	}
	var parsed ocispec.Manifest
	if err := json.Unmarshal(text, &parsed); err != nil {
		return err
	}
	for _, blob := range append([]ocispec.Descriptor{parsed.Config}, parsed.Layers...) {
		if _, err := fetch(blob); err != nil {
			return err
		}
	}
	return nil
}

func credentials(host string) (string, string, error) {
	for line := range strings.Lines(os.Getenv("CREDENTIALS")) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), host+" "); ok {
			user, secret, _ := strings.Cut(rest, ":")
			return user, secret, nil
		}
	}
	return "", "", nil
}
