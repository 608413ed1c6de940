// Package gguf reads models from GGUF files, version 3, of the Llama architecture.
// Tensors appear under their Hugging Face names, in Hugging Face order, as fp32:
// quantized blocks are expanded and the converter's permutation of Q and K is undone.
// A file is treated as hostile: every count, length and offset is checked before use.
package gguf

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/skein-ml/skein/model/config"
)

// File is an opened GGUF model. It implements config.Weights. Methods other than
// Close may be called from several goroutines.
type File struct {
	path    string
	r       io.ReaderAt
	close   func() error
	header  *header
	config  config.Config
	notices []string
	tensors map[string]source // by Hugging Face name
}

// source is where a tensor of the model comes from.
type source struct {
	tensor
	heads int64 // number of heads whose rows are permuted; 0: none
}

// Open reads the file's header, and checks that it holds every tensor of the model
// it describes in the right shape and no other.
func Open(path string) (*File, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("model %s: there is no such file; check the path", path)
	} else if err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("this is not a regular file")
	}
	var f *File
	if err == nil {
		f, err = open(path, file, info.Size())
	}
	if err != nil {
		_ = file.Close() // the first error is the one to report
		return nil, fmt.Errorf("model %s: %w", path, err)
	}
	f.close = file.Close
	return f, nil
}

func open(path string, r io.ReaderAt, size int64) (*File, error) {
	h, err := readHeader(r, size)
	if err != nil {
		return nil, err
	}
	f := &File{path: path, r: r, close: func() error { return nil }, header: h}
	if f.config, err = f.resolve(); err != nil {
		return nil, err
	}
	if err := f.matchTensors(); err != nil {
		return nil, err
	}
	return f, f.checkVocabulary()
}

// Config is the model's configuration.
func (f *File) Config() config.Config { return f.config }

// Notices are lines for the user about what was ignored or assumed.
func (f *File) Notices() []string { return f.notices }

func (f *File) notice(format string, args ...any) {
	f.notices = append(f.notices, f.path+": "+fmt.Sprintf(format, args...))
}

// Close closes the file.
func (f *File) Close() error { return f.close() }

// Shape implements config.Weights.
func (f *File) Shape(name string) []int64 { return slices.Clone(f.tensors[name].shape) }

// Type is the name of the type that the tensor is stored in, such as "Q4_1".
func (f *File) Type(name string) string { return f.tensors[name].kind.name }

// blockNames maps the modules of a layer, by Hugging Face name, to GGUF's.
var blockNames = map[string]string{
	"input_layernorm":          "attn_norm",
	"self_attn.q_proj":         "attn_q",
	"self_attn.k_proj":         "attn_k",
	"self_attn.v_proj":         "attn_v",
	"self_attn.o_proj":         "attn_output",
	"post_attention_layernorm": "ffn_norm",
	"mlp.gate_proj":            "ffn_gate",
	"mlp.up_proj":              "ffn_up",
	"mlp.down_proj":            "ffn_down",
}

// storedName is the GGUF name of a tensor of the model.
func storedName(name string) string {
	switch name {
	case "model.embed_tokens.weight":
		return "token_embd.weight"
	case "model.norm.weight":
		return "output_norm.weight"
	case "lm_head.weight":
		return "output.weight"
	}
	layer, rest, _ := strings.Cut(strings.TrimPrefix(name, "model.layers."), ".")
	dot := strings.LastIndexByte(rest, '.')
	return "blk." + layer + "." + blockNames[rest[:dot]] + rest[dot:]
}

// matchTensors finds every tensor of the configuration in the file.
func (f *File) matchTensors() error {
	f.tensors = map[string]source{}
	used := map[string]bool{ropeFactors: true}
	for _, want := range f.config.Tensors() {
		stored := storedName(want.Name)
		t, ok := f.header.tensors[stored]
		if !ok {
			return fmt.Errorf("tensor %q is missing; the file is incomplete", stored)
		}
		if !slices.Equal(t.shape, want.Shape()) {
			return fmt.Errorf("tensor %q has shape %v, but the metadata asks for %v", stored, t.shape, want.Shape())
		}
		used[stored] = true
		s := source{tensor: t}
		switch {
		case strings.Contains(want.Name, ".q_proj."):
			s.heads = int64(f.config.Heads)
		case strings.Contains(want.Name, ".k_proj."):
			s.heads = int64(f.config.KVHeads)
		}
		f.tensors[want.Name] = s
	}
	for _, name := range f.header.order {
		if !used[name] {
			return fmt.Errorf("tensor %q has no place in a llama model with this metadata", name)
		}
	}
	return nil
}

// ReadTensor fills dst, which must have the tensor's length, with its values.
func (f *File) ReadTensor(name string, dst []float32) error {
	s, ok := f.tensors[name]
	if !ok {
		return fmt.Errorf("model %s: there is no tensor %q", f.path, name)
	}
	if n := s.elements(); n != int64(len(dst)) {
		return fmt.Errorf("model %s: tensor %q has %d elements, not %d", f.path, name, n, len(dst))
	}
	return f.ReadRange(name, 0, dst)
}

// ReadRange implements config.Weights.
func (f *File) ReadRange(name string, elemOff int64, dst []float32) error {
	s, ok := f.tensors[name]
	if !ok {
		return fmt.Errorf("model %s: there is no tensor %q", f.path, name)
	}
	if n := s.elements(); elemOff < 0 || elemOff > n || int64(len(dst)) > n-elemOff {
		return fmt.Errorf("model %s: elements %d to %d lie outside tensor %q, which has %d", f.path, elemOff, elemOff+int64(len(dst)), name, n)
	}
	read := f.readStored
	if s.heads != 0 {
		read = f.readPermuted
	}
	if err := read(s, elemOff, dst); err != nil {
		return fmt.Errorf("model %s: tensor %q: %w", f.path, name, err)
	}
	for i, v := range dst {
		if v-v != 0 { // NaN or infinite
			return fmt.Errorf("model %s: tensor %q: element %d is %v; the file is damaged", f.path, name, elemOff+int64(i), v)
		}
	}
	return nil
}

// chunkBlocks blocks are read at a time: a bound on memory, whatever the tensor.
const chunkBlocks = 1 << 12

// scratch is the memory of one read.
type scratch struct {
	raw    [chunkBlocks * 34]byte // 34: the largest block
	values [chunkBlocks * 32]float32
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// readStored fills dst from element off of the tensor as it is stored, decoding the
// blocks at the two ends whole.
func (f *File) readStored(s source, off int64, dst []float32) error {
	w := scratches.Get().(*scratch)
	defer scratches.Put(w)
	k := s.kind
	for len(dst) > 0 {
		first := off / k.elements
		skip := off - first*k.elements
		blocks := min((skip+int64(len(dst))+k.elements-1)/k.elements, chunkBlocks)
		raw, values := w.raw[:blocks*k.bytes], w.values[:blocks*k.elements]
		at := s.offset + first*k.bytes
		if _, err := f.r.ReadAt(raw, at); err != nil {
			return fmt.Errorf("read at offset %d: %w", at, err)
		}
		k.decode(values, raw)
		n := copy(dst, values[skip:])
		dst, off = dst[n:], off+int64(n)
	}
	return nil
}

// readPermuted is readStored for Q and K, where the converter stores the rows of each
// head as pairs of neighbours: our rows j and j+D/2 are its rows 2j and 2j+1. A bias
// is a matrix with one column.
func (f *File) readPermuted(s source, off int64, dst []float32) error {
	rows, cols := s.shape[0], int64(1)
	if len(s.shape) == 2 {
		cols = s.shape[1]
	}
	headRows := rows / s.heads
	for len(dst) > 0 {
		row, col := off/cols, off%cols
		n := min(cols-col, int64(len(dst)))
		head, in := row/headRows, row%headRows
		half, j := in/(headRows/2), in%(headRows/2)
		stored := head*headRows + 2*j + half
		if err := f.readStored(s, stored*cols+col, dst[:n]); err != nil {
			return err
		}
		dst, off = dst[n:], off+n
	}
	return nil
}
