package tokenizer

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// file is a tokenizer.json as it is written.
type file struct {
	Version       string       `json:"version"`
	Truncation    any          `json:"truncation"`
	Padding       any          `json:"padding"`
	AddedTokens   []addedToken `json:"added_tokens"`
	Normalizer    any          `json:"normalizer"`
	PreTokenizer  any          `json:"pre_tokenizer"`
	PostProcessor any          `json:"post_processor"`
	Decoder       any          `json:"decoder"`
	Model         fileModel    `json:"model"`
}

type fileModel struct {
	Type         string          `json:"type"`
	Dropout      any             `json:"dropout"`
	UnkToken     any             `json:"unk_token"`
	Prefix       any             `json:"continuing_subword_prefix"`
	Suffix       any             `json:"end_of_word_suffix"`
	FuseUnk      bool            `json:"fuse_unk"`
	ByteFallback bool            `json:"byte_fallback"`
	IgnoreMerges bool            `json:"ignore_merges"`
	Vocab        json.RawMessage `json:"vocab"`
	Merges       []string        `json:"merges"`
}

type fileByteLevel struct {
	Type           string `json:"type"`
	AddPrefixSpace bool   `json:"add_prefix_space"`
	TrimOffsets    bool   `json:"trim_offsets"`
	UseRegex       bool   `json:"use_regex"`
}

type fileSplit struct {
	Type     string            `json:"type"`
	Pattern  map[string]string `json:"pattern"`
	Behavior string            `json:"behavior"`
	Invert   bool              `json:"invert"`
}

type fileDigits struct {
	Type             string `json:"type"`
	IndividualDigits bool   `json:"individual_digits"`
}

type fileSequence struct {
	Type          string `json:"type"`
	PreTokenizers []any  `json:"pretokenizers,omitempty"`
	Processors    []any  `json:"processors,omitempty"`
}

func newFile() file {
	return file{
		Version:       "1.0",
		AddedTokens:   []addedToken{},
		PostProcessor: fileByteLevel{Type: "ByteLevel", AddPrefixSpace: true, UseRegex: true},
		Decoder:       fileByteLevel{Type: "ByteLevel", AddPrefixSpace: true, TrimOffsets: true, UseRegex: true},
		Model:         fileModel{Type: "BPE", Merges: []string{}},
	}
}

// bytes returns the file as JSON, after Load has accepted it.
func (f file) bytes() ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(f); err != nil {
		return nil, err
	}
	if _, err := Load(out.Bytes()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

type vocabEntry struct {
	token string
	id    int32
}

// vocabJSON returns the vocabulary object, ordered by id.
func vocabJSON(entries []vocabEntry) (json.RawMessage, error) {
	slices.SortFunc(entries, func(a, b vocabEntry) int { return cmp.Compare(a.id, b.id) })
	out := []byte{'{'}
	for i, e := range entries {
		if i > 0 {
			out = append(out, ',')
		}
		text, err := json.Marshal(e.token)
		if err != nil {
			return nil, err
		}
		out = fmt.Appendf(append(out, text...), ":%d", e.id)
	}
	return append(out, '}'), nil
}

const endOfText = "<|endoftext|>"

// FromGPT2 returns the tokenizer.json of a GPT-2 kind of tokenizer from the pair of files it was first published as:
// encoder.json (or vocab.json), tokens to ids, and vocab.bpe (or merges.txt), one merge a line.
func FromGPT2(encoderJSON, vocabBPE []byte) ([]byte, error) {
	if err := checkText(encoderJSON); err != nil {
		return nil, fmt.Errorf("encoder.json: %w", err)
	}
	if !json.Valid(encoderJSON) {
		return nil, errors.New("encoder.json is not JSON")
	}
	f := newFile()
	var entries []vocabEntry
	end := vocabEntry{id: unknown}
	err := eachVocab(encoderJSON, func(token []byte, id int32) error {
		if string(token) == endOfText {
			end = vocabEntry{endOfText, id}
			return nil
		}
		entries = append(entries, vocabEntry{string(token), id})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("encoder.json: %w", err)
	}
	if end.id != unknown {
		if int(end.id) != len(entries) { // it stands among the others
			entries = append(entries, end)
		}
		f.AddedTokens = append(f.AddedTokens, addedToken{ID: end.id, Content: endOfText, Special: true})
	}
	for line := range strings.Lines(string(vocabBPE)) {
		line = strings.TrimRight(line, "\r\n")
		if line != "" && !strings.HasPrefix(line, "#version") {
			f.Model.Merges = append(f.Model.Merges, line)
		}
	}
	f.PreTokenizer = fileByteLevel{Type: "ByteLevel", TrimOffsets: true, UseRegex: true}
	if f.Model.Vocab, err = vocabJSON(entries); err != nil {
		return nil, err
	}
	return f.bytes()
}

// GGUFVocab is the vocabulary of a GGUF file: the values of its tokenizer.ggml.* keys. An id that the file lacks is -1.
type GGUFVocab struct {
	Model              string // "gpt2": byte-level BPE
	Pre                string // name of the pre-tokenizer
	Tokens             []string
	Types              []int32 // of every token: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte
	Merges             []string
	BOS, EOS, Pad, Unk int32
	AddBOS             *bool // nil where the file does not say
}

// Kinds of token in a GGUF file.
const (
	ggufNormal  = 1
	ggufControl = 3
	ggufUser    = 4
	ggufUnused  = 5
)

// ggufPre is what the name of a pre-tokenizer in a GGUF file means: the file holds no more than the name.
type ggufPre struct {
	steps        []any
	nfc          bool
	ignoreMerges bool
	addsBOS      bool // unless the file says otherwise
}

func splitSteps(pattern string) []any {
	return []any{
		fileSplit{"Split", map[string]string{"Regex": pattern}, "Isolated", false},
		fileByteLevel{Type: "ByteLevel"},
	}
}

var ggufPres = map[string]ggufPre{
	"gpt-2":     {steps: []any{fileByteLevel{Type: "ByteLevel", TrimOffsets: true, UseRegex: true}}},
	"smollm":    {steps: []any{fileDigits{"Digits", true}, fileByteLevel{Type: "ByteLevel", TrimOffsets: true, UseRegex: true}}},
	"llama-bpe": {steps: splitSteps(patternLlama), ignoreMerges: true, addsBOS: true},
	"qwen2":     {steps: splitSteps(patternQwen), nfc: true},
}

// FromGGUF returns the tokenizer.json, as Hugging Face's library reads it, of the tokenizer in a GGUF file.
func FromGGUF(v GGUFVocab) ([]byte, error) {
	if v.Model != "gpt2" {
		return nil, fmt.Errorf("the GGUF file's tokenizer is of the kind %q; only byte-level BPE (\"gpt2\") can be read", v.Model)
	}
	pre, ok := ggufPres[v.Pre]
	if !ok {
		return nil, fmt.Errorf("the GGUF file's pre-tokenizer %q is not known; gpt-2, smollm, llama-bpe and qwen2 are", v.Pre)
	}
	if len(v.Types) != len(v.Tokens) {
		return nil, fmt.Errorf("the GGUF file has %d tokens but %d token types", len(v.Tokens), len(v.Types))
	}
	f := newFile()
	if pre.nfc {
		f.Normalizer = map[string]string{"type": "NFC"}
	}
	f.PreTokenizer = pre.steps[0]
	if len(pre.steps) > 1 {
		f.PreTokenizer = fileSequence{Type: "Sequence", PreTokenizers: pre.steps}
	}
	f.Model.IgnoreMerges = pre.ignoreMerges
	f.Model.Merges = append(f.Model.Merges, v.Merges...)
	addBOS := pre.addsBOS
	if v.AddBOS != nil {
		addBOS = *v.AddBOS
	}
	if addBOS {
		if v.BOS < 0 || int(v.BOS) >= len(v.Tokens) {
			return nil, fmt.Errorf("the GGUF file wants a first token on every text, but its id %d is none", v.BOS)
		}
		f.PostProcessor = bosProcessor(f.PostProcessor, v.Tokens[v.BOS], v.BOS)
	}
	if err := f.addGGUFTokens(v); err != nil {
		return nil, err
	}
	return f.bytes()
}

// addGGUFTokens fills vocabulary and added tokens. Added tokens at the end of the ids are left out of the model's
// vocabulary, as the library does with tokens that were added after training.
func (f *file) addGGUFTokens(v GGUFVocab) error {
	used := len(v.Tokens)
	for used > 0 && v.Types[used-1] == ggufUnused { // filling behind the last token
		used--
	}
	trained := used
	for trained > 0 && v.Types[trained-1] != ggufNormal {
		trained--
	}
	var entries []vocabEntry
	for id, kind := range v.Types[:used] {
		e := vocabEntry{v.Tokens[id], int32(id)}
		switch kind {
		case ggufNormal:
		case ggufControl, ggufUser:
			f.AddedTokens = append(f.AddedTokens, addedToken{ID: e.id, Content: e.token, Special: kind == ggufControl})
		default:
			return fmt.Errorf("token %d (%q) of the GGUF file is of type %d; normal (1), control (3) and user defined (4) can be read", id, e.token, kind)
		}
		if id < trained {
			entries = append(entries, e)
		}
	}
	vocab, err := vocabJSON(entries)
	f.Model.Vocab = vocab
	return err
}

// bosProcessor puts the token before every text.
func bosProcessor(byteLevel any, token string, id int32) any {
	special := func(segment int) any {
		return map[string]any{"SpecialToken": map[string]any{"id": token, "type_id": segment}}
	}
	text := func(name string, segment int) any {
		return map[string]any{"Sequence": map[string]any{"id": name, "type_id": segment}}
	}
	return fileSequence{Type: "Sequence", Processors: []any{byteLevel, map[string]any{
		"type":   "TemplateProcessing",
		"single": []any{special(0), text("A", 0)},
		"pair":   []any{special(0), text("A", 0), special(1), text("B", 1)},
		"special_tokens": map[string]any{
			token: map[string]any{"id": token, "ids": []int32{id}, "tokens": []string{token}},
		},
	}}}
}
