package raftlog

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestAHelloIsReadBackAndEveryFlippedBitSeen(t *testing.T) {
	var b bytes.Buffer
	if err := writeHello(&b, "production", "c1"); err != nil {
		t.Fatal(err)
	}
	whole := b.Bytes()
	cluster, id, err := readHello(bytes.NewReader(append(bytes.Clone(whole), "raft follows"...)))
	if err != nil || cluster != "production" || id != "c1" {
		t.Fatalf("read %q, %q, %v", cluster, id, err)
	}
	for bit := range len(whole) * 8 {
		bad := bytes.Clone(whole)
		bad[bit/8] ^= 1 << (bit % 8)
		if _, _, err := readHello(bytes.NewReader(bad)); err == nil {
			t.Errorf("bit %d flipped, and nobody noticed", bit)
		}
	}
}

func TestAnAnswerIsYesOrSaysWhyNot(t *testing.T) {
	var yes, no bytes.Buffer
	if err := errors.Join(writeAnswer(&yes, helloAnswer{id: "c1", applied: 7}), writeAnswer(&no, helloAnswer{refusal: "no!", id: "c1"})); err != nil {
		t.Fatal(err)
	}
	if a, err := readAnswer(&yes); err != nil || a != (helloAnswer{id: "c1", applied: 7}) {
		t.Errorf("yes: %+v, %v", a, err)
	}
	if _, err := readAnswer(&no); err == nil || !strings.Contains(err.Error(), "no!") {
		t.Errorf("no: %v", err)
	}
	for _, bad := range []string{"", "\x03\x00no", "HTTP/1.1 400", "\x00\x00", "\x00\x00\x00", "\x00\x00\x02c1\x07", "\x00\x00\xffc1"} {
		if _, err := readAnswer(strings.NewReader(bad)); err == nil {
			t.Errorf("%q passed as an answer", bad)
		}
	}
}

func FuzzReadHello(f *testing.F) {
	var b bytes.Buffer
	if err := writeHello(&b, "production", "c1"); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		cluster, id, err := readHello(bytes.NewReader(raw))
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := writeHello(&again, cluster, id); err != nil || !bytes.HasPrefix(raw, again.Bytes()) {
			t.Fatalf("%q was read as %q of %q", raw, id, cluster)
		}
	})
}
