// Package hf reads and writes models in the folder layout of Hugging Face:
// config.json, safetensors weights in one file or in shards, and the tokenizer's
// files. Everything read is treated as hostile and checked before use; a folder is
// written whole or not at all.
package hf

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/model/config"
)

// Folder is an opened model folder. It implements config.Weights: its tensors are
// exactly those of Config().Groups(), with their shapes. Methods other than Close
// may be called from several goroutines.
type Folder struct {
	dir     string
	config  config.Config
	notices []string
	side    map[string][]byte
	tensors map[string]stored
	files   []vfs.File
}

// stored says where a tensor's bytes are.
type stored struct {
	file vfs.File
	entry
	transposed bool // the file has [in, out]
}

// Side files that travel with a model, with the most bytes that are read of each.
var sideFiles = map[string]int64{
	"generation_config.json":  1 << 20,
	"tokenizer.json":          256 << 20,
	"tokenizer_config.json":   16 << 20,
	"special_tokens_map.json": 4 << 20,
	"added_tokens.json":       16 << 20,
	"chat_template.jinja":     4 << 20,
	"chat_template.json":      4 << 20,
	"vocab.json":              64 << 20,
	"merges.txt":              64 << 20,
	"tokenizer.model":         64 << 20,
}

const configBytesMax = 4 << 20

// Open reads the folder's descriptions and the headers of its weight files, and
// checks that every tensor of the model is there in the right shape and no other;
// the values themselves are checked as they are read.
func Open(dir string) (*Folder, error) { return OpenFS(vfs.OS, dir) }

// OpenFS is Open on the given file system.
func OpenFS(fsys vfs.FS, dir string) (*Folder, error) {
	f := &Folder{dir: dir, side: map[string][]byte{}, tensors: map[string]stored{}}
	if err := f.open(fsys); err != nil {
		_ = f.Close() // the first error is the one to report
		return nil, fmt.Errorf("model %s: %w", dir, err)
	}
	return f, nil
}

func (f *Folder) open(fsys vfs.FS) error {
	info, err := fsys.Stat(f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("there is no such folder; check the path")
	} else if err != nil {
		return err
	}
	if !info.IsDir() {
		return errors.New("this is a file; name the folder that holds config.json")
	}
	if err := f.readDescriptions(fsys); err != nil {
		return err
	}
	if err := f.openWeights(fsys); err != nil {
		return err
	}
	if err := f.matchTensors(); err != nil {
		return err
	}
	return f.checkTokenizer()
}

func (f *Folder) readDescriptions(fsys vfs.FS) error {
	raw, err := vfs.ReadFile(fsys, filepath.Join(f.dir, "config.json"), configBytesMax)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("config.json is missing; name the folder of a Hugging Face model")
	} else if err != nil {
		return err
	}
	if f.config, f.notices, err = config.Parse(raw); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(sideFiles)) {
		data, err := vfs.ReadFile(fsys, filepath.Join(f.dir, name), sideFiles[name])
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		f.side[name] = data
	}
	if generation, ok := f.side["generation_config.json"]; ok {
		return f.config.AddGeneration(generation)
	}
	return nil
}

// openWeights opens model.safetensors, or else the shards of the index, and fills
// f.tensors with whatever they hold.
func (f *Folder) openWeights(fsys vfs.FS) error {
	single, err := vfs.Exists(fsys, filepath.Join(f.dir, singleFile))
	if err != nil {
		return err
	}
	if single {
		return f.openShard(fsys, singleFile, nil)
	}
	raw, err := vfs.ReadFile(fsys, filepath.Join(f.dir, indexFile), indexBytesMax)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("neither %s nor %s is there; only safetensors weights are read, so convert others first", singleFile, indexFile)
	} else if err != nil {
		return err
	}
	fileOf, files, err := parseIndex(raw)
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := f.openShard(fsys, file, fileOf); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(fileOf)) {
		if _, ok := f.tensors[name]; !ok {
			return fmt.Errorf("%s: weight_map promises tensor %q in %s, but it is not there", indexFile, name, fileOf[name])
		}
	}
	return nil
}

// openShard adds one file's tensors. fileOf is the index's map, nil without one.
func (f *Folder) openShard(fsys vfs.FS, name string, fileOf map[string]string) error {
	file, err := fsys.Open(filepath.Join(f.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is missing, though the index names it; fetch the model again", name)
	} else if err != nil {
		return err
	}
	f.files = append(f.files, file)
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if info.IsDir() {
		return fmt.Errorf("%s is a folder; it must be a file", name)
	}
	entries, err := readHeader(file, info.Size())
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, e := range entries {
		if fileOf != nil && fileOf[e.name] != name {
			return fmt.Errorf("%s: holds tensor %q, which the index does not place there", name, e.name)
		}
		f.tensors[e.name] = stored{file: file, entry: e}
	}
	return nil
}

// isBuffer tells tensors that old files carry but that are computed, not trained.
func isBuffer(name string) bool {
	return strings.HasSuffix(name, ".rotary_emb.inv_freq") || strings.HasSuffix(name, ".attn.masked_bias") ||
		strings.HasSuffix(name, ".attn.bias") // GPT-2's causal mask
}

// matchTensors holds what the files have against what the configuration asks for,
// and drops the rest of f.tensors.
func (f *Folder) matchTensors() error {
	if err := f.addPrefix(); err != nil {
		return err
	}
	embedding, head := f.config.EmbeddingName(), config.UntiedHead
	matched := make(map[string]stored, len(f.tensors))
	want := f.config.Tensors()
	for _, t := range want {
		s, ok := f.tensors[t.Name]
		if !ok {
			return fmt.Errorf("tensor %q is missing; the weights do not belong to this config.json, or are incomplete", t.Name)
		}
		if !slices.Equal(s.shape, t.FileShape()) {
			return fmt.Errorf("tensor %q has shape %v, but config.json asks for %v", t.Name, s.shape, t.FileShape())
		}
		if s.dtype.size() == 0 {
			return fmt.Errorf("tensor %q is stored as %s; only F32, BF16 and F16 are read", t.Name, s.dtype)
		}
		s.transposed = t.Transposed
		matched[t.Name] = s
	}
	var buffers []string
	for _, name := range slices.Sorted(maps.Keys(f.tensors)) {
		_, wanted := matched[name]
		switch {
		case wanted:
		case isBuffer(name):
			buffers = append(buffers, name)
		case name == head && f.config.Tied:
			if err := f.sameTensor(f.tensors[head], matched[embedding]); err != nil {
				return fmt.Errorf("config.json ties %s to the embedding, but the files hold a different one (%w); set tie_word_embeddings to false or remove it", head, err)
			}
		default:
			return fmt.Errorf("tensor %q has no place in a %s model with this config.json", name, f.config.Family)
		}
	}
	if n := len(buffers); n == 1 {
		f.notices = append(f.notices, fmt.Sprintf("%s: buffer %q is ignored; it is computed", f.dir, buffers[0]))
	} else if n > 1 {
		f.notices = append(f.notices, fmt.Sprintf("%s: %d buffers, %q to %q, are ignored; they are computed", f.dir, n, buffers[0], buffers[n-1]))
	}
	f.tensors = matched
	return nil
}

// addPrefix gives the tensors of a GPT-2 trunk the names that they have in the language
// model: the first published files were written from the trunk alone.
func (f *Folder) addPrefix() error {
	const prefix = "transformer."
	if !strings.HasPrefix(f.config.EmbeddingName(), prefix) {
		return nil
	}
	named := make(map[string]stored, len(f.tensors))
	for _, name := range slices.Sorted(maps.Keys(f.tensors)) {
		full := name
		if name != config.UntiedHead && !strings.HasPrefix(name, prefix) {
			full = prefix + name
		}
		if _, twice := named[full]; twice {
			return fmt.Errorf("tensor %q is there twice, with and without %q; remove one", full, prefix)
		}
		named[full] = f.tensors[name]
	}
	f.tensors = named
	return nil
}

// sameTensor compares two tensors value by value.
func (f *Folder) sameTensor(a, b stored) error {
	if !slices.Equal(a.shape, b.shape) || a.dtype.size() == 0 {
		return fmt.Errorf("%v of %s against %v of %s", a.shape, a.dtype, b.shape, b.dtype)
	}
	n := (a.end - a.begin) / a.dtype.size()
	x, y := make([]float32, chunkElements), make([]float32, chunkElements)
	for off := int64(0); off < n; off += chunkElements {
		k := min(chunkElements, n-off)
		if err := errors.Join(a.read(off, x[:k]), b.read(off, y[:k])); err != nil {
			return err
		}
		for i := range k {
			if x[i] != y[i] {
				return fmt.Errorf("first at element %d", off+i)
			}
		}
	}
	return nil
}

// Config is the model's configuration.
func (f *Folder) Config() config.Config { return f.config }

// Notices are lines for the user about what was ignored or assumed.
func (f *Folder) Notices() []string { return f.notices }

// Tensors lists the names of the model's tensors in the order of Config().Groups().
func (f *Folder) Tensors() []string {
	var names []string
	for _, t := range f.config.Tensors() {
		names = append(names, t.Name)
	}
	return names
}

// Shape implements config.Weights.
func (f *Folder) Shape(name string) []int64 {
	s := f.tensors[name]
	shape := slices.Clone(s.shape)
	if s.transposed {
		slices.Reverse(shape)
	}
	return shape
}

// DType is the type that the tensor is stored in, "" for an unknown name.
func (f *Folder) DType(name string) DType { return f.tensors[name].dtype }

// SideFiles are the files beside the weights, by name: the tokenizer's, the chat
// template's and generation_config.json, as far as they exist. Not to be changed.
func (f *Folder) SideFiles() map[string][]byte { return f.side }

// ReadTensor fills dst, which must have the tensor's length, with its values.
func (f *Folder) ReadTensor(name string, dst []float32) error {
	s, ok := f.tensors[name]
	if !ok {
		return fmt.Errorf("model %s: there is no tensor %q", f.dir, name)
	}
	if n := (s.end - s.begin) / s.dtype.size(); n != int64(len(dst)) {
		return fmt.Errorf("model %s: tensor %q has %d elements, not %d", f.dir, name, n, len(dst))
	}
	return f.ReadRange(name, 0, dst)
}

// ReadRange implements config.Weights.
func (f *Folder) ReadRange(name string, elemOff int64, dst []float32) error {
	s, ok := f.tensors[name]
	if !ok {
		return fmt.Errorf("model %s: there is no tensor %q", f.dir, name)
	}
	n := (s.end - s.begin) / s.dtype.size()
	if elemOff < 0 || elemOff > n || int64(len(dst)) > n-elemOff {
		return fmt.Errorf("model %s: elements %d to %d lie outside tensor %q, which has %d", f.dir, elemOff, elemOff+int64(len(dst)), name, n)
	}
	if err := s.read(elemOff, dst); err != nil {
		return fmt.Errorf("model %s: %s: tensor %q: %w", f.dir, filepath.Base(s.file.Name()), name, err)
	}
	return nil
}

// chunkElements bounds the bytes in flight of one read or write.
const chunkElements = 1 << 16

var chunks = sync.Pool{New: func() any { return new([4 * chunkElements]byte) }}

// read fills dst from element off on.
func (s stored) read(off int64, dst []float32) error {
	if s.transposed {
		return s.readTransposed(off, dst)
	}
	buf := chunks.Get().(*[4 * chunkElements]byte)
	defer chunks.Put(buf)
	size := s.dtype.size()
	for len(dst) > 0 {
		k := min(len(dst), chunkElements)
		raw := buf[:int64(k)*size]
		if _, err := s.file.ReadAt(raw, s.begin+off*size); err != nil {
			return fmt.Errorf("read at offset %d: %w", s.begin+off*size, err)
		}
		if i := s.dtype.decode(dst[:k], raw); i >= 0 {
			return fmt.Errorf("element %d is %v; the weights are damaged", off+int64(i), dst[i])
		}
		dst, off = dst[k:], off+int64(k)
	}
	return nil
}

// readTransposed is read of a matrix [out, in] that the file has as [in, out]: of each of the
// file's rows, the columns that are rows of dst.
func (s stored) readTransposed(off int64, dst []float32) error {
	if len(dst) == 0 {
		return nil
	}
	in, out := s.shape[0], s.shape[1]
	first, last := off/in, (off+int64(len(dst))-1)/in
	plain := s
	plain.transposed = false
	for lo := first; lo <= last; lo += chunkElements {
		row := make([]float32, min(chunkElements, last+1-lo))
		for i := range in {
			if err := plain.read(i*out+lo, row); err != nil {
				return err
			}
			for j, v := range row {
				if at := (lo+int64(j))*in + i - off; at >= 0 && at < int64(len(dst)) {
					dst[at] = v
				}
			}
		}
	}
	return nil
}

// Close closes the weight files.
func (f *Folder) Close() error {
	var err error
	for _, file := range f.files {
		err = errors.Join(err, file.Close())
	}
	f.files = nil
	return err
}
