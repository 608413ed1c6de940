package worker

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"

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

// writeDescription writes the model's configuration and side files, each whole.
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
		if err := vfs.WriteFile(fsys, filepath.Join(dir, name), text); err != nil {
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
func ExportCheckpoint(fsys vfs.FS, store string, step int64, dir string, opt hf.Options) (int64, error) {
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
	return ck.Manifest.Step, hf.Export(dir, saved{ck, c}, opt)
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
