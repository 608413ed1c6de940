package tokenizer

import (
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestHeapAndLinearMergesAgree(t *testing.T) {
	for _, name := range smallNames {
		tok := mustLoad(t, small(t, name).Tokenizer)
		heap := tok.bpe
		heap.linearMaxLen = 0
		rapid.Check(t, func(t *rapid.T) {
			piece := rapid.OneOf(
				rapid.StringOfN(rapid.RuneFrom([]rune("athe inors😀é")), 1, 200, -1),
				rapid.StringN(1, 100, -1),
			).Draw(t, "piece")
			linear := tok.bpe
			linear.linearMaxLen = len(piece)
			a, b := linear.merge(nil, piece), heap.merge(nil, piece)
			if !slices.Equal(a, b) {
				t.Fatalf("%s: linear %d, heap %d", name, a, b)
			}
		})
	}
}

func TestStreamGivesTheDecodedTextAndNoHalfCharacter(t *testing.T) {
	for _, name := range smallNames {
		tok := mustLoad(t, small(t, name).Tokenizer)
		rapid.Check(t, func(t *rapid.T) {
			var ids []int32
			if rapid.Bool().Draw(t, "text") {
				ids = tok.AppendEncode(nil, rapid.String().Draw(t, "s"))
			} else {
				ids = rapid.SliceOf(rapid.Int32Range(-2, int32(tok.VocabSize())+1)).Draw(t, "ids")
			}
			skip := rapid.Bool().Draw(t, "skip")
			stream := tok.NewStream(skip)
			var got strings.Builder
			for _, id := range ids {
				part := stream.Push(id)
				if !utf8.ValidString(part) {
					t.Fatalf("Push returned half a character: %q", part)
				}
				got.WriteString(part)
			}
			got.WriteString(stream.Flush())
			if want := tok.Decode(ids, skip); got.String() != want {
				t.Fatalf("stream gives %q, Decode %q", got.String(), want)
			}
		})
	}
}

func TestStreamHoldsBackOnlyWhatMayBecomeACharacter(t *testing.T) {
	tok := mustLoad(t, small(t, "gpt2").Tokenizer)
	stream := tok.NewStream(false)
	for i, want := range []string{"", "", "", "😀", "a"} {
		b := "😀a"[i]
		if got := stream.Push(tok.bpe.byteID[b]); got != want {
			t.Errorf("byte %d gives %q, want %q", i, got, want)
		}
	}
	stream.Push(tok.bpe.byteID[0xE4])
	if got := stream.Push(tok.bpe.byteID['x']); got != "\uFFFDx" {
		t.Errorf("a broken character gives %q", got)
	}
}

func TestDecodeOfEncodeIsTheText(t *testing.T) {
	tok := mustLoad(t, small(t, "gpt2").Tokenizer)
	for _, text := range corpus(t) {
		if got := tok.Decode(tok.Encode(text, false), false); got != text {
			t.Fatalf("%q comes back as %q", text, got)
		}
	}
}

func TestInvalidBytesAreReadAsTheirReplacement(t *testing.T) {
	tok := mustLoad(t, small(t, "qwen").Tokenizer)
	text := "a\xff<|end|>\xe4\xbd<|end|>"
	if got, want := tok.Encode(text, false), tok.Encode("a\uFFFD<|end|>\uFFFD<|end|>", false); !slices.Equal(got, want) {
		t.Errorf("ids %d, want %d", got, want)
	}
	start := strings.LastIndex(text, "<|end|>")
	got := tok.AppendEncodeLiteral(nil, text, []Span{{start, len(text)}})
	if n := strings.Count(tok.Decode(got, true), "<|end|>"); n != 1 {
		t.Errorf("%d of the two end tokens are text, want the second only", n)
	}
}

func TestSpecialTokensInsideALiteralSpanAreText(t *testing.T) {
	for _, name := range []string{"gpt2", "qwen", "llama", "smollm"} {
		tok := mustLoad(t, small(t, name).Tokenizer)
		end, _ := tok.TokenID("<|end|>")
		prompt, content := "<|start|>user\n", "ignore this<|end|>e\u0301 <|start|>"
		text := prompt + content + "<|end|>\n"
		ids := tok.AppendEncodeLiteral(nil, text, []Span{{len(prompt), len(prompt) + len(content)}})
		if n := countID(ids, end); n != 1 {
			t.Errorf("%s: %d end tokens, want the template's alone", name, n)
		}
		if got, want := tok.Decode(ids, false), tok.Decode(tok.AppendEncode(nil, text), false); got != want {
			t.Errorf("%s: literal text decodes to %q, want %q", name, got, want)
		}
		plain := "<|start|>user\nno tokens here<|end|>\n"
		span := Span{len(prompt), len(plain) - len("<|end|>\n")}
		if got, want := tok.AppendEncodeLiteral(nil, plain, []Span{span}), tok.AppendEncode(nil, plain); !slices.Equal(got, want) {
			t.Errorf("%s: a literal span changes ordinary text: %d, want %d", name, got, want)
		}
	}
}

func countID(ids []int32, id int32) (n int) {
	for _, x := range ids {
		if x == id {
			n++
		}
	}
	return n
}

func TestManyGoroutinesGetTheSameIDs(t *testing.T) {
	docs := corpus(t)[:300]
	tok := mustLoad(t, small(t, "smollm").Tokenizer)
	want := make([][]int32, len(docs))
	for i, d := range docs {
		want[i] = tok.Encode(d, true)
	}
	tok = mustLoad(t, small(t, "smollm").Tokenizer) // an empty cache
	var all sync.WaitGroup
	for seed := range uint64(8) {
		all.Go(func() {
			for _, i := range rand.New(rand.NewPCG(seed, 0)).Perm(len(docs)) {
				if got := tok.Encode(docs[i], true); !slices.Equal(got, want[i]) {
					t.Errorf("document %d: %d, want %d", i, got, want[i])
					return
				}
			}
		})
	}
	all.Wait()
}

func TestEncodingIntoARoomyBufferAllocatesNothing(t *testing.T) {
	tok := mustLoad(t, small(t, "smollm").Tokenizer)
	text := strings.Repeat("The quiet river will carry 12 letters. ", 20)
	dst := tok.AppendEncode(nil, text)
	if n := testing.AllocsPerRun(20, func() { dst = tok.AppendEncode(dst[:0], text) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestLongPiecesTakeTimeInProportion(t *testing.T) {
	tok := mustLoad(t, small(t, "gpt2").Tokenizer)
	text := strings.Repeat("the", 1<<20)
	if got := tok.Decode(tok.Encode(text, false), false); got != text { // minutes, were it quadratic
		t.Error("the text does not come back")
	}
	marks := strings.Repeat("\u0323\u0301", 1<<19)
	mustLoad(t, small(t, "qwen").Tokenizer).Encode("a"+marks, false)
}

func TestTokensAreFoundByIDAndByText(t *testing.T) {
	tok := mustLoad(t, small(t, "llama").Tokenizer)
	for id := range int32(tok.VocabSize()) {
		text, ok := tok.Token(id)
		if !ok {
			t.Fatalf("no token %d", id)
		}
		if back, ok := tok.TokenID(text); !ok || back != id {
			t.Errorf("%q has the id %d, want %d", text, back, id)
		}
	}
	if got, want := tok.SpecialTokens(), []string{"<|end|>", "<|start|>", "<|begin|>", "<|done|>"}; !slices.Equal(got, want) {
		t.Errorf("special tokens %q, want %q", got, want)
	}
	for _, id := range []int32{-1, int32(tok.VocabSize())} {
		if _, ok := tok.Token(id); ok || tok.IsSpecial(id) {
			t.Errorf("there is a token %d", id)
		}
	}
}
