package allreduce

import (
	"fmt"

	"github.com/skein-ml/skein/shard"
)

// View is a stretch of memory of a worker: of a hosted rank's local gradient, or of
// the worker's sum of a bucket.
type View struct {
	Sum    bool       // the sum; Rank has no meaning
	Rank   shard.Rank // whose local gradient
	Bucket int
	Range  shard.Range // elements, counted from the start of the bucket
}

// Memory executes the arithmetic of the ring where the gradients are, on a device or
// in host memory. All elements are fp32. Calls come from one
// goroutine; an implementation may queue them and run them in order later. dst may
// be the same view as an operand, and never overlaps one otherwise.
type Memory interface {
	Copy(dst, src View)
	// Add: dst = received + own, in fp32.
	Add(dst, received, own View)
	// Round: dst = src, rounded to the nearest bfloat16 (ties to even), kept as fp32.
	Round(dst, src View)
}

// Local is the link between ranks that are all hosted on one worker. Nothing is
// moved: a hop adds one rank's gradient to the sum. Local gradients stay as they
// are, so that they can be summed again. When a bucket is reduced, the sum holds
// R(k) of all its pieces.
type Local struct {
	rings []*Ring
	mem   Memory
	wire  Wire
	// todo are the actions not yet executed; at, the next of them. Both slices keep
	// their capacity from step to step.
	todo []localAction
	acts []Action
}

// localAction is an action and the rank that asked for it.
type localAction struct {
	rank shard.Rank
	Action
}

// NewLocal links all ranks of a table in one worker's memory.
func NewLocal(table shard.Table, wire Wire, mem Memory) *Local {
	l := &Local{mem: mem, wire: wire}
	for r := range table.WorldSize() {
		// One frame per piece: in memory, cutting would only add calls.
		l.rings = append(l.rings, NewRing(table, shard.Rank(r), wire, table.BucketMax()))
	}
	return l
}

// Begin starts a step.
func (l *Local) Begin(step int64) {
	for _, r := range l.rings {
		r.Begin(step)
	}
}

// Ready says that a rank's local gradient of a bucket is complete, and adds as far
// as that allows. Buckets and ranks may come in any order.
func (l *Local) Ready(rank shard.Rank, bucket int) error {
	l.todo = l.todo[:0]
	l.queue(rank, l.rings[rank].Ready(bucket, l.acts[:0]))
	for at := 0; at < len(l.todo); at++ {
		if err := l.do(l.todo[at]); err != nil {
			return fmt.Errorf("local ring: %w", err)
		}
	}
	return nil
}

// Reduced tells whether every piece of a bucket is reduced.
func (l *Local) Reduced(bucket int) bool {
	for _, r := range l.rings {
		if !r.Reduced(bucket) {
			return false
		}
	}
	return true
}

func (l *Local) queue(rank shard.Rank, acts []Action) {
	for _, a := range acts {
		l.todo = append(l.todo, localAction{rank, a})
	}
	l.acts = acts
}

// do executes one action. A send hands the frame to the next rank at once.
func (l *Local) do(a localAction) error {
	f := a.Frame
	own := View{Rank: a.rank, Bucket: f.Bucket, Range: f.Range}
	sum := View{Sum: true, Bucket: f.Bucket, Range: f.Range}
	switch a.Do {
	case DoCopy:
		l.mem.Copy(sum, own)
	case DoRoundOwn:
		l.mem.Round(sum, own)
	case DoRound:
		l.mem.Round(sum, sum)
	case DoAdd:
		received := sum
		if a.Hop == 1 && l.wire == WireFP32 {
			received = View{Rank: l.rings[a.rank].prev(a.rank), Bucket: f.Bucket, Range: f.Range}
		}
		l.mem.Add(sum, received, own)
	case DoSend, DoSendOwn:
		next := l.rings[a.rank].next(a.rank)
		acts, err := l.rings[next].Arrived(f, l.acts[:0])
		if err != nil {
			return err
		}
		l.queue(next, acts)
	case DoneReduce, DoneGather:
	}
	return nil
}
