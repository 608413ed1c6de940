package raftlog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	helloTimeout = 5 * time.Second
	askTimeout   = 3 * time.Second
)

// layer makes raft's connections out of those that it is given: each begins with a
// hello that names the cluster, and all of them end with the layer. docs/formats/raft.md
// has the diagram.
type layer struct {
	config Config
	ctx    context.Context // ends with the layer
	end    context.CancelFunc
	ready  chan net.Conn // of others, past their hello; unbuffered: raft takes or nobody does
	done   sync.WaitGroup

	started chan struct{} // closed once inside is set: nobody is let in before
	inside  insider

	mu    sync.Mutex
	conns map[*tracked]bool
}

func newLayer(c Config) *layer {
	ctx, end := context.WithCancel(context.Background())
	l := &layer{config: c, ctx: ctx, end: end, ready: make(chan net.Conn), conns: map[*tracked]bool{}, started: make(chan struct{})}
	l.done.Go(l.listen)
	return l
}

// insider is what a layer asks the log about itself.
type insider interface {
	// stranger tells whether an id is that of nobody who has a say here.
	stranger(id string) bool
	// position is the index of the last entry that is applied here.
	position() uint64
	// answered is told of each address whether it has a say there.
	answered(address string, letIn bool)
	// parted is told who has ended a connection that it had made.
	parted(id string)
	// hears is the id of the leader that this node is in touch with; empty if there is none.
	hears() string
}

// start lets others in.
func (l *layer) start(i insider) {
	l.inside = i
	close(l.started)
}

// listen greets each connection apart, so that a silent stranger holds up nobody.
func (l *layer) listen() {
	for {
		conn, err := l.config.Listener.Accept()
		if err != nil {
			return // it was closed
		}
		t := l.track(conn)
		if t == nil {
			return
		}
		l.done.Go(func() {
			asks, err := l.greet(t)
			if err != nil {
				l.config.Logger.Warn("connection to the log refused", "from", conn.RemoteAddr().String(), "reason", err.Error())
			}
			if err != nil || asks {
				_ = t.Close()
				return
			}
			select {
			case l.ready <- t:
			case <-l.ctx.Done():
				_ = t.Close()
			}
		})
	}
}

// greet reads a hello and answers it. It tells whether the answer was all that was asked for.
func (l *layer) greet(conn net.Conn) (asks bool, err error) {
	if err := conn.SetDeadline(time.Now().Add(helloTimeout)); err != nil {
		return false, err
	}
	h, err := readHello(conn)
	if err != nil {
		return false, err
	}
	select {
	case <-l.started:
	case <-l.ctx.Done():
		return false, net.ErrClosed
	}
	a := helloAnswer{refusal: l.refusal(conn, h.cluster, h.id), id: l.config.ID, applied: l.inside.position()}
	if h.asks {
		a.leader = l.inside.hears()
	}
	if err := writeAnswer(conn, a, h.asks); err != nil {
		return false, err
	}
	if a.refusal != "" {
		return false, errors.New(a.refusal)
	}
	if h.asks {
		return true, nil
	}
	if t, ok := conn.(*tracked); ok {
		l.mu.Lock()
		t.from = h.id
		l.mu.Unlock()
	}
	return false, conn.SetDeadline(time.Time{})
}

// has tells whether a connection stands that a member has made.
func (l *layer) has(from string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for t := range l.conns {
		if t.from == from {
			return true
		}
	}
	return false
}

// refusal says why a caller is not let in; empty if it is.
func (l *layer) refusal(conn net.Conn, cluster, from string) string {
	if cluster != l.config.Cluster {
		return fmt.Sprintf("%s belongs to cluster %q, and %s to %q", l.config.ID, l.config.Cluster, from, cluster)
	}
	if t, ok := conn.(*tracked); ok && l.config.Caller != nil {
		if name := l.config.Caller(t.Conn); name != "" && name != from {
			return fmt.Sprintf("the certificate of %s calls itself %s", name, from)
		}
	}
	if l.inside.stranger(from) {
		return from + notMember + fmt.Sprintf("%s; add it with `skein coordinator add`", l.config.ID)
	}
	return ""
}

// notMember is how a refusal goes on after the name of one that has no say. The caller
// looks for it: the answer has no code for it.
const notMember = " is not a member of the group of "

// note tells the log what an answer says of this node.
func (l *layer) note(address string, err error) {
	select {
	case <-l.started:
	default:
		return
	}
	if out := err != nil && strings.Contains(err.Error(), "refused: "+l.config.ID+notMember); out || err == nil {
		l.inside.answered(address, !out)
	}
}

// Dial implements raft.StreamLayer.
func (l *layer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	conn, _, err := l.call(l.ctx, string(address), timeout, false)
	return conn, err
}

// ask says hello at an address and hangs up.
func (l *layer) ask(ctx context.Context, address string) (helloAnswer, error) {
	conn, a, err := l.call(ctx, address, askTimeout, false)
	if err != nil {
		return a, err
	}
	return a, conn.Close()
}

// leaderOf asks at an address for the leader that is heard there; empty: none is.
func (l *layer) leaderOf(address string, timeout time.Duration) (leader string, err error) {
	conn, a, err := l.call(l.ctx, address, timeout, true)
	if err != nil {
		return "", err
	}
	return a.leader, conn.Close()
}

// call dials an address and says hello, or asks.
func (l *layer) call(ctx context.Context, address string, timeout time.Duration, asks bool) (net.Conn, helloAnswer, error) {
	var a helloAnswer
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := l.config.Dial(ctx, address)
	if err != nil {
		return nil, a, err
	}
	t := l.track(conn)
	if t == nil {
		return nil, a, net.ErrClosed
	}
	err = t.SetDeadline(time.Now().Add(min(timeout, helloTimeout)))
	if err == nil {
		err = writeHello(t, hello{l.config.Cluster, l.config.ID, asks})
	}
	if err == nil {
		a, err = readAnswer(t, asks)
		l.note(address, err)
	}
	if err == nil {
		err = t.SetDeadline(time.Time{})
	}
	if err != nil {
		_ = t.Close()
		return nil, a, fmt.Errorf("coordinator at %s: %w", address, err)
	}
	return t, a, nil
}

// Accept implements net.Listener.
func (l *layer) Accept() (net.Conn, error) {
	select {
	case conn := <-l.ready:
		return conn, nil
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Addr implements net.Listener.
func (l *layer) Addr() net.Addr { return advertised(l.config.Address) }

// Close implements net.Listener. It closes every connection, because raft leaves those
// of its handlers open.
func (l *layer) Close() error {
	l.mu.Lock()
	if l.ctx.Err() != nil {
		l.mu.Unlock()
		return nil
	}
	l.end()
	conns := make([]*tracked, 0, len(l.conns))
	for t := range l.conns {
		conns = append(conns, t)
	}
	l.mu.Unlock()
	err := l.config.Listener.Close()
	for _, t := range conns {
		_ = t.Close()
	}
	l.done.Wait()
	return err
}

// track remembers a connection until it is closed. It closes it at once, and returns
// nil, if the layer has ended.
func (l *layer) track(conn net.Conn) *tracked {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil {
		_ = conn.Close()
		return nil
	}
	t := &tracked{Conn: conn, layer: l}
	l.conns[t] = true
	return t
}

// tracked is a connection that its layer can close.
type tracked struct {
	net.Conn
	layer *layer
	from  string // id of who has made it; empty if this node has, or nobody was let in
}

// Close closes the connection and forgets it.
func (t *tracked) Close() error {
	t.layer.mu.Lock()
	delete(t.layer.conns, t)
	from := t.from
	t.layer.mu.Unlock()
	if from != "" {
		t.layer.inside.parted(from)
	}
	return t.Conn.Close()
}

// advertised is an address as others know it, which may be a name.
type advertised string

// Network implements net.Addr.
func (a advertised) Network() string { return "tcp" }

// String implements net.Addr.
func (a advertised) String() string { return string(a) }
