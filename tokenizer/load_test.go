package tokenizer

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// changed returns the small GPT-2 tokenizer with the values at the paths ("model.dropout") replaced.
func changed(t testing.TB, changes map[string]any) []byte {
	t.Helper()
	var file map[string]any
	if err := json.Unmarshal(small(t, "gpt2").Tokenizer, &file); err != nil {
		t.Fatal(err)
	}
	for path, value := range changes {
		at := file
		keys := strings.Split(path, ".")
		for _, key := range keys[:len(keys)-1] {
			at = at[key].(map[string]any)
		}
		at[keys[len(keys)-1]] = value
	}
	data, err := json.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

type m = map[string]any

func TestLoadRefusesByNameWhatItCannotReproduce(t *testing.T) {
	byteLevel := m{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}
	split := func(pattern m, behavior string, invert bool) m {
		return m{"type": "Sequence", "pretokenizers": []any{m{"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}, byteLevel}}
	}
	for name, c := range map[string]struct {
		path  string
		value any
		part  string
		names string
	}{
		"another version":        {"version", "2.0", "version", "2.0"},
		"truncation":             {"truncation", m{"max_length": 5}, "truncation", "null"},
		"padding":                {"padding", m{"pad_id": 5}, "padding", "null"},
		"lower case":             {"normalizer", m{"type": "Lowercase"}, "normalizer", "Lowercase"},
		"one of two normalizers": {"normalizer", m{"type": "Sequence", "normalizers": []any{m{"type": "NFC"}, m{"type": "NFKC"}}}, "normalizer", "NFKC"},
		"whitespace words":       {"pre_tokenizer", m{"type": "Whitespace"}, "pre_tokenizer", "Whitespace"},
		"no pre-tokenizer":       {"pre_tokenizer", nil, "pre_tokenizer", "ByteLevel"},
		"digits alone":           {"pre_tokenizer", m{"type": "Digits", "individual_digits": true}, "pre_tokenizer", "ByteLevel"},
		"a prefix space":         {"pre_tokenizer", m{"type": "ByteLevel", "add_prefix_space": true}, "pre_tokenizer", "add_prefix_space"},
		"steps behind bytes":     {"pre_tokenizer", m{"type": "Sequence", "pretokenizers": []any{byteLevel, m{"type": "Digits"}}}, "pre_tokenizer", "behind ByteLevel"},
		"an unknown pattern":     {"pre_tokenizer", split(m{"Regex": `\w+`}, "Isolated", false), "pre_tokenizer", `\\w+`},
		"a string pattern":       {"pre_tokenizer", split(m{"String": patternQwen}, "Isolated", false), "pre_tokenizer", "String"},
		"removing matches":       {"pre_tokenizer", split(m{"Regex": patternQwen}, "Removed", false), "pre_tokenizer", "Removed"},
		"inverted matches":       {"pre_tokenizer", split(m{"Regex": patternQwen}, "Isolated", true), "pre_tokenizer", "invert"},
		"a WordPiece decoder":    {"decoder", m{"type": "WordPiece"}, "decoder", "WordPiece"},
		"no decoder":             {"decoder", nil, "decoder", "ByteLevel"},
		"a Roberta processor":    {"post_processor", m{"type": "RobertaProcessing"}, "post_processor", "RobertaProcessing"},
		"a unigram model":        {"model.type", "Unigram", "model", "Unigram"},
		"dropout":                {"model.dropout", 0.1, "model", "dropout"},
		"a word suffix":          {"model.end_of_word_suffix", "</w>", "model", "end_of_word_suffix"},
		"a subword prefix":       {"model.continuing_subword_prefix", "##", "model", "continuing_subword_prefix"},
		"byte fallback":          {"model.byte_fallback", true, "model", "byte_fallback"},
		"a template without text": {"post_processor", m{"type": "TemplateProcessing", "single": []any{}, "pair": []any{}, "special_tokens": m{}},
			"post_processor", "0 times"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(changed(t, m{c.path: c.value}))
			var refused *UnsupportedError
			if !errors.As(err, &refused) || refused.Part != c.part || !strings.Contains(err.Error(), c.names) {
				t.Errorf("got the error %v, want a refusal of %s that names %q", err, c.part, c.names)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("the error has more than one line: %q", err)
			}
		})
	}
}

func TestLoadRefusesDamagedFiles(t *testing.T) {
	good := string(changed(t, nil))
	added := func(a ...any) []byte { return changed(t, m{"added_tokens": a}) }
	token := func(id int, content string) m { return m{"id": id, "content": content} }
	for name, c := range map[string]struct {
		data  []byte
		names string
	}{
		"nothing":                              {nil, "EOF"},
		"half a file":                          {[]byte(good[:len(good)/2]), "unexpected"},
		"two files":                            {[]byte(good + good), "more follows"},
		"a list":                               {[]byte("[]"), "object"},
		"bytes that are no text":               {[]byte(strings.Replace(good, "version", "versi\xFFn", 1)), "UTF-8"},
		"half a code point":                    {[]byte(strings.Replace(good, `"version"`, `"\ud83d"`, 1)), "code point"},
		"an unknown key":                       {changed(t, m{"sampler": 1}), `"sampler"`},
		"an unknown model key":                 {changed(t, m{"model.beams": 1}), `"beams"`},
		"a key twice":                          {[]byte(strings.Replace(good, `"version":`, `"version":"1.0","version":`, 1)), "twice"},
		"a key in another case":                {[]byte(strings.Replace(good, `"version":`, `"Version":`, 1)), `"Version"`},
		"no vocabulary":                        {changed(t, m{"model.vocab": nil}), "vocab"},
		"a token twice":                        {[]byte(strings.Replace(good, `"vocab":{`, `"vocab":{"a":0,"a":1,`, 1)), "twice"},
		"an id twice":                          {[]byte(strings.Replace(good, `"vocab":{`, `"vocab":{"never seen":5,`, 1)), "twice"},
		"a huge id":                            {[]byte(strings.Replace(good, `"vocab":{`, `"vocab":{"never seen":2000000000,`, 1)), "ids up to"},
		"an id beyond 32 bits":                 {[]byte(strings.Replace(good, `"vocab":{`, `"vocab":{"never seen":4294967296,`, 1)), "token id"},
		"half an id":                           {[]byte(strings.Replace(good, `"vocab":{`, `"vocab":{"never seen":1.5,`, 1)), "token id"},
		"a merge of strangers":                 {changed(t, m{"model.merges": []any{[]any{"never", "seen"}}}), "not in the vocabulary"},
		"a merge of one":                       {changed(t, m{"model.merges": []any{"alone"}}), "two tokens"},
		"a merge of three":                     {changed(t, m{"model.merges": []any{[]any{"a", "b", "c"}}}), "two strings"},
		"two kinds of merges":                  {changed(t, m{"model.merges": []any{"t h", []any{"t", "h"}}}), "some are strings"},
		"merges as an object":                  {changed(t, m{"model.merges": m{}}), "array"},
		"an added token with an id of its own": {added(token(705, "<new>")), "700"},
		"an added token without text":          {added(token(700, "")), "empty"},
		"an added token without an id":         {added(m{"content": "<new>"}), "without an id"},
		"an added token twice":                 {added(token(700, "<new>"), token(701, "<new>")), "twice"},
		"an unk token that is none":            {changed(t, m{"model.unk_token": "<none>", "model.vocab": m{"a": 0}, "model.merges": []any{}, "added_tokens": []any{}}), "<none>"},
	} {
		t.Run(name, func(t *testing.T) {
			tok, err := Load(c.data)
			if err == nil || tok != nil || !strings.Contains(err.Error(), c.names) {
				t.Errorf("got %v, want an error with %q", err, c.names)
			}
		})
	}
}

func TestASpecialTokenThatNormalizationChangesIsRefused(t *testing.T) {
	_, err := Load(changed(t, m{
		"normalizer":   m{"type": "NFC"},
		"added_tokens": []any{m{"id": 700, "content": "A\u030a>", "normalized": true, "special": true}},
	}))
	var refused *UnsupportedError
	if !errors.As(err, &refused) || refused.Part != "added_tokens" {
		t.Errorf("got %v", err)
	}
}

func TestMergesMayBeStringsOrPairs(t *testing.T) {
	var file m
	if err := json.Unmarshal(small(t, "gpt2").Tokenizer, &file); err != nil {
		t.Fatal(err)
	}
	var lines []any
	for _, pair := range file["model"].(m)["merges"].([]any) {
		p := pair.([]any)
		lines = append(lines, p[0].(string)+" "+p[1].(string))
	}
	s := small(t, "gpt2")
	tok := mustLoad(t, changed(t, m{"model.merges": append([]any{"#version: 0.2"}, lines...)}))
	checkAnswers(t, tok, s.Texts, s.TextAnswers)
}

func TestEscapedVocabularyKeysAreRead(t *testing.T) {
	data := string(changed(t, nil))
	data = strings.Replace(data, `"vocab":{`, `"vocab":{"\u00e9\"\\\ud83d\ude00":700,`, 1)
	tok := mustLoad(t, []byte(data))
	if id, ok := tok.TokenID("é\"\\😀"); !ok || id != 700 {
		t.Errorf("id %d, %v", id, ok)
	}
}
