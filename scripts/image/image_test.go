package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
)

func unpack(t *testing.T, b []byte) (files map[string][]byte, heads map[string]*tar.Header) {
	t.Helper()
	files, heads = map[string][]byte{}, map[string]*tar.Header{}
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, heads
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
		heads[h.Name] = h
	}
}

// follow reads the blob that a descriptor names, and holds it against its digest.
func follow(t *testing.T, files map[string][]byte, d descriptor) []byte {
	t.Helper()
	b, there := files["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
	if !there || digest(b) != d.Digest || len(b) != d.Size {
		t.Fatalf("%s: %d bytes with digest %s, there: %v", d.Digest, len(b), digest(b), there)
	}
	return b
}

func TestAnImageIsReadBackWholeAndRunsAsNobody(t *testing.T) {
	program := []byte("a program")
	made, err := build("registry.example/skein:v1", "arm64", "skein", program)
	if err != nil {
		t.Fatal(err)
	}
	files, _ := unpack(t, made)
	var index struct{ Manifests []descriptor }
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	var config struct {
		Architecture string
		Config       struct {
			User       string
			Entrypoint []string
		}
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	parse := func(b []byte, into any) {
		t.Helper()
		if err := json.Unmarshal(b, into); err != nil {
			t.Fatal(err)
		}
	}
	parse(files["index.json"], &index)
	if len(index.Manifests) != 1 || index.Manifests[0].Annotations["io.containerd.image.name"] != "registry.example/skein:v1" || index.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "v1" {
		t.Fatalf("the index is %+v", index)
	}
	parse(follow(t, files, index.Manifests[0]), &manifest)
	parse(follow(t, files, manifest.Config), &config)
	if config.Architecture != "arm64" || config.Config.User != "65532:65532" || strings.Join(config.Config.Entrypoint, " ") != "/skein" {
		t.Errorf("the configuration is %+v", config)
	}
	z, err := gzip.NewReader(bytes.NewReader(follow(t, files, manifest.Layers[0])))
	if err != nil {
		t.Fatal(err)
	}
	layer, err := io.ReadAll(z)
	if err != nil || digest(layer) != config.RootFS.DiffIDs[0] {
		t.Fatalf("the layer is not the one of the configuration, %v", err)
	}
	root, heads := unpack(t, layer)
	if string(root["skein"]) != string(program) || heads["skein"].Mode != 0o755 || heads["tmp/"].Mode != 0o1777 {
		t.Errorf("the root file system has %v", heads)
	}
	again, err := build("registry.example/skein:v1", "arm64", "skein", program)
	if err != nil || !bytes.Equal(made, again) {
		t.Errorf("the same program gave another image, %v", err)
	}
}

func TestOnlyStaticProgramsOfLinuxBecomeImages(t *testing.T) {
	if _, err := static([]byte("#!/bin/sh\n")); err == nil || !strings.Contains(err.Error(), "no Linux program") {
		t.Errorf("a script: %v", err)
	}
	own, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Skip("SKIPPED: this system has no /proc/self/exe to try")
	}
	arch, err := static(own) // with the race detector it is dynamic
	if err != nil && !strings.Contains(err.Error(), "CGO_ENABLED=0") || err == nil && arch == "" {
		t.Errorf("this very test: %q, %v", arch, err)
	}
}
