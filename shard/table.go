package shard

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
)

// Tensor is one parameter tensor as the layout of record sees it: flat, row-major.
type Tensor struct {
	Name  string // Hugging Face name, unique in the model
	Elems int64
	Decay bool // weight decay applies: all but norms and biases
}

// Group is a run of tensors that are reduced together: it becomes one bucket.
type Group struct {
	Name    string
	Tensors []Tensor
}

// Span is a stretch of one tensor that lies in a bucket.
type Span struct {
	Tensor string
	Lo     int64 // first element, counted from the start of the tensor
	Bucket Range // where it stands, in elements from the start of the bucket
	Decay  bool
}

// Bucket is a group of tensors one after the other, padded at the end.
type Bucket struct {
	Name string
	// Elems are real elements, without padding.
	Elems int64
	// Padded is the length with padding: the smallest multiple of worldSize·Align
	// that holds Elems.
	Padded int64

	spans     []Span // one per tensor, ascending and without gaps
	worldSize int
}

// Piece is the range of the bucket that rank r owns. The last pieces may lie
// partly or wholly in the padding.
func (b Bucket) Piece(r Rank) Range {
	n := b.Padded / int64(b.worldSize)
	return Range{int64(r) * n, (int64(r) + 1) * n}
}

// Tensors are the spans of the bucket's whole tensors, in order.
func (b Bucket) Tensors() []Span { return b.spans }

// Spans cuts [lo, hi) of the bucket at tensor boundaries and leaves padding out.
func (b Bucket) Spans(lo, hi int64) []Span {
	var cut []Span
	for _, s := range b.spans {
		from, to := max(lo, s.Bucket.Lo), min(hi, s.Bucket.Hi)
		if from < to {
			cut = append(cut, Span{s.Tensor, s.Lo + from - s.Bucket.Lo, Range{from, to}, s.Decay})
		}
	}
	return cut
}

// Table is the bucket table of a job. It is immutable after NewTable.
type Table struct {
	worldSize int
	buckets   []Bucket
	params    int64
	places    map[string]place
}

type place struct {
	bucket, span int
}

// elemsMax bounds a tensor and a model, so that byte counts stay far from overflow.
const elemsMax = math.MaxInt64 / 64

// NewTable lays out groups for a world size. Names of tensors must be unique and
// not empty, sizes positive. Every group becomes one bucket, in the order given.
func NewTable(groups []Group, worldSize int) (Table, error) {
	if err := CheckWorldSize(worldSize); err != nil {
		return Table{}, err
	}
	if len(groups) == 0 {
		return Table{}, fmt.Errorf("bucket table: a model needs at least one group of tensors")
	}
	t := Table{worldSize: worldSize, places: map[string]place{}}
	for _, g := range groups {
		if err := t.add(g); err != nil {
			return Table{}, fmt.Errorf("bucket table: group %q: %w", g.Name, err)
		}
	}
	return t, nil
}

// add appends the bucket of one group.
func (t *Table) add(g Group) error {
	if len(g.Tensors) == 0 {
		return fmt.Errorf("holds no tensor")
	}
	b := Bucket{Name: g.Name, worldSize: t.worldSize}
	for _, x := range g.Tensors {
		if x.Name == "" {
			return fmt.Errorf("a tensor has no name")
		}
		if x.Elems <= 0 || x.Elems > elemsMax-t.params {
			return fmt.Errorf("tensor %q has an impossible size of %d elements", x.Name, x.Elems)
		}
		if _, twice := t.places[x.Name]; twice {
			return fmt.Errorf("tensor %q appears twice", x.Name)
		}
		t.places[x.Name] = place{len(t.buckets), len(b.spans)}
		b.spans = append(b.spans, Span{x.Name, 0, Range{b.Elems, b.Elems + x.Elems}, x.Decay})
		b.Elems += x.Elems
		t.params += x.Elems
	}
	unit := int64(t.worldSize) * Align
	b.Padded = (b.Elems + unit - 1) / unit * unit
	t.buckets = append(t.buckets, b)
	return nil
}

// WorldSize is the number of ranks, and of pieces in each bucket.
func (t Table) WorldSize() int { return t.worldSize }

// Buckets is the number of buckets.
func (t Table) Buckets() int { return len(t.buckets) }

// Bucket is bucket i.
func (t Table) Bucket(i int) Bucket { return t.buckets[i] }

// Params is the number of parameters, without padding.
func (t Table) Params() int64 { return t.params }

// Padded is the number of elements of all buckets, padding included.
func (t Table) Padded() int64 {
	var n int64
	for _, b := range t.buckets {
		n += b.Padded
	}
	return n
}

// BucketMax is the length of the longest bucket, padding included.
func (t Table) BucketMax() int64 {
	var n int64
	for _, b := range t.buckets {
		n = max(n, b.Padded)
	}
	return n
}

// Window is the most elements that two buckets have which follow each other in an order:
// the memory of a rank's gradients from ZeRO stage 2 on.
func (t Table) Window(order []int) int64 {
	var most, last int64
	for _, b := range order {
		n := t.buckets[b].Padded
		most, last = max(most, last+n), n
	}
	return most
}

// Segment is what rank r owns: its piece of every bucket, by bucket index.
func (t Table) Segment(r Rank) []Range {
	s := make([]Range, len(t.buckets))
	for i, b := range t.buckets {
		s[i] = b.Piece(r)
	}
	return s
}

// SegmentElems is the number of elements of a rank's segment, padding included.
// It is the same for every rank.
func (t Table) SegmentElems() int64 { return t.Padded() / int64(t.worldSize) }

// SpansOf cuts [lo, hi) of a bucket at tensor boundaries, padding left out.
func (t Table) SpansOf(bucket int, lo, hi int64) []Span { return t.buckets[bucket].Spans(lo, hi) }

// Lookup finds a tensor: its bucket, and its place in it.
func (t Table) Lookup(name string) (bucket int, s Span, ok bool) {
	p, ok := t.places[name]
	if !ok {
		return 0, Span{}, false
	}
	return p.bucket, t.buckets[p.bucket].spans[p.span], true
}

// Groups gives back what the table was made from, so that the same model can be
// laid out for another world size.
func (t Table) Groups() []Group {
	groups := make([]Group, len(t.buckets))
	for i, b := range t.buckets {
		groups[i].Name = b.Name
		for _, s := range b.spans {
			groups[i].Tensors = append(groups[i].Tensors, Tensor{s.Tensor, s.Bucket.Len(), s.Decay})
		}
	}
	return groups
}

// Digest is a SHA-256 sum.
type Digest [sha256.Size]byte

// String is the digest in lower-case hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// Short is the first eight hexadecimal digits, for people.
func (d Digest) Short() string { return hex.EncodeToString(d[:4]) }

// MarshalText writes the digest in hexadecimal.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads exactly 64 hexadecimal digits.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(d)) {
		return fmt.Errorf("digest has %d characters, want %d", len(text), hex.EncodedLen(len(d)))
	}
	if _, err := hex.Decode(d[:], text); err != nil {
		return fmt.Errorf("digest is not hexadecimal: %w", err)
	}
	return nil
}

// Fingerprint identifies the shape of the model: names, sizes, order and decay of
// all tensors and buckets. It does not depend on the world size.
func (t Table) Fingerprint() Digest {
	h := sha256.New()
	text := func(s string) {
		_ = binary.Write(h, binary.LittleEndian, uint32(len(s))) // a hash never fails to write
		h.Write([]byte(s))
	}
	text("skein bucket table 1")
	for _, b := range t.buckets {
		text(b.Name)
		_ = binary.Write(h, binary.LittleEndian, uint32(len(b.spans)))
		for _, s := range b.spans {
			text(s.Tensor)
			_ = binary.Write(h, binary.LittleEndian, s.Bucket.Len())
			_ = binary.Write(h, binary.LittleEndian, s.Decay)
		}
	}
	return Digest(h.Sum(nil))
}
