package shard

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// drawGroups makes small odd models.
func drawGroups(t *rapid.T) []Group {
	groups := make([]Group, rapid.IntRange(1, 5).Draw(t, "groups"))
	for i := range groups {
		groups[i].Name = fmt.Sprintf("g%d", i)
		groups[i].Tensors = make([]Tensor, rapid.IntRange(1, 6).Draw(t, "tensors"))
		for j := range groups[i].Tensors {
			groups[i].Tensors[j] = Tensor{
				Name:  fmt.Sprintf("g%d.t%d", i, j),
				Elems: rapid.Int64Range(1, 5000).Draw(t, "elems"),
				Decay: rapid.Bool().Draw(t, "decay"),
			}
		}
	}
	return groups
}

func drawTable(t *rapid.T) Table {
	table, err := NewTable(drawGroups(t), rapid.IntRange(1, WorldSizeMax).Draw(t, "worldSize"))
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func TestPiecesTileEachBucketAndPaddingIsLeast(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := drawTable(t)
		unit := int64(table.WorldSize()) * Align
		for i := range table.Buckets() {
			b := table.Bucket(i)
			at := int64(0)
			for r := range table.WorldSize() {
				p := b.Piece(Rank(r))
				if p.Lo != at || p.Len() != b.Padded/int64(table.WorldSize()) || p.Len()%Align != 0 {
					t.Fatalf("bucket %d: piece %d is %v, expected to start at %d", i, r, p, at)
				}
				if table.Segment(Rank(r))[i] != p {
					t.Fatalf("segment of rank %d differs from piece %v in bucket %d", r, p, i)
				}
				at = p.Hi
			}
			if at != b.Padded || b.Padded < b.Elems || b.Padded-unit >= b.Elems {
				t.Fatalf("bucket %d: %d elements, padded to %d, pieces end at %d", i, b.Elems, b.Padded, at)
			}
		}
	})
}

// TestSpansCoverEveryElementOnce cuts all buckets at random points and collects
// which tensor elements come out.
func TestSpansCoverEveryElementOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := drawTable(t)
		next := map[string]int64{}
		var sum int64
		for i := range table.Buckets() {
			for lo := int64(0); lo < table.Bucket(i).Padded; {
				hi := min(table.Bucket(i).Padded, lo+rapid.Int64Range(1, 9000).Draw(t, "cut"))
				for _, s := range table.SpansOf(i, lo, hi) {
					if s.Lo != next[s.Tensor] || s.Bucket.Lo < lo || s.Bucket.Hi > hi {
						t.Fatalf("cut [%d, %d) gives %+v; tensor stands at %d", lo, hi, s, next[s.Tensor])
					}
					bucket, whole, ok := table.Lookup(s.Tensor)
					if !ok || bucket != i || whole.Bucket.Lo+s.Lo != s.Bucket.Lo || whole.Decay != s.Decay {
						t.Fatalf("lookup of %q gives bucket %d, %+v, which contradicts %+v", s.Tensor, bucket, whole, s)
					}
					next[s.Tensor] += s.Bucket.Len()
					sum += s.Bucket.Len()
				}
				lo = hi
			}
		}
		if sum != table.Params() {
			t.Fatalf("spans hold %d elements, the table %d", sum, table.Params())
		}
	})
}

func TestTableRefusesWhatCannotBeLaidOut(t *testing.T) {
	one := []Tensor{{Name: "w", Elems: 5}}
	for _, c := range []struct {
		why       string
		groups    []Group
		worldSize int
		want      string
	}{
		{"no rank", []Group{{"g", one}}, 0, "between 1 and 16"},
		{"too many ranks", []Group{{"g", one}}, 17, "between 1 and 16"},
		{"no group", nil, 1, "at least one group"},
		{"empty group", []Group{{"g", nil}}, 1, "holds no tensor"},
		{"no name", []Group{{"g", []Tensor{{Elems: 1}}}}, 1, "no name"},
		{"empty tensor", []Group{{"g", []Tensor{{Name: "w"}}}}, 1, "impossible size"},
		{"negative", []Group{{"g", []Tensor{{Name: "w", Elems: -3}}}}, 1, "impossible size"},
		{"overflow", []Group{{"g", []Tensor{{Name: "w", Elems: elemsMax}, {Name: "x", Elems: 1}}}}, 1, "impossible size"},
		{"twice", []Group{{"g", one}, {"h", one}}, 1, "appears twice"},
	} {
		_, err := NewTable(c.groups, c.worldSize)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.why, err, c.want)
		}
	}
}

func TestFingerprintSeesShapeAndNotWorldSize(t *testing.T) {
	groups := []Group{{"a", []Tensor{{"x", 300, true}, {"y", 7, false}}}, {"b", []Tensor{{"z", 9, true}}}}
	table := func(g []Group, worldSize int) Table {
		made, err := NewTable(g, worldSize)
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	base := table(groups, 1)
	again := table(base.Groups(), 7)
	if again.Fingerprint() != base.Fingerprint() {
		t.Error("the world size changed the fingerprint")
	}
	for name, g := range map[string][]Group{
		"size":     {{"a", []Tensor{{"x", 301, true}, {"y", 7, false}}}, {"b", []Tensor{{"z", 9, true}}}},
		"name":     {{"a", []Tensor{{"X", 300, true}, {"y", 7, false}}}, {"b", []Tensor{{"z", 9, true}}}},
		"decay":    {{"a", []Tensor{{"x", 300, false}, {"y", 7, false}}}, {"b", []Tensor{{"z", 9, true}}}},
		"grouping": {{"a", []Tensor{{"x", 300, true}}}, {"b", []Tensor{{"y", 7, false}, {"z", 9, true}}}},
	} {
		if table(g, 1).Fingerprint() == base.Fingerprint() {
			t.Errorf("a change of %s left the fingerprint as it was", name)
		}
	}
}

func TestDigestReadsOnlyWhatItWrites(t *testing.T) {
	var d, back Digest
	for i := range d {
		d[i] = byte(rand.Uint32())
	}
	text, _ := d.MarshalText()
	if err := back.UnmarshalText(text); err != nil || back != d {
		t.Fatalf("%s read back as %s, %v", d, back, err)
	}
	for _, bad := range []string{"", "ab", strings.Repeat("g", 64), string(text) + "00"} {
		if err := back.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("digest %q was accepted", bad)
		}
	}
}
