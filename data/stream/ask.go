package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	flightrpc "github.com/apache/arrow/go/v17/arrow/flight/gen/flight"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/data"
)

// server is one that a client may ask.
type server struct {
	addr string
	conn *grpc.ClientConn
	rpc  flightrpc.FlightServiceClient
}

// dial prepares a connection; it is made when it is first used, and again whenever it breaks.
func dial(addr string, s Security) (*server, error) {
	conn, err := grpc.NewClient("passthrough:///"+addr, // names are looked up at each attempt, by the dialer
		grpc.WithTransportCredentials(s.credentials()),
		grpc.WithNoProxy(),
		grpc.WithMaxHeaderListSize(headerBytesMax),
		grpc.WithInitialWindowSize(windowBytes),
		grpc.WithInitialConnWindowSize(connWindowBytes),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveEvery, Timeout: keepaliveWait}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 2, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry()) // who is asked next is decided here
	if err != nil {
		return nil, fmt.Errorf("data stream: server %s: %w", addr, err)
	}
	return &server{addr: addr, conn: conn, rpc: flightrpc.NewFlightServiceClient(conn)}, nil
}

// call is a call to a server that is broken off when nothing comes for too long.
type call struct {
	ctx      context.Context
	cancel   context.CancelCauseFunc
	patience time.Duration
	stall    *time.Timer
	slowest  time.Duration
}

func newCall(parent context.Context, patience time.Duration) *call {
	c := &call{patience: patience}
	c.ctx, c.cancel = context.WithCancelCause(parent)
	c.stall = time.AfterFunc(patience, func() { c.cancel(errStalled) })
	return c
}

// recv reads one message. Only the wait counts, not what is done with a message.
func (c *call) recv(recv func(any) error, m any) error {
	start := time.Now()
	c.stall.Reset(c.patience)
	err := recv(m)
	c.stall.Stop()
	c.slowest = max(c.slowest, time.Since(start))
	return c.explain(err)
}

// explain finds the cause behind what gRPC says.
func (c *call) explain(err error) error {
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return err
	case errors.Is(context.Cause(c.ctx), errStalled):
		return errStalled
	case status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "larger than max"):
		return lieError{err} // gRPC has not read the message, only its length
	}
	return err
}

func (c *call) end() time.Duration {
	c.stall.Stop()
	c.cancel(nil)
	return c.slowest
}

// judge notes how a server did.
func (c *Client) judge(i int, slowest time.Duration, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := &c.health[i]
	h.streams--
	if c.ctx.Err() != nil {
		return
	}
	c.changed.Broadcast()
	if err == nil {
		was := h.broken
		if h.succeeded(slowest, c.c.Patience); was {
			c.log("data server works again", i)
		}
		return
	}
	c.count.failures.Add(1)
	was := h.broken
	if h.failed(time.Now(), err); !was || classify(err) == lied {
		c.log("data server failed", i)
	}
	if errors.Is(err, errStalled) && elsewhere(c.health, i) {
		// Whatever else was asked of it stalls too, only later: a step would wait for one after the other.
		for call, k := range c.calls {
			if k == i {
				call.cancel(errStalled)
			}
		}
	}
}

// log tells what became of server i. c.mu is held.
func (c *Client) log(what string, i int) {
	level, h := slog.LevelInfo, c.health[i]
	args := []any{"server", c.servers[i].addr, "dataset", short(c.c.ContentHash)}
	if h.reason != nil {
		level = slog.LevelWarn
		args = append(args, "error", plain(h.reason), "pause", time.Until(h.until).Round(time.Millisecond))
	}
	c.c.Log.Log(c.ctx, level, what, args...)
}

func (c *Client) track(call *call, i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls[call] = i
}

func (c *Client) untrack(call *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.calls, call)
}

// probe finds out whether servers that failed work again, by a question that nobody waits for.
func (c *Client) probe() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.ctx.Err() == nil {
		i, wait := pickProbe(time.Now(), c.health)
		if i < 0 {
			var t *time.Timer
			if wait > 0 {
				t = time.AfterFunc(wait, c.wake)
			}
			c.changed.Wait()
			if t != nil {
				t.Stop()
			}
			continue
		}
		c.mu.Unlock()
		err := c.askSchema(i)
		c.mu.Lock()
		switch h := &c.health[i]; {
		case !h.broken || c.ctx.Err() != nil: // work went well meanwhile, or the end
		case err != nil:
			h.failed(time.Now(), err)
		default:
			h.answered()
			c.log("data server answers again", i)
			c.changed.Broadcast()
		}
	}
}

// askSchema asks server i for the schema of the data set: a small answer that only a server of it can give.
func (c *Client) askSchema(i int) error {
	call := newCall(c.ctx, c.c.Patience)
	defer call.end()
	_, err := c.servers[i].rpc.GetSchema(call.ctx, &flightrpc.FlightDescriptor{Type: flightrpc.FlightDescriptor_PATH, Path: []string{c.c.ContentHash}},
		grpc.MaxCallRecvMsgSize(frameBytes))
	return call.explain(err)
}

// fetchIndex asks one server after the other for the index, until one has it, all have refused, or the time is over.
func (c *Client) fetchIndex(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.c.WaitMax, fmt.Errorf("nothing came for %v", c.c.WaitMax))
	defer cancel()
	never := map[int]bool{}
	for {
		i, patience, err := c.choose(ctx)
		if err == nil {
			c.x, err = c.readIndex(ctx, i, patience)
			if ctx.Err() == nil || err == nil {
				c.judge(i, 0, err)
			}
		}
		if err == nil {
			return nil
		}
		if never[i] = classify(err) != gone; ctx.Err() != nil || len(never) == len(c.servers) && !hasFalse(never) {
			c.mu.Lock()
			defer c.mu.Unlock()
			if cause := context.Cause(ctx); cause != nil {
				return fmt.Errorf("data set %s: waiting for a server%s: %w", short(c.c.ContentHash), c.blame(), cause)
			}
			return fmt.Errorf("data set %s: no server gives it%s", short(c.c.ContentHash), c.blame())
		}
	}
}

func hasFalse(m map[int]bool) bool {
	for _, v := range m {
		if !v {
			return true
		}
	}
	return false
}

// readIndex reads the index from server i and holds it against the content hash.
func (c *Client) readIndex(ctx context.Context, i int, patience time.Duration) (*data.Index, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, max(patience, c.c.WaitMax/4), errStalled) // a trickle is no answer either
	defer cancel()
	call := newCall(ctx, patience)
	defer call.end()
	s, err := c.servers[i].rpc.DoAction(call.ctx, &flightrpc.Action{Type: indexAction, Body: []byte(c.c.ContentHash)}, grpc.MaxCallRecvMsgSize(indexChunk+frameBytes))
	if err != nil {
		return nil, call.explain(err)
	}
	var b []byte
	for {
		var m flightrpc.Result
		if err := call.recv(s.RecvMsg, &m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		b = append(b, m.GetBody()...)
		if n, err := indexBytes(b); err != nil {
			return nil, lieError{err}
		} else if len(b) > n || len(m.GetBody()) == 0 {
			return nil, lie("its index has no end")
		}
	}
	x, err := decodeIndex(b, c.c.ContentHash)
	if err != nil {
		return nil, lieError{err}
	}
	return x, nil
}
