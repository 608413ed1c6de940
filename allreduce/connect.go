package allreduce

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	chunkBytesDefault = 256 << 10
	chunkBytesMax     = 4 << 20
	silenceDefault    = 1200 * time.Millisecond
	silenceMin        = 10 * time.Millisecond
	// answerTimeout is longer than a listener holds a greeting.
	answerTimeout = holdTimeout + 2*greetingTimeout
	redialMax     = 500 * time.Millisecond
	keepAliveIdle = 5 * time.Second
	keepAliveStep = 2 * time.Second
)

// ensureDefaults fills what is zero.
func (c *LinkConfig) ensureDefaults() {
	if c.Arithmetic.AddF32 == nil {
		c.Arithmetic = RefArithmetic
	}
	if c.ChunkBytes == 0 {
		c.ChunkBytes = chunkBytesDefault
	}
	if c.Silence == 0 {
		c.Silence = silenceDefault
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
}

// validate names what cannot be.
func (c *LinkConfig) validate() error {
	workers := c.Placement.Workers()
	switch {
	case workers < 2:
		return fmt.Errorf("a ring over a network needs two workers, the placement has %d", workers)
	case c.Table.WorldSize() != c.Placement.WorldSize():
		return fmt.Errorf("a table of %d ranks and a placement of %d", c.Table.WorldSize(), c.Placement.WorldSize())
	case c.Worker < 0 || c.Worker >= workers:
		return fmt.Errorf("worker %d of %d", c.Worker, workers)
	case c.Memory == nil || c.Memory.ElemBytes() != 2 && c.Memory.ElemBytes() != 4:
		return errors.New("gathered elements must have two bytes or four")
	case c.Mirror && c.GatherFirst:
		return errors.New("mirrors, where all workers gather what a mirror would hold")
	case c.OnDemand && c.GatherFirst:
		return errors.New("weights on demand, where every worker updates all of them")
	case c.GatherFirst && c.Memory.ElemBytes() != 4:
		return fmt.Errorf("reduced gradients are gathered in fp32, not in %d bytes", c.Memory.ElemBytes())
	case c.Wire > WireBF16:
		return fmt.Errorf("wire type %d", c.Wire)
	case c.ChunkBytes < 4 || c.ChunkBytes%4 != 0 || c.ChunkBytes > chunkBytesMax:
		return fmt.Errorf("frames of %d bytes: a multiple of 4, at most %d", c.ChunkBytes, chunkBytesMax)
	case c.Worker == 0 && c.Decide == nil:
		return errors.New("rank 0's worker must be able to decide")
	case c.Mirror && !implements[MirrorMemory](c.Memory):
		return errors.New("the memory of a worker that mirrors the one before it has no place for that")
	case c.Silence < silenceMin:
		return fmt.Errorf("a silence of %v: a busy neighbour needs %v at least", c.Silence, silenceMin)
	}
	return nil
}

func implements[T any](x any) bool {
	_, ok := x.(T)
	return ok
}

// Connect dials the next worker, retrying until ctx ends, and takes the connection of
// the previous one from l. It returns when both are there. An error that wraps
// ErrRefused, and says why, is for good. A worker whose listener does not answer for
// Silence is accused, in a LinkError.
func Connect(ctx context.Context, l *Listener, c LinkConfig) (*Link, error) {
	c.ensureDefaults()
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("ring: %w", err)
	}
	link := newLink(c)
	out, in := link.greeting(c.Worker, link.next), link.greeting(link.prev, c.Worker)
	if what := out.tooLong(); what != "" {
		return nil, fmt.Errorf("ring: the %s is longer than %d bytes", what, nameMax)
	}
	s, err := l.expect(in)
	if err != nil {
		return nil, fmt.Errorf("ring: %w", err)
	}
	if err := link.join(ctx, l, s, &out); err != nil {
		l.abandon(s)
		for _, x := range []*socket{link.in, link.out} {
			if x != nil {
				x.abort()
			}
		}
		if broken, ok := errors.AsType[*LinkError](err); ok {
			return nil, broken
		}
		return nil, fmt.Errorf("ring: generation %d: %w", c.Key.Generation, err)
	}
	link.run()
	return link, nil
}

func newLink(c LinkConfig) *Link {
	workers := c.Placement.Workers()
	l := &Link{
		c: c, wireBytes: 4, elemBytes: int64(c.Memory.ElemBytes()),
		prev: (c.Worker + workers - 1) % workers, next: (c.Worker + 1) % workers,
		kick: make(chan struct{}, 1), done: make(chan struct{}), broken: make(chan struct{}), finish: make(chan struct{}), verdict: make(chan struct{}),
		gatherStep: -1, exchanges: map[int64]*exchange{}, messages: map[uint64]*blob{}, states: map[statePlace]*stateIn{},
	}
	if c.Wire == WireBF16 {
		l.wireBytes = 2
	}
	l.chunkElems, l.fullElems = int64(c.ChunkBytes)/l.wireBytes, int64(c.ChunkBytes)/4
	l.changed, l.work = sync.NewCond(&l.mu), sync.NewCond(&l.mu)
	l.newEngine()
	worldSize := c.Table.WorldSize()
	l.hosted = make([]bool, worldSize)
	for _, r := range l.engine.hosted {
		l.hosted[r] = true
	}
	l.reducedLeft, l.gatheredLeft = make([]int, c.Table.Buckets()), make([]int, c.Table.Buckets())
	l.unspent, l.unsent, l.round = make([]int64, c.Table.Buckets()), make([]int, c.Table.Buckets()), make([]uint8, c.Table.Buckets())
	for range c.Table.Buckets() {
		l.gatherAt = append(l.gatherAt, make([]int64, worldSize))
	}
	l.newMirror()
	l.newDebts()
	l.votes = make([]Vote, worldSize)
	for i := range l.rows {
		l.rows[i] = rowSet{step: -1, ranks: make([]rankRows, worldSize)}
	}
	return l
}

// greeting is what worker from says to worker to.
func (l *Link) greeting(from, to int) hello {
	return hello{
		Key: l.c.Key, From: from, To: to, Workers: l.c.Placement.Workers(), WorldSize: l.c.Table.WorldSize(),
		Wire: l.c.Wire, ElemBytes: int(l.elemBytes), Mirror: l.c.Mirror, GatherFirst: l.c.GatherFirst, OnDemand: l.c.OnDemand, Chunk: int(l.chunkElems), FromName: l.name(from), ToName: l.name(to),
	}
}

// join makes both connections.
func (l *Link) join(ctx context.Context, from *Listener, s *slot, out *hello) error {
	var made atomic.Int32
	both := make(chan struct{})
	var here [2]atomic.Bool // out and in
	g, ctx := errgroup.WithContext(ctx)
	hold := func(x *socket, err error, who int, here *atomic.Bool) error {
		if err != nil {
			return err
		}
		here.Store(true)
		if made.Add(1) == 2 {
			close(both)
		}
		return l.pulse(ctx, x, who, both)
	}
	g.Go(func() error {
		conn, err := l.dialWatched(ctx, out)
		if err != nil {
			return err
		}
		l.out, err = newSocket(conn)
		return hold(l.out, err, l.next, &here[0])
	})
	g.Go(func() (err error) {
		select {
		case conn := <-s.conn:
			l.in, err = newSocket(conn)
			return hold(l.in, err, l.prev, &here[1])
		case <-from.ctx.Done():
			return fmt.Errorf("no connection from %s: the listener is closed: %w", l.name(l.prev), net.ErrClosed)
		case <-ctx.Done():
			return fmt.Errorf("no connection from %s: %w", l.name(l.prev), ctx.Err())
		}
	})
	g.Go(func() error {
		l.nameMissing(ctx, both, &here)
		return nil // why there is no ring the others know
	})
	return g.Wait()
}

// dialWatched dials, unless the next worker is not there.
func (l *Link) dialWatched(ctx context.Context, out *hello) (conn net.Conn, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { cancel(l.probe(ctx)) })
	conn, err = l.dial(ctx, out)
	if broken, ok := errors.AsType[*LinkError](context.Cause(ctx)); ok && err != nil {
		err = broken
	}
	cancel(nil)
	wg.Wait()
	return conn, err
}

// dial connects to the next worker and greets it, until it accepts, refuses for good,
// or ctx ends.
func (l *Link) dial(ctx context.Context, out *hello) (net.Conn, error) {
	wait := 10 * time.Millisecond
	for {
		conn, err := l.greet(ctx, out)
		if err == nil {
			return conn, nil
		}
		err = fmt.Errorf("%s at %s: %w", l.name(l.next), l.c.Next, err)
		if errors.Is(err, ErrRefused) || ctx.Err() != nil {
			return nil, err
		}
		l.c.Log.Debug("ring: connecting again", "error", err)
		select {
		case <-ctx.Done():
			return nil, err
		case <-after(wait):
		}
		wait = min(2*wait, redialMax)
	}
}

// greet is one attempt: it sends the greeting and reads the answer.
func (l *Link) greet(ctx context.Context, out *hello) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	conn, err := open(ctx, l.c.Next, out.ToName, l.c.TLS, l.c.PeerName)
	if err != nil {
		return nil, err
	}
	if err := introduce(conn, out); err != nil {
		conn.end()
		return nil, err
	}
	if !conn.keep() {
		return nil, ctx.Err()
	}
	return conn.Conn, nil
}

func introduce(conn net.Conn, out *hello) error {
	if _, err := conn.Write(out.append(nil)); err != nil {
		return permanent(err)
	}
	a, err := readAnswer(conn)
	switch {
	case errors.Is(err, errVersion):
		return fmt.Errorf("%w: %w", ErrRefused, err)
	case err != nil:
		return permanent(err)
	case a.Verdict == refusedNotYet || a.Verdict == refusedTaken:
		return errors.New(a.Why)
	case a.Verdict != accepted:
		return fmt.Errorf("%w: %s", ErrRefused, a.Why)
	}
	return nil
}

// permanent marks errors that another attempt would meet again: certificates that are
// refused, on either side.
func permanent(err error) error {
	var certificate *tls.CertificateVerificationError
	var plain tls.RecordHeaderError
	var alert *net.OpError // "remote error" is a TLS alert of the other side
	if errors.As(err, &certificate) || errors.As(err, &plain) || errors.Is(err, errPeer) ||
		errors.As(err, &alert) && alert.Op == "remote error" {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return err
}
