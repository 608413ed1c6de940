package hf

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/model/config"
)

// memory is a model in memory.
type memory struct {
	config  config.Config
	tensors map[string][]float32
	shapes  map[string][]int64 // in place of the configuration's
}

func (m *memory) Config() config.Config { return m.config }

func (m *memory) Shape(name string) []int64 {
	if s, ok := m.shapes[name]; ok {
		return s
	}
	for _, t := range m.config.Tensors() {
		if t.Name == name {
			return t.Shape()
		}
	}
	return nil
}

func (m *memory) ReadRange(name string, off int64, dst []float32) error {
	copy(dst, m.tensors[name][off:])
	return nil
}

// tinyModel is a llama whose embedding is longer than a chunk.
func tinyModel(t *testing.T) *memory {
	t.Helper()
	c, _, err := config.Parse([]byte(`{"model_type":"llama","vocab_size":9001,"hidden_size":8,"intermediate_size":6,"num_hidden_layers":2,
"num_attention_heads":2,"num_key_value_heads":1,"max_position_embeddings":16,"rms_norm_eps":1e-5,"rope_theta":10000.0,"attention_bias":true,"pad_token_id":3}`))
	if err != nil {
		t.Fatal(err)
	}
	m := &memory{config: c, tensors: map[string][]float32{}}
	state := uint32(1)
	for _, x := range c.Tensors() {
		v := make([]float32, x.Elements())
		for i := range v {
			state = state*1664525 + 1013904223
			v[i] = float32(int32(state)) / (1 << 31)
			if strings.HasSuffix(x.Name, "norm.weight") {
				v[i] = 1
			} else if strings.HasSuffix(x.Name, ".bias") {
				v[i] = 0
			}
		}
		m.tensors[x.Name] = v
	}
	return m
}

func TestExportOfWhatTransformersWroteIsTheSameBytes(t *testing.T) {
	for _, name := range []string{"llama-tied-bf16", "qwen2-bf16", "qwen3-bf16"} {
		f := open(t, filepath.Join("testdata", name))
		dir := filepath.Join(t.TempDir(), "out")
		if err := Export(dir, f, Options{SideFiles: f.SideFiles()}); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{"model.safetensors", "generation_config.json"} {
			got, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(filepath.Join("testdata", name, file))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s: %s differs from what transformers wrote", name, file)
			}
		}
		if back := open(t, dir); !reflect.DeepEqual(back.Config(), f.Config()) {
			t.Errorf("%s: config %+v, want %+v", name, back.Config(), f.Config())
		}
	}
}

func TestExportReadsBackEqualInEveryShape(t *testing.T) {
	src := tinyModel(t)
	for _, opts := range []Options{{DType: F32}, {DType: F32, ShardBytesMax: 1}, {DType: F32, ShardBytesMax: 1000}, {}} {
		dir := filepath.Join(t.TempDir(), "out")
		if err := Export(dir, src, opts); err != nil {
			t.Fatal(err)
		}
		f := open(t, dir)
		if !reflect.DeepEqual(f.Config(), src.config) || len(f.Notices()) != 0 {
			t.Errorf("%+v: config %+v, notices %q", opts, f.Config(), f.Notices())
		}
		for _, name := range f.Tensors() {
			want := src.tensors[name]
			if opts.DType == "" {
				raw, err := BF16.encode(nil, want)
				if err != nil {
					t.Fatal(err)
				}
				want = make([]float32, len(want))
				BF16.decode(want, raw)
			}
			if tensorSum(t, f, name) != floatSum(want) {
				t.Errorf("%+v: tensor %s differs", opts, name)
			}
		}
		_, err := os.Stat(filepath.Join(dir, indexFile))
		if sharded := err == nil; sharded != (opts.ShardBytesMax != 0) {
			t.Errorf("%+v: index exists: %v", opts, sharded)
		}
	}
}

func TestBadTensorsAreNeverWritten(t *testing.T) {
	const name = "model.layers.1.mlp.up_proj.weight"
	for _, tc := range []struct {
		damage func(*memory)
		want   string
	}{
		{func(m *memory) { m.tensors[name][7] = float32(math.NaN()) }, `tensor "` + name + `": element 7: NaN is not a finite bfloat16`},
		{func(m *memory) { m.tensors[name][0] = float32(math.Inf(-1)) }, "element 0: -Inf"},
		{func(m *memory) { m.tensors[name][0] = math.MaxFloat32 }, "3.4028235e+38 is not a finite bfloat16"},
		{func(m *memory) { m.tensors["model.embed_tokens.weight"][72000] = float32(math.NaN()) }, "element 72000: NaN"},
		{func(m *memory) { clear(m.tensors[name]) }, "every element is zero"},
		{func(m *memory) { clear(m.tensors["model.norm.weight"]) }, "every element is zero"},
		{func(m *memory) { m.shapes = map[string][]int64{name: {0}} }, "has shape [0], but the configuration asks for [6 8]"},
		{func(m *memory) { m.shapes = map[string][]int64{name: {8, 6}} }, "has shape [8 6]"},
		{func(m *memory) { m.shapes = map[string][]int64{name: nil} }, "is missing"},
	} {
		src := tinyModel(t)
		tc.damage(src)
		parent := t.TempDir()
		err := Export(filepath.Join(parent, "out"), src, Options{})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("error %v, want one with %q", err, tc.want)
		}
		if left, _ := os.ReadDir(parent); len(left) != 0 {
			t.Errorf("%s: left %v behind", tc.want, left)
		}
	}
}

func TestExportRefusesWhatItWouldOverwriteOrCannotWrite(t *testing.T) {
	src, dir := tinyModel(t), t.TempDir()
	for _, tc := range []struct {
		opts Options
		dir  string
		want string
	}{
		{Options{}, dir, "exists already"},
		{Options{DType: F16}, dir + "/x", `"F16" is not written`},
		{Options{ShardBytesMax: -1}, dir + "/x", "must be positive"},
		{Options{SideFiles: map[string][]byte{"../x": nil}}, dir + "/x", `"../x" is not a file`},
		{Options{SideFiles: map[string][]byte{"config.json": []byte("{}")}}, dir + "/x", `"config.json" is not a file`},
		{Options{SideFiles: map[string][]byte{"tokenizer.json": []byte("{")}}, dir + "/x", "not valid JSON"},
	} {
		if err := Export(tc.dir, src, tc.opts); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("error %v, want one with %q", err, tc.want)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left %v behind", left)
	}
}

func TestFullDiskLeavesNothingBehindWhereverItFills(t *testing.T) {
	src := tinyModel(t)
	opts := Options{ShardBytesMax: 70_000, SideFiles: map[string][]byte{"tokenizer.json": []byte("{}")}}
	total := int64(0)
	{
		m := vfs.NewMem()
		opts.FS = m
		if err := Export("/out", src, opts); err != nil {
			t.Fatal(err)
		}
		names, _ := m.ReadDir("/out")
		for _, name := range names {
			info, err := m.Stat("/out/" + name)
			if err != nil {
				t.Fatal(err)
			}
			total += info.Size()
		}
	}
	step := total / 60
	for space := int64(0); space < total; space += step {
		m := vfs.NewMem()
		opts.FS = vfs.NewFault(m).LimitSpace(space)
		err := Export("/out", src, opts)
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("with %d of %d bytes: error %v", space, total, err)
		}
		if names, _ := m.ReadDir("/"); len(names) != 0 {
			t.Fatalf("with %d of %d bytes: left %v", space, total, names)
		}
	}
}

func TestExportIsWholeOrAbsentAtEveryFaultAndCrash(t *testing.T) {
	src := tinyModel(t)
	opts := Options{ShardBytesMax: 70_000}
	dry := vfs.NewFault(vfs.NewMem())
	opts.FS = dry
	if err := Export("/out", src, opts); err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= dry.Changes(); n++ {
		for _, rule := range []vfs.Rule{vfs.FailNth(vfs.OpChange, n, syscall.EIO), vfs.CrashAt(n)} {
			m := vfs.NewMem()
			opts.FS = vfs.NewFault(m, rule)
			if err := Export("/out", src, opts); err == nil {
				t.Fatalf("fault %d %+v: no error", n, rule)
			}
			m.Crash()
			if there, _ := vfs.Exists(m, "/out"); there {
				if f, err := OpenFS(m, "/out"); err != nil {
					t.Errorf("fault %d: a folder that is not whole: %v", n, err)
				} else {
					_ = f.Close()
				}
				continue
			}
			opts.FS = m // what a crash left must not stand in the way
			if err := Export("/out", src, opts); err != nil {
				t.Errorf("after fault %d: %v", n, err)
			}
		}
	}
}

// during is a model that does something when its weights are first read.
type during struct {
	*memory
	do   func()
	once sync.Once
}

func (d *during) ReadRange(name string, off int64, dst []float32) error {
	d.once.Do(d.do)
	return d.memory.ReadRange(name, off, dst)
}

func TestTwoExportsToOnePlaceDoNotMix(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "out")
	src := tinyModel(t)
	slow := &during{memory: src, do: func() {
		if err := Export(dir, src, Options{DType: F32}); err != nil {
			t.Errorf("the export that is done first: %v", err)
		}
	}}
	if err := Export(dir, slow, Options{ShardBytesMax: 70_000}); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("the export that is done second: error %v", err)
	}
	names, err := vfs.OS.ReadDir(dir)
	if err != nil || !slices.Equal(names, []string{"config.json", "generation_config.json", "model.safetensors"}) {
		t.Errorf("the folder holds %v, %v", names, err)
	}
	f := open(t, dir)
	for _, x := range src.config.Tensors() {
		got := make([]float32, x.Elements())
		if err := f.ReadRange(x.Name, 0, got); err != nil || !slices.Equal(got, src.tensors[x.Name]) {
			t.Errorf("tensor %q is not the one of the first export (%v)", x.Name, err)
		}
	}
	if left, _ := os.ReadDir(parent); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestExportReplacesNotEvenAnEmptyFolderMadeMeanwhile(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "out")
	src := &during{memory: tinyModel(t), do: func() {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Error(err)
		}
	}}
	if err := Export(dir, src, Options{}); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("error %v", err)
	}
	if inside, err := os.ReadDir(dir); err != nil || len(inside) != 0 {
		t.Errorf("the folder holds %v, %v", inside, err)
	}
	if left, _ := os.ReadDir(parent); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

// TestExportForTheOracle writes models where scripts/oracle/formats_check.py wants
// them: it loads them with transformers and compares every tensor.
func TestExportForTheOracle(t *testing.T) {
	to := os.Getenv("SKEIN_EXPORT_TO")
	if to == "" {
		t.Skip("SKEIN_EXPORT_TO is not set; run scripts/oracle/formats_check.py")
	}
	for _, name := range goldenFolders {
		f := open(t, filepath.Join("testdata", name))
		for kind, opts := range map[string]Options{"bf16": {}, "f32": {DType: F32}, "sharded": {DType: F32, ShardBytesMax: 2000}} {
			if err := Export(filepath.Join(to, name+"."+kind), f, opts); err != nil {
				t.Error(err)
			}
		}
	}
}
