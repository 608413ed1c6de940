package tokenizer

import (
	"slices"
	"testing"
	"unicode/utf8"
)

// FuzzLoad looks for files that make Load panic or take memory out of proportion, and for loaded tokenizers that panic
// or lose text they claim to spell.
func FuzzLoad(f *testing.F) {
	const tiny = `{"version":"1.0","added_tokens":[{"id":3,"content":"<e>","normalized":true,"lstrip":true}],
"normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},
{"type":"ByteLevel","add_prefix_space":false}]},"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":
{"id":"<e>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[],"special_tokens":{"<e>":{"id":"<e>","ids":[3],"tokens":["<e>"]}}},
"decoder":{"type":"ByteLevel"},"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]],"unk_token":"b","fuse_unk":true}}`
	f.Add([]byte(tiny), "ab<e> é1")
	f.Add([]byte(`{"version":"1.0","model":{"type":"BPE","vocab":{"\u0061":0},"merges":["a a"],"ignore_merges":true}}`), "x")
	f.Add([]byte(`{"version":"1.0","pre_tokenizer":{"type":"Split","pattern":{"Regex":"\\s+"},"behavior":"Isolated"}}`), "")
	f.Fuzz(func(t *testing.T, data []byte, text string) {
		tok, err := Load(data)
		if err != nil {
			return
		}
		if tok.VocabSize() > len(data)+2*idSlack {
			t.Fatalf("%d bytes make a vocabulary of %d", len(data), tok.VocabSize())
		}
		ids := tok.Encode(text, true)
		for _, id := range ids {
			if _, ok := tok.Token(id); !ok {
				t.Fatalf("id %d is no token", id)
			}
		}
		if !utf8.ValidString(tok.Decode(ids, false)) {
			t.Fatal("Decode returned what is no text")
		}
		tok.AppendEncodeLiteral(nil, text, []Span{{0, len(text) / 2}})
	})
}

// FuzzEncode compares the two ways to merge, and checks that text comes back, on small vocabularies of every kind.
func FuzzEncode(f *testing.F) {
	toks := map[string]*Tokenizer{}
	for _, name := range smallNames {
		toks[name] = mustLoad(f, small(f, name).Tokenizer)
	}
	for _, s := range []string{"Hello  world\r\n\n 12'LL", "\x00\x7f", "e\u0301\u0323<|end|>  ", "\xff\xe4\xbd", "a\u3000 cat_cat <l> <<l>"} {
		f.Add(s, 2, 5)
	}
	f.Fuzz(func(t *testing.T, text string, from, to int) {
		for name, tok := range toks {
			cold := tok.Encode(text, false)
			if warm := tok.Encode(text, false); !slices.Equal(cold, warm) {
				t.Fatalf("%s: first %d, then %d", name, cold, warm)
			}
			if name == "gpt2" {
				if got, want := tok.Decode(cold, false), lossyUTF8(text); got != want {
					t.Fatalf("%q comes back as %q", want, got)
				}
			}
			if from >= 0 && from <= to && to <= len(text) {
				tok.AppendEncodeLiteral(nil, text, []Span{{from, to}})
			}
		}
	})
}

func FuzzGPT2(f *testing.F) {
	f.Add([]byte(`{"a":0,"b":1,"ab":2,"<|endoftext|>":3}`), []byte("#version: 0.2\na b\n"))
	f.Fuzz(func(t *testing.T, encoder, merges []byte) {
		data, err := FromGPT2(encoder, merges)
		if err != nil {
			return
		}
		if _, err := Load(data); err != nil {
			t.Fatalf("what FromGPT2 wrote is refused: %v", err)
		}
	})
}
