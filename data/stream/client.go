package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skein-ml/skein/data"
	"github.com/skein-ml/skein/internal/vfs"
)

// Config says what a client reads, and from where. Zero means default, but for Security, ContentHash and Servers.
type Config struct {
	Security
	ContentHash string   // of the data set, from the job
	Servers     []string // addresses, host:port; the load spreads over those that work
	Vocab       int32    // tokens must lie in [0, Vocab); 0: any

	MemoryBytes int64  // for records; 256 MiB, raised to 8 records if it is less
	CacheDir    string // a folder for records that outlive the memory and the process; "": none
	CacheBytes  int64  // of it; 16 GiB

	Patience time.Duration // how long a server may send nothing before another is asked; 1 s
	WaitMax  time.Duration // how long a batch, or Open, waits until it gives up and says for what; 2 minutes

	Log *slog.Logger // for servers that fail and come back; nil: nowhere
}

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	if c.MemoryBytes == 0 {
		c.MemoryBytes = 256 << 20
	}
	if c.CacheBytes == 0 {
		c.CacheBytes = 16 << 30
	}
	if c.Patience == 0 {
		c.Patience = time.Second
	}
	if c.WaitMax == 0 {
		c.WaitMax = 2 * time.Minute
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// Validate names what is wrong.
func (c *Config) Validate() error {
	if err := c.Security.Validate(); err != nil {
		return err
	}
	if _, err := parseHash(c.ContentHash); err != nil {
		return fmt.Errorf("data stream: %w", err)
	}
	if len(c.Servers) == 0 {
		return fmt.Errorf("data stream: no server is known for data set %s", short(c.ContentHash))
	}
	if c.MemoryBytes < 0 || c.CacheBytes < 0 || c.Patience < 0 || c.WaitMax < 0 {
		return errors.New("data stream: memory, cache, patience and wait must not be negative")
	}
	return nil
}

// How the work is divided. One worker serves what a batch waits for and nothing else, so that it never queues behind records
// for later.
const (
	urgentWorkers = 1
	otherWorkers  = 2
	// batchRecords is how many records a batch asks for at a time: it bounds what one call holds beyond the cache.
	batchRecords = 16
	// aheadRecords is the same for a ticket of records for later: small, so that what becomes urgent is not behind many.
	aheadRecords = 4
)

// Client reads a data set from several servers. Its methods may be called concurrently.
type Client struct {
	c        Config
	x        *data.Index
	servers  []*server
	disk     *disk // or nil
	ctx      context.Context
	stop     context.CancelCauseFunc
	running  sync.WaitGroup
	diskFull atomic.Bool
	closing  sync.Once
	closed   error        // of closing
	waited   atomic.Int64 // nanoseconds
	count    counters

	mu      sync.Mutex
	changed *sync.Cond    // work or servers may be there, or the end
	health  []health      // of servers
	turn    int           // counts picks, so that load spreads
	calls   map[*call]int // under way, to which server
	cache   *cache
	wanted  map[int64]*entry // records on their way
	urgent  []int64          // those that a batch waits for and nobody fetches; each is in wanted, once
	plan    Plan
	window  []int64 // records of the steps to come that nobody fetches yet, soonest first
}

// entry is a record on its way to the cache.
type entry struct {
	record   int64
	waiters  int   // batches
	fetching bool  // by a worker; if not, it is in urgent
	wrong    []int // how often each server sent something else, nil: none did

	done chan struct{} // closed when rec or err is there
	rec  *data.Record
	err  error
}

// Open finds the data set on one of the servers and begins to read. The context bounds Open alone.
func Open(ctx context.Context, c Config) (*Client, error) {
	c.EnsureDefaults()
	if err := c.Validate(); err != nil {
		return nil, err
	}
	cl := &Client{c: c, health: make([]health, len(c.Servers)), wanted: map[int64]*entry{}, calls: map[*call]int{}}
	cl.changed = sync.NewCond(&cl.mu)
	cl.ctx, cl.stop = context.WithCancelCause(context.Background())
	for i := range cl.health {
		cl.health[i].patience = c.Patience
	}
	err := cl.open(ctx)
	if err != nil {
		return nil, errors.Join(err, cl.Close())
	}
	return cl, nil
}

func (c *Client) open(ctx context.Context) (err error) {
	if c.c.CacheDir != "" {
		if c.disk, err = openDisk(vfs.OS, c.c.CacheDir, c.c.CacheBytes); err != nil {
			return err
		}
	}
	for _, addr := range c.c.Servers {
		s, err := dial(addr, c.c.Security)
		if err != nil {
			return err
		}
		c.servers = append(c.servers, s)
	}
	if err := c.fetchIndex(ctx); err != nil {
		return err
	}
	c.cache = newCache(max(c.c.MemoryBytes, 8*c.x.RecordBytesMax()))
	var readers []*data.RecordReader
	for range urgentWorkers + otherWorkers {
		r, err := data.NewRecordReader(c.x, c.c.Vocab)
		if err != nil {
			return err
		}
		readers = append(readers, r)
	}
	c.running.Go(c.probe)
	for i, r := range readers {
		c.running.Go(func() {
			defer r.Close()
			c.work(r, i < urgentWorkers)
		})
	}
	return nil
}

// Close ends everything that is under way and waits for it; batches that wait fail.
func (c *Client) Close() error {
	c.mu.Lock()
	c.stop(errClosed)
	c.changed.Broadcast()
	c.mu.Unlock()
	c.running.Wait()
	c.closing.Do(func() {
		for _, s := range c.servers {
			c.closed = errors.Join(c.closed, s.conn.Close())
		}
	})
	return c.closed
}

// Len is the number of packs.
func (c *Client) Len() int64 { return c.x.Packs }

// SeqLen is T.
func (c *Client) SeqLen() int { return c.x.SeqLen }

// Batch fills dst with the packs of these indices, as data.Dataset does. It waits for records that are not here yet until
// they are, the context ends, or nothing of what it waits for has come for Config.WaitMax; the error then names the record and
// what each server did.
func (c *Client) Batch(ctx context.Context, indices []int64, dst *data.Batch) error {
	dst.Reset(c.x.SeqLen)
	n := int64(c.x.RecordPacks())
	for at, index := range indices {
		if err := ctx.Err(); err != nil {
			return err
		}
		if index < 0 {
			dst.AppendFiller()
			continue
		}
		if index >= c.x.Packs {
			return fmt.Errorf("data set %s: pack %d of %d", short(c.c.ContentHash), index, c.x.Packs)
		}
		rec, e := c.need(index/n, indices[at:])
		if e != nil {
			var err error
			if rec, err = c.wait(ctx, e); err != nil {
				return err
			}
		}
		dst.Append(rec, int(index%n))
	}
	c.count.batches.Add(1)
	return nil
}

// need gives record i, or the entry to wait for, with the caller counted as waiting. It asks for what the rest of the batch
// needs by the way.
func (c *Client) need(i int64, rest []int64) (*data.Record, *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if rec := c.cache.get(i); rec != nil {
		c.count.hits.Add(1)
		return rec, nil
	}
	c.count.misses.Add(1)
	e := c.want(i)
	e.waiters++
	n, asked := int64(c.x.RecordPacks()), 1
	for _, index := range rest {
		if asked == batchRecords {
			break
		}
		if k := index / n; index >= 0 && index < c.x.Packs && !c.cache.has(k) && c.wanted[k] == nil {
			c.want(k)
			asked++
		}
	}
	c.changed.Broadcast()
	return nil, e
}

// want is the entry of a record that is not here; if nobody fetches it, it becomes urgent. c.mu is held.
func (c *Client) want(i int64) *entry {
	e := c.wanted[i]
	if e == nil {
		e = &entry{record: i, done: make(chan struct{})}
		c.wanted[i] = e
		c.urgent = append(c.urgent, i)
	}
	return e
}

// wait waits for a record.
func (c *Client) wait(ctx context.Context, e *entry) (*data.Record, error) {
	start := time.Now()
	timer := time.NewTimer(c.c.WaitMax)
	defer timer.Stop()
	defer func() { c.waited.Add(int64(time.Since(start))) }()
	var cause error
	select {
	case <-e.done:
	case <-ctx.Done():
		cause = context.Cause(ctx)
	case <-timer.C:
		cause = fmt.Errorf("nothing came for %v; see that a server of the data set is up", c.c.WaitMax)
	case <-c.ctx.Done():
		cause = context.Cause(c.ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e.waiters--
	switch {
	case e.rec != nil:
		return e.rec, nil
	case e.err != nil:
		return nil, e.err
	}
	err := fmt.Errorf("data set %s: waiting for record %d%s: %w", short(c.c.ContentHash), e.record, c.blame(), cause)
	c.abandon(e)
	return nil, err
}

// abandon drops an entry that nobody waits for or fetches any more. c.mu is held.
func (c *Client) abandon(e *entry) {
	if e.waiters > 0 || e.fetching || c.wanted[e.record] != e {
		return
	}
	delete(c.wanted, e.record)
	c.urgent = slices.DeleteFunc(c.urgent, func(i int64) bool { return i == e.record })
}
