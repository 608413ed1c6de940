package gguf

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/skein-ml/skein/model/config"
)

// ropeFactors is the tensor of divisors that stands for llama3 rope scaling.
const ropeFactors = "rope_freqs.weight"

// metadata reads typed values and keeps the first complaint.
type metadata struct {
	values map[string]any
	read   map[string]bool
	err    error
}

func (m *metadata) fail(format string, args ...any) {
	if m.err == nil {
		m.err = fmt.Errorf(format, args...)
	}
}

func (m *metadata) get(key string) (any, bool) {
	m.read[key] = true
	v, ok := m.values[key]
	return v, ok
}

// integer reads a whole number below 2^31.
func (m *metadata) integer(key string, absent int) int {
	v, ok := m.get(key)
	if !ok {
		return absent
	}
	switch n := v.(type) {
	case uint64:
		if n <= math.MaxInt32 {
			return int(n)
		}
	case int64:
		if n >= math.MinInt32 && n <= math.MaxInt32 {
			return int(n)
		}
	case []string, numbers:
		m.fail("metadata %s differs between layers, which is not read", key)
		return 0
	}
	m.fail("metadata %s is %v; it must be a whole number below 2^31", key, v)
	return 0
}

func (m *metadata) need(key string) int {
	if _, ok := m.get(key); !ok {
		m.fail("metadata %s is missing; the file is incomplete", key)
	}
	return m.integer(key, 0)
}

func (m *metadata) number(key string, absent float64) float64 {
	v, ok := m.get(key)
	if !ok {
		return absent
	}
	x, ok := v.(float64)
	if !ok {
		m.fail("metadata %s must be a floating-point number", key)
	}
	return x
}

func (m *metadata) text(key, absent string) string {
	v, ok := m.get(key)
	if !ok {
		return absent
	}
	s, ok := v.(string)
	if !ok {
		m.fail("metadata %s must be a string", key)
	}
	return s
}

func (m *metadata) boolean(key string, absent bool) bool {
	v, ok := m.get(key)
	if !ok {
		return absent
	}
	b, ok := v.(bool)
	if !ok {
		m.fail("metadata %s must be true or false", key)
	}
	return b
}

// resolve turns the metadata into a configuration.
func (f *File) resolve() (config.Config, error) {
	m := &metadata{values: f.header.meta, read: map[string]bool{}}
	arch := m.text("general.architecture", "")
	if m.err == nil && arch != "llama" {
		return config.Config{}, fmt.Errorf("%w: GGUF architecture %q is not read, only llama; choose the model's Hugging Face folder", config.ErrUnsupported, arch)
	}
	if kind := m.text("general.type", "model"); kind != "model" {
		m.fail("general.type is %q; only whole models are read", kind)
	}
	if n := m.integer("split.count", 1); n > 1 {
		m.fail("this is one of %d parts of a split file; join them with llama.cpp's gguf-split --merge", n)
	}
	embedding, ok := f.header.tensors["token_embd.weight"]
	if !ok || len(embedding.shape) != 2 || embedding.shape[0] > math.MaxInt32 {
		m.fail(`tensor "token_embd.weight" is missing or not a matrix`)
		return config.Config{}, m.err
	}
	c := config.Config{
		Family:       "llama",
		Layers:       m.need("llama.block_count"),
		Hidden:       m.need("llama.embedding_length"),
		MLP:          m.need("llama.feed_forward_length"),
		Heads:        m.need("llama.attention.head_count"),
		MaxPositions: m.need("llama.context_length"),
		Vocab:        int(embedding.shape[0]),
		NormEps:      float32(m.number("llama.attention.layer_norm_rms_epsilon", 0)),
		RopeTheta:    m.number("llama.rope.freq_base", 0),
		InitStd:      0.02,
		Tied:         !f.has("output.weight"),

		AttentionBias: f.has("blk.0.attn_q.bias"),
		OutputBias:    f.has("blk.0.attn_output.bias"),
		MLPBias:       f.has("blk.0.ffn_down.bias"),
	}
	c.KVHeads = m.integer("llama.attention.head_count_kv", c.Heads)
	if n := m.integer("llama.vocab_size", c.Vocab); n != c.Vocab {
		m.fail("llama.vocab_size is %d, but the embedding has %d rows", n, c.Vocab)
	}
	f.readHeadDim(m, &c)
	f.readTokens(m, &c)
	if m.err != nil {
		return config.Config{}, m.err
	}
	if err := f.readRope(m, &c); err != nil {
		return config.Config{}, err
	}
	if err := refuseOthers(m); err != nil {
		return config.Config{}, err
	}
	if err := c.Validate(); err != nil {
		return config.Config{}, fmt.Errorf("metadata (in the words of config.json): %w", err)
	}
	return c, nil
}

func (f *File) has(tensor string) bool {
	_, ok := f.header.tensors[tensor]
	return ok
}

func (f *File) readHeadDim(m *metadata, c *config.Config) {
	if c.Heads < 1 {
		m.fail("metadata llama.attention.head_count is %d; it must be positive", c.Heads)
		return
	}
	c.HeadDim = m.integer("llama.attention.key_length", 0)
	if c.HeadDim == 0 {
		if c.Hidden%c.Heads != 0 {
			m.fail("llama.embedding_length (%d) is not a multiple of llama.attention.head_count (%d), and key_length is not given", c.Hidden, c.Heads)
		}
		c.HeadDim = c.Hidden / c.Heads
	}
	for _, key := range []string{"llama.attention.value_length", "llama.rope.dimension_count"} {
		if n := m.integer(key, c.HeadDim); n != c.HeadDim {
			m.fail("metadata %s is %d, but heads have %d elements; only whole heads are rotated, and values as long as keys", key, n, c.HeadDim)
		}
	}
}

func (f *File) readTokens(m *metadata, c *config.Config) {
	id := func(key string) int32 { return int32(m.integer("tokenizer.ggml."+key+"_token_id", -1)) }
	c.BOS, c.Pad = id("bos"), id("padding")
	for _, key := range []string{"eos", "eot"} {
		if n := id(key); n != -1 && !slices.Contains(c.EOS, n) {
			c.EOS = append(c.EOS, n)
		}
	}
}

// readRope resolves the base and the scaling of the rotary embedding.
func (f *File) readRope(m *metadata, c *config.Config) error {
	c.Rope.Kind = "default"
	if c.RopeTheta == 0 {
		c.RopeTheta = 10000
		f.notice("llama.rope.freq_base is absent; 10,000 is used, as llama.cpp does")
	}
	factor := m.number("llama.rope.scaling.factor", m.number("llama.rope.scale_linear", 0))
	switch kind := m.text("llama.rope.scaling.type", ""); kind {
	case "none":
	case "":
		if factor > 1 {
			c.Rope = config.RopeScaling{Kind: "linear", Factor: factor}
		}
	case "linear":
		c.Rope = config.RopeScaling{Kind: "linear", Factor: factor}
	default:
		m.fail("%w: llama.rope.scaling.type %q is not read from GGUF; choose the model's Hugging Face folder", config.ErrUnsupported, kind)
	}
	if m.err != nil || !f.has(ropeFactors) {
		return m.err
	}
	if c.Rope.Kind != "default" {
		return fmt.Errorf("llama.rope.scaling and %s are both given; correct the file", ropeFactors)
	}
	return f.readRopeFactors(c)
}

// readRopeFactors recognizes Llama 3's scaling by its divisors: the greatest is the
// factor, and the rest must be those of the one published shape of the ramp.
func (f *File) readRopeFactors(c *config.Config) error {
	t := f.header.tensors[ropeFactors]
	if len(t.shape) != 1 || t.shape[0] != int64(c.HeadDim/2) || t.shape[0] > 1<<16 {
		return fmt.Errorf("tensor %q has shape %v; it must have one divisor per pair of a head's %d elements", ropeFactors, t.shape, c.HeadDim)
	}
	divisors := make([]float32, t.shape[0])
	if err := f.readStored(source{tensor: t}, 0, divisors); err != nil {
		return err
	}
	plain := *c
	c.Rope = config.RopeScaling{Kind: "llama3", Factor: float64(slices.Max(divisors)),
		LowFreqFactor: 1, HighFreqFactor: 4, OriginalMaxPositions: 8192}
	if err := c.Validate(); err != nil {
		return fmt.Errorf("tensor %q: %w", ropeFactors, err)
	}
	base, _ := plain.InvFreq()
	scaled, _ := c.InvFreq()
	for j, d := range divisors {
		if want := float64(base[j]) / float64(scaled[j]); !(math.Abs(float64(d)-want) <= 1e-4*want) {
			return fmt.Errorf("%w: divisor %d of tensor %q is %v, where Llama 3's scaling has %.6g; choose the model's Hugging Face folder",
				config.ErrUnsupported, j, ropeFactors, d, want)
		}
	}
	f.notice("rope factors recognized as llama3 scaling with factor %g", c.Rope.Factor)
	return nil
}

// Metadata of the architecture that changes nothing here.
var harmless = []string{"llama.rope.scaling.original_context_length", "llama.rope.scaling.finetuned", "llama.tensor_data_layout"}

// refuseOthers refuses metadata of the architecture that resolve does not know: unlike
// config.json, GGUF has no keys there that are about anything but arithmetic.
func refuseOthers(m *metadata) error {
	var unknown []string
	for key, value := range m.values {
		if !strings.HasPrefix(key, "llama.") || m.read[key] || slices.Contains(harmless, key) {
			continue
		}
		switch value {
		case uint64(0), int64(0), 0.0, false: // an extension that is off
			continue
		}
		unknown = append(unknown, key)
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		return fmt.Errorf("%w: metadata %s is not known and may change arithmetic; choose the model's Hugging Face folder", config.ErrUnsupported, unknown[0])
	}
	return nil
}
