package data

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/skein-ml/skein/internal/vfs"
)

// Source is one input file, as it was when it was prepared.
type Source struct {
	Name   string `json:"name"` // base name
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`

	path string
}

// expand finds the files of a list of paths and globs: the list's order, each glob's files by name. A pattern that finds
// nothing is an error, and so is a file that is found twice, for it would count double.
func expand(fsys vfs.FS, patterns []string) ([]string, error) {
	var paths []string
	seen := map[string]bool{}
	for _, pattern := range patterns {
		found := []string{pattern}
		if strings.ContainsAny(pattern, "*?[") {
			if ok, _ := vfs.Exists(fsys, pattern); !ok { // a file may have such a name
				var err error
				if found, err = glob(fsys, pattern); err != nil {
					return nil, err
				}
			}
		}
		for _, p := range found {
			if seen[filepath.Clean(p)] {
				return nil, fmt.Errorf("%s is listed twice; its examples would count double", p)
			}
			seen[filepath.Clean(p)] = true
			paths = append(paths, p)
		}
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("no data files are named")
	}
	return paths, nil
}

// glob is filepath.Glob over a vfs.FS. Only files are found.
func glob(fsys vfs.FS, pattern string) ([]string, error) {
	if _, err := filepath.Match(pattern, ""); err != nil {
		return nil, fmt.Errorf("data pattern %q: %w", pattern, err)
	}
	var files []string
	for _, p := range globNames(fsys, pattern) {
		if info, err := fsys.Stat(p); err == nil && !info.IsDir() {
			files = append(files, p)
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no file matches %s", pattern)
	}
	return files, nil
}

// globNames lists the names that match, folder by folder. Folders that cannot be read match nothing.
func globNames(fsys vfs.FS, pattern string) []string {
	dir, base := filepath.Split(pattern)
	dir = filepath.Clean(dir)
	dirs := []string{dir}
	if strings.ContainsAny(dir, "*?[") {
		dirs = globNames(fsys, dir)
	}
	var found []string
	for _, d := range dirs {
		names, err := fsys.ReadDir(d)
		if err != nil {
			continue
		}
		for _, name := range names {
			if ok, _ := filepath.Match(base, name); ok {
				found = append(found, filepath.Join(d, name))
			}
		}
	}
	return found
}

// openSources expands patterns and hashes every file.
func openSources(ctx context.Context, fsys vfs.FS, patterns []string) ([]Source, error) {
	paths, err := expand(fsys, patterns)
	if err != nil {
		return nil, err
	}
	sources := make([]Source, len(paths))
	for i, p := range paths {
		if sources[i], err = hashSource(ctx, fsys, p); err != nil {
			return nil, err
		}
	}
	return sources, nil
}

func hashSource(ctx context.Context, fsys vfs.FS, path string) (Source, error) {
	f, err := fsys.Open(path)
	if err != nil {
		return Source{}, fmt.Errorf("data: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return Source{}, fmt.Errorf("data: %w", err)
	} else if info.IsDir() {
		return Source{}, fmt.Errorf("%s is a folder; name its files, such as %s", path, filepath.Join(path, "*.jsonl"))
	}
	h := sha256.New()
	n, err := io.Copy(h, &contextReader{ctx, f})
	if err != nil {
		return Source{}, fmt.Errorf("read %s: %w", path, err)
	}
	return Source{Name: filepath.Base(path), Bytes: n, SHA256: hex.EncodeToString(h.Sum(nil)), path: path}, nil
}

// contextReader makes a long read end with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
