package allreduce

import (
	"fmt"

	"github.com/skein-ml/skein/internal/crc32c"
	"github.com/skein-ml/skein/shard"
)

// engine drives one Ring per hosted rank. Its fields belong to whoever runs events,
// one goroutine at a time (Link.drive); what others see lies in Link under its lock.
//
// Memory is bounded at the source: a worker lets its ranks start a bucket only while
// the buckets that it has started and not seen reduced are at most two of the largest.
// Whoever waits for a slow rank therefore waits with that much at most, and no reader
// ever needs to stop for a reduce, which in a ring could end with everybody waiting
// for the next. A bucket that others have started is started here whatever is open, so
// ranks may be ready in different orders.
type engine struct {
	hosted []shard.Rank // ascending
	rings  []*Ring      // by place in hosted
	// held are frames that wait for a rank's gradient, by place, bucket and piece.
	held [][][]chunkList
	// todo are actions not yet executed; acts is scratch. Both keep their memory.
	todo []placedAction
	acts []Action

	open    []bool // by bucket: ranks here may start it
	ready   [][]bool
	started [][]bool
	waiting queue[int] // buckets that are ready and wait for the window
	elems   int64      // of open buckets that are not reduced here
	window  int64

	begun    bool
	early    []event // reduce frames of the next step, or of the first
	earlyMax int     // no more than a step has

	round []uint8 // by bucket: of the gather under way, for weights on demand

	// The gather frame that just arrived, and its checksum, which its copy keeps.
	passing    Frame
	passingSum uint32
}

// placedAction is an action and the hosted rank, by place, that asked for it.
type placedAction struct {
	at int
	Action
}

// event is something that happened to the rings.
type event struct {
	what   happening
	at     int // hosted rank by place (ready)
	bucket int // (ready, gatherReady)
	frame  Frame
	sum    uint32 // of the payload (arrived, gather)
	chunk  *chunk // the payload (arrived, reduce)
	round  uint8  // of a gather on demand, else 0 (gatherReady)
}

type happening uint8

const (
	arrived happening = iota
	ready
	gatherReady
)

func (l *Link) newEngine() {
	e := &l.engine
	t := l.c.Table
	e.hosted = l.c.Placement.Ranks(l.c.Worker)
	e.window = 2 * t.BucketMax()
	for range e.hosted {
		lists := make([][]chunkList, t.Buckets())
		for b := range lists {
			lists[b] = make([]chunkList, t.WorldSize())
		}
		e.held = append(e.held, lists)
		e.ready, e.started = append(e.ready, make([]bool, t.Buckets())), append(e.started, make([]bool, t.Buckets()))
	}
	for _, r := range e.hosted {
		e.rings = append(e.rings, NewRing(t, r, l.c.Wire, l.chunkElems))
	}
	e.open, e.round = make([]bool, t.Buckets()), make([]uint8, t.Buckets())
	for b := range t.Buckets() {
		piece := t.Bucket(b).Piece(0).Len()
		e.earlyMax += t.WorldSize() * int((piece+l.chunkElems-1)/l.chunkElems)
	}
}

// begin forgets the last step. The caller runs no events meanwhile.
func (e *engine) begin(step int64) {
	for _, r := range e.rings {
		r.Begin(step)
	}
	clear(e.open)
	for i := range e.hosted {
		clear(e.ready[i])
		clear(e.started[i])
	}
	e.elems, e.begun = 0, true
}

// handle executes one event and all that follows from it.
func (l *Link) handle(ev event) error {
	e := &l.engine
	switch ev.what {
	case ready:
		e.ready[ev.at][ev.bucket] = true
		e.acts = e.rings[ev.at].Contribute(ev.bucket, e.acts[:0])
		l.queueActions(ev.at)
		if e.open[ev.bucket] {
			l.start(ev.at, ev.bucket)
		} else {
			e.waiting.push(ev.bucket)
		}
	case gatherReady:
		e.round[ev.bucket] = ev.round
		for i, r := range e.rings {
			if ev.round != 0 && r.Gathered(ev.bucket) {
				r.GatherAgain(ev.bucket)
			}
			e.acts = r.GatherReady(ev.bucket, e.acts[:0])
			l.queueActions(i)
		}
	case arrived:
		if err := l.arrive(ev); err != nil {
			return err
		}
	}
	l.openMore()
	return l.execute()
}

// arrive hands a frame from the network to the first hosted rank.
func (l *Link) arrive(ev event) error {
	e := &l.engine
	if ev.frame.Op == OpGather {
		e.passing, e.passingSum = ev.frame, ev.sum
		return l.deliver(0, ev.frame)
	}
	if !e.begun || ev.frame.Step == e.rings[0].step+1 {
		if len(e.early) == e.earlyMax {
			return fmt.Errorf("%v: %w: more early frames than a step has", ev.frame, ErrFrame)
		}
		e.early = append(e.early, ev)
		return nil
	}
	acts, err := e.rings[0].Arrived(ev.frame, e.acts[:0])
	if err != nil {
		return err
	}
	e.held[0][ev.frame.Bucket][ev.frame.Piece].push(ev.chunk)
	// A rank that is ready has acted on the frame alone: what is held is this chunk.
	e.acts = acts
	l.queueActions(0)
	l.openBucket(ev.frame.Bucket)
	return nil
}

// deliver tells a hosted rank of a frame whose elements are in place.
func (l *Link) deliver(at int, f Frame) error {
	acts, err := l.engine.rings[at].Arrived(f, l.engine.acts[:0])
	if err != nil {
		return err
	}
	l.engine.acts = acts
	l.queueActions(at)
	return nil
}

func (l *Link) queueActions(at int) {
	for _, a := range l.engine.acts {
		l.engine.todo = append(l.engine.todo, placedAction{at, a})
	}
}

// openMore starts buckets as far as the window allows.
func (l *Link) openMore() {
	e := &l.engine
	for e.waiting.n > 0 {
		b := e.waiting.ring[e.waiting.first]
		if !e.open[b] && e.elems > 0 && e.elems+l.c.Table.Bucket(b).Padded > e.window {
			return
		}
		e.waiting.pop()
		l.openBucket(b)
	}
}

// openBucket lets all ranks that are ready start a bucket.
func (l *Link) openBucket(b int) {
	e := &l.engine
	if e.open[b] {
		return
	}
	e.open[b] = true
	e.elems += l.c.Table.Bucket(b).Padded
	for i := range e.hosted {
		if e.ready[i][b] {
			l.start(i, b)
		}
	}
}

func (l *Link) start(at, b int) {
	e := &l.engine
	if e.started[at][b] {
		return
	}
	e.started[at][b] = true
	e.acts = e.rings[at].Start(b, e.acts[:0])
	l.queueActions(at)
}

// execute runs actions until none is left.
func (l *Link) execute() error {
	e := &l.engine
	var current *chunk // what the last action made and the next one sends
	for next := 0; next < len(e.todo); next++ {
		a := e.todo[next]
		var err error
		switch a.Do {
		case DoAdd:
			current = l.add(a)
		case DoRoundOwn:
			current = l.newChunk(a.Frame.Range.Len())
			l.c.Arithmetic.RoundBF16(current.data, l.c.Memory.Gradient(e.hosted[a.at], a.Frame.Bucket, a.Frame.Range))
			l.spend(a.Frame.Bucket, a.Frame.Range.Len())
		case DoSendOwn:
			err = l.sendOwn(a)
		case DoSend:
			if a.Frame.Op == OpGather {
				err = l.sendGathered(a)
				break
			}
			err = l.sendSum(a, current)
			current = nil
		case DoneReduce:
			l.pieceReduced(a.Frame.Bucket, a.Frame.Piece)
		case DoneGather:
			l.rankGathered(a.Frame.Bucket)
		case DoRound, DoCopy: // AddBF16 has rounded; a ring over a network has more than one rank
		}
		if err != nil {
			return err
		}
	}
	e.todo = e.todo[:0]
	return nil
}

// add adds a rank's gradient to what was received, in place, or for the owner into
// Reduced. It returns the chunk that holds a partial sum.
func (l *Link) add(a placedAction) *chunk {
	e, f := &l.engine, a.Frame
	own := l.c.Memory.Gradient(e.hosted[a.at], f.Bucket, f.Range)
	last := f.Piece == e.hosted[a.at]
	var c *chunk
	var received []byte
	spent := f.Range.Len()
	if l.startsInMemory(a.at, a.Hop) {
		spent *= 2
		received = l.c.Memory.Gradient(e.hosted[a.at-1], f.Bucket, f.Range)
		if !last {
			c = l.newChunk(f.Range.Len())
		}
	} else {
		c = e.held[a.at][f.Bucket][f.Piece].pop()
		received = c.data
	}
	switch fp32 := l.c.Wire == WireFP32; {
	case !last && fp32:
		l.c.Arithmetic.AddF32(c.data, received, own)
	case !last:
		l.c.Arithmetic.AddBF16(c.data, received, own)
	case fp32:
		l.c.Arithmetic.AddF32(l.c.Memory.Reduced(f.Bucket, f.Range), received, own)
	default:
		l.c.Arithmetic.AddBF16Last(l.c.Memory.Reduced(f.Bucket, f.Range), received, own)
	}
	l.spend(f.Bucket, spent)
	if last && c != nil {
		l.freeChunk(c)
		c = nil
	}
	return c
}

// startsInMemory tells whether what a rank receives is the gradient of the rank before
// it, read where it is: the start of a piece on an fp32 wire, from a rank hosted here.
func (l *Link) startsInMemory(at, hop int) bool {
	return hop == 1 && at > 0 && l.c.Wire == WireFP32
}

// sendOwn starts a piece from gradient memory, without a copy.
func (l *Link) sendOwn(a placedAction) error {
	e := &l.engine
	if a.at+1 < len(e.hosted) {
		return l.deliver(a.at+1, a.Frame)
	}
	l.send(item{header: frameHeader(a.Frame, l.c.Worker), payload: l.c.Memory.Gradient(e.hosted[a.at], a.Frame.Bucket, a.Frame.Range)})
	return nil
}

// sendSum passes a partial sum on: to the next rank here, or to the network.
func (l *Link) sendSum(a placedAction, c *chunk) error {
	e := &l.engine
	if a.at+1 < len(e.hosted) {
		e.held[a.at+1][a.Frame.Bucket][a.Frame.Piece].push(c)
		return l.deliver(a.at+1, a.Frame)
	}
	h := frameHeader(a.Frame, l.c.Worker)
	h.Sum = crc32c.Sum(c.data) // now, while it is in the cache
	l.send(item{header: h, payload: c.data, chunk: c, summed: true})
	return nil
}

// sendGathered passes final bytes on. Ranks here share them, so only the last rank
// sends; not to a worker that hosts the owner, who has them. And where a full ring
// would bring them round to the first rank here, that rank is told at once.
func (l *Link) sendGathered(a placedAction) error {
	e, f := &l.engine, a.Frame
	if a.at+1 < len(e.hosted) {
		return l.deliver(a.at+1, f)
	}
	owner := l.c.Placement.Worker(f.Piece)
	if owner != l.next {
		it := item{header: frameHeader(f, l.c.Worker), payload: l.c.Memory.Gathered(f.Bucket, f.Range)}
		it.header.Part = e.round[f.Bucket]
		if f == e.passing {
			it.header.Sum, it.summed = e.passingSum, true
		}
		l.send(it)
	}
	if owner == l.c.Worker && f.Piece != e.hosted[0] {
		return l.deliver(0, f)
	}
	return nil
}

// replay delivers early frames whose step has come. Others stay.
func (l *Link) replay() error {
	e := &l.engine
	early := e.early
	e.early = nil
	for _, ev := range early {
		if err := l.arrive(ev); err != nil {
			return err
		}
	}
	if e.early == nil {
		e.early = early[:0]
	}
	l.openMore()
	return l.execute()
}
