package allreduce

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"
)

// Times of a link's life.
const (
	flushMax    = 2 * time.Second        // for a polite Close to write what is queued
	lingerMax   = 500 * time.Millisecond // and for the neighbours to notice
	farewellMax = 200 * time.Millisecond // for a broken link to say why
	// verdictWait is how long a failed write waits for what the other side may have
	// said before it closed the connection.
	verdictWait = 50 * time.Millisecond
)

// run starts the link's goroutines. They end when finish is closed.
func (l *Link) run() {
	var speakers, others sync.WaitGroup
	speakers.Go(l.transmit)
	speakers.Go(l.keep)
	others.Go(l.receive)
	others.Go(l.listenBack)
	others.Go(func() {
		for {
			select {
			case <-l.kick:
				l.drive()
			case <-l.finish:
				return
			}
		}
	})
	go func() {
		defer close(l.done)
		<-l.finish
		speakers.Wait()
		if l.polite() {
			// A connection that is closed with bytes unread is reset, and what was sent
			// last may be lost. So the readers read on until the neighbours end their
			// side, or until the deadline.
			l.in.closeWrite()
			others.Wait()
		}
		l.in.abort()
		l.out.abort()
		others.Wait()
	}()
}

// failLocked breaks the link, once. Everything that waits returns err.
func (l *Link) failLocked(err *LinkError) {
	if l.err != nil {
		return
	}
	l.completeLocked(err)
	l.err = err
	at := now()
	readMax, writeMax := at, at.Add(farewellMax)
	if l.closing {
		readMax, writeMax = at.Add(lingerMax), at.Add(lingerMax)
	}
	for _, s := range []*socket{l.in, l.out} {
		_ = s.raw.SetReadDeadline(readMax) // these fail on closed connections only
		_ = s.raw.SetWriteDeadline(writeMax)
	}
	close(l.broken)
	close(l.finish)
	l.changed.Broadcast()
	l.work.Broadcast()
}

// fail breaks the link if it is whole.
func (l *Link) fail(err *LinkError) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failLocked(err)
}

// polite tells whether this side ended the link, without a fault.
func (l *Link) polite() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Is(l.err, ErrLinkClosed)
}

// Close leaves the ring: what is queued is written, the neighbours are told, and the
// connections are closed. It takes at most some seconds, and hardly any time if the
// link broke. When it returns, no goroutine of the link runs and memory is not touched
// any more.
func (l *Link) Close() error {
	l.mu.Lock()
	if !l.closing && l.err == nil {
		l.closing = true
		l.flushLocked()
		l.failLocked(&LinkError{Accused: -1, Err: ErrLinkClosed})
	}
	l.mu.Unlock()
	<-l.done
	return nil
}

// flushLocked waits until everything queued is written, at most flushMax.
func (l *Link) flushLocked() {
	late := false
	timer := time.AfterFunc(flushMax, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		late = true
		l.changed.Broadcast()
	})
	defer timer.Stop()
	l.calm++
	for !late && l.err == nil && (l.busyLocked() || l.lagging || l.relayed.n > 0 || l.moving.n > 0) {
		l.changed.Wait()
	}
	l.calm--
}

// busyLocked tells whether an event or a frame is on its way that has to do with a step.
func (l *Link) busyLocked() bool {
	return l.driving || l.inbox.n > 0 || l.outbox.n > 0 || l.writing
}

// listenBack reads the little that the next worker says: that it lives, a goodbye, or the
// end of the connection.
func (l *Link) listenBack() {
	defer close(l.verdict)
	var head [headerSize]byte
	for {
		if _, err := io.ReadFull(l.out.reader, head[:]); err != nil {
			l.nextFault(err)
			return
		}
		var h header
		err := h.decode(head[:])
		if err == nil && h.Kind != kindBye && h.Kind != kindPing {
			err = outOfPlace(&h, "it travels against the ring")
		}
		if err == nil && int(h.From) != l.next {
			err = outOfPlace(&h, "it is of worker %d, and says %d", l.next, h.From)
		}
		if err != nil {
			l.fail(&LinkError{Accused: l.next, Name: l.name(l.next), Err: fmt.Errorf("%s sent %w", l.name(l.next), err)})
			return
		}
		if h.Kind == kindBye {
			l.hearBye(&h, l.next, &l.nextLeft)
			return
		}
	}
}

// hearBye notes that a neighbour leaves, or passes its accusation on.
func (l *Link) hearBye(h *header, from int, left *bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if accused := int(h.Bucket) - 1; accused >= 0 && accused < l.c.Placement.Workers() {
		l.failLocked(&LinkError{Accused: accused, Name: l.name(accused),
			Err: fmt.Errorf("%s says that %s is at fault", l.name(from), l.name(accused))})
		return
	}
	*left = true
	l.changed.Broadcast()
	l.work.Broadcast()
}

// prevFault breaks the link because of what came, or did not, from the previous worker.
func (l *Link) prevFault(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.failLocked(l.prevError(err))
	}
}

// prevError is the error for a fault of the previous worker.
func (l *Link) prevError(err error) *LinkError {
	name := l.name(l.prev)
	e := &LinkError{Accused: l.prev, Name: name}
	switch {
	case errors.Is(err, errMismatch): // who is wrong, nobody knows
		e.Accused, e.Name, e.Err = -1, "", err
		return e
	case errors.Is(err, errHeader), errors.Is(err, errSum), errors.Is(err, ErrFrame), errors.Is(err, ErrEarly), errors.Is(err, ErrDecision):
		e.Err = fmt.Errorf("%s sent a wrong frame: %w", name, err)
		return e
	case isReset(err):
		e.Err = fmt.Errorf("connection reset by %s: %w", name, err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		e.Err = fmt.Errorf("connection closed by %s without a goodbye: %w", name, err)
	default:
		e.Err = fmt.Errorf("connection from %s failed: %w", name, err)
	}
	e.Frame, e.Since = sinceFrame(&l.lastIn, l.lastInAt)
	return e
}

// nextFault breaks the link because the connection to the next worker failed, unless
// that worker has said goodbye.
func (l *Link) nextFault(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.nextLeft || l.err != nil {
		return
	}
	e := &LinkError{Accused: l.next, Name: l.name(l.next), Err: fmt.Errorf("connection to %s failed: %w", l.name(l.next), err)}
	if isReset(err) || errors.Is(err, io.EOF) {
		e.Err = fmt.Errorf("connection reset by %s: %w", l.name(l.next), err)
	}
	e.Frame, e.Since = sinceFrame(&l.lastOut, l.lastOutAt)
	l.failLocked(e)
}

// completeLocked adds to an error what the link knows besides.
func (l *Link) completeLocked(e *LinkError) {
	e.Generation = l.c.Key.Generation
	if e.Accused >= 0 {
		e.Ranks = l.c.Placement.Ranks(e.Accused)
	}
	for sort := range sorts {
		if w := l.oldestWait(sort); w != nil && !l.closing && e.Waiting == "" {
			e.Waiting = w.String()
		}
	}
}

// leftError is the error of a wait for what cannot come any more.
func (l *Link) leftError() error {
	who := l.prev
	if !l.prevLeft {
		who = l.next
	}
	e := &LinkError{Accused: -1, Name: l.name(who), Err: fmt.Errorf("%s %w", l.name(who), ErrLeft)}
	l.completeLocked(e)
	return e
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func sinceFrame(h *header, at time.Time) (string, time.Duration) {
	if h.Kind == 0 {
		return "", 0
	}
	return h.String(), since(at)
}

// name is what a worker is called in messages.
func (l *Link) name(worker int) string {
	if worker < len(l.c.Names) && l.c.Names[worker] != "" {
		return l.c.Names[worker]
	}
	return fmt.Sprintf("worker %d", worker)
}

// goodbye is the frame that says that nothing follows, and whom this worker accuses.
func (l *Link) goodbye() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := header{Kind: kindBye, From: uint16(l.c.Worker)}
	var e *LinkError
	if errors.As(l.err, &e) && e.Accused >= 0 {
		h.Bucket = uint32(e.Accused) + 1
	}
	b := make([]byte, headerSize)
	h.encode(b)
	return b
}
