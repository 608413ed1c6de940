package coordinator

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/skein-ml/skein/coordinator/raftlog"
	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/internal/reach"
)

// arrivalTimeout bounds the TLS handshake and the wait for the first bytes.
const arrivalTimeout = 10 * time.Second

// port is the one address of a coordinator. Its connections are secured first; then
// their first bytes tell whether another coordinator's log speaks or gRPC does.
type port struct {
	listener net.Listener
	tls      *tls.Config // of those who call; nil: plain
	dialTLS  *tls.Config // of other coordinators, when this one calls
	logger   *slog.Logger
	mayDial  func(address string) error
	raft     *branch
	grpc     *branch

	ctx  context.Context // ends with the port
	end  context.CancelFunc
	done sync.WaitGroup
}

// openPort listens, if it is safe to.
func openPort(c Config) (*port, error) {
	if c.TLS == nil && !c.Insecure && !reach.HereOnly(c.Listen) {
		return nil, fmt.Errorf("listen: %s can be reached from other machines, so it needs TLS; make certificates with `skein certs` (or, for benchmarks, say --insecure)", c.Listen)
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen: %w; is another coordinator running here?", err)
	}
	p := &port{listener: l, logger: c.Logger, mayDial: func(address string) error { return c.mayDial("coordinator", address) }}
	if c.TLS != nil {
		p.tls, p.dialTLS = c.TLS.Config(), c.TLS.Expect(pki.Coordinator)
		p.tls.NextProtos = []string{"h2"}
	}
	if c.TLS == nil && !reach.HereOnly(c.Listen) {
		c.Logger.Warn("INSECURE: plain text, and everybody who reaches this address may do everything", "listen", c.Listen)
	}
	p.ctx, p.end = context.WithCancel(context.Background())
	p.raft, p.grpc = newBranch(p), newBranch(p)
	p.done.Go(p.listen)
	return p, nil
}

func (p *port) listen() {
	for {
		conn, err := p.listener.Accept()
		if p.ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return
		}
		if err != nil { // out of files, perhaps; it may pass
			select {
			case <-time.After(100 * time.Millisecond):
				continue
			case <-p.ctx.Done():
				return
			}
		}
		p.done.Go(func() { p.arrive(conn) })
	}
}

// arrive secures a connection and hands it to whom it is for.
func (p *port) arrive(conn net.Conn) {
	stop := context.AfterFunc(p.ctx, func() { _ = conn.Close() })
	a, magic, err := p.secure(conn)
	if err == nil && magic == raftlog.Magic && a.tls != nil {
		err = pki.RequireRole(pki.Coordinator)(*a.tls)
	}
	if err != nil && p.ctx.Err() == nil && !errors.Is(err, io.EOF) {
		p.logger.Warn("connection refused", "from", conn.RemoteAddr().String(), "reason", err.Error())
	}
	if !stop() || err != nil {
		_ = conn.Close()
		return
	}
	to := p.grpc
	if magic == raftlog.Magic {
		to = p.raft
	}
	select {
	case to.ready <- a:
	case <-to.ctx.Done():
		_ = a.Close()
	}
}

func (p *port) secure(conn net.Conn) (*arrival, string, error) {
	if err := conn.SetDeadline(time.Now().Add(arrivalTimeout)); err != nil {
		return nil, "", err
	}
	a := &arrival{Conn: conn}
	if p.tls != nil {
		secured := tls.Server(conn, p.tls)
		if err := secured.HandshakeContext(p.ctx); err != nil {
			return nil, "", err
		}
		state := secured.ConnectionState()
		a.Conn, a.tls = secured, &state
	}
	a.first = bufio.NewReaderSize(a.Conn, 16)
	magic, err := a.first.Peek(len(raftlog.Magic))
	if err != nil {
		return nil, "", err
	}
	return a, string(magic), conn.SetDeadline(time.Time{})
}

// dial connects to the port of another coordinator, for its log.
func (p *port) dial(ctx context.Context, address string) (net.Conn, error) {
	if err := p.mayDial(address); err != nil {
		return nil, err
	}
	dialer := &net.Dialer{}
	if p.dialTLS == nil {
		return dialer.DialContext(ctx, "tcp", address)
	}
	return (&tls.Dialer{NetDialer: dialer, Config: p.dialTLS}).DialContext(ctx, "tcp", address)
}

// caller is the name in the certificate that a connection of the log came with; empty
// without one.
func caller(conn net.Conn) string {
	a, ok := conn.(*arrival)
	if !ok || a.tls == nil {
		return ""
	}
	who, err := pki.Peer(*a.tls)
	if err != nil { // it was let in with the role of a coordinator, which Peer has read
		return ""
	}
	return who.Name
}

// Close ends the port and every connection that nobody has taken yet.
func (p *port) Close() error {
	p.end()
	err := p.listener.Close()
	p.done.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// branch is a listener for one of the port's protocols.
type branch struct {
	port  *port
	ready chan net.Conn // unbuffered: whoever accepts takes
	ctx   context.Context
	end   context.CancelFunc
}

func newBranch(p *port) *branch {
	b := &branch{port: p, ready: make(chan net.Conn)}
	b.ctx, b.end = context.WithCancel(p.ctx)
	return b
}

// Accept implements net.Listener.
func (b *branch) Accept() (net.Conn, error) {
	select {
	case conn := <-b.ready:
		return conn, nil
	case <-b.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. The port stays open for the other branch.
func (b *branch) Close() error {
	b.end()
	return nil
}

// Addr implements net.Listener.
func (b *branch) Addr() net.Addr { return b.port.listener.Addr() }

// arrival is a connection whose first bytes have been looked at.
type arrival struct {
	net.Conn
	first *bufio.Reader        // what was looked at; nil once it is empty
	tls   *tls.ConnectionState // nil: plain
}

// Read implements net.Conn. It is called by one goroutine at a time.
func (a *arrival) Read(b []byte) (int, error) {
	if a.first == nil {
		return a.Conn.Read(b)
	}
	n, err := io.LimitReader(a.first, int64(a.first.Buffered())).Read(b)
	if a.first.Buffered() == 0 {
		a.first = nil
	}
	return n, err
}

// arrived are gRPC's credentials for connections that the port has secured.
type arrived struct{}

// ServerHandshake implements credentials.TransportCredentials.
func (arrived) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	a, ok := conn.(*arrival)
	if !ok {
		return nil, nil, errors.New("a connection that did not come through the port")
	}
	if a.tls == nil {
		return conn, plain{credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}}, nil
	}
	if a.tls.NegotiatedProtocol != "h2" {
		return nil, nil, errors.New("gRPC without ALPN")
	}
	return conn, credentials.TLSInfo{State: *a.tls, CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (arrived) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are a server's")
}

// Info implements credentials.TransportCredentials.
func (arrived) Info() credentials.ProtocolInfo { return credentials.ProtocolInfo{} }

// Clone implements credentials.TransportCredentials.
func (arrived) Clone() credentials.TransportCredentials { return arrived{} }

// OverrideServerName implements credentials.TransportCredentials.
func (arrived) OverrideServerName(string) error { return nil }

// plain is the AuthInfo of a connection on loopback.
type plain struct{ credentials.CommonAuthInfo }

// AuthType implements credentials.AuthInfo.
func (plain) AuthType() string { return "plain" }
