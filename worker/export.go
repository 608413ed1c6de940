package worker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/model/config"
	"github.com/skein-ml/skein/model/hf"
	"github.com/skein-ml/skein/shard"
)

// descriptionName is the folder of a store that holds what a Hugging Face folder has
// besides weights.
const descriptionName = "model"

// sideBytesMax bounds each file of a description.
const sideBytesMax = 256 << 20

// writeDescription writes the model's configuration and side files, each whole or not at
// all: others may be reading them.
func writeDescription(fsys vfs.FS, dir string, b *Base) error {
	if err := fsys.MkdirAll(dir); err != nil {
		return err
	}
	files := map[string][]byte{}
	maps.Copy(files, b.Side)
	var err error
	if files["config.json"], err = b.Config().JSON("float32"); err != nil {
		return err
	}
	if _, given := files["generation_config.json"]; !given {
		if files["generation_config.json"], err = b.Config().GenerationJSON(); err != nil {
			return err
		}
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if was, err := vfs.ReadFile(fsys, path, sideBytesMax); err == nil && bytes.Equal(was, text) {
			continue // somebody may be reading it
		}
		if err := vfs.ReplaceFile(fsys, path, text); err != nil {
			return err
		}
	}
	return fsys.SyncDir(dir)
}

// readDescription reads what writeDescription wrote.
func readDescription(fsys vfs.FS, dir string) (config.Config, map[string][]byte, error) {
	names, err := fsys.ReadDir(dir)
	if err != nil {
		return config.Config{}, nil, err
	}
	side := map[string][]byte{}
	for _, name := range names {
		if strings.HasSuffix(name, ".tmp") { // left by a kill
			continue
		}
		if side[name], err = vfs.ReadFile(fsys, filepath.Join(dir, name), sideBytesMax); err != nil {
			return config.Config{}, nil, err
		}
	}
	c, _, err := config.Parse(side["config.json"])
	delete(side, "config.json")
	if err == nil {
		err = c.AddGeneration(side["generation_config.json"])
	}
	return c, side, err
}

// ExportCheckpoint writes the checkpoint of a step, or the newest one if step is
// negative, as a Hugging Face folder, and says which step it was.
func ExportCheckpoint(ctx context.Context, fsys vfs.FS, store string, step int64, dir string, opt hf.Options) (int64, error) {
	ck, err := openCheckpoint(fsys, store, step)
	if err != nil {
		return 0, err
	}
	defer ck.Close()
	c, side, err := readDescription(fsys, filepath.Join(store, descriptionName))
	if err != nil {
		return 0, fmt.Errorf("%s: the description of its model: %w", store, err)
	}
	opt.SideFiles, opt.FS = side, fsys
	return ck.Manifest.Step, hf.Export(dir, saved{ctx, ck, c}, opt)
}

// sameFolder tells whether two folders hold the same files.
func sameFolder(fsys vfs.FS, a, b string) (bool, error) {
	names, err := fsys.ReadDir(a)
	if err != nil {
		return false, err
	}
	others, err := fsys.ReadDir(b)
	if err != nil {
		return false, err
	}
	slices.Sort(names)
	slices.Sort(others)
	if !slices.Equal(names, others) {
		return false, nil
	}
	for _, name := range names {
		same, err := sameFile(fsys, filepath.Join(a, name), filepath.Join(b, name))
		if err != nil || !same {
			return false, err
		}
	}
	return true, nil
}

func sameFile(fsys vfs.FS, a, b string) (bool, error) {
	var sums [2][sha256.Size]byte
	for i, path := range []string{a, b} {
		f, err := fsys.Open(path)
		if err != nil {
			return false, err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return false, fmt.Errorf("read %s: %w", path, err)
		}
		h.Sum(sums[i][:0])
	}
	return sums[0] == sums[1], nil
}

func openCheckpoint(fsys vfs.FS, store string, step int64) (*checkpoint.Checkpoint, error) {
	if step < 0 {
		ck, _, err := checkpoint.Latest(fsys, store, false)
		return ck, err
	}
	ck, err := checkpoint.Open(fsys, store, step)
	if errors.Is(err, checkpoint.ErrNone) || errors.Is(err, fs.ErrNotExist) {
		steps, _, _ := checkpoint.Published(fsys, store)
		return nil, fmt.Errorf("%s has no checkpoint of step %d; it has those of steps %v", store, step, steps)
	}
	return ck, err
}

// saved is a checkpoint's master weights as a model to export.
type saved struct {
	ctx    context.Context // ends the export
	ck     *checkpoint.Checkpoint
	config config.Config
}

func (s saved) Config() config.Config { return s.config }

func (s saved) Shape(name string) []int64 {
	for _, t := range s.config.Tensors() {
		if t.Name == name {
			return t.Shape()
		}
	}
	return nil
}

func (s saved) ReadRange(name string, elemOff int64, dst []float32) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	return s.ck.ReadRange(name, checkpoint.Master, elemOff, dst)
}

// hashWeights is the identity of a model's weights, see [shard.WeightsHash].
func hashWeights(table shard.Table, w config.Weights) (shard.Digest, error) {
	h := shard.NewWeightsHash(table)
	buf := make([]float32, 1<<18)
	for b := range table.Buckets() {
		for _, x := range table.Bucket(b).Tensors() {
			for off, n := int64(0), x.Bucket.Len(); off < n; off += int64(len(buf)) {
				part := buf[:min(int64(len(buf)), n-off)]
				if err := w.ReadRange(x.Tensor, off, part); err != nil {
					return shard.Digest{}, err
				}
				if err := h.Write(b, x.Bucket.Lo+off, device.HostBytes(part)); err != nil {
					return shard.Digest{}, err
				}
			}
		}
	}
	return h.Sum()
}
