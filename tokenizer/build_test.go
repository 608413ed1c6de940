package tokenizer

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// The library has read these very bytes and given the golden answers: tokenizer_golden.py check.
func TestBuiltTokenizerFilesAreThoseTheLibraryHasRead(t *testing.T) {
	for name, want := range map[string]string{
		"gpt2":    "add6c98133439604fd2163c8a2dbb819d44d159ebf929bf4942d8e6ccac5130f",
		"smollm2": "13f709724baddff096f5d20e6a25dbaa3b09a5eba8cd29849bbff7d0c5cc9cdd",
	} {
		t.Run(name, func(t *testing.T) {
			data, _ := published(t, name)
			if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != want {
				t.Errorf("sha256 %x; check the new file with tokenizer_golden.py and change the hash here", sum)
			}
		})
	}
}

// smallGGUF turns a small vocabulary into what a GGUF file holds.
func smallGGUF(t *testing.T, name, pre string) GGUFVocab {
	t.Helper()
	tok := mustLoad(t, small(t, name).Tokenizer)
	v := GGUFVocab{Model: "gpt2", Pre: pre, BOS: 1, EOS: 0, Pad: 0, Unk: -1}
	for id := range int32(tok.VocabSize()) {
		text, _ := tok.Token(id)
		kind := int32(ggufNormal)
		if tok.IsSpecial(id) {
			kind = ggufControl
		}
		v.Tokens, v.Types = append(v.Tokens, text), append(v.Types, kind)
	}
	var file struct{ Model struct{ Merges [][2]string } }
	if err := json.Unmarshal(small(t, name).Tokenizer, &file); err != nil {
		t.Fatal(err)
	}
	for _, pair := range file.Model.Merges {
		v.Merges = append(v.Merges, pair[0]+" "+pair[1])
	}
	return v
}

func TestGGUFNamesOfPreTokenizersMeanTheKnownOnes(t *testing.T) {
	for pre, name := range map[string]string{"gpt-2": "gpt2", "smollm": "smollm", "llama-bpe": "llama"} {
		s := small(t, name)
		v := smallGGUF(t, name, pre)
		data, err := FromGGUF(v)
		if err != nil {
			t.Fatal(err)
		}
		s.TextAnswers.Samples = nil // the small Llama has an end token, too
		checkAnswers(t, mustLoad(t, data), s.Texts, s.TextAnswers)
	}
	v := smallGGUF(t, "gpt2", "qwen2")
	data, err := FromGGUF(v)
	if err != nil {
		t.Fatal(err)
	}
	if tok := mustLoad(t, data); !slices.Equal(tok.Encode("e\u0301 12", false), tok.Encode("é 12", false)) {
		t.Error("qwen2 does not normalize to NFC")
	}
}

func TestGGUFFirstTokenFollowsTheFileOrTheKind(t *testing.T) {
	yes, no := true, false
	for _, c := range []struct {
		pre  string
		add  *bool
		want bool
	}{{"llama-bpe", nil, true}, {"llama-bpe", &no, false}, {"smollm", nil, false}, {"smollm", &yes, true}} {
		v := smallGGUF(t, "gpt2", c.pre)
		v.AddBOS = c.add
		data, err := FromGGUF(v)
		if err != nil {
			t.Fatal(err)
		}
		ids := mustLoad(t, data).Encode("x", true)
		if got := ids[0] == v.BOS; got != c.want {
			t.Errorf("%s: first token there %v, want %v", c.pre, got, c.want)
		}
	}
}

func TestGGUFUnusedTokensAtTheEndAreLeftOut(t *testing.T) {
	v := smallGGUF(t, "gpt2", "gpt-2")
	n := len(v.Tokens)
	v.Tokens = append(v.Tokens, "<think>", "[PAD1]", "[PAD2]")
	v.Types = append(v.Types, ggufUser, ggufUnused, ggufUnused)
	data, err := FromGGUF(v)
	if err != nil {
		t.Fatal(err)
	}
	tok := mustLoad(t, data)
	if id, ok := tok.TokenID("<think>"); !ok || int(id) != n || tok.IsSpecial(id) || tok.VocabSize() != n+1 {
		t.Errorf("<think> has the id %d of %d", id, tok.VocabSize())
	}
}

func TestGGUFVocabulariesThatCannotBeReadAreRefusedByName(t *testing.T) {
	for name, c := range map[string]struct {
		change func(v *GGUFVocab)
		names  string
	}{
		"SentencePiece":     {func(v *GGUFVocab) { v.Model = "llama" }, `"llama"`},
		"pre-tokenizer":     {func(v *GGUFVocab) { v.Pre = "deepseek-llm" }, `"deepseek-llm"`},
		"missing types":     {func(v *GGUFVocab) { v.Types = v.Types[1:] }, "token types"},
		"a byte token":      {func(v *GGUFVocab) { v.Types[9] = 6 }, "type 6"},
		"an unused token":   {func(v *GGUFVocab) { v.Types[9] = 5 }, "type 5"},
		"a broken merge":    {func(v *GGUFVocab) { v.Merges[3] = "alone" }, "alone"},
		"a token twice":     {func(v *GGUFVocab) { v.Tokens[9] = v.Tokens[8] }, "twice"},
		"a missing BOS":     {func(v *GGUFVocab) { yes := true; v.AddBOS, v.BOS = &yes, 70000 }, "70000"},
		"no tokens at all":  {func(v *GGUFVocab) { *v = GGUFVocab{Model: "gpt2", Pre: "gpt-2", Merges: v.Merges} }, "vocabulary"},
		"text that is none": {func(v *GGUFVocab) { v.Tokens[9] = "\xff\xfe" }, "vocabulary"},
	} {
		t.Run(name, func(t *testing.T) {
			v := smallGGUF(t, "gpt2", "gpt-2")
			c.change(&v)
			if _, err := FromGGUF(v); err == nil || !strings.Contains(err.Error(), c.names) {
				t.Errorf("got %v, want an error with %q", err, c.names)
			}
		})
	}
}

func TestGPT2PairsThatCannotBeReadAreRefused(t *testing.T) {
	for name, c := range map[string]struct{ encoder, merges, names string }{
		"no JSON":           {"{", "", "not JSON"},
		"a list":            {"[]", "", "object"},
		"no numbers":        {`{"a": "b"}`, "", "token id"},
		"strange merges":    {`{"a": 0}`, "#version: 0.2\na b\n", "vocabulary"},
		"half a code point": {`{"\ud800": 0}`, "", "code point"},
	} {
		if _, err := FromGPT2([]byte(c.encoder), []byte(c.merges)); err == nil || !strings.Contains(err.Error(), c.names) {
			t.Errorf("%s: got %v, want an error with %q", name, err, c.names)
		}
	}
}

func TestGPT2PairsAreRead(t *testing.T) {
	v := smallGGUF(t, "gpt2", "gpt-2")
	vocab := map[string]int{}
	for id, text := range v.Tokens {
		vocab[text] = id
	}
	encoder, _ := json.Marshal(vocab)
	merges := "#version: 0.2\r\n" + strings.Join(v.Merges, "\r\n") + "\n\n"
	data, err := FromGPT2(encoder, []byte(merges))
	if err != nil {
		t.Fatal(err)
	}
	tok := mustLoad(t, data)
	text := "the quiet river isn't 12 km long"
	if got, want := tok.Encode(text, true), mustLoad(t, small(t, "gpt2").Tokenizer).Encode(text, true); !slices.Equal(got, want) {
		t.Errorf("ids %d, want %d", got, want)
	}
}
