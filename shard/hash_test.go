package shard

import (
	"crypto/sha256"
	"encoding/binary"
	"testing"

	"pgregory.net/rapid"
)

// weightOf is a value for each element of a tensor.
func weightOf(name string, elem int64) uint32 {
	x := uint32(elem) * 2654435761
	for _, c := range []byte(name) {
		x = x*31 + uint32(c)
	}
	return x
}

// bucketBytes lays out weightOf for a bucket; padding holds garbage.
func bucketBytes(b Bucket) []byte {
	le := make([]byte, b.Padded*4)
	for i := range le {
		le[i] = 0xEE
	}
	for _, s := range b.Spans(0, b.Padded) {
		for e := range s.Bucket.Len() {
			binary.LittleEndian.PutUint32(le[(s.Bucket.Lo+e)*4:], weightOf(s.Tensor, e))
		}
	}
	return le
}

// plainHash is the definition, written out.
func plainHash(t Table) Digest {
	var digests []byte
	for i := range t.Buckets() {
		for _, s := range t.Bucket(i).Tensors() {
			text := []byte("skein tensor 1\n")
			text = binary.LittleEndian.AppendUint32(text, uint32(len(s.Tensor)))
			text = append(text, s.Tensor...)
			text = binary.LittleEndian.AppendUint64(text, uint64(s.Bucket.Len()))
			for e := range s.Bucket.Len() {
				text = binary.LittleEndian.AppendUint32(text, weightOf(s.Tensor, e))
			}
			d := sha256.Sum256(text)
			digests = append(digests, d[:]...)
		}
	}
	return sha256.Sum256(append([]byte("skein weights 1\n"), digests...))
}

func TestWeightsHashIsItsDefinitionHoweverItIsFed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := drawTable(t)
		h := NewWeightsHash(table)
		order := rapid.Permutation(indices(table.Buckets())).Draw(t, "order")
		for _, i := range order {
			b := table.Bucket(i)
			le := bucketBytes(b)
			for lo := int64(0); lo < b.Padded; {
				hi := min(b.Padded, lo+rapid.Int64Range(1, 20000).Draw(t, "cut"))
				if err := h.Write(i, lo, le[lo*4:hi*4]); err != nil {
					t.Fatal(err)
				}
				lo = hi
			}
		}
		got, err := h.Sum()
		if err != nil || got != plainHash(table) {
			t.Fatalf("hash %s, %v; by definition %s", got, err, plainHash(table))
		}
	})
}

func indices(n int) []int {
	x := make([]int, n)
	for i := range x {
		x[i] = i
	}
	return x
}

func TestWeightsHashIsTheSameAtEveryWorldSize(t *testing.T) {
	groups := []Group{{"a", []Tensor{{"x", 3001, true}, {"y", 7, false}}}, {"b", []Tensor{{"z", 999, true}}}}
	var first Digest
	for worldSize := 1; worldSize <= WorldSizeMax; worldSize++ {
		table, err := NewTable(groups, worldSize)
		if err != nil {
			t.Fatal(err)
		}
		h := NewWeightsHash(table)
		for r := range worldSize {
			for i, p := range table.Segment(Rank(r)) {
				if err := h.Write(i, p.Lo, bucketBytes(table.Bucket(i))[p.Lo*4:p.Hi*4]); err != nil {
					t.Fatal(err)
				}
			}
		}
		got, err := h.Sum()
		if err != nil {
			t.Fatal(err)
		}
		if worldSize == 1 {
			first = got
		}
		if got != first {
			t.Errorf("world size %d: %s, world size 1: %s", worldSize, got, first)
		}
	}
	// The definition may never change: lineages hold its values.
	if want := "e3ef63683cbc379614260d16c0330d4ada607524dadff6c669057e9355fa6201"; first.String() != want {
		t.Errorf("hash of the fixed weights is %s, want %s", first, want)
	}
}

func TestWeightsHashRefusesGapsOverlapsAndMissingWeights(t *testing.T) {
	table, err := NewTable([]Group{{"a", []Tensor{{"x", 300, true}}}}, 1)
	if err != nil {
		t.Fatal(err)
	}
	h := NewWeightsHash(table)
	if _, err := h.Sum(); err == nil {
		t.Error("a hash over nothing was given")
	}
	for _, c := range []struct {
		why    string
		bucket int
		lo     int64
		bytes  int
	}{{"gap", 0, 4, 4}, {"half an element", 0, 0, 6}, {"no such bucket", 1, 0, 4}, {"past the end", 0, 0, 512*4 + 4}} {
		if err := h.Write(c.bucket, c.lo, make([]byte, c.bytes)); err == nil {
			t.Errorf("%s: accepted", c.why)
		}
	}
	if err := h.Write(0, 0, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	if err := h.Write(0, 0, make([]byte, 4)); err == nil {
		t.Error("an element was accepted twice")
	}
}
