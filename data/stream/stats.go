package stream

import (
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/status"
)

// counters only grow.
type counters struct {
	batches, hits, misses, diskHits, records, bytes, failures atomic.Int64
}

// Stats is what a client has done since Open.
type Stats struct {
	Wait     time.Duration // that Batch waited for records, over all its callers
	Batches  int64         // filled
	Hits     int64         // packs whose record was in memory
	Misses   int64         // packs that had to wait
	Records  int64         // that came from servers
	Bytes    int64         // of these
	DiskHits int64         // records that came from the cache folder
	Failures int64         // calls that failed
	Memory   int64         // bytes of records in memory now
	Servers  []ServerStats
}

// ServerStats is what a client thinks of a server.
type ServerStats struct {
	Address  string
	Working  bool
	Failures int    // in a row
	Reason   string // of the last failure, "" while it works
	Streams  int    // under way
}

// Stats counts.
func (c *Client) Stats() Stats {
	s := Stats{
		Wait:    time.Duration(c.waited.Load()),
		Batches: c.count.batches.Load(), Hits: c.count.hits.Load(), Misses: c.count.misses.Load(),
		DiskHits: c.count.diskHits.Load(), Records: c.count.records.Load(), Bytes: c.count.bytes.Load(),
		Failures: c.count.failures.Load(),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Memory = c.cache.bytes
	for i, h := range c.health {
		v := ServerStats{Address: c.servers[i].addr, Working: h.works(), Failures: h.failures, Streams: h.streams}
		if h.reason != nil {
			v.Reason = plain(h.reason)
		}
		s.Servers = append(s.Servers, v)
	}
	return s
}

// Waiting says what batches wait for at this moment, "" if nothing.
func (c *Client) Waiting() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	first, n := int64(-1), 0
	for i, e := range c.wanted {
		if e.waiters > 0 {
			if n++; first < 0 || i < first {
				first = i
			}
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d records of data set %s, the first is %d%s", n, short(c.c.ContentHash), first, c.blame())
}

// blame lists the servers, each with what it did. c.mu is held.
func (c *Client) blame() string {
	var b strings.Builder
	for i, h := range c.health {
		sep, state := "; ", "works"
		if i == 0 {
			sep = " ("
		}
		if h.reason != nil {
			state = plain(h.reason)
		}
		fmt.Fprintf(&b, "%s%s: %s", sep, c.c.Servers[i], state)
	}
	return b.String() + ")"
}

// plain is an error without gRPC's wrapping, on one line of a bounded length: its text comes from a server.
func plain(err error) string {
	text := err.Error()
	if s, ok := status.FromError(err); ok && s.Message() != "" {
		text = s.Message()
	}
	if quoted, ok := strings.CutPrefix(text, "connection error: desc = "); ok {
		if inner, err := strconv.Unquote(quoted); err == nil {
			text = inner
		}
	}
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > 300 {
		text = strings.ToValidUTF8(text[:300], "") + "…"
	}
	return text
}
