package gguf

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/skein-ml/skein/model/config"
)

var _ config.Weights = (*File)(nil)

const realFile = "../../.cache/testdata/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

// tensorSum is the sha256 of a tensor as fp32, read in ranges of odd sizes.
func tensorSum(t *testing.T, f *File, name string) string {
	t.Helper()
	left := int64(1)
	for _, dim := range f.Shape(name) {
		left *= dim
	}
	sum, raw := sha256.New(), []byte(nil)
	x := make([]float32, 100_003)
	for off := int64(0); left > 0; {
		n := min(left, int64(len(x)))
		if err := f.ReadRange(name, off, x[:n]); err != nil {
			t.Fatal(err)
		}
		raw = raw[:0]
		for _, v := range x[:n] {
			raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(v))
		}
		sum.Write(raw)
		off, left = off+n, left-n
	}
	return hex.EncodeToString(sum.Sum(nil))
}

func openTiny(t *testing.T) *File {
	t.Helper()
	f, err := Open("testdata/tiny.gguf")
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

func TestEveryTypeExpandsAsNumPyDoesAndQKAreUnpermuted(t *testing.T) {
	raw, err := os.ReadFile("testdata/tiny.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden map[string]string
	if err := json.Unmarshal(raw, &golden); err != nil {
		t.Fatal(err)
	}
	f := openTiny(t)
	types := map[string]bool{}
	for _, want := range f.Config().Tensors() {
		if got := tensorSum(t, f, want.Name); got != golden[want.Name] {
			t.Errorf("%s (%s): sha256 %s, want %s", want.Name, f.Type(want.Name), got, golden[want.Name])
		}
		types[f.Type(want.Name)] = true
		delete(golden, want.Name)
	}
	if len(golden) != 0 || len(types) != len(quants) {
		t.Errorf("%d golden tensors left, %d of %d types seen", len(golden), len(types), len(quants))
	}
}

func TestMetadataBecomesTheConfiguration(t *testing.T) {
	f := openTiny(t)
	want := config.Config{Family: "llama", Layers: 2, Hidden: 64, MLP: 96, Heads: 3, KVHeads: 1, HeadDim: 32, Vocab: 40,
		MaxPositions: 128, NormEps: 1e-5, RopeTheta: 50000, Rope: config.RopeScaling{Kind: "default"}, AttentionBias: true, OutputBias: true,
		EOS: []int32{2, 3}, BOS: 1, Pad: -1, InitStd: 0.02}
	if got := f.Config(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	v, err := f.Vocabulary()
	if err != nil {
		t.Fatal(err)
	}
	if v.Model != "gpt2" || v.Pre != "smollm" || len(v.Tokens) != 38 || v.Tokens[37] != "t37" || len(v.Types) != 38 || v.Types[7] != 2 ||
		!reflect.DeepEqual(v.Merges, []string{"t 1", "t 2"}) || v.BOS != 1 || v.EOS != 2 || v.Pad != -1 || v.Unk != -1 || !v.AddBOS || v.ChatTemplate != "{{ messages }}" {
		t.Errorf("vocabulary %+v", v)
	}
	if name, ok := f.Text("general.name"); !ok || name != "tiny" {
		t.Errorf("general.name is %q", name)
	}
}

func TestRangesAreTheTensorsParts(t *testing.T) {
	f := openTiny(t)
	for _, name := range []string{"model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.gate_proj.weight", "model.layers.0.self_attn.q_proj.bias"} {
		n := f.tensors[name].elements()
		whole := make([]float32, n)
		if err := f.ReadTensor(name, whole); err != nil {
			t.Fatal(err)
		}
		for begin := int64(0); begin < n; begin += 61 {
			part := make([]float32, min(97, n-begin))
			if err := f.ReadRange(name, begin, part); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(part, whole[begin:begin+int64(len(part))]) {
				t.Fatalf("%s: elements from %d differ", name, begin)
			}
		}
		if err := f.ReadRange(name, n, make([]float32, 1)); err == nil {
			t.Errorf("%s: a range beyond the end was read", name)
		}
		if err := f.ReadTensor(name, whole[1:]); err == nil {
			t.Errorf("%s: ReadTensor into a short slice succeeded", name)
		}
	}
	if err := f.ReadRange("nobody", 0, nil); err == nil {
		t.Error("an unknown tensor was read")
	}
}

func TestSmolLM2HasItsGoldenHashes(t *testing.T) {
	f, err := Open(realFile)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("run scripts/fetch.sh demo first: %v", err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	if n := f.Config().Params(); n != 134_515_008 || len(f.Notices()) != 0 {
		t.Errorf("%d parameters, notices %q", n, f.Notices())
	}
	for name, want := range map[string]string{
		"model.layers.0.self_attn.q_proj.weight": "54b377bbfa2deab945dfdba7fb59e0ca3eb74329358bd1b53b635b3ff37c1a56",
		"model.layers.0.self_attn.k_proj.weight": "814d239237d0643a10d9468d42e617b687ef032f85ad617389de27cf27f6fd34",
		"model.embed_tokens.weight":              "3fd491c8066dd9dc1a2bf6796701526c82817d95c0ecabacdef3013c2b8bbbaa",
		"model.layers.29.mlp.down_proj.weight":   "c19605745425a11e704e305ce3d27b632c406195d39eb3377e9cfb140ac643d1",
	} {
		if got := tensorSum(t, f, name); got != want {
			t.Errorf("%s: sha256 %s, want %s", name, got, want)
		}
	}
	v, err := f.Vocabulary()
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Tokens) != 49152 || len(v.Merges) != 48900 || v.Pre != "smollm" || v.AddBOS || v.Pad != 2 || v.Unk != 0 || v.Tokens[1] != "<|im_start|>" || len(v.ChatTemplate) == 0 {
		t.Errorf("vocabulary: %d tokens, %d merges, pre %q, AddBOS %v, pad %d, unk %d", len(v.Tokens), len(v.Merges), v.Pre, v.AddBOS, v.Pad, v.Unk)
	}
}

// builder packs GGUF files; its zero value is an empty one.
type builder struct {
	meta, infos, data     []byte
	metaCount, infosCount uint64
	version               uint32 // 0: 3
}

func (b *builder) text(to []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint64(to, uint64(len(s))), s...)
}

func (b *builder) set(key string, value any) *builder {
	le := binary.LittleEndian
	b.meta = b.text(b.meta, key)
	switch v := value.(type) {
	case string:
		b.meta = b.text(le.AppendUint32(b.meta, typeString), v)
	case int:
		b.meta = le.AppendUint32(le.AppendUint32(b.meta, typeU32), uint32(v))
	case float64:
		b.meta = le.AppendUint32(le.AppendUint32(b.meta, typeF32), math.Float32bits(float32(v)))
	case bool:
		b.meta = append(le.AppendUint32(b.meta, typeBool), map[bool]byte{true: 1}[v])
	case []string:
		b.meta = le.AppendUint64(le.AppendUint32(le.AppendUint32(b.meta, typeArray), typeString), uint64(len(v)))
		for _, s := range v {
			b.meta = b.text(b.meta, s)
		}
	case []int32:
		b.meta = le.AppendUint64(le.AppendUint32(le.AppendUint32(b.meta, typeArray), typeI32), uint64(len(v)))
		for _, n := range v {
			b.meta = le.AppendUint32(b.meta, uint32(n))
		}
	case []byte: // a type and value as they stand
		b.meta = append(b.meta, v...)
	}
	b.metaCount++
	return b
}

// tensor adds an fp32 tensor, shape outermost first, of ones or the given values.
func (b *builder) tensor(name string, values []float32, shape ...int64) *builder {
	le := binary.LittleEndian
	b.infos = le.AppendUint32(b.text(b.infos, name), uint32(len(shape)))
	n := int64(1)
	for i := range shape {
		b.infos = le.AppendUint64(b.infos, uint64(shape[len(shape)-1-i]))
		n *= shape[i]
	}
	for len(b.data)%32 != 0 {
		b.data = append(b.data, 0)
	}
	b.infos = le.AppendUint64(le.AppendUint32(b.infos, 0), uint64(len(b.data)))
	for i := range n {
		v := float32(1)
		if values != nil {
			v = values[i]
		}
		b.data = le.AppendUint32(b.data, math.Float32bits(v))
	}
	b.infosCount++
	return b
}

func (b *builder) bytes() []byte {
	le := binary.LittleEndian
	version := b.version
	if version == 0 {
		version = 3
	}
	out := le.AppendUint32([]byte("GGUF"), version)
	out = le.AppendUint64(le.AppendUint64(out, b.infosCount), b.metaCount)
	out = append(append(out, b.meta...), b.infos...)
	for len(out)%32 != 0 {
		out = append(out, 0)
	}
	return append(out, b.data...)
}

// small is a whole model of one layer: d 8, 2 heads, 1 KV head, D 4, f 6, V 10, tied.
// Keys in skip are left out.
func small(skip ...string) *builder {
	b := &builder{}
	for _, kv := range []struct {
		key   string
		value any
	}{
		{"general.architecture", "llama"}, {"llama.block_count", 1}, {"llama.context_length", 16}, {"llama.embedding_length", 8},
		{"llama.feed_forward_length", 6}, {"llama.attention.head_count", 2}, {"llama.attention.head_count_kv", 1},
		{"llama.attention.layer_norm_rms_epsilon", 1e-5}, {"llama.rope.freq_base", 1e4},
	} {
		if !slices.Contains(skip, kv.key) {
			b.set(kv.key, kv.value)
		}
	}
	for _, x := range []struct {
		name  string
		shape []int64
	}{
		{"token_embd.weight", []int64{10, 8}}, {"blk.0.attn_norm.weight", []int64{8}}, {"blk.0.attn_q.weight", []int64{8, 8}},
		{"blk.0.attn_k.weight", []int64{4, 8}}, {"blk.0.attn_v.weight", []int64{4, 8}}, {"blk.0.attn_output.weight", []int64{8, 8}},
		{"blk.0.ffn_norm.weight", []int64{8}}, {"blk.0.ffn_gate.weight", []int64{6, 8}}, {"blk.0.ffn_up.weight", []int64{6, 8}},
		{"blk.0.ffn_down.weight", []int64{8, 6}}, {"output_norm.weight", []int64{8}},
	} {
		if !slices.Contains(skip, x.name) {
			b.tensor(x.name, nil, x.shape...)
		}
	}
	return b
}

func openBytes(raw []byte) (*File, error) {
	return open("x.gguf", bytes.NewReader(raw), int64(len(raw)))
}

func TestHostileOrForeignFilesAreRefusedInOneLine(t *testing.T) {
	le := binary.LittleEndian
	u64 := func(n uint64) []byte { return le.AppendUint64(nil, n) }
	typed := func(kind uint32, rest ...[]byte) []byte {
		return append(le.AppendUint32(nil, kind), bytes.Join(rest, nil)...)
	}
	truncated := small().bytes()
	counts := small().bytes()
	le.PutUint64(counts[8:], 1<<60)
	badOffset := small().bytes()
	// The offset of the last tensor info stands right before the padding and the data.
	infosEnd := bytes.Index(badOffset, []byte("output_norm.weight")) + len("output_norm.weight") + 4 + 8 + 4
	le.PutUint64(badOffset[infosEnd:], 0)
	badType := small().bytes()
	le.PutUint32(badType[infosEnd-4:], 12)
	hugeDim := small().bytes()
	le.PutUint64(hugeDim[infosEnd-12:], 1<<63)
	zeroDim := small().bytes()
	le.PutUint64(zeroDim[infosEnd-12:], 0)
	v2 := small()
	v2.version = 2
	big := small()
	big.version = 3 << 24

	for _, tc := range []struct {
		name string
		raw  []byte
		want string
	}{
		{"empty", nil, "does not begin with GGUF"},
		{"another format", []byte("PK\x03\x04........"), "does not begin with GGUF"},
		{"magic only", []byte("GGUF"), "truncated"},
		{"version 2", v2.bytes(), "version 2 is not read"},
		{"big-endian", big.bytes(), "big-endian"},
		{"counts", counts, "offset 8: 1152921504606846976 tensors"},
		{"truncated data", truncated[:len(truncated)-1], "truncated"},
		{"truncated header", truncated[:200], "truncated"},
		{"trailing bytes", append(small().bytes(), 0), "1 bytes follow"},
		{"overlap", badOffset, `"output_norm.weight": its data is at offset 0, but the tensors before it ask for`},
		{"K-quant", badType, `"output_norm.weight": it is Q4_K, which is not read; choose a file of BF16, F16, F32, Q4_0, Q4_1, Q8_0`},
		{"shape overflow", hugeDim, "overflows"},
		{"empty shape", zeroDim, "is empty"},
		{"long string", small().set("x", typed(typeString, u64(1<<62))).bytes(), "bytes; at most"},
		{"long array", small().set("x", typed(typeArray, typed(typeU64), u64(1<<61))).bytes(), "more than the file can hold"},
		{"long string array", small().set("x", typed(typeArray, typed(typeString), u64(1<<61))).bytes(), "more than the file can hold"},
		{"nested array", small().set("x", typed(typeArray, typed(typeArray), u64(1))).bytes(), "array of type 9"},
		{"unknown type", small().set("x", typed(77)).bytes(), "unknown type 77"},
		{"key twice", small().set("llama.block_count", 1).bytes(), `"llama.block_count" appears twice`},
		{"tensor twice", small().tensor("output_norm.weight", nil, 8).bytes(), `"output_norm.weight" appears twice`},
		{"alignment", small().set("general.alignment", 24).bytes(), "general.alignment is 24"},
		{"long tensor name", small().tensor(strings.Repeat("n", 65), nil, 1).bytes(), "at most 64"},
		{"five dimensions", small().tensor("x", nil, 1, 1, 1, 1, 1).bytes(), "has 5 dimensions"},

		{"architecture", small("general.architecture").set("general.architecture", "qwen2").bytes(), `"qwen2" is not read`},
		{"adapter", small().set("general.type", "adapter").bytes(), `general.type is "adapter"`},
		{"split", small().set("split.count", 3).bytes(), "one of 3 parts"},
		{"no layers", small("llama.block_count").bytes(), "llama.block_count is missing"},
		{"layer count of strings", small("llama.block_count").set("llama.block_count", "1").bytes(), "must be a whole number"},
		{"per-layer heads", small("llama.attention.head_count").set("llama.attention.head_count", []int32{2}).bytes(), "differs between layers"},
		{"no epsilon", small("llama.attention.layer_norm_rms_epsilon").bytes(), "rms_norm_eps"},
		{"no heads", small("llama.attention.head_count").set("llama.attention.head_count", 0).bytes(), "must be positive"},
		{"partial rotation", small().set("llama.rope.dimension_count", 2).bytes(), "only whole heads are rotated"},
		{"experts", small().set("llama.expert_count", 8).bytes(), "llama.expert_count is not known"},
		{"sliding window", small().set("llama.attention.sliding_window", 4).bytes(), "llama.attention.sliding_window is not known"},
		{"yarn", small().set("llama.rope.scaling.type", "yarn").bytes(), `"yarn" is not read from GGUF`},
		{"vocabulary size", small().set("llama.vocab_size", 11).bytes(), "llama.vocab_size is 11, but the embedding has 10 rows"},
		{"too many tokens", small().set("tokenizer.ggml.tokens", make([]string, 11)).bytes(), "11 tokens, but the embedding has only 10 rows"},
		{"eos outside", small().set("tokenizer.ggml.eos_token_id", 10).bytes(), "eos_token_id is 10"},
		{"missing tensor", small("blk.0.ffn_up.weight").bytes(), `"blk.0.ffn_up.weight" is missing`},
		{"missing embedding", small("token_embd.weight").bytes(), `"token_embd.weight" is missing`},
		{"extra tensor", small().tensor("blk.0.ffn_gate_inp.weight", nil, 8).bytes(), `"blk.0.ffn_gate_inp.weight" has no place`},
		{"half the biases", small().tensor("blk.0.attn_q.bias", nil, 8).tensor("blk.0.attn_output.bias", nil, 8).bytes(), `"blk.0.attn_k.bias" is missing`},
		{"biases of no llama", small().tensor("blk.0.attn_q.bias", nil, 8).bytes(), "a llama model has biases on q, k and v, but not on o"},
		{"wrong shape", small("blk.0.attn_v.weight").tensor("blk.0.attn_v.weight", nil, 8, 4).bytes(), `"blk.0.attn_v.weight" has shape [8 4], but the metadata asks for [4 8]`},
		{"odd rope factors", small().tensor(ropeFactors, []float32{1, 3}, 2).bytes(), "where Llama 3's scaling has"},
		{"wrong rope factors", small().tensor(ropeFactors, []float32{1, 1, 1}, 3).bytes(), "one divisor per pair"},
	} {
		_, err := openBytes(tc.raw)
		if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v, want one line with %q", tc.name, err, tc.want)
		}
	}
	if _, err := openBytes(small().bytes()); err != nil {
		t.Errorf("the undamaged file: %v", err)
	}
	if _, err := openBytes(small("general.architecture").set("general.architecture", "gemma").bytes()); !errors.Is(err, config.ErrUnsupported) {
		t.Errorf("a foreign architecture is not ErrUnsupported: %v", err)
	}
}

func TestLlama3ScalingIsRecognizedByItsDivisors(t *testing.T) {
	c := config.Config{HeadDim: 64, RopeTheta: 500000, Rope: config.RopeScaling{Kind: "default"}}
	base, _ := c.InvFreq()
	c.Rope = config.RopeScaling{Kind: "llama3", Factor: 32, LowFreqFactor: 1, HighFreqFactor: 4, OriginalMaxPositions: 8192}
	scaled, _ := c.InvFreq()
	divisors := make([]float32, len(base))
	for j := range divisors {
		divisors[j] = base[j] / scaled[j]
	}
	skip := []string{"llama.rope.freq_base", "blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight", "blk.0.attn_output.weight"}
	build := func() *builder {
		return small(skip...).set("llama.rope.freq_base", 5e5).set("llama.attention.key_length", 64).
			tensor("blk.0.attn_q.weight", nil, 128, 8).tensor("blk.0.attn_k.weight", nil, 64, 8).
			tensor("blk.0.attn_v.weight", nil, 64, 8).tensor("blk.0.attn_output.weight", nil, 8, 128)
	}
	f, err := openBytes(build().tensor(ropeFactors, divisors, 32).bytes())
	if err != nil {
		t.Fatal(err)
	}
	if f.Config().Rope != c.Rope || len(f.Notices()) != 1 {
		t.Errorf("rope %+v, notices %q", f.Config().Rope, f.Notices())
	}
	divisors[20] *= 1.01
	if _, err := openBytes(build().tensor(ropeFactors, divisors, 32).bytes()); !errors.Is(err, config.ErrUnsupported) {
		t.Errorf("other divisors: error %v", err)
	}
}

func TestLinearScalingIsRead(t *testing.T) {
	for _, b := range []*builder{
		small().set("llama.rope.scaling.type", "linear").set("llama.rope.scaling.factor", 4.0),
		small().set("llama.rope.scale_linear", 4.0),
	} {
		f, err := openBytes(b.bytes())
		if err != nil {
			t.Fatal(err)
		}
		if f.Config().Rope != (config.RopeScaling{Kind: "linear", Factor: 4}) {
			t.Errorf("rope %+v", f.Config().Rope)
		}
	}
}

func TestNaNIsReportedByTensorAndElement(t *testing.T) {
	values := []float32{1, 1, 1, 1, 1, float32(math.NaN()), 1, 1}
	f, err := openBytes(small("output_norm.weight").tensor("output_norm.weight", values, 8).bytes())
	if err != nil {
		t.Fatal(err)
	}
	err = f.ReadTensor("model.norm.weight", make([]float32, 8))
	if err == nil || !strings.Contains(err.Error(), `tensor "model.norm.weight": element 5 is NaN`) {
		t.Errorf("error %v", err)
	}
}

func TestBrokenVocabulariesAreRefused(t *testing.T) {
	tokens := []string{"a", "b", "c"}
	for want, b := range map[string]*builder{
		"tokens is missing":                      small(),
		"token_type has 2 entries for 3 tokens":  small().set("tokenizer.ggml.tokens", tokens).set("tokenizer.ggml.token_type", []int32{1, 1}),
		"merges must be a list of strings":       small().set("tokenizer.ggml.tokens", tokens).set("tokenizer.ggml.merges", []int32{1}),
		"token_type must be a list of 32-bit":    small().set("tokenizer.ggml.tokens", tokens).set("tokenizer.ggml.token_type", tokens),
		"unknown_token_id is 3":                  small().set("tokenizer.ggml.tokens", tokens).set("tokenizer.ggml.unknown_token_id", 3),
		"add_bos_token must be true or false":    small().set("tokenizer.ggml.tokens", tokens).set("tokenizer.ggml.add_bos_token", 1),
		"tokenizer.chat_template must be a str":  small().set("tokenizer.ggml.tokens", tokens).set("tokenizer.chat_template", 1),
		"tokenizer.ggml.pre must be a string":    small().set("tokenizer.ggml.tokens", tokens).set("tokenizer.ggml.pre", true),
		"tokenizer.ggml.tokens must be a list o": small().set("tokenizer.ggml.tokens", "abc"),
	} {
		f, err := openBytes(b.bytes())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Vocabulary(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
}

func TestOpenNamesWhatIsNotThere(t *testing.T) {
	if _, err := Open("testdata/none.gguf"); err == nil || !strings.Contains(err.Error(), "there is no such file") {
		t.Errorf("error %v", err)
	}
	if _, err := Open("testdata"); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("error %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(small().bytes())
	f.Add(small().set("tokenizer.ggml.tokens", []string{"a", "b"}).set("tokenizer.ggml.token_type", []int32{1, 3}).set("llama.rope.scale_linear", 2.0).bytes())
	f.Add(small().tensor(ropeFactors, []float32{1, 8}, 2).bytes())
	f.Add(small().set("general.alignment", 64).tensor("output.weight", nil, 10, 8).bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		file, err := openBytes(raw)
		if err != nil {
			return
		}
		for _, want := range file.Config().Tensors() {
			if want.Elements() > 1<<20 {
				continue
			}
			x := make([]float32, want.Elements())
			if err := file.ReadTensor(want.Name, x); err != nil && !strings.Contains(err.Error(), "is damaged") {
				t.Fatalf("an accepted tensor cannot be read: %v", err)
			}
		}
		_, _ = file.Vocabulary() // must not panic; most inputs have none
	})
}
