package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	flightrpc "github.com/apache/arrow/go/v17/arrow/flight/gen/flight"
	"google.golang.org/grpc"

	"github.com/skein-ml/skein/data"
)

// work fetches what is wanted until the client is closed.
func (c *Client) work(r *data.RecordReader, urgentOnly bool) {
	for {
		records := c.next(urgentOnly)
		if len(records) == 0 {
			return
		}
		if records = c.fromDisk(r, records); len(records) == 0 {
			continue
		}
		i, patience, err := c.choose(c.ctx)
		if err != nil {
			return
		}
		c.fetch(r, i, records, patience)
	}
}

// next waits for something to fetch: what a batch waits for first. The records are the caller's to fetch. None: the end.
func (c *Client) next(urgentOnly bool) (records []int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if c.ctx.Err() != nil {
			return nil
		}
		if n := min(len(c.urgent), batchRecords/2); n > 0 {
			records = append(records, c.urgent[:n]...)
			c.urgent = c.urgent[:copy(c.urgent, c.urgent[n:])]
			for _, i := range records {
				c.wanted[i].fetching = true
			}
			return records
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
			return records
		}
		c.changed.Wait()
	}
}

// choose waits for a server that may be asked, and counts a stream to it.
func (c *Client) choose(ctx context.Context) (server int, patience time.Duration, err error) {
	defer context.AfterFunc(ctx, c.wake)()
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if ctx.Err() != nil {
			return 0, 0, context.Cause(ctx)
		}
		i, wait := pick(time.Now(), c.health, c.turn)
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
	c.track(call, i)
	defer func() {
		c.untrack(call)
		slowest = call.end()
	}()
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

// ErrRecord says that no server has a record as it should be: the data set is damaged everywhere.
var ErrRecord = errors.New("no server has it as it should be")

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
			e.err = fmt.Errorf("data set %s: record %d: %w%s", short(c.c.ContentHash), i, ErrRecord, c.blame())
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
