package allreduce

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// serverTLS is c as a listener needs it: mutual TLS 1.3.
func serverTLS(c *tls.Config) *tls.Config {
	c = ringTLS(c)
	c.ClientAuth = tls.RequireAndVerifyClientCert
	if c.ClientCAs == nil {
		c.ClientCAs = c.RootCAs
	}
	return c
}

// clientTLS is c for a connection to addr.
func clientTLS(c *tls.Config, addr string) (*tls.Config, error) {
	c = ringTLS(c)
	if c.ServerName == "" {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		c.ServerName = host
	}
	return c, nil
}

func ringTLS(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.MinVersion = tls.VersionTLS13
	// Full records from the first byte, and no ticket: a connection is made once and
	// carries gigabytes.
	c.DynamicRecordSizingDisabled, c.SessionTicketsDisabled = true, true
	return c
}

// errPeer is returned for a certificate that TLS accepts and the ring does not.
var errPeer = errors.New("certificate refused")

// peer is who a certificate says is at the other end; zero if nobody asked.
type peer struct {
	name  string
	known bool
}

// mustBe refuses a certificate of another worker than the one that is meant.
func (p peer) mustBe(worker string) error {
	if p.known && p.name != worker {
		return fmt.Errorf("%w: it is that of %q, not of %q", errPeer, p.name, worker)
	}
	return nil
}

// secure shakes hands and asks nameOf about the certificate, if there is one to ask.
// The deadline is the connection's.
func secure(ctx context.Context, conn *tls.Conn, nameOf func(tls.ConnectionState) (string, error)) (peer, error) {
	if err := conn.HandshakeContext(ctx); err != nil {
		return peer{}, fmt.Errorf("TLS: %w", err)
	}
	state := conn.ConnectionState()
	if state.Version < tls.VersionTLS13 || len(state.PeerCertificates) == 0 {
		return peer{}, fmt.Errorf("%w: it must be TLS 1.3 with a certificate on both sides", errPeer)
	}
	if nameOf == nil {
		return peer{}, nil
	}
	name, err := nameOf(state)
	if err != nil {
		return peer{}, fmt.Errorf("%w: %w", errPeer, err)
	}
	return peer{name, true}, nil
}

// bufferedBytes holds eight TLS records, so that a system call moves more than one.
const bufferedBytes = 8 * (16<<10 + 64)

// buffered gathers what TLS writes, record by record, into larger writes, and reads
// ahead. Until setBulk is called every write goes out at once, as handshakes need.
type buffered struct {
	net.Conn
	watch *watch // below ahead
	ahead *bufio.Reader
	mu    sync.Mutex // the reader of a TLS connection may write, too
	out   []byte
	bulk  bool
}

func newBuffered(c net.Conn) *buffered {
	w := &watch{r: c}
	return &buffered{Conn: c, watch: w, ahead: bufio.NewReaderSize(w, bufferedBytes)}
}

// Read reads ahead by some records.
func (b *buffered) Read(p []byte) (int, error) { return b.ahead.Read(p) }

// setBulk begins to keep writes until flush.
func (b *buffered) setBulk() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bulk, b.out = true, make([]byte, 0, bufferedBytes)
}

func (b *buffered) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.bulk {
		return b.Conn.Write(p)
	}
	if len(b.out)+len(p) > cap(b.out) {
		if err := b.flush(); err != nil {
			return 0, err
		}
	}
	if len(p) > cap(b.out) {
		return b.Conn.Write(p)
	}
	b.out = append(b.out, p...)
	return len(p), nil
}

// Flush writes what was kept.
func (b *buffered) Flush() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.flush()
}

func (b *buffered) flush() error {
	if len(b.out) == 0 {
		return nil
	}
	_, err := b.Conn.Write(b.out)
	b.out = b.out[:0]
	return err
}

// socket is one connection of the ring, plain or TLS.
type socket struct {
	net.Conn           // what frames are written to
	reader   io.Reader // what they are read from
	watch    *watch    // of the bytes that come
	raw      net.Conn  // the TCP connection below
	tls      *tls.Conn // nil: plain
	buf      *buffered // below tls
	bufs     net.Buffers
}

// newSocket takes a connection whose handshakes are done.
func newSocket(c net.Conn) (*socket, error) {
	s := &socket{Conn: c, raw: c, watch: &watch{r: c}}
	s.reader = s.watch
	if t, ok := c.(*tls.Conn); ok {
		s.tls = t
		if s.buf, ok = t.NetConn().(*buffered); !ok {
			return nil, errors.New("a TLS connection from elsewhere")
		}
		s.raw, s.reader, s.watch = s.buf.Conn, t, s.buf.watch
		s.buf.setBulk()
	}
	return s, nil
}

// send writes all parts, in as few system calls as the connection allows.
func (s *socket) send(parts [][]byte) error {
	if s.tls == nil {
		s.bufs = parts
		_, err := s.bufs.WriteTo(s.Conn)
		return err
	}
	for _, p := range parts {
		if _, err := s.tls.Write(p); err != nil {
			return err
		}
	}
	return s.buf.Flush()
}

// closeWrite says that nothing follows. The other side sees the end of the stream.
func (s *socket) closeWrite() {
	// Best effort all along: whoever does not hear it sees the connection closed.
	if s.tls != nil {
		_ = s.tls.CloseWrite()
		_ = s.buf.Flush()
	}
	if half, ok := s.raw.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}

// abort closes the connection without a word to a TLS layer, which might wait.
func (s *socket) abort() { _ = s.raw.Close() }
