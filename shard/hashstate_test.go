package shard

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"

	"pgregory.net/rapid"
)

// TestAHashHandedOnIsTheHashOfAll cuts every bucket at random places, which lie inside
// tensors, between them and in the padding, and goes on with a fresh hash at each.
func TestAHashHandedOnIsTheHashOfAll(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := drawTable(t)
		workers := rapid.IntRange(2, 5).Draw(t, "workers")
		states := make([][]byte, table.Buckets())
		at := make([]int64, table.Buckets())
		for w := range workers {
			h := NewWeightsHash(table)
			for i := range table.Buckets() {
				b := table.Bucket(i)
				if w > 0 {
					if err := h.SetState(i, states[i]); err != nil {
						t.Fatal(err)
					}
					if again, err := h.State(i); err != nil || !bytes.Equal(again, states[i]) || h.At(i) != at[i] {
						t.Fatalf("bucket %d: the state that was set is not the state (%v)", i, err)
					}
				}
				hi := b.Padded
				if w < workers-1 {
					hi = rapid.Int64Range(at[i], b.Padded).Draw(t, "cut")
				}
				if err := h.Write(i, at[i], bucketBytes(b)[at[i]*4:hi*4]); err != nil {
					t.Fatal(err)
				}
				at[i] = hi
				var err error
				if states[i], err = h.State(i); err != nil {
					t.Fatal(err)
				}
			}
			if w < workers-1 {
				continue
			}
			if got, err := h.Sum(); err != nil || got != plainHash(table) {
				t.Fatalf("hash %s, %v; by definition %s", got, err, plainHash(table))
			}
		}
	})
}

// stateTable has one bucket of three tensors, 3,009 elements and padding.
func stateTable(t testing.TB) Table {
	t.Helper()
	table, err := NewTable([]Group{{"a", []Tensor{{"x", 3001, true}, {"y", 7, false}, {"z", 1, false}}}, {"b", []Tensor{{"w", 9, true}}}}, 2)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// stateAt is the state of bucket 0 after some elements.
func stateAt(t testing.TB, elems int64) []byte {
	t.Helper()
	table := stateTable(t)
	h := NewWeightsHash(table)
	if err := h.Write(0, 0, bucketBytes(table.Bucket(0))[:elems*4]); err != nil {
		t.Fatal(err)
	}
	state, err := h.State(0)
	if err != nil {
		t.Fatal(err)
	}
	return state
}

// reseal makes the checksum right again.
func reseal(state []byte) []byte {
	if len(state) >= 4 {
		binary.LittleEndian.PutUint32(state[len(state)-4:], crc32.Checksum(state[:len(state)-4], castagnoli))
	}
	return state
}

func TestStatesThatStateDoesNotGiveAreRefused(t *testing.T) {
	good := stateAt(t, 3005) // in the second tensor
	if want := stateHeadBytes + 32 + stateOpenBytes + 4; len(good) != want {
		t.Fatalf("the state has %d bytes, want %d", len(good), want)
	}
	for what, change := range map[string]func(s []byte) []byte{
		"empty":                       func(s []byte) []byte { return nil },
		"cut off":                     func(s []byte) []byte { return s[:len(s)-1] },
		"cut off and resealed":        func(s []byte) []byte { return reseal(s[:len(s)-1]) },
		"too long":                    func(s []byte) []byte { return reseal(append(s, 0)) },
		"a flipped bit":               func(s []byte) []byte { s[40] ^= 1; return s },
		"another magic":               func(s []byte) []byte { s[0]++; return reseal(s) },
		"another version":             func(s []byte) []byte { s[8]++; return reseal(s) },
		"another bucket":              func(s []byte) []byte { s[12]++; return reseal(s) },
		"another element":             func(s []byte) []byte { s[16]++; return reseal(s) },
		"an element past the end":     func(s []byte) []byte { s[22]++; return reseal(s) },
		"a negative element":          func(s []byte) []byte { s[23] = 0x80; return reseal(s) },
		"more digests":                func(s []byte) []byte { s[24]++; return reseal(s) },
		"no open tensor":              func(s []byte) []byte { s[28] = 0; return reseal(s) },
		"another count of the SHA":    func(s []byte) []byte { s[len(s)-5]++; return reseal(s) },
		"another kind of SHA":         func(s []byte) []byte { s[stateHeadBytes+32+3]--; return reseal(s) },
		"garbage after what is to do": func(s []byte) []byte { s[len(s)-13]++; return reseal(s) },
	} {
		h := NewWeightsHash(stateTable(t))
		if err := h.SetState(0, change(bytes.Clone(good))); err == nil {
			t.Errorf("%s: accepted", what)
		} else if h.At(0) != 0 {
			t.Errorf("%s: refused, and the hash stands at element %d", what, h.At(0))
		}
	}
	h := NewWeightsHash(stateTable(t))
	for _, bucket := range []int{-1, 2} {
		if err := h.SetState(bucket, good); err == nil {
			t.Errorf("bucket %d: accepted", bucket)
		}
		if _, err := h.State(bucket); err == nil {
			t.Errorf("bucket %d: a state was given", bucket)
		}
	}
	if err := h.SetState(0, good); err != nil {
		t.Fatal(err)
	}
	if err := h.SetState(0, good); err == nil {
		t.Error("the state of a bucket under way was replaced")
	}
}

func FuzzSetState(f *testing.F) {
	for _, elems := range []int64{0, 1, 3000, 3001, 3005, 3008, 3009, 3072} {
		f.Add(stateAt(f, elems))
	}
	table := stateTable(f)
	f.Fuzz(func(t *testing.T, state []byte) {
		h := NewWeightsHash(table)
		if err := h.SetState(0, reseal(state)); err != nil {
			return
		}
		if again, err := h.State(0); err != nil || !bytes.Equal(again, state) {
			t.Fatalf("an accepted state comes back as %x, %v", again, err)
		}
		at := h.At(0)
		if err := h.Write(0, at, bucketBytes(table.Bucket(0))[at*4:]); err != nil {
			t.Fatalf("an accepted state cannot be gone on from: %v", err)
		}
	})
}
