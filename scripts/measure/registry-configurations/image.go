package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
)

// Image is the image that every server has that has one, whatever it is called.
type Image struct {
	Digest   string `json:"digest"`
	Manifest string `json:"manifest"`
	Config   string `json:"config"`
	Layer    []byte `json:"layer"`
}

const manifestType = "application/vnd.oci.image.manifest.v1+json"

func digestOf(content []byte) string {
	return fmt.Sprintf("sha256:%x", sha256.Sum256(content))
}

func makeImage() Image {
	var tarball, layer bytes.Buffer
	files := tar.NewWriter(&tarball)
	check(files.WriteHeader(&tar.Header{Name: "hello", Mode: 0o644, Size: 6}))
	_, err := files.Write([]byte("hello\n"))
	check(err)
	check(files.Close())
	zip := gzip.NewWriter(&layer)
	_, err = zip.Write(tarball.Bytes())
	check(err)
	check(zip.Close())

	config, err := json.Marshal(map[string]any{
		"architecture": "amd64",
		"os":           "linux",
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{digestOf(tarball.Bytes())}},
	})
	check(err)
	describe := func(kind string, content []byte) map[string]any {
		return map[string]any{"mediaType": kind, "digest": digestOf(content), "size": len(content)}
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2,
		"mediaType":     manifestType,
		"config":        describe("application/vnd.oci.image.config.v1+json", config),
		"layers":        []any{describe("application/vnd.oci.image.layer.v1.tar+gzip", layer.Bytes())},
	})
	check(err)
	return Image{Digest: digestOf(manifest), Manifest: string(manifest), Config: string(config), Layer: layer.Bytes()}
}
