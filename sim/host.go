package sim

import (
	"bytes"
	"time"

	"github.com/skein-ml/skein/allreduce"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/shard"
	"github.com/skein-ml/skein/worker/agent"
)

// host is a worker's part in one generation.
type host struct {
	p   *process
	w   *world
	job string
	gen uint64
	a   *skeinv1.Assignment

	members []*process
	owner   []int // by rank: index of its worker
	me      int
	own     []shard.Rank
	mirror  bool

	in, out *link
	linked  bool // both neighbours are there
	over    bool // it does nothing more

	segments
	voted    bool
	target   int64 // step that the generation went on from
	running  bool  // all its ranks are here
	fillAt   int64 // step after which its mirror is filled
	filled   bool
	weights  []value
	rings    []*allreduce.Ring // by rank; nil for those of others
	gathered int               // own rings that have all weights
	begun    int64             // step that the rings are in
	grads    [][]value         // by rank and piece
	parts    [][]value
	recv     [][]value
	early    []frame          // of the next step
	unread   []frame          // that came before both links stood
	votes    []allreduce.Vote // at rank 0's worker
	sums     int              // own ranks whose sum is complete

	yield, save bool
	yielding    bool // it stops as soon as the checkpoint of this step is published
	written     map[int64]int
	saves       map[int64]bool // steps that a checkpoint is under way of
}

// finish is how a generation ends for a worker.
type finish struct {
	how     agent.How
	accused string
	reason  string
	yielded bool
}

// begin is the order to host ranks.
func (p *process) begin(a *skeinv1.Assignment) {
	w := p.w
	h := &host{p: p, w: w, job: a.GetJob(), gen: a.GetGeneration(), a: a, mirror: a.GetMirror(), written: map[int64]int{}, saves: map[int64]bool{}}
	w.say("%v begins generation %d of %s", p, h.gen, h.job)
	h.place()
	w.begins(h)
	k := &p.keep
	if !a.GetLive() || k.job != h.job || k.gen != a.GetAfter() {
		*k = keep{}
	}
	k.job, k.gen = h.job, h.gen
	if a.GetSeal() { // it only says what it keeps
		h.over = true
		p.host = h
		h.ended(finish{how: agent.Broken, reason: "told to seal"})
		return
	}
	p.host = h
	if !h.load() {
		return
	}
	p.later(w.between(time.Millisecond, 30*time.Millisecond), func() { h.connect(0) })
}

// place reads who hosts what.
func (h *host) place() {
	v := h.w.job.worldSize
	h.owner, h.rings = make([]int, v), make([]*allreduce.Ring, v)
	h.weights = make([]value, v)
	for i, m := range h.a.GetMembers() {
		h.members = append(h.members, h.w.process(m.GetWorker(), m.GetIncarnation()))
		for _, r := range m.GetRanks() {
			h.owner[r] = i
		}
		if m.GetWorker() != h.p.name {
			continue
		}
		h.me = i
		for _, r := range m.GetRanks() {
			h.own = append(h.own, shard.Rank(r))
			h.rings[r] = allreduce.NewRing(h.w.table, shard.Rank(r), allreduce.WireFP32, 1<<30)
		}
	}
	for range v {
		h.grads, h.parts, h.recv = append(h.grads, make([]value, v)), append(h.parts, make([]value, v)), append(h.recv, make([]value, v))
	}
	if h.me == 0 {
		h.votes = make([]allreduce.Vote, v)
	}
}

// mirrors tells whether this worker mirrors a rank: the worker before it hosts it.
func (h *host) mirrors(rank shard.Rank) bool {
	n := len(h.members)
	return h.mirror && n > 1 && h.owner[rank] == (h.me+n-1)%n
}

func (h *host) owns(rank shard.Rank) bool { return h.owner[rank] == h.me }

// load takes over what is kept, or reads the checkpoint.
func (h *host) load() bool {
	k := &h.p.keep
	if !h.a.GetLive() {
		h.target = h.a.GetResume().GetStep()
		h.step = h.target
		for r := range shard.Rank(len(h.owner)) {
			if h.owns(r) || h.mirrors(r) && h.w.rng.IntN(3) > 0 {
				h.have[r], h.state[r] = true, h.w.truth.state[h.step][r]
			}
		}
		if h.a.GetResume().GetWeights() != h.w.truth.weights(h.step) {
			_ = h.w.wrong("generation %d begins from weights that step %d does not have", h.gen, h.step)
		}
		h.fillAt = h.target + int64(h.w.rng.IntN(3))
		return true
	}
	h.target = h.a.GetTarget()
	h.fillAt = h.target
	if h.w.one(4) {
		h.fillAt += int64(h.w.rng.IntN(3))
	}
	if k.holds {
		h.segments = k.segments
		if h.step < h.target && h.step == h.target-1 && k.voted {
			if !h.apply(h.a.GetDecision()) {
				return false
			}
		}
		if h.step != h.target {
			if h.step > h.target { // it was given up, and its report came too late
				h.w.count("came back with more than was recovered")
			}
			h.segments = segments{}
		}
	}
	h.step, h.decision = h.target, h.a.GetDecision()
	h.summed = [shard.WorldSizeMax]bool{}
	for _, s := range h.a.GetSources() {
		if s.GetWorker() == h.p.name && !h.have[s.GetRank()] {
			_ = h.w.wrong("%v is to give rank %d in generation %d and does not have it", h.p, s.GetRank(), h.gen)
		}
	}
	h.keepNow() // what it has now counts for this generation
	return true
}

// apply takes the step that a decision is about, with the sums that are here.
func (h *host) apply(encoded []byte) bool {
	d, err := allreduce.DecodeDecision(encoded)
	if err != nil || d.Step != h.step+1 {
		_ = h.w.wrong("%v is at step %d and gets a decision of step %d: %v", h.p, h.step, d.Step, err)
		return false
	}
	h.w.decided(h.p.String(), d)
	for r := range shard.Rank(len(h.owner)) {
		switch {
		case !h.have[r]:
		case h.summed[r]:
			h.state[r] = applied(h.state[r], h.sum[r], d)
			h.w.holds(h.p.String(), r, d.Step, h.state[r])
		default:
			h.have[r] = false
		}
		h.summed[r] = false
	}
	h.step, h.decision = d.Step, bytes.Clone(encoded)
	return true
}

// connect waits for both neighbours.
func (h *host) connect(silent time.Duration) {
	const look = 30 * time.Millisecond
	n := len(h.members)
	if h.over {
		return
	}
	if n == 1 {
		h.linked = true
		h.enter()
		return
	}
	if h.out == nil {
		next := h.members[(h.me+1)%n]
		switch {
		case !h.w.reachable(h.p, next):
			if silent += look; silent > silence {
				h.seal(finish{how: agent.Broken, accused: next.name, reason: next.name + " does not answer"})
				return
			}
		case next.host != nil && next.host.gen == h.gen && !next.host.over:
			h.out = &link{from: h, to: next.host, at: h.w.now}
			next.host.in = h.out
			h.w.links.all = append(h.w.links.all, h.out)
			h.w.count("links")
		case next.keep.gen >= h.gen && next.keep.job == h.job:
			h.w.count("refused by a later generation")
			h.seal(finish{how: agent.Broken, accused: next.name, reason: "refused: generation over"})
			return
		default:
			silent = 0
		}
	}
	if h.in != nil && h.out != nil {
		h.linked = true
		h.enter()
		return
	}
	h.p.later(look, func() { h.connect(silent) })
}

// enter: both neighbours are there. State moves to its new owners first.
func (h *host) enter() {
	for _, s := range h.a.GetSources() {
		r := shard.Rank(s.GetRank())
		if s.GetWorker() == h.p.name && !h.owns(r) {
			h.w.count("ranks moved")
			h.pass(frame{kind: kindState, step: h.step, rank: r, to: h.owner[r], value: h.state[r]})
		}
	}
	h.settled()
	unread := h.unread
	h.unread = nil
	for _, f := range unread {
		if !h.over {
			h.take(f)
		}
	}
}

// pass sends a frame towards the worker that it is for.
func (h *host) pass(f frame) {
	f.gen = h.gen
	h.out.send(f)
}

// settled: once all its ranks are here, a worker fills its mirror, and weights are
// gathered.
func (h *host) settled() {
	if h.running || !h.linked || h.over {
		return
	}
	for _, r := range h.own {
		if !h.have[r] {
			return
		}
	}
	h.running = true
	h.keepNow()
	h.w.entered[h.gen]++
	h.w.milestone("entered", h.p)
	if h.over {
		return
	}
	h.fill()
	if h.step == h.w.job.steps { // only the checkpoint of the last step is still to come
		if h.a.GetResume().GetStep() < h.step {
			h.write(h.step)
		} else {
			h.saved(h.step)
		}
		return
	}
	h.beginRings(h.step)
	h.ready()
}

// fill sends the state of its ranks to the next worker, at the step boundary that the
// generation's schedule has for it.
func (h *host) fill() {
	if !h.mirror || h.filled || h.step < h.fillAt || len(h.members) == 1 {
		return
	}
	h.filled = true
	for _, r := range h.own {
		h.pass(frame{kind: kindState, step: h.step, rank: r, to: (h.me + 1) % len(h.members), value: h.state[r]})
	}
}

// take handles a frame.
func (h *host) take(f frame) {
	if f.gen != h.gen {
		_ = h.w.wrong("%v is in generation %d and gets a frame of generation %d", h.p, h.gen, f.gen)
		return
	}
	if !h.linked { // the one before is there already, the one after is not
		h.unread = append(h.unread, f)
		return
	}
	if f.kind != kindRing && f.to != h.me && f.kind != kindDecision && f.kind != kindSaved && f.kind != kindOver {
		h.pass(f)
		return
	}
	switch f.kind {
	case kindRing:
		h.arrived(f)
	case kindState:
		h.given(f)
	case kindMirror:
		if f.step != h.begun {
			_ = h.w.wrong("%v is in step %d and gets the sum of step %d", h.p, h.begun, f.step)
		}
		h.sum[f.rank], h.summed[f.rank] = f.value, true
		h.tryVote()
	case kindVote:
		h.counts(f.vote)
	case kindDecision:
		h.onward(f)
		h.learn(f.bytes)
	case kindPart:
		h.wrote(f.step)
	case kindSaved:
		h.onward(f)
		h.saved(f.step)
	case kindOver:
		h.onward(f)
		h.seal(finish{how: agent.Done})
	}
}

// onward passes on what goes once round the ring, from rank 0's worker.
func (h *host) onward(f frame) {
	if (h.me+1)%len(h.members) != 0 {
		h.pass(f)
	}
}

// given takes the state of a rank: as its new owner, or as its mirror. A mirror that has
// voted for the next step must not count, because nobody waited for its sum.
func (h *host) given(f frame) {
	r := f.rank
	if h.have[r] || f.step != h.step || h.voted {
		return
	}
	h.have[r], h.state[r] = true, f.value
	h.w.holds(h.p.String(), r, f.step, f.value)
	if h.mirrors(r) {
		h.w.count("mirrors filled")
		h.w.milestone("filled", h.p)
	}
	h.keepNow()
	h.settled()
}

// keepNow notes what is held in the memory that outlives the host.
func (h *host) keepNow() {
	k := &h.p.keep
	k.holds, k.segments, k.voted = true, h.segments, h.voted
}

// seal ends the generation here: nothing is begun any more, what is left is kept.
func (h *host) seal(e finish) {
	if h.over {
		return
	}
	h.over = true
	h.keepNow()
	h.w.say("%v seals generation %d at step %d: %s %s", h.p, h.gen, h.step, e.reason, e.accused)
	h.w.links.close(h)
	h.w.count("sealed")
	h.ended(e)
	h.w.milestone("sealed", h.p)
}

// ended lets the worker's state know, a little later.
func (h *host) ended(e finish) {
	h.p.later(h.w.between(0, 15*time.Millisecond), func() {
		if h.p.host == h {
			h.p.host = nil
		}
		h.p.step(agent.Ended{
			Task: agent.Task{Job: h.job, Generation: h.gen}, How: e.how, Accused: e.accused, Reason: e.reason, Sealed: h.sealed(e.yielded),
		})
	})
}

// linkBroke: the link to a neighbour is gone.
func (h *host) linkBroke(to *host, how string) {
	h.seal(finish{how: agent.Broken, accused: to.p.name, reason: "the link is " + how})
}
