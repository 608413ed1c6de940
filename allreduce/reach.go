package allreduce

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Probe is a question to the ring listener of a worker.
type Probe struct {
	From string // who asks
	Name string // who is meant
	Addr string // its ring address

	// TLS and PeerName are as in LinkConfig.
	TLS      *tls.Config
	PeerName func(tls.ConnectionState) (string, error)
}

// Reach asks whether the listener at an address answers, whatever generations it knows:
// nil means that bytes go there and come back, and over TLS that it is the worker that is
// meant. An error names it. It takes as long as ctx lets it.
func Reach(ctx context.Context, p Probe) error {
	conn, err := open(ctx, p.Addr, p.Name, p.TLS, p.PeerName)
	if err != nil {
		return fmt.Errorf("%s at %s: %w", p.Name, p.Addr, err)
	}
	defer conn.end()
	if _, err = conn.Write(question{p.From, p.Name}.append(nil)); err == nil {
		var a answer
		if a, err = readAnswer(conn); err == nil && a.Verdict != accepted {
			err = fmt.Errorf("%w: %s", ErrRefused, a.Why)
		}
	}
	if err != nil {
		return fmt.Errorf("%s at %s: %w", p.Name, p.Addr, errors.Join(ctx.Err(), err))
	}
	return nil
}

// opened is a connection that ends with the context it was opened in, until it is kept.
type opened struct {
	net.Conn
	raw  net.Conn
	stop func() bool
}

// keep makes the connection one that lives on, if its context has not ended.
func (o *opened) keep() bool { return o.stop() }

func (o *opened) end() {
	o.stop()
	_ = o.raw.Close()
}

// open connects to the listener of the worker of that name, over TLS if there is any.
func open(ctx context.Context, addr, name string, c *tls.Config, nameOf func(tls.ConnectionState) (string, error)) (*opened, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepAliveIdle, Interval: keepAliveStep, Count: 3}}
	raw, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	o := &opened{Conn: raw, raw: raw, stop: context.AfterFunc(ctx, func() { _ = raw.Close() })}
	if c == nil {
		return o, nil
	}
	config, err := clientTLS(c, addr)
	if err != nil {
		o.end()
		return nil, err
	}
	t := tls.Client(newBuffered(raw), config)
	owner, err := secure(ctx, t, nameOf)
	if err == nil {
		err = owner.mustBe(name)
	}
	if err != nil {
		o.end()
		return nil, permanent(err)
	}
	o.Conn = t
	return o, nil
}

// question is what Reach says: any listener answers it.
type question struct{ From, Name string }

// opening is the first thing that a listener reads.
type opening struct {
	hello
	asks bool // it is a question, of which the greeting holds the names
}

func readOpening(r io.Reader) (o opening, err error) {
	magic, p, err := readLetter(r, helloMagic, questionMagic)
	if err != nil {
		return opening{}, err
	}
	if o.asks = magic == questionMagic; !o.asks {
		o.hello, err = parseHello(p)
		return o, err
	}
	q, err := parseQuestion(p)
	o.FromName, o.ToName = q.From, q.Name
	return o, err
}

func (q question) append(b []byte) []byte {
	var p []byte
	for _, s := range []string{q.From, q.Name} {
		s = s[:min(len(s), nameMax)]
		p = append(p, byte(len(s)))
		p = append(p, s...)
	}
	return appendLetter(b, questionMagic, p)
}

func parseQuestion(p []byte) (q question, err error) {
	for _, s := range []*string{&q.From, &q.Name} {
		if *s, p, err = cutText(p); err != nil {
			return question{}, err
		}
	}
	if len(p) != 0 {
		return question{}, fmt.Errorf("%w: %d bytes too many", errHello, len(p))
	}
	return q, nil
}

// probeEvery is how often Connect asks whether a worker is there that does not take its
// connection.
const probeEvery = 250 * time.Millisecond

// probe asks the next worker, while it is being dialled, whether it is there at all. It
// returns an error that accuses it when there has been no answer for Silence, and nil
// when ctx ends. A listener belongs to its process, not to a generation: one that answers
// may have a reason to keep this worker waiting, one that does not is gone.
func (l *Link) probe(ctx context.Context) error {
	p := Probe{From: l.name(l.c.Worker), Name: l.name(l.next), Addr: l.c.Next, TLS: l.c.TLS, PeerName: l.c.PeerName}
	answered := now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-after(probeEvery):
		}
		begin := now()
		once, cancel := context.WithTimeout(ctx, l.c.Silence)
		err := Reach(once, p)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil || errors.Is(err, ErrRefused):
			answered = now()
		case since(begin) > 2*l.c.Silence: // this process was stopped: its clock says nothing
			answered = now()
		case since(answered) >= l.c.Silence:
			return l.connectError(l.next, fmt.Errorf("%w has not answered for %v", err, since(answered).Round(100*time.Millisecond)))
		}
	}
}
