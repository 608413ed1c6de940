package sim

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// tally is what a set of schedules came to.
type tally struct {
	sync.Mutex
	counts   Counts
	events   int
	idle     int // schedules in which nothing failed, or the job was too short
	failures []string
}

func (t *tally) add(seed int, r Result, err error) {
	t.Lock()
	defer t.Unlock()
	for k, v := range r.Counts {
		t.counts[k] += v
	}
	t.events += r.Events
	if r.Steps < 3 || r.Counts["faults"] == 0 {
		t.idle++
	}
	if err != nil {
		t.failures = append(t.failures, fmt.Sprintf("%v; again with: make sim SEED=%d", err, seed))
	}
}

// play plays n schedules on all cores.
func play(from, n int) *tally {
	t := &tally{counts: Counts{}}
	var group sync.WaitGroup
	seeds := make(chan int)
	for range runtime.GOMAXPROCS(0) {
		group.Go(func() {
			for seed := range seeds {
				r, err := Run(Config{Seed: uint64(seed)})
				t.add(seed, r, err)
			}
		})
	}
	for seed := from; seed < from+n; seed++ {
		seeds <- seed
	}
	close(seeds)
	group.Wait()
	return t
}

// TestEveryScheduleEndsWithTheBitsOfAnUndisturbedRun plays ten thousand schedules. SEED=n
// plays one, with its trace; SKEIN_SIM="n from" others.
func TestEveryScheduleEndsWithTheBitsOfAnUndisturbedRun(t *testing.T) {
	if seed := os.Getenv("SEED"); seed != "" {
		n, err := strconv.ParseUint(seed, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		r, err := Run(Config{Seed: n, Trace: os.Stdout})
		t.Logf("%d events, %v", r.Events, r.Counts)
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	n, from := 10_000, 1
	if s := os.Getenv("SKEIN_SIM"); s != "" {
		if _, err := fmt.Sscan(s, &n, &from); err != nil {
			t.Fatalf("SKEIN_SIM=%q: %v; give a number of schedules and the first seed", s, err)
		}
	}
	all := play(from, n)
	t.Logf("%d schedules, %d events, %d did not hold", n, all.events, len(all.failures))
	for _, k := range slices.Sorted(maps.Keys(all.counts)) {
		t.Logf("%8d  %s", all.counts[k], k)
	}
	for _, f := range all.failures[:min(len(all.failures), 10)] {
		t.Error(f)
	}
	if all.idle > 0 {
		t.Errorf("in %d schedules nothing failed, or the job had fewer than 3 steps", all.idle)
	}
	for _, row := range Rows {
		if all.counts[row] == 0 {
			t.Errorf("no schedule: %s", row)
		}
	}
}

// TestASeedIsTheSameRunEveryTime plays some schedules twice, event by event.
func TestASeedIsTheSameRunEveryTime(t *testing.T) {
	for seed := range uint64(20) {
		var a, b strings.Builder
		first, err := Run(Config{Seed: seed, Trace: &a})
		if err != nil {
			t.Fatal(err)
		}
		second, _ := Run(Config{Seed: seed, Trace: &b})
		if a.String() != b.String() || !maps.Equal(first.Counts, second.Counts) {
			t.Fatalf("seed %d gave two different runs", seed)
		}
	}
}

// TestWhatSchedulesFoundStaysFound plays the schedules that found something.
func TestWhatSchedulesFoundStaysFound(t *testing.T) {
	for _, c := range []struct {
		seed uint64
		what string
	}{
		{745, "one that was stopped while the others reported is not left behind"},
		{8783, "one that was given up joins empty if it holds more than was recovered"},
		{3523, "a clock that jumps lets nobody wait"},
		{25, "of two workers the later report tells whether they reach each other"},
		{6039, "under a new leader a worker of the job need not read its store again to go on"},
	} {
		t.Run(c.what, func(t *testing.T) {
			if _, err := Run(Config{Seed: c.seed}); err != nil {
				t.Error(err)
			}
		})
	}
}
