package allreduce

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// Every worker says several times a second that it lives, to both neighbours, and what
// its caller still has to do for the ring to go on (debt.go). Both directions of a
// connection are watched, so a worker that stops, or a network that loses the bytes of
// one direction only, is noticed at both ends.

// pingEvery is how often a worker speaks that has nothing else to say.
const pingEvery = 200 * time.Millisecond

// ticksPerPing is how often the watch looks between two pings.
const ticksPerPing = 4

// watch reads, and tells whether its reader waits for bytes in vain.
type watch struct {
	r     io.Reader
	waits atomic.Bool
	reads atomic.Uint64

	// Of the goroutine that looks:
	seen  uint64
	quiet int // looks in a row that found the reader waiting and nothing read
}

// Read implements [io.Reader].
func (w *watch) Read(p []byte) (int, error) {
	w.waits.Store(true)
	n, err := w.r.Read(p)
	w.waits.Store(false)
	w.reads.Add(1)
	return n, err
}

// look counts how long it has been quiet, in looks. A process that was stopped, or that
// got no processor, has not looked either, and so accuses nobody when it goes on.
func (w *watch) look() int {
	if reads := w.reads.Load(); reads != w.seen || !w.waits.Load() {
		w.seen, w.quiet = reads, 0
	} else {
		w.quiet++
	}
	return w.quiet
}

// keep says that this worker lives, watches the neighbours, and names who is waited for.
// At the end it says goodbye to the previous worker.
func (l *Link) keep() {
	ping := min(pingEvery, l.c.Silence/ticksPerPing)
	tick := ticker(ping / ticksPerPing)
	defer tick.Stop()
	quietMax := int((l.c.Silence*ticksPerPing + ping - 1) / ping)
	back := l.ping()
	for ticks := 1; ; ticks++ {
		select {
		case <-l.finish:
			_ = l.in.send([][]byte{l.goodbye()}) // best effort, and bounded by its deadline
			return
		case <-tick.C:
		}
		if l.in.watch.look() >= quietMax {
			l.silent(l.prev)
		}
		if l.out.watch.look() >= quietMax {
			l.silent(l.next)
		}
		if ticks%ticksPerPing == 0 {
			_ = l.in.send([][]byte{back}) // who does not get it has left, or notices the silence
			l.tell(ping)
			l.nameStuck()
		}
	}
}

// ping is the frame that says that this worker lives, and nothing else.
func (l *Link) ping() []byte {
	h := header{Kind: kindPing, From: uint16(l.c.Worker)}
	b := make([]byte, headerSize)
	h.encode(b)
	return b
}

// tell sends the next worker a ping with what this one owes, if that has changed or
// nothing else is sent.
func (l *Link) tell(ping time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	owed := l.debtLocked()
	if l.nextLeft || owed == l.told && (l.busyLocked() || since(l.wroteAt) < ping) {
		return
	}
	l.told = owed
	l.debts[l.c.Worker] = owed
	l.sendLocked(item{header: owed.header(l.c.Worker)})
}

// silent breaks the link because a neighbour says nothing, not even that it lives.
func (l *Link) silent(who int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := &LinkError{Accused: who, Name: l.name(who), Err: fmt.Errorf("%s has been silent for %v", l.name(who), l.c.Silence)}
	if who == l.prev {
		e.Frame, e.Since = sinceFrame(&l.lastIn, l.lastInAt)
	} else {
		e.Frame, e.Since = sinceFrame(&l.lastOut, l.lastOutAt)
	}
	l.failLocked(e)
}

// pulse pings through one connection while the other is still being made: its other end
// may have both already, and watches this one.
func (l *Link) pulse(ctx context.Context, s *socket, who int, both <-chan struct{}) error {
	tick := ticker(min(pingEvery, l.c.Silence/ticksPerPing))
	defer tick.Stop()
	ping := l.ping()
	for {
		select {
		case <-both:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			if err := s.send([][]byte{ping}); err != nil {
				return l.connectError(who, fmt.Errorf("connection to %s failed: %w", l.name(who), err))
			}
		}
	}
}

// connectError is the error of a Connect that a neighbour is to blame for.
func (l *Link) connectError(who int, err error) *LinkError {
	return &LinkError{Generation: l.c.Key.Generation, Accused: who, Name: l.name(who), Ranks: l.c.Placement.Ranks(who), Err: err}
}
