package workertest

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"testing"

	"github.com/skein-ml/skein/model/config"
	"github.com/skein-ml/skein/model/hf"
	"github.com/skein-ml/skein/tokenizer/chat"
)

// Model is a tiny Llama with random weights, a tokenizer of bytes and ChatML. The zero value
// is the model of [New].
type Model struct {
	Seed   uint64 // of the weights
	Hidden int    // a multiple of 4; 0: 64
	Vocab  int    // 0: 300, more than the tokenizer has
	Layers int    // 0: 2
	MLP    int    // width between; 0: 96
}

// config.json of the model. Everything that Skein reads is said.
const description = `{
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "hidden_size": %d,
  "intermediate_size": %d,
  "num_hidden_layers": %d,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 16,
  "vocab_size": %d,
  "max_position_embeddings": 64,
  "rms_norm_eps": 1e-05,
  "rope_theta": 10000.0,
  "hidden_act": "silu",
  "initializer_range": 0.02,
  "tie_word_embeddings": true,
  "attention_bias": false,
  "mlp_bias": false,
  "bos_token_id": %d,
  "eos_token_id": %d,
  "pad_token_id": %d,
  "torch_dtype": "float32"
}
`

// JSON is the model's config.json.
func (m Model) JSON() string {
	if m.Hidden == 0 {
		m.Hidden = 64
	}
	if m.Vocab == 0 {
		m.Vocab = 300
	}
	if m.Layers == 0 {
		m.Layers = 2
	}
	if m.MLP == 0 {
		m.MLP = 96
	}
	return fmt.Sprintf(description, m.Hidden, m.MLP, m.Layers, m.Vocab, idStart, idEnd, idText)
}

// Config is the model's configuration.
func (m Model) Config() config.Config {
	c, _, err := config.Parse([]byte(m.JSON()))
	if err != nil {
		panic(err) // the text above
	}
	return c
}

// Write writes the model as a Hugging Face folder of fp32 weights, and its tokenizer.
func (m Model) Write(t testing.TB, dir string) {
	t.Helper()
	side := map[string][]byte{
		"tokenizer.json": Tokenizer(), "tokenizer_config.json": []byte(tokenizerConfig), "chat_template.jinja": []byte(chat.ChatML),
	}
	if err := hf.Export(dir, Weights{m}, hf.Options{DType: hf.F32, SideFiles: side}); err != nil {
		t.Fatal(err)
	}
}

// Weights are the model's weights.
type Weights struct{ Model Model }

// Config implements [config.Weights].
func (w Weights) Config() config.Config { return w.Model.Config() }

// Close implements [config.Weights].
func (w Weights) Close() error { return nil }

// Shape implements [config.Weights].
func (w Weights) Shape(name string) []int64 {
	for _, x := range w.Config().Tensors() {
		if x.Name == name {
			return x.Shape()
		}
	}
	return nil
}

// ReadRange implements [config.Weights]: norms near 1, the rest normal with a
// deviation that a trained model might have.
func (w Weights) ReadRange(name string, elemOff int64, dst []float32) error {
	shape := w.Shape(name)
	if shape == nil {
		return fmt.Errorf("the tiny model has no tensor %q", name)
	}
	h := fnv.New64a()
	h.Write([]byte(name))
	var rng *rand.Rand
	const block = 512 // that one generator draws
	for at := elemOff - elemOff%block; at < elemOff+int64(len(dst)); at++ {
		if at%block == 0 {
			rng = rand.New(rand.NewPCG(h.Sum64()+w.Model.Seed, uint64(at)))
		}
		x := float32(rng.NormFloat64()) * 0.08
		if len(shape) == 1 {
			x++
		}
		if at >= elemOff {
			dst[at-elemOff] = x
		}
	}
	return nil
}

// merges of the tokenizer, best first. The tokens that they make follow the bytes.
var merges = []string{
	"e r", "u s", "us er", "a s", "s i", "as si", "s t", "assi st", "a n", "an t", "assist ant",
	"- e", "- t", "- a", "- o", "- i", "- n", "- s", "- r",
}

// Ids of the special tokens, behind the bytes and what the merges make.
var (
	idText  = int32(256 + len(merges))
	idStart = idText + 1
	idEnd   = idText + 2
)

const tokenizerConfig = `{
  "tokenizer_class": "PreTrainedTokenizerFast",
  "bos_token": "<|im_start|>",
  "eos_token": "<|im_end|>",
  "pad_token": "<|endoftext|>",
  "model_max_length": 64
}
`

// Tokens are the tokenizer's tokens by id.
func Tokens() []string {
	list := byteTokens()
	for _, m := range merges {
		var left, right string
		if n, err := fmt.Sscan(m, &left, &right); n != 2 {
			panic(err) // the table above
		}
		list = append(list, left+right)
	}
	return append(list, "<|endoftext|>", "<|im_start|>", "<|im_end|>")
}

// byteTokens spells each byte as byte-level vocabularies do: printable Latin-1 as
// itself, the others as the characters from U+0100 on.
func byteTokens() []string {
	list := make([]string, 256)
	next := rune(0x100)
	for b := range list {
		if b >= '!' && b <= '~' || b >= 0xA1 && b <= 0xAC || b >= 0xAE {
			list[b] = string(rune(b))
			continue
		}
		list[b] = string(next)
		next++
	}
	return list
}

// Tokenizer is the tokenizer.json.
func Tokenizer() []byte {
	type object = map[string]any
	vocab, added := map[string]int{}, []object{}
	for id, token := range Tokens() {
		if int32(id) < idText {
			vocab[token] = id
			continue
		}
		added = append(added, object{"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
	}
	level := object{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}
	text, err := json.MarshalIndent(object{
		"version": "1.0", "truncation": nil, "padding": nil, "added_tokens": added, "normalizer": nil,
		"pre_tokenizer": level, "post_processor": nil, "decoder": level,
		"model": object{"type": "BPE", "dropout": nil, "unk_token": nil, "continuing_subword_prefix": nil, "end_of_word_suffix": nil,
			"fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": merges},
	}, "", " ")
	if err != nil {
		panic(err) // maps of strings and numbers
	}
	return text
}
