package allreduce

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/skein-ml/skein/shard"
)

// Key names a generation of a job; a connection belongs to one and is never used for
// another.
type Key struct {
	Job        string // the job's id
	Generation uint64
	SpecHash   string // of the resolved spec
	Class      string // numeric class
}

// LinkConfig is what a worker knows about its place in the ring of a generation.
type LinkConfig struct {
	Key       Key
	Table     shard.Table
	Placement shard.Placement // at least two workers
	Worker    int             // own index in the placement
	Names     []string        // of all workers, by index
	Next      string          // ring address of the next worker
	Wire      Wire
	// Mirror: every worker sends the reduced gradients of its pieces to the next one,
	// before the vote. GatherFirst: all workers gather the reduced gradients before the
	// vote, because every one of them updates all pieces. OnDemand: weights are gathered
	// bucket by bucket, when all workers need one, as often as they do: see Gather. The same on
	// all workers.
	Mirror, GatherFirst, OnDemand bool

	Arithmetic Arithmetic // zero: RefArithmetic
	Memory     LinkMemory
	// Decide makes the decision record of a step from the votes of all ranks, in rank
	// order. It is called on rank 0's worker only, from Vote.
	Decide func(votes []Vote) (Decision, error)

	// TLS, if given, makes the connection to the next worker mutual TLS 1.3; the
	// listener has its own. PeerName, if given, says which worker a certificate is of,
	// or refuses it; it must be the one that Names has next.
	TLS      *tls.Config
	PeerName func(tls.ConnectionState) (string, error)

	ChunkBytes int           // largest payload of a reduce frame; the same on all workers; 0: 256 KiB
	Silence    time.Duration // without a byte from a neighbour the link breaks; 0: 1.2 s
	Log        *slog.Logger  // nil: slog.Default()
}

// Link is a worker's place in the ring of one generation. Bytes go one way: frames
// come from the previous worker and go to the next. Begin, Ready, SendRows, MirrorReady,
// Vote, BeginGather and GatherReady are ordered by the caller; the waits may be called
// from any goroutine. After an error of any call but those that are the caller's own
// mistake the link is of no more use; Close it. What is complete stays: a wait for it
// still succeeds, and memory keeps it.
type Link struct {
	c          LinkConfig
	chunkElems int64 // of a reduce or gather frame
	fullElems  int64 // of a mirror or state frame
	wireBytes  int64
	elemBytes  int64
	prev, next int // workers
	hosted     []bool

	in, out *socket
	engine  engine
	kick    chan struct{} // events wait; room for one, more would say no more
	done    chan struct{} // closed when every goroutine has ended
	broken  chan struct{}
	finish  chan struct{} // closed to end the connections

	verdict chan struct{} // closed when the next worker can say no more

	mu      sync.Mutex
	changed *sync.Cond // anything below that a caller waits for
	work    *sync.Cond // the outbox, for the writer

	inbox   queue[event]
	driving bool // a goroutine runs events
	calm    int  // callers that wait for all queues to be empty
	outbox  queue[item]
	relayed queue[item] // state of others, behind the outbox
	moving  queue[item] // state of this worker, behind both
	writing bool        // frames of the outbox
	lagging bool        // others are being written
	free    *chunk

	err       error // a *LinkError; set once
	closing   bool
	cut       bool // something could not be sent because the next worker has left
	prevLeft  bool
	nextLeft  bool
	lastIn    header
	lastOut   header
	lastInAt  time.Time
	lastOutAt time.Time
	wroteAt   time.Time // a ping, too

	waits   []*waiting   // of callers, oldest first
	waited  []*waiting   // are over
	named   [sorts]Stuck // the last that was logged of each sort, and when
	namedAt [sorts]time.Time
	debts   []debt // by worker, as they say
	told    debt   // to the next worker

	step         int64    // of the last Begin or BeginGather
	reducing     bool     // Begin was called, now or before
	gatherStep   int64    // of the last BeginGather, or -1
	reducedLeft  []int    // by bucket: hosted ranks whose piece is not reduced
	reducedBits  []uint64 // by bucket: the ranks whose piece is
	gatheredLeft []int    // by bucket: hosted ranks that miss pieces
	gatherAt     [][]int64
	round        []uint8 // OnDemand, by bucket: the gather of this step that has begun last; 0: none
	unsent       []int   // OnDemand, by bucket: frames of a gather that are not written
	unspent      []int64 // by bucket: elements of gradients here that are still to be added or written
	stalled      int     // callers that wait before they can compute on
	mirrorLeft   []int   // by bucket: pieces mirrored here whose reduced gradient is not here
	mirrorSent   []bool
	readySaid    [][]bool // by hosted rank and bucket: the caller said so
	readyLast    []int    // by hosted rank: the bucket that the caller named last, or -1
	gatherSent   []bool
	mirrorAt     [][]int64
	decision     *Decision // of the step
	decided      *Decision // the last that is known
	cast         bool      // the votes of this worker
	votes        []Vote    // on rank 0's worker, by rank
	voted        int
	rows         [2]rowSet // by parity of the step: a neighbour may be one ahead
	exchanges    map[int64]*exchange
	exchanged    int64 // exchanges that are over
	messages     map[uint64]*blob
	messageBytes int64
	states       map[statePlace]*stateIn
	stateUnsent  int64 // bytes in moving
	stateInRing  int64 // bytes that were sent and have not arrived
	stats        LinkStats
}

// Errors of a link to branch on; they arrive inside a LinkError.
var (
	// ErrLinkClosed is returned by calls on a link that was closed on this side.
	ErrLinkClosed = errors.New("the link is closed")
	// ErrLeft is returned when a neighbour has left politely and what is waited for
	// cannot come any more. Nobody is accused.
	ErrLeft = errors.New("left the ring")
	// ErrRefused is returned by Connect when the next worker refuses for good.
	ErrRefused = errors.New("refused")
)

// LinkError is why a link broke. A link breaks once.
type LinkError struct {
	Generation uint64
	Accused    int           // index of the worker at fault, or -1
	Name       string        // its name
	Ranks      []shard.Rank  // that it hosts
	Frame      string        // the last frame that came from it or went to it, or ""
	Since      time.Duration // since that frame
	Waiting    string        // what was waited for here, or ""
	Err        error         // what happened, in words that name the worker
}

// Error names who, and the frames: "ring, generation 7: connection reset by w2, 41ms after
// its last frame (reduce, step 388, bucket 17, piece 2); it hosts ranks [4 5]; waiting here:
// reduce, step 388, bucket 18, piece 1".
func (e *LinkError) Error() string {
	s := fmt.Sprintf("ring, generation %d: %v", e.Generation, e.Err)
	if e.Frame != "" {
		s += fmt.Sprintf(", %v after its last frame (%s)", e.Since.Round(time.Millisecond), e.Frame)
	}
	if len(e.Ranks) > 0 {
		s += fmt.Sprintf("; it hosts ranks %v", e.Ranks)
	}
	if e.Waiting != "" {
		s += "; waiting here: " + e.Waiting
	}
	return s
}

// Unwrap returns what happened.
func (e *LinkError) Unwrap() error { return e.Err }

// OpStats are the counts of one operation. Bytes are payload.
type OpStats struct {
	SentBytes, SentFrames, ReceivedBytes, ReceivedFrames int64
	Wait                                                 time.Duration // that callers spent waiting
}

// LinkStats counts what a link moved and waited for.
type LinkStats struct {
	Reduce, Gather, Rows, Mirror, Votes, Messages, State OpStats
}

// of is the counter of a kind of frames.
func (s *LinkStats) of(k kind) *OpStats {
	switch k {
	case kindReduce:
		return &s.Reduce
	case kindGather:
		return &s.Gather
	case kindRows:
		return &s.Rows
	case kindMirror:
		return &s.Mirror
	case kindState, kindReceipt:
		return &s.State
	case kindVote, kindDecision:
		return &s.Votes
	}
	return &s.Messages
}

// Begin starts the reduce of a step. It waits until everything of the step before is
// written. The first step may be any, then they follow one another.
func (l *Link) Begin(ctx context.Context, step int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case (l.reducing || l.gatherStep >= 0) && step != l.step+1:
		return fmt.Errorf("ring: step %d begins after step %d", step, l.step)
	case l.reducing && l.decision == nil:
		return fmt.Errorf("ring: step %d begins before step %d is decided", step, l.step)
	}
	for b, left := range l.gatheredLeft {
		if (l.gatherStep == l.step || l.c.OnDemand) && left != 0 {
			return fmt.Errorf("ring: step %d begins before bucket %d of step %d is gathered", step, b, l.step)
		}
	}
	return l.beginStep(ctx, step, func() {
		l.reducing = true
		l.rows[step&1].begin(step)
		if l.c.GatherFirst {
			l.gatherStep = step // of a piece here, none can come before this worker has added to it
		}
		if l.c.OnDemand {
			clear(l.gatheredLeft)
			clear(l.round)
		}
	})
}

// beginStep waits for quiet, sets the step with the lock held, and lets early frames in.
func (l *Link) beginStep(ctx context.Context, step int64, set func()) error {
	stop := l.wakeAtEnd(ctx)
	defer stop()
	w := l.beginWait(waiting{kind: kindPing, step: l.step, bucket: -1, piece: -1, from: -1})
	l.calm++
	for l.err == nil && ctx.Err() == nil && l.busyLocked() {
		l.changed.Wait()
	}
	l.calm--
	l.endWait(w)
	switch {
	case l.err != nil:
		return l.err
	case l.busyLocked():
		return ctx.Err()
	}
	l.step, l.decision, l.voted, l.cast = step, nil, 0, false
	l.beginMirror()
	l.beginDebts()
	for b := range l.reducedLeft {
		l.reducedLeft[b], l.gatheredLeft[b] = len(l.engine.hosted), len(l.engine.hosted)
		l.unspent[b] = int64(len(l.engine.hosted)) * l.c.Table.Bucket(b).Padded
	}
	for _, at := range l.gatherAt {
		clear(at)
	}
	for i := range l.votes {
		l.votes[i].Step = -1
	}
	set()
	l.driving = true
	l.mu.Unlock()
	l.engine.begin(step)
	err := l.replay()
	l.mu.Lock()
	l.driving = false
	if err != nil {
		l.failLocked(l.prevError(err))
	}
	l.changed.Broadcast()
	l.kickLocked()
	return l.err
}

// Ready says that the local gradient of a hosted rank is complete in a bucket, and
// returns at once. Buckets and ranks may come in any order.
func (l *Link) Ready(rank shard.Rank, bucket int) {
	at := int(rank - l.engine.hosted[0])
	l.mu.Lock()
	defer l.mu.Unlock()
	l.readySaid[at][bucket], l.readyLast[at] = true, bucket
	l.postLocked(event{what: ready, at: at, bucket: bucket})
}

// WaitSpent waits until the link reads no gradient of a hosted rank in a bucket any more: all
// are added to what goes round the ring. Their memory is then free for other buckets of the step. It ends
// once all workers have made all ranks' gradients of the bucket Ready.
func (l *Link) WaitSpent(ctx context.Context, bucket int) error {
	return l.stall(ctx, kindReduce, bucket, func() bool { return l.reducing && l.unspent[bucket] == 0 })
}

// stall is wait for a caller that cannot compute on before.
func (l *Link) stall(ctx context.Context, k kind, bucket int, ok func() bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stalled++
	defer func() { l.stalled-- }()
	return l.waitLocked(ctx, k, bucket, ok)
}

// spendLocked notes that so many elements of gradients are not read any more.
func (l *Link) spendLocked(bucket int, elems int64) {
	if l.unspent[bucket] -= elems; l.unspent[bucket] == 0 {
		l.changed.Broadcast()
	}
}

func (l *Link) spend(bucket int, elems int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spendLocked(bucket, elems)
}

// WaitReduced waits until the reduced gradient of all pieces owned here is in Reduced
// memory.
func (l *Link) WaitReduced(ctx context.Context, bucket int) error {
	return l.wait(ctx, kindReduce, bucket, func() bool { return l.reducing && l.reducedLeft[bucket] == 0 })
}

// BeginGather starts the gather of a step: after its decision, or alone on a link that
// has reduced nothing yet, which is how a restored worker gets its weights. With
// GatherFirst it comes before the vote, and what is not owned here may have arrived in
// Gathered memory since Begin.
func (l *Link) BeginGather(ctx context.Context, step int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.c.OnDemand {
		return errors.New("ring: weights are gathered on demand here, not all at once")
	}
	if l.c.GatherFirst && l.reducing {
		if step != l.step || l.cast {
			return fmt.Errorf("ring: the gather of step %d begins in step %d, voted: %t; it comes before the vote", step, l.step, l.cast)
		}
		return l.err
	}
	if step <= l.gatherStep {
		return fmt.Errorf("ring: the gather of step %d begins after that of step %d", step, l.gatherStep)
	}
	if !l.reducing {
		return l.beginStep(ctx, step, func() { l.gatherStep = step })
	}
	if step != l.step || l.decision == nil {
		return fmt.Errorf("ring: the gather of step %d begins in step %d, decided: %t", step, l.step, l.decision != nil)
	}
	l.gatherStep = step
	l.changed.Broadcast()
	return l.err
}

// GatherReady says that the pieces owned here of a bucket are final in Gathered memory,
// and returns at once.
func (l *Link) GatherReady(bucket int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gatherSent[bucket] = true
	l.postLocked(event{what: gatherReady, bucket: bucket})
}

// WaitGathered waits until all pieces of a bucket are in Gathered memory.
func (l *Link) WaitGathered(ctx context.Context, bucket int) error {
	if l.c.OnDemand {
		return l.stall(ctx, kindGather, bucket, func() bool { return l.gatheredLeft[bucket] == 0 })
	}
	return l.wait(ctx, kindGather, bucket, func() bool {
		return l.gatherStep >= 0 && (l.gatherStep < l.step || l.gatheredLeft[bucket] == 0)
	})
}

// Err is why the link broke, or nil.
func (l *Link) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Broken is closed when the link breaks or is closed. A neighbour that leaves politely
// does not break it: only waits for what cannot come any more fail, with ErrLeft.
func (l *Link) Broken() <-chan struct{} { return l.broken }

// Stats are the counts so far.
func (l *Link) Stats() LinkStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stats
}

// postLocked hands an event to the engine's goroutine.
func (l *Link) postLocked(ev event) {
	if l.err == nil {
		l.inbox.push(ev)
		l.kickLocked()
	}
}

func (l *Link) kickLocked() {
	select {
	case l.kick <- struct{}{}:
	default: // it is told already
	}
}

// drive runs events until none is left, unless another goroutine does: whoever brings
// an event may run it, which saves a change of goroutine for every frame that arrives.
func (l *Link) drive() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.driving {
		return
	}
	l.driving = true
	for l.inbox.n > 0 && l.err == nil {
		ev := l.inbox.pop()
		l.mu.Unlock()
		err := l.handle(ev)
		l.mu.Lock()
		if err != nil {
			l.failLocked(l.prevError(err))
		}
	}
	l.driving = false
	if l.calm > 0 || l.prevLeft || l.cut {
		l.changed.Broadcast()
	}
}

// wait waits with the lock until ok, the link's end or ctx's. What is waited for is of a
// kind, and of a bucket or -1.
func (l *Link) wait(ctx context.Context, k kind, bucket int, ok func() bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waitLocked(ctx, k, bucket, ok)
}

func (l *Link) waitLocked(ctx context.Context, k kind, bucket int, ok func() bool) error {
	return l.waitAs(ctx, waiting{kind: k, step: l.step, bucket: bucket, piece: -1, from: -1}, ok)
}

// waitAs is waitLocked for a wait of which more is known.
func (l *Link) waitAs(ctx context.Context, what waiting, ok func() bool) error {
	if ok() {
		return nil
	}
	w := l.beginWait(what)
	defer func() {
		l.stats.of(w.kind).Wait += since(w.begin)
		l.endWait(w)
	}()
	stop := l.wakeAtEnd(ctx)
	defer stop()
	for {
		switch {
		case ok():
			return nil
		case l.err != nil:
			return l.err
		case ctx.Err() != nil:
			return ctx.Err()
		case (l.prevLeft || l.cut) && !l.driving && l.inbox.n == 0:
			return l.leftError()
		}
		l.changed.Wait()
	}
}

// wakeAtEnd wakes those who wait when ctx ends.
func (l *Link) wakeAtEnd(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.changed.Broadcast()
	})
}

// pieceReduced notes that a hosted rank's piece is reduced; the last one makes room
// for another bucket.
func (l *Link) pieceReduced(b int, rank shard.Rank) {
	l.mu.Lock()
	l.reducedLeft[b]--
	l.reducedBits[b] |= 1 << rank
	last := l.reducedLeft[b] == 0
	if last {
		l.changed.Broadcast()
	}
	l.mu.Unlock()
	if last {
		l.engine.elems -= l.c.Table.Bucket(b).Padded
		l.openMore()
	}
}

// rankGathered notes that a hosted rank has all pieces of a bucket.
func (l *Link) rankGathered(b int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gatheredLeft[b]--; l.gatheredLeft[b] == 0 {
		l.changed.Broadcast()
	}
}

// newChunk takes memory for a partial sum of n elements.
func (l *Link) newChunk(n int64) *chunk { return l.newChunkBytes(n * l.wireBytes) }

// newChunkBytes takes memory for a frame.
func (l *Link) newChunkBytes(n int64) *chunk {
	l.mu.Lock()
	c := l.free
	if c != nil {
		l.free = c.next
	}
	l.mu.Unlock()
	if c == nil {
		c = &chunk{buf: make([]byte, l.c.ChunkBytes)}
	}
	c.next, c.data = nil, c.buf[:n]
	return c
}

func (l *Link) freeChunk(c *chunk) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.freeLocked(c)
}

func (l *Link) freeLocked(c *chunk) { c.next, l.free = l.free, c }
