package allreduce

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"
)

// ListenerConfig says who may connect.
type ListenerConfig struct {
	TLS *tls.Config // nil: plain text
	// PeerName, if given, says which worker a certificate is of, or refuses it; the
	// greeting must be that worker's. nil: whoever TLS lets in may greet as any.
	PeerName func(tls.ConnectionState) (string, error)
	Log      *slog.Logger // nil: slog.Default()
}

// Bounds on connections that have not shown what they are.
const (
	greetingTimeout = 5 * time.Second // for TLS and greeting together
	holdTimeout     = 5 * time.Second // for a generation to become known here
	// pendingMax connections may be greeting or held. One more ends the oldest that has
	// not greeted, else the oldest held: a worker's greeting takes milliseconds, a
	// stranger's silence lasts.
	pendingMax = 64
	// jobsMax jobs are remembered, the newest: long before one more comes, the oldest is
	// over.
	jobsMax = 4096
)

// Listener accepts the ring connections of one process and hands each to the
// generation that it names. Strangers, lower generations, another spec or class are
// refused by name; a higher generation is held briefly for its Connect.
type Listener struct {
	l      net.Listener
	c      ListenerConfig
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	jobs    map[string]*slot // by job: its highest generation known; at most jobsMax
	made    uint64           // slots
	changed chan struct{}    // closed when jobs changes
	pending []*visitor       // oldest first
}

// visitor is a connection that is not handed over yet.
type visitor struct {
	conn  net.Conn
	stage stage
}

// stage is how far a visitor has come. Who came further is ended later.
type stage uint8

const (
	greeting stage = iota // may be a stranger
	held                  // has greeted, and waits for its generation to become known
	admitted              // has its place, and is told so; it is not ended any more
)

// slot is a generation's place for the connection from the worker before.
type slot struct {
	own   hello // expected from there
	made  uint64
	conn  chan net.Conn
	taken bool // a connection was accepted for it
	gone  bool // nobody waits for it any more
}

// Listen starts to accept connections on l, which it owns from now on.
func Listen(l net.Listener, c ListenerConfig) *Listener {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.TLS != nil {
		c.TLS = serverTLS(c.TLS)
	}
	ctx, cancel := context.WithCancel(context.Background())
	x := &Listener{l: l, c: c, ctx: ctx, cancel: cancel, jobs: map[string]*slot{}, changed: make(chan struct{})}
	x.wg.Go(x.accept)
	return x
}

// Addr is the address that it listens on.
func (l *Listener) Addr() string { return l.l.Addr().String() }

// Close stops accepting and ends what is not yet handed over. Links live on.
func (l *Listener) Close() error {
	l.cancel()
	err := l.l.Close()
	l.mu.Lock()
	for _, v := range l.pending {
		_ = v.conn.Close() // its goroutine sees it
	}
	l.mu.Unlock()
	l.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// accept takes connections until the listener is closed. A lack of file descriptors
// passes; it must not end the ring.
func (l *Listener) accept() {
	wait := time.Millisecond
	for {
		conn, err := l.l.Accept()
		if l.ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return
		}
		if err != nil {
			l.c.Log.Warn("ring: cannot accept a connection", "error", err)
			select {
			case <-after(wait):
			case <-l.ctx.Done():
				return
			}
			wait = min(2*wait, time.Second)
			continue
		}
		wait = time.Millisecond
		v := l.begin(conn)
		l.wg.Go(func() { l.greet(v) })
	}
}

// begin counts a connection as pending, and ends another if there are too many.
func (l *Listener) begin(conn net.Conn) *visitor {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.pending) >= pendingMax {
		first := slices.MinFunc(l.pending, func(a, b *visitor) int { return cmp.Compare(a.stage, b.stage) })
		if first.stage < admitted {
			_ = first.conn.Close()
			l.endLocked(first)
		}
	}
	v := &visitor{conn: conn}
	l.pending = append(l.pending, v)
	return v
}

func (l *Listener) end(v *visitor) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endLocked(v)
}

func (l *Listener) endLocked(v *visitor) {
	if i := slices.Index(l.pending, v); i >= 0 {
		l.pending = slices.Delete(l.pending, i, i+1)
	}
}

// greet finds out what a connection is, and hands it over or closes it.
func (l *Listener) greet(v *visitor) {
	defer l.end(v)
	raw := v.conn
	conn, h, err := l.readGreeting(raw)
	if err != nil {
		l.refuse(raw, conn, hello{}, err)
		return
	}
	if h.asks {
		_, _ = conn.Write(answer{Verdict: accepted}.append(nil)) // best effort: who asks hears nothing, and knows
		_ = raw.Close()
		return
	}
	s, a := l.find(v, &h.hello)
	if s == nil {
		_, _ = conn.Write(a.append(nil)) // best effort: it is closed anyway
		l.refuse(raw, conn, h.hello, errors.New(a.Why))
		return
	}
	_, err = conn.Write(a.append(nil))
	if err == nil {
		err = raw.SetDeadline(time.Time{})
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endLocked(v) // from here on it is the link's
	if err != nil || s.gone || l.ctx.Err() != nil {
		s.taken = false
		_ = conn.Close()
		return
	}
	s.conn <- conn // has room for one, and taken lets only one come here
}

// readGreeting speaks TLS, if there is any, and reads the greeting, or the question.
func (l *Listener) readGreeting(raw net.Conn) (net.Conn, opening, error) {
	if err := raw.SetDeadline(now().Add(greetingTimeout)); err != nil {
		return raw, opening{}, err
	}
	conn, owner := raw, peer{}
	if l.c.TLS != nil {
		t := tls.Server(newBuffered(raw), l.c.TLS)
		var err error
		if owner, err = secure(l.ctx, t, l.c.PeerName); err != nil {
			return raw, opening{}, err
		}
		conn = t
	}
	h, err := readOpening(conn)
	if errors.Is(err, errVersion) {
		_, _ = conn.Write(answer{refusedVersion, err.Error()}.append(nil)) // best effort: it is closed anyway
	}
	if err == nil {
		if err = owner.mustBe(h.FromName); err != nil {
			_, _ = conn.Write(answer{refusedJob, err.Error()}.append(nil)) // as above
		}
	}
	if err == nil {
		err = raw.SetDeadline(now().Add(holdTimeout + greetingTimeout))
	}
	return conn, h, err
}

// refuse says in the log who was refused and why, and closes the connection.
func (l *Listener) refuse(raw, conn net.Conn, h hello, why error) {
	_ = conn.Close()
	_ = raw.Close()
	if l.ctx.Err() != nil || errors.Is(why, net.ErrClosed) || errors.Is(why, io.EOF) {
		return
	}
	l.c.Log.Warn("ring: refused a connection", "from", raw.RemoteAddr().String(), "worker", h.FromName,
		"job", h.Key.Job, "generation", h.Key.Generation, "reason", why.Error())
}

// find waits until the generation of a greeting is known, at most holdTimeout, and
// takes its slot; or it returns no slot and the refusal.
func (l *Listener) find(v *visitor, h *hello) (*slot, answer) {
	late := after(holdTimeout)
	for {
		l.mu.Lock()
		s, a := l.judge(h)
		if v.stage = held; s != nil {
			v.stage = admitted
		}
		changed := l.changed
		l.mu.Unlock()
		if a.Verdict != refusedNotYet {
			return s, a
		}
		select {
		case <-changed:
		case <-late:
			return nil, a
		case <-l.ctx.Done():
			return nil, answer{refusedNotYet, "this worker stops"}
		}
	}
}

// judge takes the slot that a greeting asks for, or says why not.
func (l *Listener) judge(h *hello) (*slot, answer) {
	s := l.jobs[h.Key.Job]
	notYet := answer{refusedNotYet, fmt.Sprintf("generation %d of job %q is not known here", h.Key.Generation, h.Key.Job)}
	if s == nil || h.Key.Generation > s.own.Key.Generation {
		return nil, notYet
	}
	if h.Key.Generation < s.own.Key.Generation {
		return nil, answer{refusedGeneration, fmt.Sprintf("generation %d is over, this worker is in %d", h.Key.Generation, s.own.Key.Generation)}
	}
	if why := h.differs(&s.own); why != "" {
		return nil, answer{refusedJob, why}
	}
	if s.gone {
		return nil, notYet // its Connect gave up, and may try again
	}
	if s.taken {
		return nil, answer{refusedTaken, fmt.Sprintf("generation %d has its connection from %s", h.Key.Generation, h.FromName)}
	}
	s.taken = true
	return s, answer{Verdict: accepted}
}

// expect makes the slot of a generation. own is the greeting that must come.
func (l *Listener) expect(own hello) (*slot, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil {
		return nil, net.ErrClosed
	}
	if s := l.jobs[own.Key.Job]; s != nil {
		switch have := s.own.Key.Generation; {
		case own.Key.Generation < have:
			return nil, fmt.Errorf("generation %d is over: %d has begun here", own.Key.Generation, have)
		case own.Key.Generation == have && !s.gone:
			return nil, fmt.Errorf("generation %d is connected here already", have)
		}
	}
	l.made++
	s := &slot{own: own, made: l.made, conn: make(chan net.Conn, 1)}
	l.jobs[own.Key.Job] = s
	if len(l.jobs) > jobsMax {
		oldest := s
		for _, x := range l.jobs {
			if x.made < oldest.made {
				oldest = x
			}
		}
		delete(l.jobs, oldest.own.Key.Job)
	}
	close(l.changed)
	l.changed = make(chan struct{})
	return s, nil
}

// abandon ends the wait for a slot's connection.
func (l *Listener) abandon(s *slot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.gone = true
	select {
	case conn := <-s.conn:
		_ = conn.Close()
	default:
	}
}
