package cpu

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/skein-ml/skein/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// tally counts how often each piece ran, and that no worker is used twice at once.
type tally struct {
	count []atomic.Int32
	busy  []atomic.Bool
	sleep time.Duration
	clash atomic.Bool
	panic int
}

func (c *tally) Piece(i, worker int) {
	if !c.busy[worker].CompareAndSwap(false, true) {
		c.clash.Store(true)
	}
	defer c.busy[worker].Store(false)
	c.count[i].Add(1)
	if c.sleep > 0 && i%3 == 0 {
		time.Sleep(c.sleep)
	}
	if i == c.panic {
		panic("piece")
	}
}

func TestPoolRunsEveryPieceOnce(t *testing.T) {
	for _, workers := range []int{1, 2, 3, 8} {
		p := newPool(workers)
		for round := range 3000 {
			c := &tally{count: make([]atomic.Int32, 1+round%37), busy: make([]atomic.Bool, workers), panic: -1}
			if round%100 == 0 {
				c.sleep = 50 * time.Microsecond // longer than a worker spins
			}
			p.Run(len(c.count), c)
			for i := range c.count {
				if n := c.count[i].Load(); n != 1 {
					t.Fatalf("%d workers, round %d: piece %d ran %d times", workers, round, i, n)
				}
			}
			if c.clash.Load() {
				t.Fatalf("%d workers, round %d: two pieces ran as one worker", workers, round)
			}
		}
		p.close()
	}
}

// Workers that found nothing to do for spinTime hold no core: others compute on it.
func TestWorkersParkWhenThereIsNothingToDo(t *testing.T) {
	p := newPool(4)
	defer p.close()
	for round := range 20 {
		c := &tally{count: make([]atomic.Int32, 50), busy: make([]atomic.Bool, 4), panic: -1}
		p.Run(len(c.count), c)
		for until := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			parked := 0
			for i := 1; i < 4; i++ {
				if p.workers[i].parked.Load() {
					parked++
				}
			}
			if parked == 3 {
				break
			}
			if time.Now().After(until) {
				t.Fatalf("round %d: %d of 3 workers are parked", round, parked)
			}
		}
	}
}

func TestPoolHandsOnAPanicAndGoesOn(t *testing.T) {
	p := newPool(3)
	defer p.close()
	for round := range 200 {
		c := &tally{count: make([]atomic.Int32, 20), busy: make([]atomic.Bool, 3), panic: round % 20}
		func() {
			defer func() {
				if v := recover(); v != "piece" {
					t.Fatalf("recovered %v", v)
				}
			}()
			p.Run(len(c.count), c)
			t.Fatal("Run returned")
		}()
		for i := range c.count {
			if n := c.count[i].Load(); n != 1 {
				t.Fatalf("piece %d ran %d times", i, n)
			}
		}
	}
}
