package tokenizer

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// The answers of Hugging Face's library, written by scripts/oracle/tokenizer_golden.py.
type golden struct {
	Files     map[string]string `json:"files"`
	VocabSize int               `json:"vocab_size"`
	Documents []string          `json:"documents"`
	Blocks    []goldenBlock     `json:"blocks"`
	Samples   []struct {
		Text        string  `json:"text"`
		IDs         []int32 `json:"ids"`
		WithSpecial []int32 `json:"with_special"`
	} `json:"samples"`
}

type goldenBlock struct{ IDs, Literal, Decoded, Skipped, Random string }

const goldenBlockLen = 32 // documents a block

func readGzip(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if data, err = io.ReadAll(r); err != nil {
		t.Fatal(err)
	}
	return data
}

// corpus returns the documents that scripts/oracle/tokenizer_corpus.py makes.
func corpus(t testing.TB) []string {
	t.Helper()
	data := readGzip(t, "testdata/corpus.bin.gz")
	var docs []string
	for len(data) > 0 {
		n := binary.LittleEndian.Uint32(data)
		docs = append(docs, string(data[4:4+n]))
		data = data[4+n:]
	}
	return docs
}

func shortHash(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8])
}

func packIDs(ids []int32) []byte {
	out := make([]byte, 0, 4*len(ids))
	for _, id := range ids {
		out = binary.LittleEndian.AppendUint32(out, uint32(id))
	}
	return out
}

// hashList hashes what f makes of 0…n-1.
func hashList(n int, f func(i int) []byte) string {
	var all []byte
	for i := range n {
		part := f(i)
		all = binary.LittleEndian.AppendUint32(all, uint32(len(part)))
		all = append(all, part...)
	}
	return shortHash(all)
}

// chance is the generator of the same name in tokenizer_corpus.py.
type chance struct {
	seed  string
	count uint64
	pool  []byte
}

func (c *chance) below(n int) int {
	if len(c.pool) < 4 {
		sum := sha256.Sum256(binary.LittleEndian.AppendUint64([]byte(c.seed), c.count))
		c.pool = append(c.pool, sum[:]...)
		c.count++
	}
	bits := binary.LittleEndian.Uint32(c.pool)
	c.pool = c.pool[4:]
	return int(uint64(bits) * uint64(n) >> 32)
}

func (c *chance) between(low, high int) int { return low + c.below(high-low+1) }

// checkAnswers compares all that the library answered on texts.
func checkAnswers(t *testing.T, tok *Tokenizer, texts []string, want golden) {
	t.Helper()
	if tok.VocabSize() != want.VocabSize {
		t.Errorf("vocabulary of %d, the library has %d", tok.VocabSize(), want.VocabSize)
	}
	for i, line := range want.Documents {
		ids := tok.AppendEncode(nil, texts[i])
		if got := fmt.Sprintf("%d %s", len(ids), shortHash(packIDs(ids))); got != line {
			t.Fatalf("document %d: ids %s, the library has %s\n%.300q\n%d", i, got, line, texts[i], ids[:min(len(ids), 60)])
		}
	}
	random := chance{seed: "skein random ids"}
	for b, block := range want.Blocks {
		first := b * goldenBlockLen
		part := texts[first:min(first+goldenBlockLen, len(texts))]
		ids := make([][]int32, len(part))
		var got goldenBlock
		got.IDs = hashList(len(part), func(i int) []byte {
			ids[i] = tok.AppendEncode(nil, part[i])
			return packIDs(ids[i])
		})
		got.Literal = hashList(len(part), func(i int) []byte {
			return packIDs(tok.AppendEncodeLiteral(nil, part[i], []Span{{0, len(part[i])}}))
		})
		got.Decoded = hashList(len(part), func(i int) []byte { return []byte(tok.Decode(ids[i], false)) })
		got.Skipped = hashList(len(part), func(i int) []byte { return []byte(tok.Decode(ids[i], true)) })
		got.Random = hashList(goldenBlockLen, func(int) []byte {
			drawn := make([]int32, random.between(1, 40))
			for i := range drawn {
				drawn[i] = int32(random.below(want.VocabSize))
			}
			return []byte(tok.Decode(drawn, false))
		})
		if got != block {
			t.Fatalf("documents from %d on: got %+v, the library has %+v", first, got, block)
		}
	}
	for _, s := range want.Samples {
		if got := tok.Encode(s.Text, false); !slices.Equal(got, s.IDs) {
			t.Errorf("%q: ids %d, the library has %d", s.Text, got, s.IDs)
		}
		if got := tok.Encode(s.Text, true); !slices.Equal(got, s.WithSpecial) {
			t.Errorf("%q with special tokens: ids %d, the library has %d", s.Text, got, s.WithSpecial)
		}
	}
}

type smallVocab struct {
	Tokenizer   json.RawMessage `json:"tokenizer"`
	Answers     golden          `json:"answers"`
	Texts       []string        `json:"texts"`
	TextAnswers golden          `json:"text_answers"`
}

var smallNames = []string{"gpt2", "llama", "qwen", "smollm", "digitruns", "unk", "fused", "flags"}

func small(t testing.TB, name string) smallVocab {
	t.Helper()
	var s smallVocab
	if err := json.Unmarshal(readGzip(t, "testdata/small_"+name+".json.gz"), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func mustLoad(t testing.TB, data []byte) *Tokenizer {
	t.Helper()
	tok, err := Load(data)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestSmallVocabulariesAnswerAsTheLibraryDoes(t *testing.T) {
	docs := corpus(t)
	for _, name := range smallNames {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := small(t, name)
			tok := mustLoad(t, s.Tokenizer)
			checkAnswers(t, tok, s.Texts, s.TextAnswers)
			checkAnswers(t, tok, docs, s.Answers)
		})
	}
}

// published returns the tokenizer.json of a published vocabulary, which is fetched and never committed.
func published(t testing.TB, name string) ([]byte, golden) {
	t.Helper()
	data, err := os.ReadFile("testdata/golden_" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var want golden
	if err := json.Unmarshal(data, &want); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for file, sum := range want.Files {
		path := filepath.Join("..", ".cache", "testdata", name, file)
		data, err := os.ReadFile(path)
		if os.IsNotExist(err) && os.Getenv("CI") != "true" {
			t.Skipf("SKIPPED: %s is not there; scripts/fetch.sh fetches it", path)
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := sha256.Sum256(data); hex.EncodeToString(got[:]) != sum {
			t.Fatalf("%s has the wrong sha256 %x", path, got)
		}
		files[file] = data
	}
	switch name {
	case "gpt2":
		data, err = FromGPT2(files["encoder.json"], files["vocab.bpe"])
	case "smollm2":
		data, err = FromGGUF(ggufVocab(t, files["SmolLM2-135M-Instruct.Q4_1.gguf"]))
	default:
		data = files["tokenizer.json"]
	}
	if err != nil {
		t.Fatal(err)
	}
	return data, want
}

var publishedNames = []string{"gpt2", "llama3.1", "qwen3", "smollm2"}

// publishedTokenizer loads each vocabulary once for all tests.
func publishedTokenizer(t testing.TB, name string) (*Tokenizer, golden) {
	t.Helper()
	data, want := published(t, name)
	publishedMu.Lock()
	defer publishedMu.Unlock()
	if publishedToks[name] == nil {
		publishedToks[name] = mustLoad(t, data)
	}
	return publishedToks[name], want
}

var (
	publishedMu   sync.Mutex
	publishedToks = map[string]*Tokenizer{}
)

func TestPublishedVocabulariesAnswerAsTheLibraryDoes(t *testing.T) {
	docs := corpus(t)
	for _, name := range publishedNames {
		t.Run(name, func(t *testing.T) {
			tok, want := publishedTokenizer(t, name)
			checkAnswers(t, tok, docs, want)
		})
	}
}

// ggufVocab reads the tokenizer out of a GGUF file; model/gguf, which this package may not import, reads all of it.
func ggufVocab(t testing.TB, data []byte) GGUFVocab {
	t.Helper()
	r := bytes.NewReader(data)
	read := func(v any) {
		if err := binary.Read(r, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	u32 := func() (v uint32) { read(&v); return v }
	u64 := func() (v uint64) { read(&v); return v }
	text := func() string {
		b := make([]byte, u64())
		read(b)
		return string(b)
	}
	sizes := map[uint32]int{0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
	var value func(kind uint32) any
	value = func(kind uint32) any {
		switch kind {
		case 4:
			return u32()
		case 8:
			return text()
		case 9:
			kind, n := u32(), u64()
			list := make([]any, n)
			for i := range list {
				list[i] = value(kind)
			}
			return list
		}
		b := make([]byte, sizes[kind])
		read(b)
		if len(b) == 4 {
			return binary.LittleEndian.Uint32(b)
		}
		return b[0] != 0
	}
	if _, err := r.Seek(16, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	v := GGUFVocab{Pad: -1, Unk: -1, BOS: -1, EOS: -1}
	for range u64() {
		key := text()
		switch x := value(u32()); key {
		case "tokenizer.ggml.model":
			v.Model = x.(string)
		case "tokenizer.ggml.pre":
			v.Pre = x.(string)
		case "tokenizer.ggml.bos_token_id":
			v.BOS = int32(x.(uint32))
		case "tokenizer.ggml.eos_token_id":
			v.EOS = int32(x.(uint32))
		case "tokenizer.ggml.padding_token_id":
			v.Pad = int32(x.(uint32))
		case "tokenizer.ggml.unknown_token_id":
			v.Unk = int32(x.(uint32))
		case "tokenizer.ggml.add_bos_token":
			b := x.(bool)
			v.AddBOS = &b
		case "tokenizer.ggml.tokens":
			for _, e := range x.([]any) {
				v.Tokens = append(v.Tokens, e.(string))
			}
		case "tokenizer.ggml.merges":
			for _, e := range x.([]any) {
				v.Merges = append(v.Merges, e.(string))
			}
		case "tokenizer.ggml.token_type":
			for _, e := range x.([]any) {
				v.Types = append(v.Types, int32(e.(uint32)))
			}
		}
	}
	return v
}
