package gguf

import (
	"fmt"
	"slices"
)

// Vocabulary is a GGUF file's tokenizer as it is stored. Pre names rules that the
// file does not contain; whether they are known is for package tokenizer to say.
type Vocabulary struct {
	Model  string   // "gpt2": byte-level BPE
	Pre    string   // name of the pre-tokenizer
	Tokens []string // by id
	Types  []int32  // by id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
	Merges []string // "a b", best first

	BOS, EOS, Pad, Unk int32 // -1: none
	AddBOS             bool  // text begins with BOS

	ChatTemplate string // "" if there is none
}

// checkVocabulary refuses a file whose tokens outnumber the embedding's rows.
func (f *File) checkVocabulary() error {
	if tokens, ok := f.header.meta["tokenizer.ggml.tokens"].([]string); ok && len(tokens) > f.config.Vocab {
		return fmt.Errorf("the vocabulary has %d tokens, but the embedding has only %d rows", len(tokens), f.config.Vocab)
	}
	return nil
}

// Vocabulary returns the file's tokenizer.
func (f *File) Vocabulary() (Vocabulary, error) {
	v, err := f.vocabulary()
	if err != nil {
		return Vocabulary{}, fmt.Errorf("model %s: %w", f.path, err)
	}
	return v, nil
}

func (f *File) vocabulary() (v Vocabulary, err error) {
	const prefix = "tokenizer.ggml."
	m := &metadata{values: f.header.meta, read: map[string]bool{}}
	v.Model, v.Pre = m.text(prefix+"model", ""), m.text(prefix+"pre", "")
	v.ChatTemplate = m.text("tokenizer.chat_template", "")
	if v.Tokens = m.texts(prefix + "tokens"); m.err == nil && len(v.Tokens) == 0 {
		m.fail("metadata %stokens is missing; the file has no tokenizer", prefix)
	}
	v.Merges = m.texts(prefix + "merges")
	if v.Types = m.integers(prefix + "token_type"); v.Types == nil {
		v.Types = slices.Repeat([]int32{1}, len(v.Tokens))
	}
	if len(v.Types) != len(v.Tokens) {
		m.fail("metadata %stoken_type has %d entries for %d tokens", prefix, len(v.Types), len(v.Tokens))
	}
	id := func(name string) int32 {
		n := m.integer(prefix+name+"_token_id", -1)
		if n < -1 || n >= len(v.Tokens) {
			m.fail("metadata %s%s_token_id is %d, outside the vocabulary of %d tokens", prefix, name, n, len(v.Tokens))
		}
		return int32(n)
	}
	v.BOS, v.EOS, v.Pad, v.Unk = id("bos"), id("eos"), id("padding"), id("unknown")
	// Without the key, llama.cpp goes by the rules' name.
	v.AddBOS = m.boolean(prefix+"add_bos_token", v.Pre == "llama-bpe" || v.Pre == "llama3" || v.Pre == "llama-v3")
	return v, m.err
}

// texts reads an array of strings, nil if it is absent.
func (m *metadata) texts(key string) []string {
	v, ok := m.get(key)
	if !ok {
		return nil
	}
	list, ok := v.([]string)
	if !ok {
		m.fail("metadata %s must be a list of strings", key)
	}
	return list
}

// integers reads an array of whole numbers, nil if it is absent.
func (m *metadata) integers(key string) []int32 {
	v, ok := m.get(key)
	if !ok {
		return nil
	}
	list, ok := v.(numbers)
	if !ok || (list.kind != typeI32 && list.kind != typeU32) {
		m.fail("metadata %s must be a list of 32-bit numbers", key)
		return nil
	}
	out := make([]int32, list.len())
	for i := range out {
		switch n := list.at(i).(type) {
		case int64:
			out[i] = int32(n)
		case uint64:
			out[i] = int32(uint32(n))
		}
	}
	return out
}

// Text returns a string of the file's metadata, such as "general.name".
func (f *File) Text(key string) (string, bool) {
	s, ok := f.header.meta[key].(string)
	return s, ok
}
