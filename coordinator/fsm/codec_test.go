package fsm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write testdata/v1 anew; only before the version is released")

// history is one decision of every kind, as version 1 has them.
func history() []Decision {
	id := func(request string) string { return New().newID("pronounce", request) }
	first := id("golden")
	return []Decision{
		register("w1"), register("w2"), register("w3"), submit("golden"), prepare(first, 1, "w1"), resolve(first, 1),
		generate(first, 1, 0, "w1", "w2"), publish(first, 1, 4), &Suspend{Job: first, Generation: 2}, generate(first, 3, 4, "w2"),
		publish(first, 3, 10), &Complete{Job: first, Generation: 3, Result: []byte(`{"loss":1.5}`)},
		submit("second"), &Fail{Job: id("second")}, submit("third"), &Cancel{Job: id("third")},
		&Drain{"w3", "w3-1"}, &Drain{"w2", "w2-1"}, &Remove{"w3", "w3-1"},
		submit("fourth"), prepare(id("fourth"), 1, "w1"), resolve(id("fourth"), 1), &Scale{id("fourth"), 2}, register("w4"),
		generate(id("fourth"), 1, 0, "w1", "w4"), live(id("fourth"), 2, 0, 3, []string{"w1", "w1", "w4", "w4"}, "w1", "w4"), &Pause{id("fourth")},
		&Suspend{Job: id("fourth"), Generation: 3}, &Resume{id("fourth")}, &Diverge{id("fourth"), 2, "w1", "w4"},
	}
}

// TestVersion1IsStillRead holds every later program to the files that version 1
// wrote. The files are never written again once the version is released.
func TestVersion1IsStillRead(t *testing.T) {
	dir := filepath.Join("testdata", "v1")
	if *rewrite {
		writeGolden(t, dir)
	}
	s := New()
	seen := map[string]bool{}
	for i := range history() {
		raw, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("entry-%02d.bin", i+1)))
		if err != nil {
			t.Fatal(err)
		}
		e, err := Decode(raw)
		if err != nil {
			t.Fatalf("entry %d: %v", i+1, err)
		}
		seen[e.Decision.Kind()] = true
		if r := s.Apply(uint64(i+1), e); r.Err != nil {
			t.Fatalf("entry %d: %v", i+1, r.Err)
		}
	}
	for kind := range kinds {
		if !seen[kind] {
			t.Errorf("no file has a %s", kind)
		}
	}
	want, err := os.ReadFile(filepath.Join(dir, "snapshot.bin"))
	if err != nil {
		t.Fatal(err)
	}
	restored, err := Restore(bytes.NewReader(want))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(bytesOf(t, restored), bytesOf(t, s)) {
		t.Error("the entries and the snapshot of version 1 give different states")
	}
}

func writeGolden(t *testing.T, dir string) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := New()
	for i, d := range history() {
		raw, err := Entry{At: int64(i) * 1000, Reason: "because of " + d.Kind(), Decision: d}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		e, err := Decode(raw)
		if err != nil {
			t.Fatal(err)
		}
		if r := s.Apply(uint64(i+1), e); r.Err != nil {
			t.Fatalf("entry %d: %v", i+1, r.Err)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("entry-%02d.bin", i+1)), raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "snapshot.bin"), bytesOf(t, s), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestEveryFlippedBitOfAnEntryIsSeen(t *testing.T) {
	raw, err := Entry{At: 7, Reason: "x", Decision: &Cancel{Job: "a"}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for bit := range len(raw) * 8 {
		bad := bytes.Clone(raw)
		bad[bit/8] ^= 1 << (bit % 8)
		if _, err := Decode(bad); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("bit %d flipped: %v", bit, err)
		}
	}
	for n := range raw {
		if _, err := Decode(raw[:n]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
}

// seal gives bytes a right checksum, so that what stands behind it is tested.
func seal(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[len(b)-4:], crc32.Checksum(b[:len(b)-4], castagnoli))
	return b
}

func TestNewerVersionsAreRefusedByName(t *testing.T) {
	raw := frame(magicEntry, []byte(`{"at":1,"reason":"","kind":"cancel","decision":{"job":"a"}}`))
	binary.LittleEndian.PutUint16(raw[4:], Version+1)
	if _, err := Decode(seal(raw)); !errors.Is(err, ErrVersion) {
		t.Errorf("version %d: %v", Version+1, err)
	}
	raw = frame(magicEntry, []byte(`{"at":1,"reason":"","kind":"levitate","decision":{}}`))
	if _, err := Decode(raw); !errors.Is(err, ErrVersion) {
		t.Errorf("an unknown kind: %v", err)
	}
	raw = frame(magicEntry, []byte(`{"at":1,"reason":"","kind":"cancel","decision":{"job":"a","gently":true}}`))
	if _, err := Decode(raw); !errors.Is(err, ErrCorrupt) {
		t.Errorf("an unknown key: %v", err)
	}
}

func TestSnapshotsThatApplyCannotHaveMadeAreRefused(t *testing.T) {
	for what, body := range map[string]string{
		"no jobs":       `{"index":1,"jobs":null,"workers":{}}`,
		"a null job":    `{"index":1,"jobs":{"a":null},"workers":{}}`,
		"misfiled":      `{"index":1,"jobs":{"a":{"id":"b","phase":"queued"}},"workers":{}}`,
		"no such phase": `{"index":1,"jobs":{"a":{"id":"a","phase":"asleep"}},"workers":{}}`,
		"one request twice": `{"index":1,"jobs":{"a":{"id":"a","request":"r","phase":"failed"},` +
			`"b":{"id":"b","request":"r","phase":"failed"}},"workers":{}}`,
		"a null worker": `{"index":1,"jobs":{},"workers":{"w":null}}`,
	} {
		if _, err := Restore(bytes.NewReader(frame(magicSnapshot, []byte(body)))); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestAnEntryTooLargeIsNotWritten(t *testing.T) {
	d := submit("big")
	d.Spec = make([]byte, entryBytesMax)
	if _, err := (Entry{Decision: d}).Encode(); err == nil {
		t.Fatal("it was written")
	}
}

func FuzzDecode(f *testing.F) {
	for _, d := range history() {
		raw, err := Entry{At: 1, Reason: "r", Decision: d}.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) >= frameBytes {
			raw = seal(bytes.Clone(raw)) // or the checksum would stop every mutation
		}
		e, err := Decode(raw)
		if err != nil {
			return
		}
		again, err := e.Encode()
		if err != nil {
			t.Fatalf("read but not written: %v", err)
		}
		back, err := Decode(again)
		if err != nil {
			t.Fatalf("written but not read: %v", err)
		}
		third, _ := back.Encode()
		if !bytes.Equal(again, third) {
			t.Fatalf("an entry changed on its way: %q, %q", again, third)
		}
		s := New()
		s.Apply(1, e) // whatever it says, the state stays sound
	})
}

func FuzzRestore(f *testing.F) {
	b := &bench{new(testing.T), New()}
	f.Add(bytesOf(f, b.s))
	b.in(Running)
	f.Add(bytesOf(f, b.s))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) >= frameBytes {
			raw = seal(bytes.Clone(raw))
		}
		s, err := Restore(bytes.NewReader(raw))
		if err != nil {
			return
		}
		if _, err := Restore(bytes.NewReader(bytesOf(t, s))); err != nil {
			t.Fatalf("restored, but its own snapshot is not: %v", err)
		}
	})
}
