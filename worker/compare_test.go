package worker

import (
	"errors"
	"testing"

	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/shard"
	"github.com/skein-ml/skein/worker/trainer"
)

// agreeing are shares of workers of which each has copies of the previous one's ranks.
func agreeing(t *testing.T, table shard.Table, p shard.Placement) []share {
	t.Helper()
	of := func(ranks []shard.Rank) []sums {
		list := newSums(table.Buckets(), ranks)
		for _, s := range list {
			for kind := range s.Of {
				for b := range s.Of[kind] {
					s.Of[kind][b] = uint32(s.Rank)<<16 | uint32(kind)<<8 | uint32(b)
				}
			}
		}
		return list
	}
	n := p.Workers()
	all := make([]share, n)
	for w := range all {
		all[w] = share{Own: of(p.Ranks(w)), Copies: of(p.Ranks((w + n - 1) % n))}
	}
	return all
}

func smallTable(t *testing.T) (shard.Table, shard.Placement) {
	t.Helper()
	table, err := shard.NewTable([]shard.Group{
		{Name: "embedding", Tensors: []shard.Tensor{{Name: "e", Elems: 5000}}}, {Name: "layer.0", Tensors: []shard.Tensor{{Name: "l", Elems: 3000}}},
	}, 6)
	if err != nil {
		t.Fatal(err)
	}
	p, err := shard.EvenPlacement(6, 3)
	if err != nil {
		t.Fatal(err)
	}
	return table, p
}

func TestEachSumOfACopyIsComparedWithItsOwners(t *testing.T) {
	table, p := smallTable(t)
	all := agreeing(t, table, p)
	if found, err := differences(table, p, 7, all, true); err != nil || len(found) != 0 {
		t.Fatalf("copies that agree: %v, %v", found, err)
	}
	for w := range all {
		for _, x := range all[w].Copies {
			for kind := range x.Of {
				for b := range x.Of[kind] {
					x.Of[kind][b] ^= 1 << 30
					found, err := differences(table, p, 7, all, true)
					x.Of[kind][b] ^= 1 << 30
					if err != nil || len(found) != 1 {
						t.Fatalf("rank %d, kind %d, bucket %d differs: %v, %v", x.Rank, kind, b, found, err)
					}
					sum := x.Of[kind][b]
					want := trainer.DivergedError{Step: 7, Rank: x.Rank, Kind: checkpoint.Kind(kind), Bucket: b, Layer: table.Bucket(b).Name,
						Owner: p.Worker(x.Rank), Mirror: w, OwnerSum: sum, MirrorSum: sum ^ 1<<30}
					if *found[0] != want {
						t.Errorf("found %+v, want %+v", *found[0], want)
					}
				}
			}
		}
	}
	all[0].Copies[1].Of[2][1]++
	all[2].Copies = append(all[2].Copies, newSums(table.Buckets(), []shard.Rank{1})...) // what it mirrored before
	if found, err := differences(table, p, 7, all, true); err != nil || len(found) != 2 || found[1].Owner != 0 || found[1].Mirror != 2 {
		t.Errorf("two differ, of which one is of nobody's mirror: %v, %v", found, err)
	}
}

func TestSumsThatAreMissingOrOfNothingAreTheSendersFault(t *testing.T) {
	table, p := smallTable(t)
	for name, x := range map[string]struct {
		spoil func(all []share)
		whole bool
		who   int
	}{
		"nothing of its own":       {func(all []share) { all[1].Own = nil }, false, 1},
		"other ranks":              {func(all []share) { all[1].Own = all[2].Own }, false, 1},
		"a bucket too few":         {func(all []share) { all[2].Own[0].Of[1] = make([]uint32, 1) }, false, 2},
		"a kind too few":           {func(all []share) { all[0].Own[1].Of = all[0].Own[1].Of[:2] }, false, 0},
		"a copy of its own":        {func(all []share) { all[0].Copies = all[0].Own }, false, 0},
		"a copy of no rank":        {func(all []share) { all[0].Copies[0].Rank = -1 }, false, 0},
		"a copy beyond all ranks":  {func(all []share) { all[0].Copies[0].Rank = 6 }, false, 0},
		"a copy with no bucket":    {func(all []share) { all[0].Copies[0].Of[0] = nil }, false, 0},
		"a mirror with no copy":    {func(all []share) { all[2].Copies = nil }, true, 2},
		"another's instead of its": {func(all []share) { all[0].Copies, all[2].Copies = all[2].Copies, nil }, true, 2},
	} {
		t.Run(name, func(t *testing.T) {
			all := agreeing(t, table, p)
			x.spoil(all)
			found, err := differences(table, p, 7, all, x.whole)
			if peer, ok := errors.AsType[*trainer.PeerError](err); !ok || peer.Worker != x.who || len(found) != 0 {
				t.Errorf("%v, %v; want an error that names worker %d", found, err, x.who)
			}
		})
	}
	all := agreeing(t, table, p)
	all[2].Copies = nil
	if found, err := differences(table, p, 7, all, false); err != nil || len(found) != 0 {
		t.Errorf("a mirror that is being filled: %v, %v", found, err)
	}
}
