package raftlog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Magic begins every connection between nodes, so that a port may be shared.
const Magic = "SKNR"

const (
	helloVersion   = 2
	nameBytesMax   = 64
	reasonBytesMax = 512
	helloTimeout   = 5 * time.Second
	askTimeout     = 3 * time.Second
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
			if err := l.greet(t); err != nil {
				l.config.Logger.Warn("connection to the log refused", "from", conn.RemoteAddr().String(), "reason", err.Error())
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

// greet reads a hello and answers it.
func (l *layer) greet(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(helloTimeout)); err != nil {
		return err
	}
	cluster, from, err := readHello(conn)
	if err != nil {
		return err
	}
	select {
	case <-l.started:
	case <-l.ctx.Done():
		return net.ErrClosed
	}
	refusal := l.refusal(conn, cluster, from)
	if err := writeAnswer(conn, helloAnswer{refusal: refusal, id: l.config.ID, applied: l.inside.position()}); err != nil {
		return err
	}
	if refusal != "" {
		return errors.New(refusal)
	}
	if t, ok := conn.(*tracked); ok {
		l.mu.Lock()
		t.from = from
		l.mu.Unlock()
	}
	return conn.SetDeadline(time.Time{})
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

// writeHello says who calls.
func writeHello(w io.Writer, cluster, id string) error {
	b := append([]byte(Magic), helloVersion, 0, byte(len(cluster)), byte(len(id)))
	b = append(append(b, cluster...), id...)
	_, err := w.Write(binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)))
	return err
}

// readHello reads what writeHello wrote, byte for byte and no further.
func readHello(r io.Reader) (cluster, id string, err error) {
	head := make([]byte, 8, 8+2*nameBytesMax+4)
	if _, err := io.ReadFull(r, head); err != nil {
		return "", "", fmt.Errorf("hello: %w", err)
	}
	c, i := int(head[6]), int(head[7])
	if string(head[:4]) != Magic || c > nameBytesMax || i > nameBytesMax {
		return "", "", errors.New("hello: not from a coordinator")
	}
	if head[4] != helloVersion || head[5] != 0 {
		return "", "", fmt.Errorf("hello: version %d, this program speaks %d", head[4], helloVersion)
	}
	b := head[:8+c+i+4]
	if _, err := io.ReadFull(r, b[8:]); err != nil {
		return "", "", fmt.Errorf("hello: %w", err)
	}
	n := 8 + c + i
	if crc32.Checksum(b[:n], castagnoli) != binary.LittleEndian.Uint32(b[n:]) {
		return "", "", errors.New("hello: its checksum differs")
	}
	return string(b[8 : 8+c]), string(b[8+c : n]), nil
}

// helloAnswer is what became of a hello.
type helloAnswer struct {
	refusal string // why the caller is not let in; empty: it is
	id      string // of who answers
	applied uint64 // index of the last entry that it has applied
}

func writeAnswer(w io.Writer, a helloAnswer) error {
	refusal := a.refusal[:min(len(a.refusal), reasonBytesMax)]
	b := append(binary.LittleEndian.AppendUint16(nil, uint16(len(refusal))), refusal...)
	b = append(append(b, byte(len(a.id))), a.id...)
	_, err := w.Write(binary.LittleEndian.AppendUint64(b, a.applied))
	return err
}

// readAnswer reads what writeAnswer wrote. A refusal is an error.
func readAnswer(r io.Reader) (a helloAnswer, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return a, fmt.Errorf("hello: %w", err)
	}
	n := binary.LittleEndian.Uint16(head[:])
	if n > reasonBytesMax {
		return a, errors.New("hello: the answer is not a coordinator's")
	}
	b := make([]byte, n+1)
	if _, err := io.ReadFull(r, b); err != nil {
		return a, fmt.Errorf("hello: %w", err)
	}
	if n > 0 {
		return a, fmt.Errorf("refused: %s", b[:n])
	}
	i := int(b[n])
	if i == 0 || i > nameBytesMax {
		return a, errors.New("hello: the answer is not a coordinator's")
	}
	b = make([]byte, i+8)
	if _, err := io.ReadFull(r, b); err != nil {
		return a, fmt.Errorf("hello: %w", err)
	}
	return helloAnswer{id: string(b[:i]), applied: binary.LittleEndian.Uint64(b[i:])}, nil
}

// Dial implements raft.StreamLayer.
func (l *layer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	conn, _, err := l.call(l.ctx, string(address), timeout)
	return conn, err
}

// ask says hello at an address and hangs up.
func (l *layer) ask(ctx context.Context, address string) (helloAnswer, error) {
	conn, a, err := l.call(ctx, address, askTimeout)
	if err != nil {
		return a, err
	}
	return a, conn.Close()
}

// call dials an address and says hello.
func (l *layer) call(ctx context.Context, address string, timeout time.Duration) (net.Conn, helloAnswer, error) {
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
		err = writeHello(t, l.config.Cluster, l.config.ID)
	}
	if err == nil {
		a, err = readAnswer(t)
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
