package stream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/skein-ml/skein/data"
	"github.com/skein-ml/skein/shard"
)

func TestEveryPackIsTheDataSets(t *testing.T) {
	d := small()
	addr, _ := serve(t, plainText, d)
	c := open(t, Config{Servers: []string{addr}, ContentHash: hashOf(d), Vocab: 257})
	if c.Len() != d.Len() || c.SeqLen() != d.SeqLen() {
		t.Fatalf("%d packs of %d, want %d of %d", c.Len(), c.SeqLen(), d.Len(), d.SeqLen())
	}
	all := make([]int64, d.Len())
	for i := range all {
		all[i] = int64(i)
	}
	samePacks(t, d, c, all)
	rand.New(rand.NewPCG(1, 1)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	samePacks(t, d, c, all[:500])
	samePacks(t, d, c, []int64{shard.Filler, 7, shard.Filler, d.Len() - 1})
	samePacks(t, d, c, []int64{shard.Filler})
	samePacks(t, d, c, nil)
}

func TestBatchSaysWhichPackDoesNotExist(t *testing.T) {
	d := small()
	addr, _ := serve(t, plainText, d)
	c := open(t, Config{Servers: []string{addr}, ContentHash: hashOf(d)})
	var b data.Batch
	wantError(t, c.Batch(t.Context(), []int64{d.Len()}, &b), fmt.Sprintf("pack %d of %d", d.Len(), d.Len()))
}

// steps runs a client through the steps of an order as a worker does, and compares every batch.
func steps(t *testing.T, d *data.Dataset, c *Client, o shard.Order, ranks []shard.Rank, worldSize int, from, to int64, each func(k int64)) {
	t.Helper()
	must(t, c.Follow(Plan{Order: o, Places: RankPlaces(ranks, int(o.GlobalBatch), worldSize)}, from))
	for k := from; k < to; k++ {
		c.Step(k)
		for _, r := range ranks {
			lo, hi := shard.RankSequences(r, int(o.GlobalBatch), worldSize)
			var indices []int64
			for j := lo; j < hi; j++ {
				index, _ := o.Sample(k, int64(j))
				indices = append(indices, index)
			}
			samePacks(t, d, c, indices)
		}
		if each != nil {
			each(k)
		}
	}
}

func TestAShuffledOrderStraddlesEpochsAndEndsInFiller(t *testing.T) {
	d := small()
	addr, _ := serve(t, plainText, d)
	c := open(t, Config{Servers: []string{addr}, ContentHash: hashOf(d)})
	g := int64(600)
	o := shard.Order{Seed: 3, Samples: d.Len(), GlobalBatch: g, Total: 2*d.Len() + 5}
	steps(t, d, c, o, []shard.Rank{0, 3}, 4, 1, o.Steps()+2, nil)
	if index, _ := o.Sample(o.Steps(), g-1); index != shard.Filler {
		t.Fatal("the last step has no filler")
	}
}

func TestAPlanKeepsBatchesFromWaiting(t *testing.T) {
	d := large()
	addr, _ := serve(t, plainText, d)
	run := func(follow bool) Stats {
		c := open(t, Config{Servers: []string{addr}, ContentHash: hashOf(d)})
		o := shard.Order{Seed: 3, Samples: d.Len(), GlobalBatch: 4}
		p := Plan{Order: o, Places: []Places{{0, 4}}}
		if follow {
			must(t, c.Follow(p, 1))
		}
		for k := int64(1); k < 30; k++ {
			if follow {
				c.Step(k)
				waitFor(t, "the records of the step", func() bool {
					c.mu.Lock()
					defer c.mu.Unlock()
					return len(c.window) == 0 && len(c.wanted) == 0
				})
			}
			var indices []int64
			for j := range int64(4) {
				index, _ := o.Sample(k, j)
				indices = append(indices, index)
			}
			samePacks(t, d, c, indices)
		}
		return c.Stats()
	}
	with, without := run(true), run(false)
	if with.Misses != 0 || with.Wait != 0 {
		t.Errorf("with a plan %d packs were waited for, %v", with.Misses, with.Wait)
	}
	if without.Misses == 0 || without.Wait == 0 {
		t.Errorf("without a plan nothing was waited for: %+v", without)
	}
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited a minute for %s", what)
		}
	}
}

func TestMemoryStaysWithinItsLimit(t *testing.T) {
	d := large()
	addr, _ := serve(t, plainText, d)
	c := open(t, Config{Servers: []string{addr}, ContentHash: hashOf(d), MemoryBytes: 1})
	limit := 8 * c.x.RecordBytesMax()
	o := shard.Order{Seed: 9, Samples: d.Len(), GlobalBatch: 24}
	steps(t, d, c, o, []shard.Rank{0}, 1, 1, 12, func(k int64) {
		if s := c.Stats(); s.Memory > limit {
			t.Errorf("step %d: %d bytes of records, at most %d", k, s.Memory, limit)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if n := len(c.wanted) + len(c.urgent) + len(c.window); n > 64 {
			t.Errorf("step %d: queues of %d, %d, %d", k, len(c.wanted), len(c.urgent), len(c.window))
		}
	})
	if s := c.Stats(); s.Records < 160 {
		t.Errorf("only %d records were read: the limit was not put to the test", s.Records)
	}
}

func TestBatchMayBeCalledFromSeveralGoroutines(t *testing.T) {
	d := large()
	a, _ := serve(t, plainText, d)
	b, _ := serve(t, plainText, d)
	c := open(t, Config{Servers: []string{a, b}, ContentHash: hashOf(d), MemoryBytes: 1})
	var wg sync.WaitGroup
	for g := range uint64(4) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(g, g))
			var got, want data.Batch
			for range 15 {
				indices := []int64{rng.Int64N(d.Len()), rng.Int64N(d.Len()), -1, rng.Int64N(d.Len())}
				if err := errors.Join(c.Batch(t.Context(), indices, &got), d.Batch(t.Context(), indices, &want)); err != nil {
					t.Error(err)
				} else if got.TargetCount != want.TargetCount || got.Tokens[5] != want.Tokens[5] {
					t.Errorf("packs %v differ", indices)
				}
			}
		})
	}
	wg.Wait()
}

func TestABatchFromMemoryAllocatesNothing(t *testing.T) {
	d := small()
	addr, _ := serve(t, plainText, d)
	c := open(t, Config{Servers: []string{addr}, ContentHash: hashOf(d)})
	var b data.Batch
	ctx, indices := context.Background(), []int64{1, 800, 300, -1}
	for range 3 {
		must(t, c.Batch(ctx, indices, &b))
	}
	if n := testing.AllocsPerRun(50, func() { must(t, c.Batch(ctx, indices, &b)) }); n != 0 {
		t.Errorf("%v allocations a batch", n)
	}
}

func TestABatchEndsWithItsContextAndSaysWhatItWaitedFor(t *testing.T) {
	d := small()
	addr, srv := serve(t, plainText, d)
	c := open(t, Config{Servers: []string{addr}, ContentHash: hashOf(d)})
	srv.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var b data.Batch
	err := c.Batch(ctx, []int64{300}, &b)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	wantError(t, err, "waiting for record 1 ", addr, hashOf(d)[:12])
	if w := c.Stats().Wait; w < 40*time.Millisecond {
		t.Errorf("%v of waiting was counted, want 50 ms", w)
	}
}

func TestABatchGivesUpAfterWaitMax(t *testing.T) {
	d := small()
	addr, srv := serve(t, plainText, d)
	c := open(t, Config{Servers: []string{addr}, ContentHash: hashOf(d), WaitMax: 300 * time.Millisecond})
	srv.Close()
	var b data.Batch
	wantError(t, c.Batch(t.Context(), []int64{300}, &b), "nothing came for 300ms", addr)
	if c.Waiting() != "" {
		t.Errorf("still waiting for %s", c.Waiting())
	}
}

func TestCloseEndsABatchThatWaits(t *testing.T) {
	d := small()
	addr, srv := serve(t, plainText, d)
	c := open(t, Config{Servers: []string{addr}, ContentHash: hashOf(d)})
	srv.Close()
	failed := make(chan error, 1)
	go func() {
		var b data.Batch
		failed <- c.Batch(t.Context(), []int64{300}, &b)
	}()
	waitFor(t, "the batch to wait", func() bool { return c.Waiting() != "" })
	must(t, c.Close())
	must(t, c.Close())
	wantError(t, <-failed, "closed", "record 1 ")
}

func TestTheCacheFolderServesWithoutAServer(t *testing.T) {
	d := small()
	dir := t.TempDir()
	addr, srv := serve(t, plainText, d)
	config := Config{Servers: []string{addr}, ContentHash: hashOf(d), CacheDir: dir}
	c := open(t, config)
	samePacks(t, d, c, []int64{1, 300, 600, 900})
	must(t, c.Close())
	c = open(t, config) // the index still comes from a server
	srv.Close()
	samePacks(t, d, c, []int64{2, 301, 601, 901})
	if s := c.Stats(); s.DiskHits != 4 || s.Records != 0 {
		t.Errorf("%d records from the folder, %d from a server; want 4, 0", s.DiskHits, s.Records)
	}
}

func TestADamagedCacheFileIsFetchedAgain(t *testing.T) {
	d := small()
	dir := t.TempDir()
	addr, _ := serve(t, plainText, d)
	config := Config{Servers: []string{addr}, ContentHash: hashOf(d), CacheDir: dir}
	c := open(t, config)
	samePacks(t, d, c, []int64{1, 300, 600, 900})
	must(t, c.Close())
	files, err := filepath.Glob(filepath.Join(dir, "*"+diskSuffix))
	must(t, err)
	if len(files) != 4 {
		t.Fatalf("%d files", len(files))
	}
	for i, name := range files {
		b, err := os.ReadFile(name)
		must(t, err)
		switch i {
		case 0:
			b = b[:len(b)/2]
		case 1:
			b = nil
		default:
			b[len(b)*i/4] ^= 1
		}
		must(t, os.WriteFile(name, b, 0o644))
	}
	c = open(t, config)
	samePacks(t, d, c, []int64{1, 300, 600, 900})
	if s := c.Stats(); s.Records == 0 || s.Records+s.DiskHits != 4 {
		t.Errorf("%d records from the folder, %d from a server", s.DiskHits, s.Records)
	}
}

func TestAConfigThatCannotWorkIsRefused(t *testing.T) {
	good := Config{Security: plainText, Servers: []string{"127.0.0.1:1"}, ContentHash: hashOf(small())}
	for _, test := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.PlainText = false }, "ask for plain text"},
		{func(c *Config) { c.ContentHash = "abc" }, "not a content hash"},
		{func(c *Config) { c.Servers = nil }, "no server is known"},
		{func(c *Config) { c.Patience = -1 }, "negative"},
	} {
		c := good
		test.change(&c)
		_, err := Open(t.Context(), c)
		wantError(t, err, test.want)
	}
}

func TestAPlanOfAnotherDataSetIsRefused(t *testing.T) {
	d := small()
	addr, _ := serve(t, plainText, d)
	c := open(t, Config{Servers: []string{addr}, ContentHash: hashOf(d)})
	o := shard.Order{Samples: d.Len(), GlobalBatch: 8}
	wantError(t, c.Follow(Plan{Order: shard.Order{Samples: 7, GlobalBatch: 8}, Places: []Places{{0, 1}}}, 1), "7 packs")
	wantError(t, c.Follow(Plan{Order: o, Places: []Places{{0, 9}}}, 1), "places 0 to 9")
	wantError(t, c.Follow(Plan{Order: o, Places: []Places{{0, 8}}}, 0), "step 0")
	must(t, c.Follow(Plan{}, 1))
}

func TestATokenThatTheModelLacksIsNoFaultOfTheServer(t *testing.T) {
	d := small()
	addr, _ := serve(t, plainText, d)
	c := open(t, Config{Servers: []string{addr}, ContentHash: hashOf(d), Vocab: 50})
	var b data.Batch
	err := c.Batch(t.Context(), []int64{3}, &b)
	if !errors.Is(err, data.ErrVocab) {
		t.Errorf("error %v", err)
	}
	wantError(t, err, "another model")
	if s := c.Stats(); !s.Servers[0].Working {
		t.Errorf("the server is blamed: %+v", s.Servers)
	}
}
