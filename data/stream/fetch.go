package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// work fetches what is wanted until the client is closed.
func (c *Client) work(r *data.RecordReader, urgentOnly bool) {
	for {
		records, urgent := c.next(urgentOnly)
		if len(records) == 0 {
			return
		}
		if records = c.fromDisk(r, records); len(records) == 0 {
			continue
		}
		i, patience, err := c.choose(c.ctx, urgent)
		if err != nil {
			return
		}
		c.fetch(r, i, records, patience)
	}
}

// next waits for something to fetch: what a batch waits for first. The records are the caller's to fetch. None: the end.
func (c *Client) next(urgentOnly bool) (records []int64, urgent bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if c.ctx.Err() != nil {
			return nil, false
		}
		if n := min(len(c.urgent), batchRecords/2); n > 0 {
			records = append(records, c.urgent[:n]...)
			c.urgent = c.urgent[:copy(c.urgent, c.urgent[n:])]
			for _, i := range records {
				c.wanted[i].fetching = true
			}
			return records, true
		}
		for !urgentOnly && len(c.window) > 0 && len(records) < aheadRecords {
			i := c.window[0]
			c.window = c.window[1:]
			if c.wanted[i] == nil && !c.cache.has(i) {
				c.wanted[i] = &entry{record: i, fetching: true, done: make(chan struct{})}
				records = append(records, i)
			}
		}
		if len(records) > 0 {
			return records, false
		}
		c.changed.Wait()
	}
}

// choose waits for a server that may be asked, and counts a stream to it.
func (c *Client) choose(ctx context.Context, urgent bool) (server int, patience time.Duration, err error) {
	defer context.AfterFunc(ctx, c.wake)()
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if ctx.Err() != nil {
			return 0, 0, context.Cause(ctx)
		}
		i, wait := pick(time.Now(), c.health, c.turn, urgent)
		if i >= 0 {
			c.turn++
			c.health[i].streams++
			return i, patient(c.health, i, c.c.Patience), nil
		}
		t := time.AfterFunc(wait, c.wake)
		c.changed.Wait()
		t.Stop()
	}
}

func (c *Client) wake() {
	c.mu.Lock()
	c.changed.Broadcast()
	c.mu.Unlock()
}

// fetch asks server i for records, delivers what comes and puts back what does not.
func (c *Client) fetch(r *data.RecordReader, i int, records []int64, patience time.Duration) {
	got := 0
	slowest, err := c.read(i, records, patience, func(k int64, m *flightrpc.FlightData) error {
		rec, err := r.Read(k, m.GetDataHeader(), m.GetDataBody())
		if err != nil && !errors.Is(err, data.ErrVocab) {
			return lieError{err}
		}
		got++
		c.count.records.Add(1)
		c.count.bytes.Add(int64(len(m.GetDataHeader()) + len(m.GetDataBody())))
		c.deliver(k, rec, err)
		if err == nil {
			c.toDisk(k, m.GetDataHeader(), m.GetDataBody())
		}
		return nil
	})
	c.judge(i, slowest, err)
	c.putBack(i, records[got:], err)
}

// read makes one call: the schema, then the records in their order, then the end. Nothing else is an answer.
func (c *Client) read(i int, records []int64, patience time.Duration, each func(int64, *flightrpc.FlightData) error) (slowest time.Duration, err error) {
	call := newCall(c.ctx, patience)
	defer func() { slowest = call.end() }()
	t := ticket{records: records}
	t.hash, _ = parseHash(c.c.ContentHash) // Validate has seen it
	s, err := c.servers[i].rpc.DoGet(call.ctx, &flightrpc.Ticket{Ticket: t.encode()}, grpc.MaxCallRecvMsgSize(int(c.x.RecordBytesMax())+frameBytes))
	if err != nil {
		return 0, call.explain(err)
	}
	var m flightrpc.FlightData
	if err := call.recv(s.RecvMsg, &m); err != nil {
		return 0, orTruncated(err, "no schema")
	}
	if len(m.GetDataBody()) > 0 { // the schema is for other readers, we have ours
		return 0, lie("it does not begin with a schema")
	}
	for n, k := range records {
		m.Reset()
		if err := call.recv(s.RecvMsg, &m); err != nil {
			return 0, orTruncated(err, fmt.Sprintf("%d of %d records", n, len(records)))
		}
		if err := each(k, &m); err != nil {
			return 0, err
		}
	}
	if err := call.recv(s.RecvMsg, &m); err == nil {
		return 0, lie("it goes on after the %d records asked for", len(records))
	} else if !errors.Is(err, io.EOF) {
		return 0, err
	}
	return 0, nil
}

func orTruncated(err error, after string) error {
	if errors.Is(err, io.EOF) {
		return lie("it ended after %s", after)
	}
	return err
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
	addr := c.servers[i].addr
	if err == nil {
		if h.failures > 0 {
			c.c.Log.Info("data server works again", "server", addr, "after", h.failures)
		}
		h.succeeded(slowest, c.c.Patience)
		return
	}
	c.count.failures.Add(1)
	now := time.Now()
	if h.failed(now, err); h.failures == 1 || classify(err) == lied {
		c.c.Log.Warn("data server failed, others are asked", "server", addr, "error", plain(err), "dataset", short(c.c.ContentHash), "pause", h.until.Sub(now))
	}
}

// deliver hands a record, or why there will never be one, to those who wait, and keeps it.
func (c *Client) deliver(i int64, rec *data.Record, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.wanted[i]
	delete(c.wanted, i)
	if err == nil {
		c.cache.put(i, rec)
	} else {
		err = fmt.Errorf("data set %s: %w", short(c.c.ContentHash), err)
	}
	e.rec, e.err = rec, err
	close(e.done)
}

// wrongMax is how often each server may send something else for a record before the batches that wait for it fail: once may
// be a bit flipped on the way.
const wrongMax = 2

// putBack returns records that were not got from server i: to the front of the queue if somebody waits, else to the window.
func (c *Client) putBack(server int, records []int64, err error) {
	if len(records) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var urgent, later []int64
	for n, i := range records {
		e := c.wanted[i]
		e.fetching = false
		if n == 0 && classify(err) == lied {
			if e.wrong == nil {
				e.wrong = make([]int, len(c.servers))
			}
			e.wrong[server]++
		}
		switch {
		case e.allWrong():
			e.err = fmt.Errorf("data set %s: no server has record %d as it should be%s", short(c.c.ContentHash), i, c.blame())
			delete(c.wanted, i)
			close(e.done)
		case e.waiters > 0:
			urgent = append(urgent, i)
		default:
			delete(c.wanted, i)
			later = append(later, i)
		}
	}
	c.urgent = append(urgent, c.urgent...)
	c.window = append(later, c.window...)
	c.changed.Broadcast()
}

// allWrong reports whether no server is left that may have the record.
func (e *entry) allWrong() bool {
	for _, n := range e.wrong {
		if n < wrongMax {
			return false
		}
	}
	return e.wrong != nil
}

// fromDisk delivers those of the records that the folder has, and gives the others.
func (c *Client) fromDisk(r *data.RecordReader, records []int64) []int64 {
	if c.disk == nil {
		return records
	}
	left := records[:0]
	for _, i := range records {
		leaf := c.x.Leaf(i)
		if !c.disk.has(leaf) {
			left = append(left, i)
			continue
		}
		meta, body, err := c.disk.get(leaf, c.x.RecordBytesMax())
		var rec *data.Record
		if err == nil {
			rec, err = r.Read(i, meta, body)
		}
		if err != nil && !errors.Is(err, data.ErrVocab) {
			c.c.Log.Warn("a cached record is damaged, it is fetched again", "folder", c.c.CacheDir, "error", err)
			c.disk.drop(leaf)
			left = append(left, i)
			continue
		}
		c.count.diskHits.Add(1)
		c.deliver(i, rec, err)
	}
	return left
}

// toDisk keeps a record in the folder. A folder that cannot be written is not used any more, which is said once.
func (c *Client) toDisk(i int64, meta, body []byte) {
	if c.disk == nil || c.diskFull.Load() {
		return
	}
	if err := c.disk.put(c.x.Leaf(i), meta, body); err != nil && !c.diskFull.Swap(true) {
		c.c.Log.Warn("records are not cached on disk any more", "folder", c.c.CacheDir, "error", err)
	}
}

// fetchIndex asks one server after the other for the index, until one has it, all have refused, or the time is over.
func (c *Client) fetchIndex(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.c.WaitMax, fmt.Errorf("nothing came for %v", c.c.WaitMax))
	defer cancel()
	never := map[int]bool{}
	for {
		i, patience, err := c.choose(ctx, true)
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
		if b = append(b, m.GetBody()...); len(b) > indexBytesMax || len(m.GetBody()) == 0 {
			return nil, lie("its index has no end")
		}
	}
	x, err := decodeIndex(b, c.c.ContentHash)
	if err != nil {
		return nil, lieError{err}
	}
	return x, nil
}
