package sim

import (
	"container/heap"
	"time"
)

// clock is the order of events. Two at one moment happen in the order in which they were
// put there.
type clock struct {
	now   time.Duration
	turn  uint64
	queue eventQueue
}

type event struct {
	at   time.Duration
	turn uint64
	do   func()
}

// epoch is moment zero by the clock of people.
var epoch = time.Unix(1_800_000_000, 0)

// after has something happen later.
func (c *clock) after(d time.Duration, do func()) {
	c.turn++
	heap.Push(&c.queue, event{c.now + d, c.turn, do})
}

// next lets the next event happen; false if there is none.
func (c *clock) next() bool {
	if len(c.queue) == 0 {
		return false
	}
	e := heap.Pop(&c.queue).(event)
	c.now = e.at
	e.do()
	return true
}

type eventQueue []event

func (q eventQueue) Len() int { return len(q) }
func (q eventQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].turn < q[j].turn
}
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *eventQueue) Push(x any)   { *q = append(*q, x.(event)) }
func (q *eventQueue) Pop() any {
	last := len(*q) - 1
	e := (*q)[last]
	(*q)[last] = event{}
	*q = (*q)[:last]
	return e
}

// between draws a duration.
func (w *world) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(w.rng.Int64N(int64(hi-lo)+1))
}

// latency is how long a message takes.
func (w *world) latency() time.Duration { return w.between(time.Millisecond, 8*time.Millisecond) }
