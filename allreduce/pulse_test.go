package allreduce

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/skein-ml/skein/shard"
)

// cable carries bytes between two workers and can lose those of either direction, as a
// network does that has come apart, or hold them back, as one does that comes back.
type cable struct {
	l     net.Listener
	there atomic.Bool // what the dialling worker says is lost
	back  atomic.Bool // what it hears
	late  gate        // what it says is held back
	wg    sync.WaitGroup
	mu    sync.Mutex
	ends  []net.Conn
}

func newCable(t *testing.T, to string) *cable {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{l: l}
	copyTo := func(dst, src net.Conn, lose *atomic.Bool, held *gate) {
		b := make([]byte, 32<<10)
		for {
			n, err := src.Read(b)
			held.pass()
			if err == nil && !lose.Load() {
				_, err = dst.Write(b[:n])
			}
			if err != nil {
				if !lose.Load() {
					_ = dst.Close()
					_ = src.Close()
				}
				return
			}
		}
	}
	c.wg.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = from.Close()
				continue
			}
			c.mu.Lock()
			c.ends = append(c.ends, from, far)
			c.mu.Unlock()
			c.wg.Go(func() { copyTo(far, from, &c.there, &c.late) })
			c.wg.Go(func() { copyTo(from, far, &c.back, &gate{}) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		c.late.shut(false)
		c.mu.Lock()
		for _, e := range c.ends {
			_ = e.Close()
		}
		c.mu.Unlock()
		c.wg.Wait()
	})
	return c
}

// cabled makes workers with a cable before each.
func cabled(t *testing.T, n int, change func(*LinkConfig)) ([]*testWorker, []*cable) {
	cables := make([]*cable, n)
	workers := newWorkers(t, ringOptions{worldSize: n, workers: n, elem: 4, mirror: true, chunk: 2000, elems: []int64{3000}, seed: 1, change: change,
		address: func(worker int, addr string) string {
			cables[worker] = newCable(t, addr)
			return cables[worker].l.Addr().String()
		}})
	return workers, cables
}

func TestASilentNeighbourIsNamedByThoseWhoDoNotHearIt(t *testing.T) {
	const silence = time.Second
	for _, c := range []struct {
		name string
		lose func([]*cable)
		by   []int // who notices
	}{
		// All of w1's bytes are lost, both ways: it has stopped.
		{"a stopped worker", func(c []*cable) {
			c[1].there.Store(true)
			c[1].back.Store(true)
			c[2].there.Store(true)
			c[2].back.Store(true)
		}, []int{2, 0}},
		{"a network that loses what goes there", func(c []*cable) { c[2].there.Store(true) }, []int{2}},
		{"a network that loses what comes back", func(c []*cable) { c[1].back.Store(true) }, []int{0}},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			t.Run("ring", func(t *testing.T) {
				ring, cables := cabled(t, 3, func(l *LinkConfig) { l.Silence = silence })
				connect(t, ring)
				each(t, ring, func(w *testWorker) error { return w.link.Begin(t.Context(), 7) })
				errs := make([]error, len(ring))
				var wg sync.WaitGroup
				for i, w := range ring {
					wg.Go(func() { errs[i] = w.link.WaitReduced(t.Context(), 0) })
				}
				until(t, func() bool { return len(waits(ring)) == len(ring) })
				c.lose(cables)
				wg.Wait()
				if !strings.Contains(fmt.Sprint(errs), "w1 has been silent for 1s") {
					t.Error(errs)
				}
				for _, i := range c.by {
					broken, ok := errors.AsType[*LinkError](errs[i])
					if !ok || broken.Accused != 1 || broken.Generation != 3 || fmt.Sprint(broken.Ranks) != "[1]" ||
						!strings.Contains(broken.Error(), "waiting here: reduce, step 7, bucket 0, piece") {
						t.Errorf("worker %d: %v", i, errs[i])
					}
				}
			})
		})
	}
}

// waits are the waits of all workers' callers.
func waits(ring []*testWorker) (all []*waiting) {
	for _, w := range ring {
		w.link.mu.Lock()
		all = append(all, w.link.waits...)
		w.link.mu.Unlock()
	}
	return all
}

// TestAWorkerThatIsLateToTheRingIsNotTakenForDead lets one connect when its neighbours
// have been connected to theirs for longer than they bear silence: long enough for them to name it.
func TestAWorkerThatIsLateToTheRingIsNotTakenForDead(t *testing.T) {
	const want = "for connection: w2, for rank 4, has not come to the ring"
	var text bytes.Buffer
	var mu sync.Mutex
	said := func() string {
		mu.Lock()
		defer mu.Unlock()
		return text.String()
	}
	log := slog.New(slog.NewTextHandler(locked{&mu, &text}, nil))
	workers := newWorkers(t, ringOptions{worldSize: 8, workers: 4, elem: 4, chunk: 2000, elems: []int64{300}, seed: 1,
		change: func(c *LinkConfig) { c.Silence, c.Log = 600*time.Millisecond, log }})
	each(t, workers, func(w *testWorker) (err error) {
		if w.c.Worker == 2 { // until its neighbours have said whom they wait for
			until(t, func() bool { return strings.Count(said(), want) >= 2 })
		}
		w.link, err = Connect(t.Context(), w.listener, w.c)
		return err
	})
	t.Cleanup(func() { closeAll(workers) })
	each(t, workers, func(w *testWorker) error {
		_, err := w.link.Exchange(t.Context(), "hello", nil)
		return err
	})
	if n, all := strings.Count(said(), want), strings.Count(said(), "has not come to the ring"); n != all {
		t.Errorf("others than w2 are waited for:\n%s", said())
	}
}

// TestBusyProcessorsAreNoSilence keeps every processor at work twice over.
func TestBusyProcessorsAreNoSilence(t *testing.T) {
	ring := newRing(t, ringOptions{worldSize: 3, workers: 3, elem: 4, chunk: 2000, elems: []int64{300}, seed: 1, change: func(c *LinkConfig) { c.Silence = 0 }})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for range 2 * runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			x := 1.5
			for ctx.Err() == nil {
				for range 10_000_000 { // some milliseconds without a call
					x = x*x - x
				}
			}
			runtime.KeepAlive(x)
		})
	}
	wg.Wait()
	for _, w := range ring {
		if err := w.link.Err(); err != nil {
			t.Error(err)
		}
	}
}

// TestAProcessThatWasStoppedAccusesNobody looks at a silence that began while this
// process could not look.
func TestAProcessThatWasStoppedAccusesNobody(t *testing.T) {
	w := &watch{r: bytes.NewReader([]byte{1})}
	for i := range 3 { // the reader does not wait
		if w.look() != 0 {
			t.Fatalf("look %d counts what nobody waits for", i)
		}
	}
	w.waits.Store(true)
	for want := range 3 {
		if got := w.look(); got != want+1 {
			t.Fatalf("%d looks in vain, counted %d", want+1, got)
		}
	}
	if _, err := w.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	w.waits.Store(true)
	if got := w.look(); got != 0 { // however long ago the last was
		t.Errorf("%d looks in vain after a byte", got)
	}
}

// TestEveryHangHasACulprit stops one worker's caller at every point of a step, and asks
// the others.
func TestEveryHangHasACulprit(t *testing.T) {
	sums := func(w *testWorker) error {
		for b := range w.c.Table.Buckets() {
			for _, r := range w.ranks() {
				w.link.Ready(r, b)
			}
		}
		for b := range w.c.Table.Buckets() {
			if err := w.link.WaitReduced(w.t.Context(), b); err != nil {
				return err
			}
		}
		return nil
	}
	mirrored := func(w *testWorker) error {
		if err := sums(w); err != nil {
			return err
		}
		for b := range w.c.Table.Buckets() {
			w.link.MirrorReady(b)
			if w.c.GatherFirst {
				w.link.GatherReady(b)
			}
		}
		for b := range w.c.Table.Buckets() {
			if err := w.link.WaitMirrored(w.t.Context(), b); err != nil {
				return err
			}
			if !w.c.GatherFirst {
				continue
			}
			if err := w.link.WaitGathered(w.t.Context(), b); err != nil {
				return err
			}
		}
		return nil
	}
	voted := func(w *testWorker) error {
		if err := mirrored(w); err != nil {
			return err
		}
		_, err := w.link.Vote(w.t.Context(), w.votes(388))
		return err
	}
	gathered := func(w *testWorker) error {
		if err := voted(w); err != nil {
			return err
		}
		if err := w.link.BeginGather(w.t.Context(), 388); err != nil {
			return err
		}
		w.link.GatherReady(0)
		w.link.GatherReady(1)
		return w.link.WaitGathered(w.t.Context(), 0)
	}
	const culprit = 2 // of w0 … w3, with ranks 4 and 5
	for _, c := range []struct {
		name        string
		gatherFirst bool
		culprit     int
		stop        func(*testWorker) error // what the culprit does
		others      func(*testWorker) error
		rank        shard.Rank
		owes        string
		waiting     string // of w0
	}{
		{"a step not begun", false, culprit, nil, sums, 4, "has not begun step 0", "reduce, step 388, bucket 0, piece 0"},
		{"a gradient", false, culprit, func(w *testWorker) error {
			w.link.Ready(4, 1)
			w.link.Ready(5, 1)
			w.link.Ready(4, 0)
			return nil
		}, sums, 5, "has not finished the gradient of rank 5 in bucket 0 of step 388", "reduce, step 388, bucket 0, piece 0"},
		{"rows", false, culprit, sums, func(w *testWorker) error {
			for _, r := range w.ranks() {
				w.link.SendRows(r, nil, nil)
			}
			if err := sums(w); err != nil {
				return err
			}
			_, err := w.link.WaitRows(w.t.Context())
			return err
		}, 4, "has not sent the embedding rows of rank 4 of step 388", "rows, step 388"},
		{"the mirror", false, culprit, sums, voted, 4, "has not sent bucket 0 of step 388 to its mirror", "vote, step 388"},
		{"sums", true, culprit, sums, voted, 4, "has not made rank 4's piece of bucket 0 of step 388 ready to be gathered", "gather, step 388, bucket 0, piece 4"},
		{"a vote", false, culprit, mirrored, voted, 4, "has not voted for rank 4 in step 388", "vote, step 388"},
		{"the decision", false, 0, mirrored, voted, 0, "has not voted for rank 0 in step 388", "decision, step 388"},
		{"weights", false, culprit, func(w *testWorker) error {
			if err := voted(w); err != nil {
				return err
			}
			if err := w.link.BeginGather(w.t.Context(), 388); err != nil {
				return err
			}
			w.link.GatherReady(1)
			return nil
		}, gathered, 4, "has not made rank 4's piece of bucket 0 of step 388 ready to be gathered", "gather, step 388, bucket 0, piece 4"},
		{"room for a gradient", false, culprit, func(*testWorker) error { return nil }, func(w *testWorker) error {
			for _, r := range w.ranks() {
				w.link.Ready(r, 1)
			}
			return w.link.WaitSpent(w.t.Context(), 1)
		}, 4, "has not finished the gradient of rank 4 in bucket 0 of step 388", "reduce, step 388, bucket 1, piece 0"},
		{"weights on demand", false, culprit, func(*testWorker) error { return nil }, func(w *testWorker) error {
			if err := w.link.Gather(1); err != nil {
				return err
			}
			return w.link.WaitGathered(w.t.Context(), 1)
		}, 4, "has not finished the gradient of rank 4 in bucket 0 of step 388", "gather, step 388, bucket 1, piece 2"}, // of w1: it stands before w2
		{"state, before a step", false, culprit, func(*testWorker) error { return nil }, func(w *testWorker) error {
			return w.link.WaitState(w.t.Context(), culprit, 5, 1, 387)
		}, 5, "has not sent the state of rank 5 in bucket 1 at step 387", "state, step 387, bucket 1, piece 5"},
		{"an exchange", false, culprit, nil, func(w *testWorker) error {
			_, err := w.link.Exchange(w.t.Context(), "sums", []byte{1})
			return err
		}, 4, "has not come to the exchange (sums)", "exchange (sums), step 388"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var said bytes.Buffer
			log := slog.New(slog.NewTextHandler(locked{&sync.Mutex{}, &said}, nil))
			ring := newRing(t, ringOptions{worldSize: 8, workers: 4, elem: 4, mirror: !c.gatherFirst, gatherFirst: c.gatherFirst, chunk: 1000, elems: []int64{3000, 300}, seed: 1,
				change: func(l *LinkConfig) { l.Log, l.OnDemand = log, c.name == "weights on demand" }})
			var wg sync.WaitGroup
			for i, w := range ring {
				wg.Go(func() {
					if i == c.culprit && c.stop == nil {
						return
					}
					err := w.link.Begin(t.Context(), 388)
					if run := c.others; err == nil {
						if i == c.culprit {
							run = c.stop
						}
						err = run(w)
					}
					if err != nil && !errors.Is(err, ErrLinkClosed) && !errors.Is(err, ErrLeft) {
						t.Errorf("worker %d: %v", i, err)
					}
				})
			}
			asked := (c.culprit + 2) % len(ring)
			var got Stuck
			until(t, func() bool {
				var ok bool
				got, ok = ring[asked].link.Stuck()
				return ok && got.Owes == c.owes
			})
			if got.Worker != c.culprit || got.Name != fmt.Sprintf("w%d", c.culprit) || got.Rank != c.rank || got.Generation != 3 || got.Waiting != c.waiting || got.For < stuckAfter {
				t.Errorf("%+v\n%v", got, got)
			}
			until(t, func() bool { return strings.Contains(ring[asked].named(), c.owes) })
			closeAll(ring)
			wg.Wait()
			if !strings.Contains(said.String(), c.owes) {
				t.Errorf("the log does not say %q:\n%s", c.owes, said.String())
			}
		})
	}
}

// named is what the link has logged last of each sort of waits.
func (w *testWorker) named() string {
	w.link.mu.Lock()
	defer w.link.mu.Unlock()
	return fmt.Sprint(w.link.named[ofSteps], "\n", w.link.named[ofExchanges])
}

// TestAHangDuringASlowCheckpointHasACulpritToo has all workers but one wait in an exchange since long before
// another one never finishes a gradient: both are named, and whoever asks hears of the step.
func TestAHangDuringASlowCheckpointHasACulpritToo(t *testing.T) {
	ring := newRing(t, ringOptions{worldSize: 6, workers: 3, elem: 4, mirror: true, chunk: 2000, elems: []int64{3000, 300}, seed: 1})
	each(t, ring, func(w *testWorker) error { return w.link.Begin(t.Context(), 7) })
	var wg sync.WaitGroup
	for i, w := range ring {
		if i != 2 { // whose disk is slow
			wg.Go(func() { _, _ = w.link.Exchange(t.Context(), "parts", nil) }) // until the link is closed
		}
	}
	until(t, func() bool { s, ok := ring[0].link.Stuck(); return ok && s.Worker == 2 && s.Rank == 4 })
	for i, w := range ring {
		for b := range w.c.Table.Buckets() {
			for _, r := range w.ranks() {
				if i != 1 || b != 0 {
					w.link.Ready(r, b)
				}
			}
		}
		if i != 1 {
			wg.Go(func() { _ = w.link.WaitReduced(t.Context(), 0) })
		}
	}
	const step, checkpoint = "w1, for rank 2, has not finished the gradient of rank 2 in bucket 0 of step 7", "w2, for rank 4, has not come to the exchange (parts)"
	until(t, func() bool {
		return strings.Contains(ring[0].named(), step) && strings.Contains(ring[0].named(), checkpoint)
	})
	if s, ok := ring[0].link.Stuck(); !ok || s.Worker != 1 || s.Rank != 2 || s.Step != 7 {
		t.Errorf("%v", s)
	}
	closeAll(ring)
	wg.Wait()
}

// locked is a writer for many goroutines.
type locked struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func TestReachAsksAnyListener(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("listeners", func(t *testing.T) {
		l, _ := testListener(t, nil)
		if err := Reach(t.Context(), Probe{From: "w0", Name: "w1", Addr: l.Addr()}); err != nil {
			t.Error(err)
		}
		_ = l.Close()
		if err := Reach(t.Context(), Probe{From: "w0", Name: "w1", Addr: l.Addr()}); err == nil || !strings.Contains(err.Error(), "w1 at 127.0.0.1:") {
			t.Errorf("a closed listener: %v", err)
		}
		deaf, err := net.Listen("tcp", "127.0.0.1:0") // a stopped process: its kernel still accepts
		if err != nil {
			t.Fatal(err)
		}
		defer deaf.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := Reach(ctx, Probe{From: "w0", Name: "w1", Addr: deaf.Addr().String()}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a listener that says nothing: %v", err)
		}
	})
}

// TestConnectAccusesAWorkerWhoseListenerDoesNotAnswer needs no end of a context, and
// does not accuse one that only keeps its neighbour waiting.
func TestConnectAccusesAWorkerWhoseListenerDoesNotAnswer(t *testing.T) {
	deaf, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	for name, addr := range map[string]string{"stopped": deaf.Addr().String(), "gone": "127.0.0.1:1"} {
		workers := newWorkers(t, ringOptions{worldSize: 2, workers: 2, elem: 4, chunk: 2000, elems: []int64{300}, seed: 1,
			change: func(c *LinkConfig) { c.Silence = time.Second }})
		w := workers[0]
		w.c.Next = addr
		_, err := Connect(t.Context(), w.listener, w.c)
		if broken, ok := errors.AsType[*LinkError](err); !ok || broken.Accused != 1 || broken.Name != "w1" || !strings.Contains(err.Error(), "has not answered for") {
			t.Errorf("%s: %v", name, err)
		}
	}
	workers := newWorkers(t, ringOptions{worldSize: 2, workers: 2, elem: 4, chunk: 2000, elems: []int64{300}, seed: 1,
		change: func(c *LinkConfig) { c.Silence = time.Second }})
	ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
	defer cancel()
	_, err = Connect(ctx, workers[0].listener, workers[0].c)
	if _, accuses := errors.AsType[*LinkError](err); err == nil || accuses || ctx.Err() == nil {
		t.Errorf("one that has not come yet: %v", err)
	}
}
