package allreduce

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// gate holds back whoever passes while it is shut. The zero gate is open.
type gate struct {
	mu   sync.Mutex
	wait chan struct{} // closed when it opens; nil: it is open
}

func (g *gate) shut(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case shut && g.wait == nil:
		g.wait = make(chan struct{})
	case !shut && g.wait != nil:
		close(g.wait)
		g.wait = nil
	}
}

func (g *gate) pass() {
	g.mu.Lock()
	wait := g.wait
	g.mu.Unlock()
	if wait != nil {
		<-wait
	}
}

// TestALinkThatIsCutForAMomentAccusesNobody holds back the bytes of one connection for 300 ms,
// several times, while the ring takes steps.
func TestALinkThatIsCutForAMomentAccusesNobody(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("ring", func(t *testing.T) {
		ring, cables := cabled(t, 3, nil) // that bears silence for longer than the test's machine is ever busy
		connect(t, ring)
		want := localSums(t, ring[0])
		var flaps sync.WaitGroup
		each(t, ring, func(w *testWorker) error {
			r := rand.New(rand.NewPCG(1, uint64(w.c.Worker)))
			for step := int64(1); step <= 6; step++ {
				if w.c.Worker == 0 && step%2 == 0 {
					late := &cables[1+step/2%2].late
					late.shut(true)
					flaps.Go(func() {
						time.Sleep(300 * time.Millisecond)
						late.shut(false)
					})
				}
				if _, err := w.reduce(t.Context(), step, r); err != nil {
					return err
				}
				if err := w.gather(t.Context(), step, r); err != nil {
					return err
				}
				if err := w.check(step, want); err != nil {
					return err
				}
			}
			return nil
		})
		flaps.Wait()
		for _, w := range ring {
			if err := w.link.Err(); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestALinkThatComesBackTooLateHasBeenGivenUp lets bytes of w1 arrive at w2 when it is accused
// already: they change nothing.
func TestALinkThatComesBackTooLateHasBeenGivenUp(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("ring", func(t *testing.T) {
		ring, cables := cabled(t, 3, func(l *LinkConfig) { l.Silence = time.Second })
		connect(t, ring)
		cables[2].late.shut(true)
		errs := make([]error, len(ring))
		var wg sync.WaitGroup
		for i, w := range ring {
			wg.Go(func() {
				_, errs[i] = w.reduce(t.Context(), 7, rand.New(rand.NewPCG(1, 1)))
			})
		}
		wg.Wait()
		for _, i := range []int{2, 0} { // who does not hear it, and who is told so
			if broken, ok := errors.AsType[*LinkError](errs[i]); !ok || broken.Accused != 1 {
				t.Errorf("worker %d: %v", i, errs[i])
			}
		}
		before := fmt.Sprint(ring[2].sums)
		cables[2].late.shut(false)
		closeAll(ring)
		if fmt.Sprint(ring[2].sums) != before {
			t.Error("what came late is in memory")
		}
		if _, known := ring[2].link.Decided(); known {
			t.Error("a step is decided that w2 has no part in")
		}
	})
}
