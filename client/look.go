package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// Try is what became of asking one coordinator whether it is there.
type Try struct {
	Address string
	Fault   string // one clause
	Advice  string // what to do
	Final   bool   // asking again would end the same way

	answer *skeinv1.StatusResponse // nil: none
}

// tryMax bounds one try.
const tryMax = 3 * time.Second

// look asks all given coordinators at once.
func (c *Client) look(ctx context.Context) []Try {
	return c.lookAt(ctx, c.config.Coordinators)
}

// Why says, of coordinators that do not answer, what keeps each.
func (c *Client) Why(ctx context.Context) error {
	tries := c.look(ctx)
	for _, t := range tries {
		if t.answer != nil && t.answer.GetLeaderId() != "" {
			return nil
		}
	}
	return &UnreachableError{tries}
}

// Reach asks all coordinators whether they are there, and notes those that are not. The
// leader has just answered.
func (c *Client) Reach(ctx context.Context, n *Nodes) {
	var addresses []string
	for _, co := range n.Coordinators {
		addresses = append(addresses, co.Address)
	}
	for i, t := range c.lookAt(ctx, addresses) {
		if t.answer == nil && !n.Coordinators[i].Leader {
			n.Coordinators[i].Fault = t.Fault
		}
	}
}

func (c *Client) lookAt(ctx context.Context, addresses []string) []Try {
	tries := make([]Try, len(addresses))
	var done sync.WaitGroup
	for i, a := range addresses {
		done.Go(func() { tries[i] = c.ask(ctx, a) })
	}
	done.Wait()
	return tries
}

func hopeless(tries []Try) bool {
	for _, t := range tries {
		if !t.Final {
			return false
		}
	}
	return len(tries) > 0
}

func (c *Client) ask(ctx context.Context, address string) Try {
	ctx, cancel := context.WithTimeout(ctx, tryMax)
	defer cancel()
	t := Try{Address: address, Advice: c.config.Advice}
	conn, err := c.dial(ctx, address)
	if err != nil {
		t.Fault = dialFault(err)
		return t
	}
	defer conn.Close()
	if c.config.TLS != nil {
		if err := shake(ctx, conn, c.config.TLS, address); err != nil {
			t.Fault, t.Advice, t.Final = tlsFault(err)
			return t
		}
	}
	c.status(ctx, &t)
	return t
}

func (c *Client) dial(ctx context.Context, address string) (net.Conn, error) {
	if c.config.Dial != nil {
		return c.config.Dial(ctx, address)
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", address)
}

// status asks a coordinator that accepts connections.
func (c *Client) status(ctx context.Context, t *Try) {
	secure := insecure.NewCredentials()
	if c.config.TLS != nil {
		secure = credentials.NewTLS(c.config.TLS)
	}
	conn, err := grpc.NewClient("passthrough:///"+t.Address, grpc.WithTransportCredentials(secure), grpc.WithDisableServiceConfig(), grpc.WithContextDialer(c.dial))
	if err != nil {
		t.Fault = err.Error()
		return
	}
	defer conn.Close()
	ctx = metadata.AppendToOutgoingContext(ctx, skeinv1.ProtocolKey, skeinv1.Protocol, skeinv1.BuildKey, c.config.Build)
	s, err := skeinv1.NewClusterClient(conn).Status(ctx, &skeinv1.StatusRequest{})
	if err == nil {
		t.answer = s
	}
	switch {
	case err == nil && s.GetLeaderId() == "":
		t.Fault, t.Advice = fmt.Sprintf("%s knows no leader", s.GetId()), "a majority of the coordinators must be up and reach each other"
	case err == nil:
		t.Fault, t.Advice = fmt.Sprintf("%s answers now and follows %s at %s", s.GetId(), s.GetLeaderId(), s.GetLeaderAddress()),
			"try again; if that goes on, see whether the leader's address can be reached from here"
	case status.Code(err) == codes.Unavailable && c.config.TLS == nil:
		t.Fault, t.Advice, t.Final = "closes plain connections", "if the cluster has certificates, give --tls DIR; `skein certs issue client NAME` makes one", true
	case status.Code(err) == codes.DeadlineExceeded:
		t.Fault = "takes the connection and says nothing"
	default:
		t.Fault, t.Final = status.Convert(err).Message(), status.Code(err) != codes.Unavailable
	}
}

func dialFault(err error) string {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return "no such host"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return "no answer"
	}
	text := err.Error()
	return text[strings.LastIndex(text, ": ")+1:]
}

// shake does the TLS handshake and waits for what the other end thinks of our
// certificate, which in TLS 1.3 comes after it.
func shake(ctx context.Context, conn net.Conn, config *tls.Config, address string) error {
	config = config.Clone()
	config.NextProtos = []string{"h2"}
	if config.ServerName == "" {
		config.ServerName, _, _ = net.SplitHostPort(address)
	}
	secured := tls.Client(conn, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		return err
	}
	_ = secured.SetReadDeadline(time.Now().Add(300 * time.Millisecond)) // of a TCP connection; it cannot fail
	_, err := secured.Read(make([]byte, 1))
	var timeout net.Error
	if err == nil || errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, io.EOF) {
		return nil // it waits for us to speak
	}
	return err
}

// tlsFault says what is wrong with whose certificate.
func tlsFault(err error) (fault, advice string, final bool) {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	var record tls.RecordHeaderError
	text := err.Error()
	switch {
	case errors.As(err, &unknown):
		return "its certificate is not of the CA in --tls's ca.crt", "use certificates that one `skein certs init` made for this cluster", true
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "its certificate has expired or is not valid yet", "check the clocks, or issue it a new one with `skein certs issue coordinator NAME`", true
	case errors.As(err, &host):
		return "its certificate is not for this address", "issue it one with `skein certs issue coordinator NAME --hosts …` that lists the address", true
	case errors.As(err, &record):
		return "speaks plain text, not TLS", "leave --tls out if that is meant, or start it with --tls", true
	case strings.Contains(text, "remote error: tls: expired certificate"):
		return "our certificate has expired", "issue a new one with `skein certs issue client NAME`", true
	case strings.Contains(text, "remote error: tls: unknown certificate authority"):
		return "it does not know the CA of our certificate", "use certificates that one `skein certs init` made for this cluster", true
	case strings.Contains(text, "remote error: tls:"):
		return "it refuses our certificate (" + text[strings.LastIndex(text, "tls: ")+5:] + ")", "issue one for this cluster with `skein certs issue client NAME`", true
	}
	return text, "see whether `skein certs` made the certificates of both ends", false
}
