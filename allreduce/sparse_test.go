package allreduce

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/skein-ml/skein/shard"
)

// TestSparseRowsReachEveryElementInRankOrder plays the additions of all pieces and
// records, per element, which ranks contributed in which order.
func TestSparseRowsReachEveryElementInRankOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		worldSize := rapid.IntRange(1, 6).Draw(t, "worldSize")
		vocab, width := rapid.Int64Range(1, 60).Draw(t, "vocab"), rapid.Int64Range(1, 90).Draw(t, "width")
		base := rapid.Int64Range(0, 700).Draw(t, "base")
		table := testTable(t, worldSize, base+vocab*width)
		ids := make([][]int32, worldSize)
		for r := range ids {
			for id := range vocab {
				if rapid.IntRange(0, 2).Draw(t, "used") == 0 {
					ids[r] = append(ids[r], int32(id))
				}
			}
		}
		got := make([][]shard.Rank, table.Bucket(0).Padded)
		for p := range worldSize {
			piece := table.Bucket(0).Piece(shard.Rank(p))
			for _, rows := range AppendSparseOrder(nil, piece, base, width, ids) {
				for _, id := range ids[rows.Rank][rows.Lo:rows.Hi] {
					row := base + int64(id)*width
					in := shard.Range{Lo: max(row, piece.Lo), Hi: min(row+width, piece.Hi)}
					if in.Len() <= 0 {
						t.Fatalf("row %d of rank %d does not touch piece %d", id, rows.Rank, p)
					}
					for e := in.Lo; e < in.Hi; e++ {
						got[e] = append(got[e], rows.Rank)
					}
				}
			}
		}
		want := make([][]shard.Rank, len(got))
		for r := range ids {
			for _, id := range ids[r] {
				for c := range width {
					e := base + int64(id)*width + c
					want[e] = append(want[e], shard.Rank(r))
				}
			}
		}
		for e := range want {
			if len(got[e]) != len(want[e]) {
				t.Fatalf("element %d: ranks %v, want %v", e, got[e], want[e])
			}
			for i := range want[e] {
				if got[e][i] != want[e][i] {
					t.Fatalf("element %d: ranks %v, want %v", e, got[e], want[e])
				}
			}
		}
	})
}
