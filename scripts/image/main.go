// Command image writes a container image of one static binary, as an OCI archive that
// docker, podman, ctr and skopeo read. It needs no container runtime, and the same
// binary gives the same bytes.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// user is nobody: the image runs without rights on its node.
const user = "65532:65532"

func main() {
	name := flag.String("name", "", "reference, such as skein:v1")
	binary := flag.String("binary", "", "static program; it is the entry point")
	out := flag.String("out", "", "archive to write")
	flag.Parse()
	if err := run(*name, *binary, *out); err != nil {
		fmt.Fprintf(os.Stderr, "image: %v\n", err)
		os.Exit(1)
	}
}

func run(name, binary, out string) error {
	if name == "" || binary == "" || out == "" {
		return errors.New("--name, --binary and --out are needed")
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	arch, err := static(program)
	if err != nil {
		return fmt.Errorf("%s: %w", binary, err)
	}
	archive, err := build(name, arch, filepath.Base(binary), program)
	if err != nil {
		return err
	}
	return os.WriteFile(out, archive, 0o644)
}

// static refuses a program that would not start in an image that has nothing else, and
// tells the architecture of one that would.
func static(program []byte) (arch string, err error) {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return "", fmt.Errorf("it is no Linux program: %w", err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return "", errors.New("it needs a dynamic linker, which the image has not; build it with CGO_ENABLED=0")
		}
	}
	switch f.Machine {
	case elf.EM_X86_64:
		return "amd64", nil
	case elf.EM_AARCH64:
		return "arm64", nil
	}
	return "", fmt.Errorf("machine %s is not known here", f.Machine)
}

// descriptor names a blob.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *platform         `json:"platform,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// build makes the archive: an OCI layout, and the manifest.json that older versions of
// docker load look for.
func build(name, arch, entry string, program []byte) ([]byte, error) {
	layer, err := rootFS(entry, program)
	if err != nil {
		return nil, err
	}
	packed, err := pack(layer)
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": arch, "os": "linux", "created": time.Unix(0, 0).UTC().Format(time.RFC3339),
		"config": map[string]any{"User": user, "Entrypoint": []string{"/" + entry}, "WorkingDir": "/"},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{digest(layer)}},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": typeManifest,
		"config": descriptor{MediaType: typeConfig, Digest: digest(config), Size: len(config)},
		"layers": []descriptor{{MediaType: typeLayer, Digest: digest(packed), Size: len(packed)}},
	})
	if err != nil {
		return nil, err
	}
	_, tag, _ := strings.Cut(name[strings.LastIndexByte(name, '/')+1:], ":")
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": []descriptor{{
		MediaType: typeManifest, Digest: digest(manifest), Size: len(manifest), Platform: &platform{arch, "linux"},
		Annotations: map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag},
	}}})
	if err != nil {
		return nil, err
	}
	docker, err := json.Marshal([]map[string]any{{"Config": blob(config), "RepoTags": []string{name}, "Layers": []string{blob(packed)}}})
	if err != nil {
		return nil, err
	}
	return archive([]entryOf{
		{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644}, {"index.json", index, 0o644}, {"manifest.json", docker, 0o644},
		{blob(config), config, 0o644}, {blob(manifest), manifest, 0o644}, {blob(packed), packed, 0o644},
	})
}

// rootFS is the only layer: the program, and a folder for temporary files to be mounted on.
func rootFS(entry string, program []byte) ([]byte, error) {
	return archive([]entryOf{{entry, program, 0o755}, {"tmp/", nil, 0o1777}})
}

type entryOf struct {
	name string
	data []byte
	mode int64
}

// archive writes a tar in which nothing tells when or where it was made.
func archive(entries []entryOf) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: e.name, Mode: e.mode, Size: int64(len(e.data)), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
		if strings.HasSuffix(e.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

func pack(b []byte) ([]byte, error) {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := io.Copy(w, bytes.NewReader(b)); err != nil {
		return nil, err
	}
	err := w.Close()
	return out.Bytes(), err
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// blob is where a blob lies in the layout.
func blob(b []byte) string { return "blobs/sha256/" + strings.TrimPrefix(digest(b), "sha256:") }
