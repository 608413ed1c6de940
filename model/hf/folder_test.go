package hf

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/model/config"
)

var _ config.Weights = (*Folder)(nil)

var goldenFolders = []string{"llama-tied-bf16", "llama-sharded-f32", "mistral-f16", "qwen2-bf16", "qwen3-bf16", "gpt2-sharded-f32"}

func open(t *testing.T, dir string) *Folder {
	t.Helper()
	f, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func tensorSum(t *testing.T, f *Folder, name string) string {
	t.Helper()
	n := int64(1)
	for _, dim := range f.Shape(name) {
		n *= dim
	}
	x := make([]float32, n)
	if err := f.ReadTensor(name, x); err != nil {
		t.Fatal(err)
	}
	return floatSum(x)
}

func floatSum(x []float32) string {
	var raw []byte
	for _, v := range x {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(v))
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

func TestFoldersThatTransformersWroteAreReadToTheBit(t *testing.T) {
	for _, name := range goldenFolders {
		f := open(t, filepath.Join("testdata", name))
		raw, err := os.ReadFile(filepath.Join("testdata", name, "golden.json"))
		if err != nil {
			t.Fatal(err)
		}
		var golden struct {
			Params int64
			SHA256 map[string]string
		}
		if err := json.Unmarshal(raw, &golden); err != nil {
			t.Fatal(err)
		}
		if f.Config().Params() != golden.Params || len(f.Tensors()) != len(golden.SHA256) {
			t.Errorf("%s: %d parameters in %d tensors, want %d in %d", name, f.Config().Params(), len(f.Tensors()), golden.Params, len(golden.SHA256))
		}
		for _, tensor := range f.Tensors() {
			if got := tensorSum(t, f, tensor); got != golden.SHA256[tensor] {
				t.Errorf("%s: %s: sha256 %s, want %s", name, tensor, got, golden.SHA256[tensor])
			}
		}
		if len(f.Notices()) != 0 {
			t.Errorf("%s: notices %q", name, f.Notices())
		}
	}
}

func TestRangesAreTheTensorsParts(t *testing.T) {
	f := open(t, "testdata/llama-sharded-f32")
	const name = "model.layers.1.mlp.down_proj.weight"
	whole := make([]float32, 120)
	if err := f.ReadTensor(name, whole); err != nil {
		t.Fatal(err)
	}
	for begin := int64(0); begin <= 120; begin += 7 {
		part := make([]float32, 120-begin)
		if err := f.ReadRange(name, begin, part); err != nil {
			t.Fatal(err)
		}
		if floatSum(part) != floatSum(whole[begin:]) {
			t.Errorf("range from %d differs", begin)
		}
	}
	for _, bad := range []struct{ off, n int64 }{{-1, 1}, {120, 1}, {0, 121}, {math.MaxInt64, 1}} {
		if err := f.ReadRange(name, bad.off, make([]float32, bad.n)); err == nil {
			t.Errorf("ReadRange(%d, %d elements) succeeded", bad.off, bad.n)
		}
	}
	if err := f.ReadTensor(name, make([]float32, 119)); err == nil {
		t.Error("ReadTensor into a short slice succeeded")
	}
	if err := f.ReadRange("nobody", 0, whole); err == nil {
		t.Error("an unknown tensor was read")
	}
}

// folderIn copies a golden folder into memory.
func folderIn(t *testing.T, name string) vfs.FS {
	t.Helper()
	m := vfs.NewMem()
	if err := m.MkdirAll("/m"); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		raw, err := os.ReadFile(filepath.Join("testdata", name, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		put(t, m, e.Name(), raw)
	}
	return m
}

func put(t *testing.T, fsys vfs.FS, name string, raw []byte) {
	t.Helper()
	if err := vfs.WriteFile(fsys, "/m/"+name, raw); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, fsys vfs.FS, name string) []byte {
	t.Helper()
	raw, err := vfs.ReadFile(fsys, "/m/"+name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// edit replaces text in one file of /m.
func edit(t *testing.T, fsys vfs.FS, name, from, to string) {
	t.Helper()
	raw := get(t, fsys, name)
	if !bytes.Contains(raw, []byte(from)) {
		t.Fatalf("%s does not contain %q", name, from)
	}
	put(t, fsys, name, bytes.ReplaceAll(raw, []byte(from), []byte(to)))
}

func TestDamagedFoldersAreRefusedInOneLine(t *testing.T) {
	const single, sharded = "llama-tied-bf16", "llama-sharded-f32"
	for _, tc := range []struct {
		name, from string
		damage     func(fsys vfs.FS)
		want       string
	}{
		{"no config", single, func(m vfs.FS) { _ = m.Remove("/m/config.json") }, "config.json is missing"},
		{"no weights", single, func(m vfs.FS) { _ = m.Remove("/m/model.safetensors") }, "neither model.safetensors nor"},
		{"truncated weights", single, func(m vfs.FS) {
			raw := get(t, m, singleFile)
			put(t, m, singleFile, raw[:len(raw)-1])
		}, "truncated"},
		{"tail", single, func(m vfs.FS) { put(t, m, singleFile, append(get(t, m, singleFile), 0)) }, "1 bytes follow"},
		{"empty weights", single, func(m vfs.FS) { put(t, m, singleFile, nil) }, "has 0 bytes"},
		{"tensor renamed", single, func(m vfs.FS) { edit(t, m, singleFile, "layers.1.mlp.up_proj", "layers.1.mlp.xx_proj") }, `"model.layers.1.mlp.up_proj.weight" is missing`},
		{"layer too many", single, func(m vfs.FS) { edit(t, m, "config.json", `"num_hidden_layers": 2`, `"num_hidden_layers": 1`) }, `"model.layers.1.input_layernorm.weight" has no place`},
		{"wrong shape", single, func(m vfs.FS) { edit(t, m, "config.json", `"intermediate_size": 10`, `"intermediate_size": 11`) }, "has shape [10 12], but config.json asks for [11 12]"},
		{"untied without head", single, func(m vfs.FS) {
			edit(t, m, "config.json", `"tie_word_embeddings": true`, `"tie_word_embeddings": false`)
		}, `"lm_head.weight" is missing`},
		{"tied with another head", sharded, func(m vfs.FS) {
			edit(t, m, "config.json", `"tie_word_embeddings": false`, `"tie_word_embeddings": true`)
		}, "config.json ties lm_head.weight to the embedding, but the files hold a different one (first at element 0)"},
		{"integers for weights", single, func(m vfs.FS) { edit(t, m, singleFile, `"dtype":"BF16"`, `"dtype":"I16" `) }, "stored as I16"},
		{"path escape", sharded, func(m vfs.FS) { edit(t, m, indexFile, "model-00002-of-00004", "../m/model-00002-of-00004") }, "which is no safetensors file in the model's folder"},
		{"absolute path", sharded, func(m vfs.FS) { edit(t, m, indexFile, "model-00002-of-00004", "/m/model-00002-of-00004") }, "which is no safetensors file in the model's folder"},
		{"shard missing", sharded, func(m vfs.FS) { _ = m.Remove("/m/model-00003-of-00004.safetensors") }, "model-00003-of-00004.safetensors is missing"},
		{"index without map", sharded, func(m vfs.FS) { put(t, m, indexFile, []byte(`{"metadata":{}}`)) }, "weight_map is missing"},
		{"index with empty map", sharded, func(m vfs.FS) { put(t, m, indexFile, []byte(`{"weight_map":{}}`)) }, "names 0 files"},
		{"index lies about a tensor", sharded, func(m vfs.FS) {
			edit(t, m, indexFile, `"model.norm.weight": "model-00003-of-00004`, `"model.norm.weight": "model-00001-of-00004`)
		}, `holds tensor "model.norm.weight", which the index does not place there`},
		{"index promises more", sharded, func(m vfs.FS) {
			edit(t, m, indexFile, `"weight_map": {`, `"weight_map": {"ghost": "model-00001-of-00004.safetensors",`)
		}, `promises tensor "ghost"`},
		{"tokenizer too large", single, func(m vfs.FS) {
			put(t, m, "tokenizer.json", []byte(`{"model":{"vocab":{"a":0,"b":23}},"added_tokens":[{"id":24}]}`))
		}, "tokenizer.json has token id 24, but the embedding has only 24 rows"},
		{"tokenizer broken", single, func(m vfs.FS) { put(t, m, "tokenizer.json", []byte(`{`)) }, "tokenizer.json: not a tokenizer"},
		{"generation eos outside", single, func(m vfs.FS) {
			edit(t, m, "generation_config.json", `"eos_token_id": 2`, `"eos_token_id": [2, 24]`)
		}, "generation_config.json: eos_token_id is 24"},
	} {
		m := folderIn(t, tc.from)
		tc.damage(m)
		f, err := OpenFS(m, "/m")
		if err == nil {
			t.Errorf("%s: opened", tc.name)
			_ = f.Close()
		} else if !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") || !strings.HasPrefix(err.Error(), "model /m: ") {
			t.Errorf("%s: error %q, want one line with %q", tc.name, err, tc.want)
		}
	}
	for dir, want := range map[string]string{"/none": "there is no such folder", "/m/config.json": "this is a file"} {
		if _, err := OpenFS(folderIn(t, single), dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", dir, err, want)
		}
	}
}

func TestNaNInWeightsIsReportedByTensorAndElement(t *testing.T) {
	m := folderIn(t, "llama-tied-bf16")
	raw := get(t, m, singleFile)
	copy(raw[len(raw)-4:], []byte{0xc0, 0x7f}) // the element before the last of model.norm.weight
	put(t, m, singleFile, raw)
	f, err := OpenFS(m, "/m")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	err = f.ReadTensor("model.norm.weight", make([]float32, 12))
	if err == nil || !strings.Contains(err.Error(), `tensor "model.norm.weight": element 10 is NaN`) {
		t.Errorf("error %v", err)
	}
}

func TestEqualTiedHeadAndRotaryBuffersAreDropped(t *testing.T) {
	m := folderIn(t, "llama-tied-bf16")
	raw := get(t, m, singleFile)
	n := binary.LittleEndian.Uint64(raw)
	header, data := string(raw[8:8+n]), raw[8+n:]
	embedding := data[:24*12*2]
	end := len(data)
	header = strings.TrimRight(header, " ")
	header = header[:len(header)-1] + `,"lm_head.weight":{"dtype":"BF16","shape":[24,12],"data_offsets":[` + itoa(end) + `,` + itoa(end+576) + `]}` +
		`,"model.layers.0.self_attn.rotary_emb.inv_freq":{"dtype":"F32","shape":[1],"data_offsets":[` + itoa(end+576) + `,` + itoa(end+580) + `]}}`
	out := append(file(header, 0), data...)
	out = append(append(out, embedding...), 0, 0, 0x80, 0x3f)
	put(t, m, singleFile, out)
	f, err := OpenFS(m, "/m")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	if f.Shape("lm_head.weight") != nil {
		t.Error("the tied head is still a tensor")
	}
	if len(f.Notices()) != 1 || !strings.Contains(f.Notices()[0], "inv_freq") {
		t.Errorf("notices %q", f.Notices())
	}
}

func itoa(n int) string {
	raw, _ := json.Marshal(n) // an int always encodes
	return string(raw)
}

func TestEOSOfGenerationConfigIsAdded(t *testing.T) {
	m := folderIn(t, "llama-tied-bf16")
	edit(t, m, "generation_config.json", `"eos_token_id": 2`, `"eos_token_id": [7, 2]`)
	f, err := OpenFS(m, "/m")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	if eos := f.Config().EOS; len(eos) != 2 || eos[0] != 2 || eos[1] != 7 {
		t.Errorf("EOS %v, want [2 7]", eos)
	}
}

func TestChatTemplateIsFoundWhereTransformersLooks(t *testing.T) {
	for _, tc := range []struct{ file, content, want, wantErr string }{
		{"tokenizer_config.json", `{"chat_template":"A"}`, "A", ""},
		{"tokenizer_config.json", `{"chat_template":[{"name":"tool_use","template":"T"},{"name":"default","template":"D"}]}`, "D", ""},
		{"tokenizer_config.json", `{"chat_template":[{"name":"rag","template":"R"}]}`, "", `none of them named "default"`},
		{"tokenizer_config.json", `{"chat_template":3}`, "", "neither a template"},
		{"tokenizer_config.json", `{"chat_template":null}`, "", ""},
		{"chat_template.jinja", "J", "J", ""},
	} {
		m := folderIn(t, "llama-tied-bf16")
		put(t, m, tc.file, []byte(tc.content))
		f, err := OpenFS(m, "/m")
		if err != nil {
			t.Fatal(err)
		}
		got, err := f.ChatTemplate()
		if got != tc.want || (err == nil) != (tc.wantErr == "") || (err != nil && !strings.Contains(err.Error(), tc.wantErr)) {
			t.Errorf("%s: template %q, error %v", tc.content, got, err)
		}
		_ = f.Close()
	}
}
