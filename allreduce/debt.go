package allreduce

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/skein-ml/skein/shard"
)

// A worker that computes for hours and one that never comes back look alike from
// outside. So a wait that lasts is no error, but it always has a culprit: all workers
// tell what their callers still have to do for the ring to go on, and whoever waits names
// the one that is furthest behind.

// phase is what a caller owes, in the order of a step.
type phase uint8

const (
	owesNothing  phase = iota // it waits itself
	owesBegin                 // has not begun the step
	owesGradient              // a rank's gradient of a bucket is not complete
	owesRows                  // a rank's sparse rows are not sent
	owesMirror                // a bucket is reduced, and not sent to the mirror
	owesSums                  // a bucket is reduced, and not gathered
	owesVote                  // the ranks have not voted
	owesDecision              // all have voted, and rank 0's worker has not decided
	owesGather                // the weights of a bucket are not final
	phaseEnd
)

// debt is what a worker's caller has to do next.
type debt struct {
	phase  phase
	step   int64
	bucket int
	rank   shard.Rank
}

// compare orders debts: who is further behind comes first.
func (d debt) compare(o debt) int {
	return cmp.Or(cmp.Compare(d.step, o.step), cmp.Compare(d.phase, o.phase))
}

// header is the ping that tells the debt of a worker.
func (d debt) header(worker int) header {
	return header{Kind: kindPing, Part: uint8(d.phase), Step: d.step, Bucket: uint32(d.bucket), Piece: uint16(d.rank), From: uint16(worker)}
}

// String says what has not been done.
func (d debt) String() string {
	switch d.phase {
	case owesBegin:
		return fmt.Sprintf("has not begun step %d", d.step)
	case owesGradient:
		return fmt.Sprintf("has not finished the gradient of rank %d in bucket %d of step %d", d.rank, d.bucket, d.step)
	case owesRows:
		return fmt.Sprintf("has not sent the embedding rows of rank %d of step %d", d.rank, d.step)
	case owesMirror:
		return fmt.Sprintf("has not sent bucket %d of step %d to its mirror", d.bucket, d.step)
	case owesSums, owesGather:
		return fmt.Sprintf("has not made rank %d's piece of bucket %d of step %d ready to be gathered", d.rank, d.bucket, d.step)
	case owesVote:
		return fmt.Sprintf("has not voted for rank %d in step %d", d.rank, d.step)
	case owesDecision:
		return fmt.Sprintf("has not decided step %d", d.step)
	}
	return "waits, too"
}

// newDebts makes the notes of what the caller has done.
func (l *Link) newDebts() {
	buckets := l.c.Table.Buckets()
	for range l.engine.hosted {
		l.readySaid = append(l.readySaid, make([]bool, buckets))
	}
	l.readyLast, l.gatherSent = make([]int, len(l.engine.hosted)), make([]bool, buckets)
	l.reducedBits = make([]uint64, buckets)
	l.debts = make([]debt, l.c.Placement.Workers())
	l.told.phase = phaseEnd
}

// beginDebts forgets the last step.
func (l *Link) beginDebts() {
	for at := range l.readySaid {
		clear(l.readySaid[at])
		l.readyLast[at] = -1
	}
	clear(l.gatherSent)
	clear(l.reducedBits)
}

// debtLocked is what this worker's caller has to do next.
func (l *Link) debtLocked() debt {
	first := l.engine.hosted[0]
	gather := func(p phase, step int64) (debt, bool) {
		b := slices.Index(l.gatherSent, false)
		return debt{p, step, b, first}, b >= 0
	}
	if !l.reducing {
		if l.gatherStep < 0 {
			return debt{owesBegin, 0, 0, first}
		}
		if d, owed := gather(owesGather, l.gatherStep); owed {
			return d
		}
		return debt{owesBegin, l.gatherStep + 1, 0, first}
	}
	if l.decision != nil {
		if d, owed := gather(owesGather, l.step); owed && l.decision.Action == Apply && !l.c.GatherFirst && !l.c.OnDemand {
			return d
		}
		return debt{owesBegin, l.step + 1, 0, first}
	}
	if d, owed := l.gradientDebt(); owed {
		if l.stalled > 0 {
			return debt{step: l.step} // it waits, before it can compute on
		}
		return d
	}
	if slices.ContainsFunc(l.reducedLeft, func(left int) bool { return left != 0 }) {
		return debt{step: l.step}
	}
	if d, owed := gather(owesSums, l.step); owed && l.c.GatherFirst {
		return d
	}
	if b := slices.Index(l.mirrorSent, false); b >= 0 && l.c.Mirror {
		return debt{owesMirror, l.step, b, first}
	}
	switch {
	case !l.cast && l.unready() == "":
		return debt{owesVote, l.step, 0, first}
	case l.c.Worker == 0 && l.voted == len(l.votes):
		return debt{owesDecision, l.step, 0, 0}
	}
	return debt{step: l.step}
}

// gradientDebt is the gradient that comes next, of the rank that has the fewest, or rows
// that others have sent and a rank here has not.
func (l *Link) gradientDebt() (debt, bool) {
	most, next := 0, debt{owesGradient, l.step, 0, 0}
	for at, said := range l.readySaid {
		missing, near := 0, math.MaxInt
		var bucket int
		for b, done := range said {
			if done {
				continue
			}
			missing++
			if d := max(b-l.readyLast[at], l.readyLast[at]-b); d < near { // layers come one after the other
				near, bucket = d, b
			}
		}
		if missing > most {
			most, next.bucket, next.rank = missing, bucket, l.engine.hosted[at]
		}
	}
	if most > 0 {
		return next, true
	}
	set := &l.rows[l.step&1]
	if set.step != l.step || set.left == len(set.ranks) {
		return debt{}, false
	}
	for _, rank := range l.engine.hosted {
		if !set.ranks[rank].done {
			return debt{owesRows, l.step, 0, rank}, true
		}
	}
	return debt{}, false
}

// ping notes what a worker owes, and passes on what is new.
func (r *receiver) ping(h *header) error {
	l := r.l
	from := int(h.From)
	if from >= l.c.Placement.Workers() || from == l.c.Worker || int(h.Piece) >= l.c.Table.WorldSize() || int(h.Bucket) >= l.c.Table.Buckets() {
		return outOfPlace(h, "of worker %d about rank %d and bucket %d", from, h.Piece, h.Bucket)
	}
	d := debt{phase(h.Part), h.Step, int(h.Bucket), shard.Rank(h.Piece)}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.debts[from] != d {
		l.debts[from] = d
		if from != l.next {
			l.sendLocked(item{header: *h})
		}
	}
	return nil
}

// waiting is a caller's wait.
type waiting struct {
	kind   kind
	name   string // of an exchange
	step   int64
	bucket int        // or -1
	piece  shard.Rank // or -1
	from   int        // the worker that is to send it, or -1
	begin  time.Time
}

// String names it as frames are named.
func (w *waiting) String() string {
	s := w.kind.String()
	switch w.kind {
	case kindPing:
		return fmt.Sprintf("room to send, after step %d", w.step)
	case kindExchange:
		s += fmt.Sprintf(" (%s)", w.name)
	}
	s += fmt.Sprintf(", step %d", w.step)
	if w.bucket >= 0 {
		s += fmt.Sprintf(", bucket %d", w.bucket)
	}
	if w.piece >= 0 {
		s += fmt.Sprintf(", piece %d", w.piece)
	}
	return s
}

// beginWait notes a wait, in memory that is used again.
func (l *Link) beginWait(what waiting) *waiting {
	w := &waiting{}
	if last := len(l.waited) - 1; last >= 0 {
		w, l.waited = l.waited[last], l.waited[:last]
	}
	*w = what
	w.begin = now()
	l.waits = append(l.waits, w)
	return w
}

func (l *Link) endWait(w *waiting) {
	at := slices.Index(l.waits, w)
	l.waits = slices.Delete(l.waits, at, at+1)
	l.waited = append(l.waited, w)
}

// A checkpoint goes on beside the steps, and its workers wait for each other's disks in an exchange: that
// wait is no reason not to see another one. Of each sort the one that began first counts.
const (
	ofSteps = iota
	ofExchanges
	sorts
)

func (w *waiting) sort() int {
	if w.kind == kindExchange {
		return ofExchanges
	}
	return ofSteps
}

// oldestWait is the wait of a sort that began first, with the piece that is missing now, or nil.
func (l *Link) oldestWait(sort int) *waiting {
	at := slices.IndexFunc(l.waits, func(w *waiting) bool { return w.sort() == sort })
	if at < 0 {
		return nil
	}
	w := *l.waits[at]
	if w.bucket < 0 {
		return &w
	}
	missing := func(r shard.Rank) bool { return false }
	switch w.kind {
	case kindReduce:
		missing = func(r shard.Rank) bool { return l.hosted[r] && l.reducedBits[w.bucket]&(1<<r) == 0 }
	case kindGather:
		missing = func(r shard.Rank) bool { return !l.hosted[r] && l.lacks(l.gatherAt, w.bucket, r) }
	case kindMirror:
		missing = func(r shard.Rank) bool {
			return l.c.Placement.Worker(r) == l.prev && l.lacks(l.mirrorAt, w.bucket, r)
		}
	}
	for r := range shard.Rank(l.c.Table.WorldSize()) {
		if missing(r) {
			w.piece = r
			break
		}
	}
	return &w
}

// lacks tells whether stretches of a piece have not come.
func (l *Link) lacks(at [][]int64, bucket int, r shard.Rank) bool {
	return at[bucket][r] < l.c.Table.Bucket(bucket).Piece(r).Len()
}

// Stuck is a wait that lasts, and who is waited for.
type Stuck struct {
	Worker     int        // who is furthest behind, or -1: frames are on their way
	Name       string     // its name, or ""
	Rank       shard.Rank // whose turn it is, or -1; Worker hosts it, or is to hand over its state
	Owes       string     // what Worker has not done, or ""
	Generation uint64
	Step       int64
	Waiting    string        // what is waited for here: operation, step, bucket, piece
	For        time.Duration // so far
}

// String is the wait in one line.
func (s Stuck) String() string {
	who := "nobody owes anything, so frames are on their way"
	if s.Worker >= 0 {
		who = fmt.Sprintf("%s, for rank %d, %s", s.Name, s.Rank, s.Owes)
	}
	return fmt.Sprintf("generation %d has waited %v for %s: %s", s.Generation, s.For.Round(100*time.Millisecond), s.Waiting, who)
}

const (
	stuckAfter = time.Second      // a wait of that length has a culprit
	nameAgain  = 10 * time.Second // the same one is logged again
)

// Stuck is the oldest wait of a caller, with its culprit, if it has lasted a second: one of a step, if
// there is any, else one of an exchange.
func (l *Link) Stuck() (Stuck, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for sort := range sorts {
		if s, ok := l.stuckLocked(sort); ok {
			return s, true
		}
	}
	return Stuck{}, false
}

func (l *Link) stuckLocked(sort int) (Stuck, bool) {
	w := l.oldestWait(sort)
	if w == nil || l.err != nil || since(w.begin) < stuckAfter {
		return Stuck{}, false
	}
	s := Stuck{Worker: -1, Rank: -1, Generation: l.c.Key.Generation, Step: w.step, Waiting: w.String(), For: since(w.begin)}
	switch w.kind {
	case kindState:
		// What it has begun to send is on its way.
		if in := l.states[statePlace{w.piece, w.bucket}]; in == nil || in.step != w.step {
			s.Worker, s.Rank, s.Owes = w.from, w.piece, fmt.Sprintf("has not sent the state of rank %d in bucket %d at step %d", w.piece, w.bucket, w.step)
		}
	case kindExchange:
		if s.Worker = l.exchangeMissing(); s.Worker >= 0 {
			s.Rank, s.Owes = l.c.Placement.Ranks(s.Worker)[0], fmt.Sprintf("has not come to the exchange (%s)", w.name)
		}
	default:
		if worker, owed := l.furthestBehind(w); worker >= 0 {
			s.Worker, s.Rank, s.Owes = worker, owed.rank, owed.String()
		}
	}
	if s.Worker >= 0 {
		s.Name = l.name(s.Worker)
	}
	return s, true
}

// furthestBehind is the worker whose caller a wait ends with, or -1.
func (l *Link) furthestBehind(w *waiting) (worker int, owed debt) {
	most := debt{step: w.step, phase: phaseEnd}
	switch w.kind {
	case kindReduce:
		most.phase = owesGradient
	case kindRows:
		most.phase = owesRows
	case kindMirror:
		most.phase = owesMirror
	case kindVote, kindDecision:
		most.phase = owesDecision
	case kindGather:
		if most.phase = owesGather; l.c.GatherFirst && l.decision == nil {
			most.phase = owesSums
		}
	case kindPass:
		most.step++ // it belongs to no step
	case kindReceipt: // of what was sent: that waits for no caller
		return -1, debt{}
	}
	l.debts[l.c.Worker] = l.debtLocked()
	worker = -1
	for i, d := range l.debts {
		if d.phase != owesNothing && d.compare(most) <= 0 && (worker < 0 || d.compare(owed) < 0) {
			worker, owed = i, d
		}
	}
	return worker, owed
}

// exchangeMissing is a worker whose blob of the exchange under way has not come, or -1.
func (l *Link) exchangeMissing() int {
	if x := l.exchanges[l.exchanged]; x != nil {
		return slices.IndexFunc(x.blobs, func(b blob) bool { return !b.done })
	}
	return -1
}

// nameMissing logs which neighbour has not come to the ring, until the connections to the next and
// from the previous one are both here.
func (l *Link) nameMissing(ctx context.Context, both <-chan struct{}, here *[2]atomic.Bool) {
	began := now()
	for wait := stuckAfter; ; wait = nameAgain {
		select {
		case <-both:
			return
		case <-ctx.Done():
			return
		case <-after(wait):
		}
		for i, who := range []int{l.next, l.prev} {
			if here[i].Load() || i == 1 && l.prev == l.next && !here[0].Load() {
				continue
			}
			s := Stuck{Worker: who, Name: l.name(who), Rank: l.c.Placement.Ranks(who)[0], Owes: "has not come to the ring",
				Generation: l.c.Key.Generation, Step: -1, Waiting: "connection", For: since(began)}
			l.logStuck(s)
		}
	}
}

// nameStuck logs who is waited for, at once if it is somebody else than before.
func (l *Link) nameStuck() {
	for sort := range sorts {
		l.mu.Lock()
		s, ok := l.stuckLocked(sort)
		last := &l.named[sort]
		same := s.Worker == last.Worker && s.Rank == last.Rank && s.Owes == last.Owes
		if ok = ok && (!same || since(l.namedAt[sort]) >= nameAgain); ok {
			*last, l.namedAt[sort] = s, now()
		}
		l.mu.Unlock()
		if ok {
			l.logStuck(s)
		}
	}
}

func (l *Link) logStuck(s Stuck) {
	l.c.Log.Info("ring: waiting", "job", l.c.Key.Job, "for", s.String(), "worker", s.Name, "rank", int(s.Rank))
}
