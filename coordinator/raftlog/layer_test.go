package raftlog

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestAHelloIsReadBackAndEveryFlippedBitSeen(t *testing.T) {
	var b bytes.Buffer
	for _, want := range []hello{{"production", "c1", false}, {"production", "c1", true}} {
		b.Reset()
		if err := writeHello(&b, want); err != nil {
			t.Fatal(err)
		}
		whole := b.Bytes()
		h, err := readHello(bytes.NewReader(append(bytes.Clone(whole), "raft follows"...)))
		if err != nil || h != want {
			t.Fatalf("read %+v, %v, want %+v", h, err, want)
		}
		for bit := range len(whole) * 8 {
			bad := bytes.Clone(whole)
			bad[bit/8] ^= 1 << (bit % 8)
			if _, err := readHello(bytes.NewReader(bad)); err == nil {
				t.Errorf("bit %d flipped, and nobody noticed", bit)
			}
		}
	}
}

func TestAnAnswerIsYesOrSaysWhyNot(t *testing.T) {
	var yes, no, asked bytes.Buffer
	whole := helloAnswer{id: "c1", applied: 7, leader: "c3"}
	if err := errors.Join(writeAnswer(&yes, whole, false), writeAnswer(&no, helloAnswer{refusal: "no!", id: "c1"}, false), writeAnswer(&asked, whole, true)); err != nil {
		t.Fatal(err)
	}
	if a, err := readAnswer(bytes.NewReader(yes.Bytes()), false); err != nil || a != (helloAnswer{id: "c1", applied: 7}) {
		t.Errorf("yes: %+v, %v", a, err)
	}
	if _, err := readAnswer(&no, false); err == nil || !strings.Contains(err.Error(), "no!") {
		t.Errorf("no: %v", err)
	}
	if a, err := readAnswer(bytes.NewReader(asked.Bytes()), true); err != nil || a != whole {
		t.Errorf("asked: %+v, %v", a, err)
	}
	for _, bad := range []string{"", "\x03\x00no", "HTTP/1.1 400", "\x00\x00", "\x00\x00\x00", "\x00\x00\x02c1\x07", "\x00\x00\xffc1"} {
		if _, err := readAnswer(strings.NewReader(bad), false); err == nil {
			t.Errorf("%q passed as an answer", bad)
		}
	}
	for _, bad := range []string{yes.String(), yes.String() + "\xff", asked.String()[:asked.Len()-1]} {
		if _, err := readAnswer(strings.NewReader(bad), true); err == nil {
			t.Errorf("%q passed as an answer to a question", bad)
		}
	}
}

func FuzzReadHello(f *testing.F) {
	var b bytes.Buffer
	for _, h := range []hello{{"production", "c1", false}, {"production", "c1", true}} {
		b.Reset()
		if err := writeHello(&b, h); err != nil {
			f.Fatal(err)
		}
		f.Add(bytes.Clone(b.Bytes()))
	}
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		h, err := readHello(bytes.NewReader(raw))
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := writeHello(&again, h); err != nil || !bytes.HasPrefix(raw, again.Bytes()) {
			t.Fatalf("%q was read as %+v", raw, h)
		}
	})
}
