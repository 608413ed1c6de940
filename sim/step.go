package sim

import (
	"fmt"
	"time"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/coordinator/fsm"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/shard"
	"github.com/skein-ml/skein/worker/agent"
)

// beginRings begins a step on the rings of all own ranks: the gather of the weights that
// the generation goes on from, or the reduce, the vote and the gather of a step.
func (h *host) beginRings(step int64) {
	h.begun, h.gathered, h.sums = step, 0, 0
	for _, r := range h.own {
		h.rings[r].Begin(step)
	}
	early := h.early
	h.early = nil
	for _, f := range early {
		h.arrived(f)
	}
}

// ready offers the weights of its own ranks.
func (h *host) ready() {
	for _, r := range h.own {
		h.weights[r] = h.state[r]
	}
	for _, r := range h.own {
		h.do(r, h.rings[r].GatherReady(0, nil))
	}
}

// arrived gives a frame to the ring of the rank that it goes to. One of the next step
// waits for its begin.
func (h *host) arrived(f frame) {
	if !h.running || f.ring.Step == h.begun+1 {
		h.early = append(h.early, f)
		return
	}
	if f.ring.Op == allreduce.OpReduce {
		h.recv[f.rank][f.ring.Piece] = f.value
	} else {
		h.weights[f.ring.Piece] = f.value
	}
	acts, err := h.rings[f.rank].Arrived(f.ring, nil)
	if err != nil {
		_ = h.w.wrong("%v, generation %d: %v", h.p, h.gen, err)
		return
	}
	h.do(f.rank, acts)
}

// do is what a ring asks for.
func (h *host) do(rank shard.Rank, acts []allreduce.Action) {
	for _, a := range acts {
		if h.over {
			return
		}
		f := a.Frame
		switch a.Do {
		case allreduce.DoCopy:
			h.parts[rank][f.Piece] = h.grads[rank][f.Piece]
		case allreduce.DoAdd:
			h.parts[rank][f.Piece] = add(h.recv[rank][f.Piece], h.grads[rank][f.Piece])
		case allreduce.DoSendOwn:
			h.sendRing(rank, f, h.grads[rank][f.Piece])
		case allreduce.DoSend:
			if f.Op == allreduce.OpGather {
				h.sendRing(rank, f, h.weights[f.Piece])
			} else {
				h.sendRing(rank, f, h.parts[rank][f.Piece])
			}
		case allreduce.DoneReduce:
			h.reduced(rank)
		case allreduce.DoneGather:
			if h.gathered++; h.gathered == len(h.own) {
				h.next()
			}
		default:
			panic(fmt.Sprintf("the ring asks for %d", a.Do))
		}
	}
}

// sendRing hands a frame to the next rank, here or on the next worker.
func (h *host) sendRing(rank shard.Rank, f allreduce.Frame, v value) {
	next := shard.Rank((int(rank) + 1) % len(h.owner))
	out := frame{kind: kindRing, gen: h.gen, ring: f, rank: next, value: v}
	if h.owns(next) {
		h.arrived(out)
		return
	}
	h.out.send(out)
}

// next: the weights of all ranks are here.
func (h *host) next() {
	if h.over || h.step >= h.w.job.steps || h.begun != h.step {
		return
	}
	if got, want := together(h.weights), together(h.w.truth.state[h.step]); got != want {
		_ = h.w.wrong("%v has other weights after step %d than an undisturbed run", h.p, h.step)
	}
	step := h.step + 1
	h.beginRings(step)
	h.w.milestone("computes", h.p)
	if !h.over {
		h.compute(0)
	}
}

// compute runs the micro-batches of its ranks, one rank after the other.
func (h *host) compute(i int) {
	if i == len(h.own) {
		return
	}
	d := h.w.between(3*time.Millisecond, 25*time.Millisecond) * time.Duration(h.p.slow)
	step := h.begun
	weights := together(h.weights)
	h.p.later(d, func() {
		if h.over || h.begun != step {
			return
		}
		r := h.own[i]
		for p := range h.grads[r] {
			h.grads[r][p] = gradient(weights, step, r, shard.Rank(p))
		}
		h.do(r, h.rings[r].Ready(0, nil))
		h.compute(i + 1)
	})
}

// reduced: the sum of an own rank is complete.
func (h *host) reduced(rank shard.Rank) {
	h.sum[rank], h.summed[rank] = h.parts[rank][rank], true
	h.sums++
	if h.mirror && len(h.members) > 1 {
		h.pass(frame{kind: kindMirror, step: h.begun, rank: rank, to: (h.me + 1) % len(h.members), value: h.sum[rank]})
	}
	h.tryVote()
}

// tryVote votes once the sums of its own ranks, and of those that it mirrors, are here.
func (h *host) tryVote() {
	if h.over || h.voted || h.sums < len(h.own) || h.begun != h.step+1 {
		return
	}
	for r := range shard.Rank(len(h.owner)) {
		if h.have[r] && (h.owns(r) || h.mirrors(r)) && !h.summed[r] {
			return
		}
	}
	h.voted = true
	h.keepNow()
	h.w.milestone("voted", h.p)
	var requests allreduce.Requests
	if h.yield {
		requests |= allreduce.RequestYield
	}
	if h.save {
		requests |= allreduce.RequestCheckpoint
		h.save = false
	}
	weights := together(h.weights)
	for _, r := range h.own {
		if h.over {
			return
		}
		v := vote(weights, h.begun, r, h.sum[r], requests)
		if h.me == 0 {
			h.counts(v)
		} else {
			h.pass(frame{kind: kindVote, step: h.begun, to: 0, vote: v})
		}
	}
}

// counts takes a vote on rank 0's worker, which decides when it has all.
func (h *host) counts(v allreduce.Vote) {
	if v.Step != h.begun {
		_ = h.w.wrong("a vote of rank %d for step %d comes in step %d", v.Rank, v.Step, h.begun)
		return
	}
	h.votes[v.Rank] = v
	for _, v := range h.votes {
		if v.Step != h.begun {
			return
		}
	}
	d, err := decide(h.votes)
	if err != nil {
		_ = h.w.wrong("%v cannot decide step %d: %v", h.p, h.begun, err)
		return
	}
	h.w.decides(h, d.Step)
	b := allreduce.AppendDecision(nil, d)
	if len(h.members) > 1 {
		h.pass(frame{kind: kindDecision, step: d.Step, bytes: b})
	}
	h.learn(b)
}

// learn applies a decision and offers the new weights.
func (h *host) learn(b []byte) {
	if h.over {
		return
	}
	for r := range shard.Rank(len(h.owner)) {
		if h.have[r] && !h.summed[r] && (h.owns(r) || h.mirrors(r)) {
			_ = h.w.wrong("%v knows the decision of step %d and has no sum of rank %d", h.p, h.step+1, r)
		}
	}
	if !h.apply(b) {
		return
	}
	h.voted = false
	h.keepNow()
	d, _ := allreduce.DecodeDecision(b)
	h.w.milestone("decided", h.p)
	if h.over || !h.p.up {
		return
	}
	saves := d.Requests&allreduce.RequestCheckpoint != 0 || h.step%h.w.job.every == 0 || h.step == h.w.job.steps
	if saves {
		h.write(h.step)
	}
	if d.Requests&allreduce.RequestYield != 0 && h.step < h.w.job.steps {
		h.w.count("yielded")
		if saves {
			h.yielding = true
			return
		}
		h.seal(finish{how: agent.Broken, reason: "it stopped at a step boundary", yielded: true})
		return
	}
	h.progress()
	h.p.later(h.w.between(0, 5*time.Millisecond), func() {
		if h.over {
			return
		}
		h.fill()
		h.ready()
	})
}

// progress says whether the job is protected.
func (h *host) progress() {
	if h.me != 0 || h.p.session == nil || h.p.cutOff {
		return
	}
	protected := h.mirror
	for r, o := range h.owner {
		n := len(h.members)
		next := h.members[(o+1)%n].host
		protected = protected && next != nil && next.gen == h.gen && next.have[r]
	}
	if protected {
		h.w.protected = h.gen
	}
	r := h.p.session.reign
	h.w.after(h.w.latency(), func() {
		if r.Tell(h.job, &skeinv1.Progress{Generation: h.gen, Protected: protected}) {
			r.wake()
		}
	})
}

// write brings its part of a checkpoint into the store, while training goes on.
func (h *host) write(step int64) {
	h.p.later(h.w.between(5*time.Millisecond, 60*time.Millisecond), func() {
		switch {
		case h.over:
		case h.p.diskFull:
			h.w.count("disk full")
			h.seal(finish{how: agent.Broken, reason: "no space left on device"})
		case h.me == 0:
			h.wrote(step)
		default:
			h.pass(frame{kind: kindPart, step: step, to: 0})
		}
	})
}

// wrote counts the parts of a checkpoint; with the last one it is published.
func (h *host) wrote(step int64) {
	h.written[step]++
	if h.written[step] < len(h.members) {
		return
	}
	h.p.call(func(c *coordinator) (bool, error) {
		if j := c.state.Jobs[h.job]; j == nil || j.Phase == fsm.Running && (j.Place(h.p.name) == nil || j.Place(h.p.name).Incarnation != h.p.incarnation) {
			return true, fsm.ErrFenced
		}
		r, err := h.w.propose(c, fsm.Entry{Reason: fmt.Sprintf("step %d", step), Decision: &fsm.Publish{Job: h.job, Checkpoint: fsm.Checkpoint{
			Generation: h.gen, Step: step, Manifest: fmt.Sprintf("%d-%d", h.gen, step), Weights: h.w.truth.weights(step),
		}}})
		return err == nil, r.Err
	}, func(err error) {
		if err != nil || h.over {
			return
		}
		h.w.count("published")
		if len(h.members) > 1 {
			h.pass(frame{kind: kindSaved, step: step})
		}
		h.saved(step)
	})
}

// saved: a checkpoint is published. Who waited for it to stop does; the last one ends the
// job.
func (h *host) saved(step int64) {
	if h.over {
		return
	}
	if h.yielding && step == h.step {
		h.seal(finish{how: agent.Broken, reason: "it stopped at a step boundary", yielded: true})
		return
	}
	if step != h.w.job.steps || h.me != 0 {
		return
	}
	h.p.call(func(c *coordinator) (bool, error) {
		r, err := h.w.propose(c, fsm.Entry{Reason: "done", Decision: &fsm.Complete{Job: h.job, Generation: h.gen, Result: []byte(`{}`)}})
		return err == nil, r.Err
	}, func(err error) {
		if err != nil || h.over {
			return
		}
		if len(h.members) > 1 {
			h.pass(frame{kind: kindOver})
		}
		h.seal(finish{how: agent.Done})
	})
}
