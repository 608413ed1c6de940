package stream

import (
	"container/list"

	"github.com/skein-ml/skein/data"
)

// cache keeps the records used last, up to a limit of bytes. Not safe for concurrent use. A record that was thrown out stays
// valid for who holds it.
type cache struct {
	limit, bytes int64
	recent       *list.List // of *cached, most recent first
	byRecord     map[int64]*list.Element
}

type cached struct {
	record int64
	rec    *data.Record
}

func newCache(limit int64) *cache {
	return &cache{limit: limit, recent: list.New(), byRecord: map[int64]*list.Element{}}
}

// get gives a record and notes its use; nil if it is not here.
func (c *cache) get(i int64) *data.Record {
	e, ok := c.byRecord[i]
	if !ok {
		return nil
	}
	c.recent.MoveToFront(e)
	return e.Value.(*cached).rec
}

// has reports whether a record is here; that is no use of it.
func (c *cache) has(i int64) bool { return c.byRecord[i] != nil }

// put keeps a record, and throws out those unused for longest until it fits.
func (c *cache) put(i int64, rec *data.Record) {
	if c.get(i) != nil {
		return
	}
	c.byRecord[i] = c.recent.PushFront(&cached{i, rec})
	c.bytes += rec.Bytes()
	for c.bytes > c.limit && c.recent.Len() > 1 {
		old := c.recent.Remove(c.recent.Back()).(*cached)
		delete(c.byRecord, old.record)
		c.bytes -= old.rec.Bytes()
	}
}
