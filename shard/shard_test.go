package shard

import (
	"fmt"
	"strings"
	"testing"
)

func TestFoldOrderEndsAtTheOwner(t *testing.T) {
	for _, c := range []struct {
		piece     Rank
		worldSize int
		want      string
	}{
		{0, 1, "[0]"}, {0, 4, "[1 2 3 0]"}, {2, 4, "[3 0 1 2]"}, {3, 4, "[0 1 2 3]"}, {1, 2, "[0 1]"},
	} {
		if got := fmt.Sprint(FoldOrder(c.piece, c.worldSize)); got != c.want {
			t.Errorf("piece %d of %d ranks is folded %s, want %s", c.piece, c.worldSize, got, c.want)
		}
	}
}

func TestRankSequencesTileTheGlobalBatch(t *testing.T) {
	for worldSize := 1; worldSize <= WorldSizeMax; worldSize++ {
		next := 0
		for r := range worldSize {
			lo, hi := RankSequences(Rank(r), 3*worldSize, worldSize)
			if lo != next || hi-lo != 3 {
				t.Fatalf("rank %d of %d reads [%d, %d), expected three from %d", r, worldSize, lo, hi, next)
			}
			next = hi
		}
	}
}

func TestGlobalBatchThatRanksCannotShareIsRefusedWithNeighbours(t *testing.T) {
	if err := CheckGlobalBatch(12, 4); err != nil {
		t.Errorf("12 over 4 ranks: %v", err)
	}
	for _, c := range []struct {
		batch int
		want  string
	}{{10, "use 8 or 12"}, {3, "use 4"}, {0, "use 4"}} {
		if err := CheckGlobalBatch(c.batch, 4); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("global batch %d over 4 ranks: error %v, want %q", c.batch, err, c.want)
		}
	}
}

func TestPlacementIsContiguousAndEven(t *testing.T) {
	show := func(worldSize, workers int) string {
		p, err := EvenPlacement(worldSize, workers)
		if err != nil {
			t.Fatal(err)
		}
		var blocks []string
		for w := range p.Workers() {
			for _, r := range p.Ranks(w) {
				if p.Worker(r) != w {
					t.Fatalf("rank %d is listed on worker %d and placed on %d", r, w, p.Worker(r))
				}
			}
			blocks = append(blocks, fmt.Sprint(p.Ranks(w)))
		}
		return strings.Join(blocks, " ")
	}
	for _, c := range []struct {
		worldSize, workers int
		want               string
	}{
		{8, 4, "[0 1] [2 3] [4 5] [6 7]"}, {8, 3, "[0 1 2] [3 4 5] [6 7]"}, {4, 1, "[0 1 2 3]"}, {5, 5, "[0] [1] [2] [3] [4]"},
	} {
		if got := show(c.worldSize, c.workers); got != c.want {
			t.Errorf("%d ranks on %d workers: %s, want %s", c.worldSize, c.workers, got, c.want)
		}
	}
}

func TestPlacementRefusesMoreWorkersThanRanks(t *testing.T) {
	if _, err := EvenPlacement(4, 5); err == nil || !strings.Contains(err.Error(), "at most 4 workers") {
		t.Errorf("5 workers for 4 ranks: %v", err)
	}
	if _, err := EvenPlacement(4, 0); err == nil {
		t.Error("no worker at all was accepted")
	}
}

func TestWorkersThatShortenNoStepAreNotUseful(t *testing.T) {
	for _, c := range [][3]int{{8, 5, 4}, {8, 7, 4}, {8, 8, 8}, {8, 20, 8}, {8, 3, 3}, {4, 1, 1}, {4, 3, 2}, {4, 0, 0}} {
		if got := UsefulWorkers(c[0], c[1]); got != c[2] {
			t.Errorf("%d ranks, %d workers: %d useful, want %d", c[0], c[1], got, c[2])
		}
	}
}

func TestStagesThatDoNotExistAreRefused(t *testing.T) {
	for s := Stage(-1); s <= 4; s++ {
		if err := CheckStage(s); (err == nil) != (s >= 0 && s <= 3) {
			t.Errorf("stage %d: %v", s, err)
		}
	}
}
