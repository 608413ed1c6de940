//go:build unix

package allreduce

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// How soon trouble is to be noticed on a machine that has a processor for each process.
const (
	noticedMax = 1500 * time.Millisecond // a worker that says nothing, by whoever hears it
	culpritMax = 2 * time.Second         // one whose program never comes to its part of a step
)

// TestHowSoonAWorkerThatSaysNothingIsNoticed measures detection alone, with the times that jobs
// have: from the signal, or the cut, to the moment at which a neighbour accuses the worker. SKEIN_NOTICE
// is how often of each kind; the machine should do nothing else.
func TestHowSoonAWorkerThatSaysNothingIsNoticed(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("SKEIN_NOTICE"))
	if err != nil || n < 1 {
		t.Skip("a measurement; SKEIN_NOTICE=20 go test -run HowSoon -v ./allreduce")
	}
	for _, c := range []struct {
		kind   string
		most   time.Duration
		strike func(*testing.T) (noticed []time.Duration)
	}{
		{"kill -9", noticedMax, func(t *testing.T) []time.Duration { return signalled(t, syscall.SIGKILL) }},
		{"SIGSTOP", noticedMax, func(t *testing.T) []time.Duration { return signalled(t, syscall.SIGSTOP) }},
		{"partition", noticedMax, func(t *testing.T) []time.Duration {
			return parted(t, []int{2, 0}, func(c []*cable) {
				for _, x := range c[1:] {
					x.there.Store(true)
					x.back.Store(true)
				}
			})
		}},
		{"partition, of what it says", noticedMax, func(t *testing.T) []time.Duration {
			return parted(t, []int{2}, func(c []*cable) { c[2].there.Store(true) })
		}},
		{"partition, of what it says back", noticedMax, func(t *testing.T) []time.Duration {
			return parted(t, []int{0}, func(c []*cable) { c[1].back.Store(true) })
		}},
		{"a program that hangs", culpritMax, idle},
	} {
		var all []time.Duration
		for i := range n {
			t.Run(fmt.Sprint(c.kind, " ", i), func(t *testing.T) { all = append(all, c.strike(t)...) })
		}
		if len(all) == 0 {
			t.Fatalf("%s: nobody has noticed", c.kind)
		}
		slices.Sort(all)
		ms := func(at int) string { return all[at].Round(time.Millisecond).String() }
		fmt.Printf("noticed kind=%q n=%d median=%s p95=%s max=%s limit=%s\n", c.kind, len(all), ms(len(all)/2), ms((len(all)*95+99)/100-1), ms(len(all)-1), c.most)
		if all[len(all)-1] > c.most {
			t.Errorf("%s: noticed after %s, at most %s", c.kind, ms(len(all)-1), c.most)
		}
	}
}

// accused waits until workers accuse w1 and says how long each took.
func accused(t *testing.T, by []*testWorker) (took []time.Duration) {
	began := time.Now()
	took = make([]time.Duration, len(by))
	var wg sync.WaitGroup
	for i, w := range by {
		wg.Go(func() {
			<-w.link.Broken()
			took[i] = time.Since(began)
			if broken, ok := errors.AsType[*LinkError](w.link.Err()); !ok || broken.Accused != 1 {
				t.Errorf("worker %d: %v", w.c.Worker, w.link.Err())
			}
		})
	}
	wg.Wait()
	return took
}

// lately lets some time go by, so that trouble strikes anywhere between two pings.
func lately() { time.Sleep(time.Duration(rand.Int64N(int64(2 * pingEvery)))) }

// signalled is how soon neighbours accuse a process that gets a signal.
func signalled(t *testing.T, s syscall.Signal) []time.Duration {
	here, w1 := another(t)
	each(t, here, func(w *testWorker) error { return w.link.Begin(t.Context(), 7) })
	lately()
	if err := w1.Signal(s); err != nil {
		t.Fatal(err)
	}
	return accused(t, here)
}

// parted is how soon those who do not hear w1 accuse it.
func parted(t *testing.T, by []int, lose func([]*cable)) []time.Duration {
	ring, cables := cabled(t, 3, func(l *LinkConfig) { l.Silence = 0 })
	connect(t, ring)
	lately()
	lose(cables)
	var who []*testWorker
	for _, i := range by {
		who = append(who, ring[i])
	}
	return accused(t, who)
}

// idle is how soon others name w1, whose program never gives its ranks' gradients.
func idle(t *testing.T) []time.Duration {
	ring := newRing(t, ringOptions{worldSize: 6, workers: 3, elem: 4, mirror: true, chunk: 2000, elems: []int64{3000, 300}, seed: 1})
	each(t, ring, func(w *testWorker) error { return w.link.Begin(t.Context(), 7) })
	lately()
	others := []*testWorker{ring[0], ring[2]}
	began, took := time.Now(), make([]time.Duration, len(others))
	var wg sync.WaitGroup
	for _, w := range others {
		for _, r := range w.ranks() {
			for b := range w.c.Table.Buckets() {
				w.link.Ready(r, b)
			}
		}
		wg.Go(func() { _ = w.link.WaitReduced(t.Context(), 0) }) // until the link is closed
	}
	until(t, func() bool {
		left := 0
		for i, w := range others {
			w.link.mu.Lock()
			s := w.link.named[ofSteps]
			w.link.mu.Unlock()
			if took[i] == 0 && s.Worker == 1 && s.Rank == 2 && s.Generation == 3 && s.Step == 7 {
				took[i] = time.Since(began)
			}
			if took[i] == 0 {
				left++
			}
		}
		return left == 0
	})
	closeAll(ring)
	wg.Wait()
	return took
}
