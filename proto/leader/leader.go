// Package leader finds the coordinator that leads and talks to it. It is given the
// addresses of some coordinators, leader or not, and follows refusals to the one that
// is; when that one dies, it looks for the next.
package leader

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// Config says where to begin.
type Config struct {
	Addresses []string    // of coordinators, host:port; the first is asked first
	TLS       *tls.Config // nil: plain
	Build     string      // version of this program

	// Dial reaches an address; nil: over TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	// OtherBuild, if set, is called once for each coordinator of another build.
	OtherBuild func(address, build string)
}

const (
	pauseMin = 50 * time.Millisecond
	pauseMax = time.Second
	tryMax   = 5 * time.Second // for one coordinator to answer where it leads
)

// Conn is a connection to whoever leads. It is a grpc.ClientConnInterface, so the
// generated clients work on it, and safe for concurrent use. A call is repeated until
// it is answered or its context ends: give contexts a deadline. Every call of Skein's
// services may be repeated.
type Conn struct {
	config Config

	mu      sync.Mutex
	conns   map[string]*grpc.ClientConn
	known   []string // the addresses that were given, and leaders that were named since
	current string   // who is believed to lead
	next    int      // index in known to try when nobody is
	warned  map[string]bool
}

// New makes a Conn. It connects when it is first used.
func New(c Config) (*Conn, error) {
	if len(c.Addresses) == 0 {
		return nil, errors.New("no coordinator's address is given; use --coordinator host:port")
	}
	return &Conn{config: c, conns: map[string]*grpc.ClientConn{}, known: slices.Clone(c.Addresses), current: c.Addresses[0], next: 1, warned: map[string]bool{}}, nil
}

// Close closes all connections.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, conn := range c.conns {
		errs = append(errs, conn.Close())
	}
	c.conns = map[string]*grpc.ClientConn{}
	return errors.Join(errs...)
}

// Address is the coordinator that was last believed to lead.
func (c *Conn) Address() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

// Invoke implements grpc.ClientConnInterface.
func (c *Conn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return c.follow(ctx, func(conn *grpc.ClientConn, address string) error {
		var header metadata.MD
		ctx, g := c.guard(ctx, conn, address)
		defer g.end()
		err := conn.Invoke(c.outgoing(ctx), method, args, reply, append(slices.Clone(opts), grpc.Header(&header))...)
		c.greet(address, header)
		return g.why(err)
	})
}

// NewStream implements grpc.ClientConnInterface. It makes sure first that it asks the
// leader; when the stream ends with Unavailable, open another.
func (c *Conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (stream grpc.ClientStream, err error) {
	err = c.follow(ctx, func(conn *grpc.ClientConn, address string) error {
		if err := c.leads(ctx, conn, address, tryMax); err != nil {
			return err
		}
		ctx, g := c.guard(ctx, conn, address)
		s, err := conn.NewStream(c.outgoing(ctx), desc, method, opts...)
		if err != nil {
			g.end()
			return g.why(err)
		}
		context.AfterFunc(s.Context(), g.end) // which ends with the stream
		stream = guarded{s, g}
		return nil
	})
	return stream, err
}

// leads asks a coordinator whether it leads, and refuses in its name if it does not.
func (c *Conn) leads(ctx context.Context, conn *grpc.ClientConn, address string, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var header metadata.MD
	s, err := skeinv1.NewClusterClient(conn).Status(c.outgoing(ctx), &skeinv1.StatusRequest{}, grpc.Header(&header))
	c.greet(address, header)
	if status.Code(err) == codes.DeadlineExceeded && ctx.Err() != nil {
		return status.Errorf(codes.Unavailable, "%s does not answer", address)
	}
	if err != nil || s.GetState() == "leader" {
		return err
	}
	to := s.GetLeaderAddress()
	if s.GetLeaderId() == s.GetId() {
		to = ""
	}
	return skeinv1.Refuse(codes.Unavailable, &skeinv1.Refusal{Kind: skeinv1.Refusal_KIND_NOT_LEADER, LeaderId: s.GetLeaderId(), LeaderAddress: to},
		fmt.Sprintf("%s is not the leader", s.GetId()))
}

// follow tries one coordinator after the other until one gives an answer that is not
// "ask somebody else".
func (c *Conn) follow(ctx context.Context, try func(*grpc.ClientConn, string) error) error {
	pause := pauseMin
	var last error // of a coordinator that did not answer
	for untrusted := 0; ; {
		conn, address, err := c.conn()
		if err != nil {
			return err
		}
		err = try(conn, address)
		if code := status.Code(err); code == codes.DeadlineExceeded && last != nil && ctx.Err() != nil {
			return c.nobody(last) // it ended while one was dialed again
		} else if code != codes.Unavailable {
			return err
		}
		last = err
		if !isAboutCertificates(err) {
			untrusted = 0
		} else if untrusted++; untrusted >= len(c.addresses()) { // waiting does not help
			return status.Errorf(codes.Unauthenticated, "no trust between this end and the coordinators at %s: %s; make certificates of one cluster on both ends with `skein certs`",
				strings.Join(c.addresses(), ", "), status.Convert(err).Message())
		}
		if c.moved(address, skeinv1.RefusalOf(err)) {
			continue // the leader is named: ask it at once
		}
		select {
		case <-ctx.Done():
			return c.nobody(err)
		case <-time.After(pause):
			pause = min(pause*4/3, pauseMax) // the next leader is there within some tenths of a second
		}
	}
}

// nobody is the error of a call that no coordinator has answered.
func (c *Conn) nobody(last error) error {
	return status.Errorf(codes.Unavailable, "no coordinator answers at %s; the last one said: %s", strings.Join(c.addresses(), ", "), status.Convert(last).Message())
}

// isAboutCertificates tells whether a connection failed because one end does not trust
// the other. The library says so in words only.
func isAboutCertificates(err error) bool {
	text := status.Convert(err).Message()
	return strings.Contains(text, "tls: ") || strings.Contains(text, "x509: ") || strings.Contains(text, "is at the other end")
}

// moved chooses whom to ask next, and tells whether it is a leader that was named and
// not only the next in turn.
func (c *Conn) moved(from string, r *skeinv1.Refusal) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current != from {
		return true // another call has found it meanwhile
	}
	if to := r.GetLeaderAddress(); to != "" && to != from {
		c.current = to
		if !slices.Contains(c.known, to) {
			c.known = append(c.known, to)
		}
		return true
	}
	c.current = c.known[c.next%len(c.known)]
	c.next++
	return false
}

func (c *Conn) addresses() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.known)
}

// conn is the connection to who is believed to lead.
func (c *Conn) conn() (*grpc.ClientConn, string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn := c.conns[c.current]; conn != nil {
		return conn, c.current, nil
	}
	secure := insecure.NewCredentials()
	if c.config.TLS != nil {
		secure = credentials.NewTLS(c.config.TLS)
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(secure), grpc.WithDisableServiceConfig(),
		// One that has been started again is there as soon as it is asked.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: pauseMin, Multiplier: 1.3, Jitter: .2, MaxDelay: pauseMax}, MinConnectTimeout: tryMax}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 5 * time.Second, Timeout: 3 * time.Second, PermitWithoutStream: false}),
	}
	if c.config.Dial != nil {
		options = append(options, grpc.WithContextDialer(c.config.Dial))
	}
	conn, err := grpc.NewClient("passthrough:///"+c.current, options...)
	if err != nil {
		return nil, "", fmt.Errorf("coordinator %s: %w", c.current, err)
	}
	c.conns[c.current] = conn
	return conn, c.current, nil
}

// outgoing adds what every call says of its caller.
func (c *Conn) outgoing(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, skeinv1.ProtocolKey, skeinv1.Protocol, skeinv1.BuildKey, c.config.Build)
}

// greet remarks on a coordinator of another build.
func (c *Conn) greet(address string, header metadata.MD) {
	builds := header.Get(skeinv1.BuildKey)
	if len(builds) == 0 || builds[0] == c.config.Build || c.config.OtherBuild == nil {
		return
	}
	c.mu.Lock()
	first := !c.warned[address]
	c.warned[address] = true
	c.mu.Unlock()
	if first {
		c.config.OtherBuild(address, builds[0])
	}
}
