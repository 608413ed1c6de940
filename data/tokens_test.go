package data

import (
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/skein-ml/skein/tokenizer"
)

// smallTokenizer loads one of the small vocabularies that package tokenizer is tested with.
func smallTokenizer(t testing.TB, name string) *tokenizer.Tokenizer {
	t.Helper()
	f, err := os.Open("../tokenizer/testdata/small_" + name + ".json.gz")
	must(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	must(t, err)
	b, err := io.ReadAll(z)
	must(t, err)
	var small struct {
		Tokenizer json.RawMessage `json:"tokenizer"`
	}
	must(t, json.Unmarshal(b, &small))
	var text string
	if json.Unmarshal(small.Tokenizer, &text) == nil {
		small.Tokenizer = json.RawMessage(text)
	}
	tok, err := tokenizer.Load(small.Tokenizer)
	must(t, err)
	return tok
}

// Special tokens are never merged with what stands beside them, so what lies between two of them must be marked exactly,
// whatever normalization makes of the text around.
func TestMarksFollowTheTextThroughNormalization(t *testing.T) {
	for _, name := range []string{"smollm", "qwen", "llama", "gpt2"} {
		tok := smallTokenizer(t, name)
		m := newMarker(tok)
		pieces := rapid.StringOfN(rapid.SampledFrom([]rune("ab 1\né́A\u030a你🤖ñ~\u0323!")), 0, 12, -1)
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				var text strings.Builder
				var spans []tokenizer.Span
				want := ""
				for range rapid.IntRange(1, 4).Draw(t, "turns") {
					text.WriteString(pieces.Draw(t, "question") + "<|start|>")
					from := text.Len()
					said := pieces.Draw(t, "answer")
					text.WriteString(said + "<|end|>")
					spans = append(spans, tokenizer.Span{Start: from, End: text.Len()})
					// Some bytes have no token in these vocabularies and are left out, as in the library.
					want += tok.Decode(tok.AppendEncode(nil, said+"<|end|>"), false)
				}
				ids, target := m.encode(text.String(), spans, nil)
				if whole := tok.AppendEncode(nil, text.String()); len(whole) != len(ids) || len(target) != len(ids) {
					t.Fatalf("%d tokens, %d marks, want %d", len(ids), len(target), len(whole))
				}
				var learnt []int32
				for i, id := range ids {
					if target[i] {
						learnt = append(learnt, id)
					}
				}
				if got := tok.Decode(learnt, false); got != want {
					t.Fatalf("%q with %v: learnt is %q, want %q", text.String(), spans, got, want)
				}
			})
		})
	}
}

func TestATokenIsLearntIfItBeginsInside(t *testing.T) {
	tok := smallTokenizer(t, "gpt2")
	m := newMarker(tok)
	const text = "the cat in the house, 2024"
	ids := tok.AppendEncode(nil, text)
	for from := range len(text) + 1 {
		for to := from; to <= len(text); to++ {
			_, target := m.encode(text, []tokenizer.Span{{Start: from, End: to}}, nil)
			at := 0
			for i, id := range ids {
				if want := at >= from && at < to; target[i] != want {
					t.Fatalf("span %d…%d: token %d at byte %d is marked %v", from, to, i, at, target[i])
				}
				at += len(tok.Decode([]int32{id}, false))
			}
		}
	}
}

func TestWhiteSpaceThatAnAddedTokenSwallowsShiftsNoMark(t *testing.T) {
	tok := smallTokenizer(t, "flags") // <l> takes the spaces before it
	m := newMarker(tok)
	const text = "x    <l>abc<|end|>"
	from := strings.Index(text, "abc")
	ids, target := m.encode(text, []tokenizer.Span{{Start: from, End: len(text)}}, nil)
	var learnt []int32
	for i, id := range ids {
		if target[i] {
			learnt = append(learnt, id)
		}
	}
	if got := tok.Decode(learnt, false); got != "abc<|end|>" {
		t.Errorf("learnt is %q", got)
	}
}

func TestSpecialTokensInsideLiteralTextAreText(t *testing.T) {
	tok := smallTokenizer(t, "smollm")
	m := newMarker(tok)
	end, _ := tok.TokenID("<|end|>")
	const text = "a<|end|>b<|end|>"
	ids, target := m.encode(text, []tokenizer.Span{{Start: 8, End: 16}}, []tokenizer.Span{{Start: 0, End: 8}})
	n := 0
	for i, id := range ids {
		if id == end {
			if n++; i != len(ids)-1 || !target[i] {
				t.Errorf("end token at %d of %v", i, ids)
			}
		}
	}
	if n != 1 {
		t.Errorf("%d end tokens in %v", n, ids)
	}
}
