package worker

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/skein-ml/skein/model/config"
	"github.com/skein-ml/skein/model/gguf"
	"github.com/skein-ml/skein/model/hf"
	"github.com/skein-ml/skein/model/weights"
	"github.com/skein-ml/skein/tokenizer"
)

// modelConfig is what a model is.
type modelConfig = config.Config

// Base is an opened model with what belongs to it.
type Base struct {
	weights.Model
	Notices  []string
	Side     map[string][]byte // tokenizer and generation files that an export carries on
	Template string            // chat template, "" if there is none
	path     string
}

// OpenBase opens a Hugging Face folder or a GGUF file. Of a GGUF file the tokenizer is
// rebuilt as a tokenizer.json.
func OpenBase(path string) (*Base, error) {
	m, err := weights.Open(path)
	if err != nil {
		return nil, err
	}
	b := &Base{Model: m, path: path, Notices: m.Notices()}
	switch m := m.(type) {
	case *hf.Folder:
		b.Side = m.SideFiles()
		b.Template, err = m.ChatTemplate()
	case *gguf.File:
		err = b.fromGGUF(m)
	}
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return b, nil
}

// fromGGUF makes the files that a Hugging Face folder of this model would have.
func (b *Base) fromGGUF(f *gguf.File) error {
	v, err := f.Vocabulary()
	if err != nil {
		return err
	}
	file, err := tokenizer.FromGGUF(tokenizer.GGUFVocab{
		Model: v.Model, Pre: v.Pre, Tokens: v.Tokens, Types: v.Types, Merges: v.Merges,
		BOS: v.BOS, EOS: v.EOS, Pad: v.Pad, Unk: v.Unk, AddBOS: &v.AddBOS,
	})
	if err != nil {
		return fmt.Errorf("model %s: %w", b.path, err)
	}
	settings := map[string]any{
		"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false,
		"model_max_length": f.Config().MaxPositions,
	}
	for key, id := range map[string]int32{"bos_token": v.BOS, "eos_token": v.EOS, "pad_token": v.Pad, "unk_token": v.Unk} {
		if id >= 0 && int(id) < len(v.Tokens) {
			settings[key] = v.Tokens[id]
		}
	}
	b.Side = map[string][]byte{"tokenizer.json": file}
	if v.ChatTemplate != "" {
		b.Template = v.ChatTemplate
		b.Side["chat_template.jinja"] = []byte(v.ChatTemplate)
		settings["chat_template"] = v.ChatTemplate // for readers before transformers 4.50
	}
	if b.Side["tokenizer_config.json"], err = json.MarshalIndent(settings, "", "  "); err != nil {
		return fmt.Errorf("model %s: %w", b.path, err)
	}
	return nil
}

// special are the texts of the special tokens that templates use by name.
func (b *Base) special() (map[string]string, error) {
	out := map[string]string{}
	raw, ok := b.Side["tokenizer_config.json"]
	if !ok {
		return out, nil
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(raw, &keys); err != nil {
		return nil, fmt.Errorf("model %s: tokenizer_config.json: %w", b.path, err)
	}
	for _, name := range []string{"bos_token", "eos_token", "pad_token", "unk_token"} {
		var text string
		var token struct{ Content string }
		switch value := keys[name]; {
		case value == nil:
		case json.Unmarshal(value, &text) == nil:
			out[name] = text
		case json.Unmarshal(value, &token) == nil:
			out[name] = token.Content
		}
	}
	return out, nil
}
