package data

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/skein-ml/skein/internal/leak"
	"github.com/skein-ml/skein/internal/vfs"
)

func TestMain(m *testing.M) { leak.Main(m) }

// The ids of byteEncoder: a byte is its own id.
const (
	fakeBOS = int32(256)
	fakeEnd = int32(257) // ends a turn and a text
	fakeOf  = int32(258) // + index of the role: begins a turn
)

var fakeRoles = []string{"system", "user", "assistant", "tool", "developer"}

// byteEncoder is a tokenizer of bytes, with a template that writes BOS, then for each turn a token for its role, the content
// and an end token. Content "@fail" makes it fail, "@noend" leaves the end token out, "@bos" doubles BOS.
type byteEncoder struct{ addBOS bool }

func (e byteEncoder) Info() EncoderInfo {
	return EncoderInfo{TokenizerHash: "bytes", TemplateHash: "turns", Vocab: 300, BOS: fakeBOS, AddBOS: e.addBOS, End: []int32{fakeEnd}}
}

func (e byteEncoder) Text(text string, trained int) ([]int32, []bool, error) {
	ids, target := make([]int32, len(text)), make([]bool, len(text))
	for i := range ids {
		ids[i], target[i] = int32(text[i]), i >= trained
	}
	return ids, target, nil
}

func (e byteEncoder) Chat(msgs []Message, tools json.RawMessage) (ids []int32, target []bool, err error) {
	put := func(id int32, t bool) { ids, target = append(ids, id), append(target, t) }
	put(fakeBOS, false)
	for _, m := range msgs {
		switch m.Content {
		case "@fail":
			return nil, nil, errors.New("roles must alternate")
		case "@bos":
			put(fakeBOS, false)
		}
		for i, role := range fakeRoles {
			if role == m.Role {
				put(fakeOf+int32(i), false)
			}
		}
		for i := range len(m.Content) {
			put(int32(m.Content[i]), m.Trained)
		}
		if m.Content != "@noend" {
			put(fakeEnd, m.Trained)
		}
	}
	return ids, target, nil
}

// pronounce is n rows of messages in the manner of the demo, of various lengths.
func pronounce(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{"messages":[{"role":"user","content":"Pronounce: %s"},{"role":"assistant","content":"%s"}]}`+"\n",
			strings.Repeat("w", 1+i%7), strings.Repeat("AH ", 1+i*i%11))
	}
	return b.String()
}

// memWith is a file system with these files, which may be named with folders.
func memWith(t testing.TB, files map[string]string) *vfs.Mem {
	t.Helper()
	m := vfs.NewMem()
	for name, text := range files {
		if i := strings.LastIndexByte(name, '/'); i > 0 {
			must(t, m.MkdirAll(name[:i]))
		}
		must(t, vfs.WriteFile(m, name, []byte(text)))
	}
	return m
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// closing closes, for defer.
func closing(t testing.TB, c io.Closer) {
	t.Helper()
	must(t, c.Close())
}

// wantError fails unless err is one line that holds all of parts.
func wantError(t testing.TB, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", parts)
		return
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error of several lines: %v", err)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q lacks %q", err, p)
		}
	}
}

// needFile skips visibly where a fetched file is missing, and fails in CI.
func needFile(t testing.TB, name string) string {
	t.Helper()
	if _, err := os.Stat(name); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing; run scripts/fetch.sh", name)
		}
		t.Skipf("%s is missing; scripts/fetch.sh gets it", name)
	}
	return name
}
