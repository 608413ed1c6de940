package hf

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/model/config"
)

// gpt2Model is a model of the family.
func gpt2Model(t *testing.T, hidden, inner int) *memory {
	t.Helper()
	c, _, err := config.Parse(fmt.Appendf(nil, `{"model_type":"gpt2","vocab_size":20,"n_embd":%d,"n_layer":1,"n_head":2,"n_positions":8,"n_inner":%d}`, hidden, inner))
	if err != nil {
		t.Fatal(err)
	}
	m := &memory{config: c, tensors: map[string][]float32{}}
	for _, x := range c.Tensors() {
		v := make([]float32, x.Elements())
		for i := range v {
			v[i] = float32(i+len(m.tensors)) / 4
		}
		m.tensors[x.Name] = v
	}
	return m
}

func TestRangesOfATransposedMatrixAreItsParts(t *testing.T) {
	f := open(t, "testdata/gpt2-sharded-f32")
	const name = "transformer.h.1.attn.c_attn.weight"
	if got := f.Shape(name); !slices.Equal(got, []int64{36, 12}) {
		t.Fatalf("shape %v, want [36 12]", got)
	}
	const n = 36 * 12
	whole := make([]float32, n)
	if err := f.ReadTensor(name, whole); err != nil {
		t.Fatal(err)
	}
	for begin := int64(0); begin < n; begin += 5 {
		for _, end := range []int64{begin, begin + 1, min(n, begin+11), min(n, begin+30), n} {
			part := make([]float32, end-begin)
			if err := f.ReadRange(name, begin, part); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(part, whole[begin:end]) {
				t.Fatalf("elements %d to %d are others", begin, end)
			}
		}
	}
	if err := f.ReadRange(name, n, make([]float32, 1)); err == nil {
		t.Error("an element past the end was read")
	}
}

func TestExportOfGPT2ReadsBackEqual(t *testing.T) {
	src := gpt2Model(t, 260, 300) // matrices are longer than a chunk
	dir := filepath.Join(t.TempDir(), "out")
	if err := Export(dir, src, Options{DType: F32}); err != nil {
		t.Fatal(err)
	}
	f := open(t, dir)
	if !reflect.DeepEqual(f.Config(), src.config) || len(f.Notices()) != 0 {
		t.Errorf("config %+v, notices %q", f.Config(), f.Notices())
	}
	for _, x := range src.config.Tensors() {
		got := make([]float32, x.Elements())
		if err := f.ReadTensor(x.Name, got); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, src.tensors[x.Name]) {
			t.Errorf("%s is another", x.Name)
		}
		if s := f.tensors[x.Name].shape; !slices.Equal(s, x.FileShape()) {
			t.Errorf("%s: shape %v in the file, want %v", x.Name, s, x.FileShape())
		}
	}
}

// exported is the model as a folder /m in memory.
func exported(t *testing.T, src *memory) vfs.FS {
	t.Helper()
	fsys := vfs.NewMem()
	if err := Export("/m", src, Options{DType: F32, FS: fsys}); err != nil {
		t.Fatal(err)
	}
	return fsys
}

// rename writes a weight file anew with other names, and with zeros for what extra asks besides.
func rename(t *testing.T, raw []byte, name func(string) string, extra ...string) []byte {
	t.Helper()
	n := binary.LittleEndian.Uint64(raw)
	var header map[string]json.RawMessage
	if err := json.Unmarshal(raw[8:8+n], &header); err != nil {
		t.Fatal(err)
	}
	data := slices.Clone(raw[8+n:])
	delete(header, "__metadata__")
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(header)) {
		parts = append(parts, fmt.Sprintf("%q:%s", name(key), header[key]))
	}
	for _, key := range extra {
		parts = append(parts, fmt.Sprintf(`%q:{"dtype":"F32","shape":[1,1,2,2],"data_offsets":[%d,%d]}`, key, len(data), len(data)+16))
		data = append(data, make([]byte, 16)...)
	}
	return append(file("{"+strings.Join(parts, ",")+"}", 0), data...)
}

// The first published files were written from the trunk, without the prefix, and with masks.
func TestTensorsOfAGPT2TrunkAreFound(t *testing.T) {
	src := gpt2Model(t, 12, 10)
	fsys := exported(t, src)
	raw := get(t, fsys, singleFile)
	bare := func(name string) string { return strings.TrimPrefix(name, "transformer.") }
	put(t, fsys, singleFile, rename(t, raw, bare, "h.0.attn.bias", "h.0.attn.masked_bias"))
	f, err := OpenFS(fsys, "/m")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, x := range src.config.Tensors() {
		got := make([]float32, x.Elements())
		if err := f.ReadTensor(x.Name, got); err != nil || !slices.Equal(got, src.tensors[x.Name]) {
			t.Errorf("%s is another (%v)", x.Name, err)
		}
	}
	if n := f.Notices(); len(n) != 1 || !strings.Contains(n[0], "2 buffers") {
		t.Errorf("notices %q", n)
	}
	for want, damaged := range map[string][]byte{
		`"transformer.h.0.mlp.c_fc.weight" is missing`: rename(t, raw, func(name string) string {
			return strings.Replace(name, "c_fc.weight", "c_fx.weight", 1)
		}),
		`"transformer.wpe.weight" is there twice`:     rename(t, raw, func(name string) string { return name }, "wpe.weight"),
		`"transformer.h.0.other.weight" has no place`: rename(t, raw, bare, "h.0.other.weight"),
		`"transformer.h.7.ln_1.weight" has no place`:  rename(t, raw, bare, "transformer.h.7.ln_1.weight"),
		`ties lm_head.weight to the embedding`:        rename(t, raw, bare, "lm_head.weight"),
	} {
		put(t, fsys, singleFile, damaged)
		if f, err := OpenFS(fsys, "/m"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
			if err == nil {
				_ = f.Close()
			}
		}
	}
}
