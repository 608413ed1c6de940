package hf

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/model/config"
)

// Source yields a model to export. Every config.Weights is one.
type Source interface {
	Config() config.Config
	// Shape is the shape that the source holds for a tensor, nil for none.
	Shape(name string) []int64
	// ReadRange is that of config.Weights.
	ReadRange(name string, elemOff int64, dst []float32) error
}

// ShardBytesMax is the size that weight files are kept under if nothing else is asked for.
const ShardBytesMax = 5_000_000_000

// Options of Export; the zero value is what users want.
type Options struct {
	DType         DType             // BF16 (default) or F32
	ShardBytesMax int64             // tensor data per file; 0: ShardBytesMax; one tensor is never split
	SideFiles     map[string][]byte // tokenizer files and such, written as they are
	FS            vfs.FS            // nil: the host's
}

// EnsureDefaults fills in the zero values.
func (o *Options) EnsureDefaults() {
	if o.DType == "" {
		o.DType = BF16
	}
	if o.ShardBytesMax == 0 {
		o.ShardBytesMax = ShardBytesMax
	}
	if o.FS == nil {
		o.FS = vfs.OS
	}
}

// Validate names what cannot be written.
func (o Options) Validate() error {
	if o.DType != BF16 && o.DType != F32 {
		return fmt.Errorf("export type %q is not written; choose BF16 or F32", o.DType)
	}
	if o.ShardBytesMax < 1 {
		return fmt.Errorf("shard size %d must be positive", o.ShardBytesMax)
	}
	for _, name := range slices.Sorted(maps.Keys(o.SideFiles)) {
		if _, ok := sideFiles[name]; !ok {
			return fmt.Errorf("%q is not a file that goes beside a model", name)
		}
		if strings.HasSuffix(name, ".json") && !json.Valid(o.SideFiles[name]) {
			return fmt.Errorf("%s is not valid JSON", name)
		}
	}
	return nil
}

// Export writes the model as a new folder dir that transformers loads. The folder
// appears whole, or not at all: it is written beside dir under a name of its own,
// synced and renamed. It is refused if dir exists, be it since a moment ago, and if
// any tensor is absent, of the wrong shape, all zero (but biases), or not finite in
// the chosen type. No more than a chunk of one tensor is in memory at a time, or one whole
// matrix where files have it transposed.
func Export(dir string, src Source, opts Options) error {
	opts.EnsureDefaults()
	if err := export(filepath.Clean(dir), src, opts); err != nil {
		return fmt.Errorf("export to %s: %w", dir, err)
	}
	return nil
}

// ErrExists is returned when the folder to export to is there.
var ErrExists = errors.New("it exists already; choose another output folder or remove it")

func export(dir string, src Source, opts Options) error {
	if err := opts.Validate(); err != nil {
		return err
	}
	shards, err := planShards(src, opts)
	if err != nil {
		return err
	}
	if there, err := vfs.Exists(opts.FS, dir); err != nil {
		return err
	} else if there {
		return ErrExists
	}
	if err := opts.FS.MkdirAll(filepath.Dir(dir)); err != nil {
		return err
	}
	draft, err := vfs.NewDraft(opts.FS, dir)
	if err != nil {
		return err
	}
	if err = writeFolder(draft.Dir, src, opts, shards); err == nil {
		err = draft.Publish()
	}
	if err != nil {
		draft.Discard()
	}
	if errors.Is(err, fs.ErrExist) {
		return ErrExists // another process was quicker
	}
	return err
}

// planShards cuts the tensors, in the order of Groups, into files, after checking
// that the source has each in the right shape.
func planShards(src Source, opts Options) ([][]config.Tensor, error) {
	c := src.Config()
	if err := c.Validate(); err != nil {
		return nil, err
	}
	shards := [][]config.Tensor{nil}
	var bytes int64
	for _, t := range c.Tensors() {
		if shape := src.Shape(t.Name); shape == nil {
			return nil, fmt.Errorf("tensor %q is missing", t.Name)
		} else if !slices.Equal(shape, t.Shape()) {
			return nil, fmt.Errorf("tensor %q has shape %v, but the configuration asks for %v", t.Name, shape, t.Shape())
		}
		n := t.Elements() * opts.DType.size()
		if bytes > 0 && n > opts.ShardBytesMax-bytes {
			shards = append(shards, nil)
			bytes = 0
		}
		shards[len(shards)-1] = append(shards[len(shards)-1], t)
		bytes += n
	}
	if len(shards) > shardsMax {
		return nil, fmt.Errorf("a shard size of %d bytes would make %d files, more than %d; choose a greater one", opts.ShardBytesMax, len(shards), shardsMax)
	}
	return shards, nil
}

func writeFolder(temp string, src Source, opts Options, shards [][]config.Tensor) error {
	write := func(name string, data []byte) error {
		return vfs.WriteFile(opts.FS, filepath.Join(temp, name), data)
	}
	c := src.Config()
	description, err := c.JSON(opts.DType.torchName())
	if err != nil {
		return err
	}
	if err := write("config.json", description); err != nil {
		return err
	}
	side := maps.Clone(opts.SideFiles)
	if _, given := side["generation_config.json"]; !given {
		if side == nil {
			side = map[string][]byte{}
		}
		if side["generation_config.json"], err = c.GenerationJSON(); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(side)) {
		if err := write(name, side[name]); err != nil {
			return err
		}
	}
	if len(shards) == 1 {
		return writeWeights(filepath.Join(temp, singleFile), src, opts, shards[0])
	}
	for i, tensors := range shards {
		if err := writeWeights(filepath.Join(temp, shardName(i+1, len(shards))), src, opts, tensors); err != nil {
			return err
		}
	}
	index, err := indexJSON(c, opts.DType, shards)
	if err != nil {
		return err
	}
	return write(indexFile, index)
}

// indexJSON maps each tensor to its shard.
func indexJSON(c config.Config, dtype DType, shards [][]config.Tensor) ([]byte, error) {
	weightMap := map[string]string{}
	for i, tensors := range shards {
		for _, t := range tensors {
			weightMap[t.Name] = shardName(i+1, len(shards))
		}
	}
	index, err := json.MarshalIndent(map[string]any{
		"metadata":   map[string]int64{"total_size": c.Params() * dtype.size(), "total_parameters": c.Params()},
		"weight_map": weightMap,
	}, "", "  ")
	return append(index, '\n'), err
}

// writeWeights writes one safetensors file, its tensors sorted by name as the
// reference writer does for tensors of one type.
func writeWeights(path string, src Source, opts Options, tensors []config.Tensor) (err error) {
	tensors = slices.Clone(tensors)
	sort.Slice(tensors, func(i, j int) bool { return tensors[i].Name < tensors[j].Name })
	header, err := weightsHeader(opts.DType, tensors)
	if err != nil {
		return err
	}
	file, err := opts.FS.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if _, err := file.Write(header); err != nil {
		return err
	}
	for _, t := range tensors {
		if err := writeTensor(file, src, opts.DType, t); err != nil {
			return fmt.Errorf("tensor %q: %w", t.Name, err)
		}
	}
	return file.Sync()
}

// weightsHeader is the length, the JSON and the padding before the data.
func weightsHeader(dtype DType, tensors []config.Tensor) ([]byte, error) {
	var b bytes.Buffer
	b.Write(make([]byte, prefixBytes))
	b.WriteString(`{"__metadata__":{"format":"pt"}`) // older loaders want a format
	var offset int64
	for _, t := range tensors {
		end := offset + t.Elements()*dtype.size()
		name, err := json.Marshal(t.Name)
		if err != nil {
			return nil, err
		}
		shape, err := json.Marshal(t.FileShape())
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, `,%s:{"dtype":%q,"shape":%s,"data_offsets":[%d,%d]}`, name, dtype, shape, offset, end)
		offset = end
	}
	b.WriteByte('}')
	for b.Len()%8 != 0 {
		b.WriteByte(' ')
	}
	n := b.Len() - prefixBytes
	if n > headerBytesMax {
		return nil, fmt.Errorf("the header would have %d bytes, more than the format's %d", n, headerBytesMax)
	}
	header := b.Bytes()
	binary.LittleEndian.PutUint64(header, uint64(n))
	return header, nil
}

// writeTensor streams one tensor. A matrix or norm that is zero throughout is what a
// forgotten gather leaves, never what training does, so it is not written.
func writeTensor(file vfs.File, src Source, dtype DType, t config.Tensor) error {
	read := func(off int64, dst []float32) error { return src.ReadRange(t.Name, off, dst) }
	if t.Transposed {
		whole, err := transposed(src, t)
		if err != nil {
			return err
		}
		read = func(off int64, dst []float32) error {
			copy(dst, whole[off:])
			return nil
		}
	}
	x := make([]float32, chunkElements)
	raw := make([]byte, 0, chunkElements*dtype.size())
	empty := !strings.HasSuffix(t.Name, ".bias")
	for off, n := int64(0), t.Elements(); off < n; off += chunkElements {
		k := min(chunkElements, n-off)
		if err := read(off, x[:k]); err != nil {
			return err
		}
		var err error
		if raw, err = dtype.encode(raw[:0], x[:k]); err != nil {
			if at, ok := errors.AsType[*elementError](err); ok {
				return fmt.Errorf("element %d: %w", off+int64(at.index), err)
			}
			return err
		}
		empty = empty && allZero(x[:k])
		if _, err := file.Write(raw); err != nil {
			return err
		}
	}
	if empty {
		return errors.New("every element is zero; an empty tensor is not written")
	}
	return nil
}

// transposed reads a whole matrix [out, in] and returns it as [in, out].
func transposed(src Source, t config.Tensor) ([]float32, error) {
	x, y := make([]float32, t.Elements()), make([]float32, t.Elements())
	for off := int64(0); off < t.Elements(); off += chunkElements {
		if err := src.ReadRange(t.Name, off, x[off:min(off+chunkElements, t.Elements())]); err != nil {
			return nil, err
		}
	}
	for o := range t.Rows {
		for i, v := range x[o*t.Cols : (o+1)*t.Cols] {
			y[i*t.Rows+o] = v
		}
	}
	return y, nil
}

func allZero(x []float32) bool {
	for _, v := range x {
		if v != 0 {
			return false
		}
	}
	return true
}
