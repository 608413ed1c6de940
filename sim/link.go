package sim

import (
	"time"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/shard"
)

// silence is how long a neighbour may say nothing before it is accused.
const silence = 1200 * time.Millisecond

// links are the connections between workers, and what is in their way.
type links struct {
	w   *world
	cut map[[2]*process]bool // one direction each
	all []*link
}

// link is one connection of one generation, in one direction, in order.
type link struct {
	from, to *host
	at       time.Duration // when the last frame arrives
	broken   bool
	stalled  []func() // frames that wait for the way to be free again
}

// kind is what a frame is about.
type kind int

const (
	kindRing     kind = iota // of allreduce.Ring
	kindState                // masters and moments of a rank
	kindMirror               // the sum of a rank, for its mirror
	kindVote                 // to rank 0's worker
	kindDecision             // from it
	kindPart                 // a worker's part of a checkpoint is in the store
	kindSaved                // the checkpoint is published
	kindOver                 // the job is done
)

// frame is what workers send to each other.
type frame struct {
	kind  kind
	gen   uint64
	step  int64
	ring  allreduce.Frame
	rank  shard.Rank // state, sum; for kindRing the one that it goes to
	to    int        // worker of the placement that it is for
	value value
	vote  allreduce.Vote
	bytes []byte // decision
}

// reachable tells whether two processes hear each other.
func (w *world) reachable(p, q *process) bool {
	return p.up && q.up && !p.frozen && !q.frozen && !w.links.cut[[2]*process{p, q}] && !w.links.cut[[2]*process{q, p}]
}

// send puts a frame on a link.
func (l *link) send(f frame) {
	w := l.from.w
	l.at = max(l.at, w.now+w.latency())
	w.after(l.at-w.now, func() { l.arrive(f) })
}

func (l *link) arrive(f frame) {
	w := l.from.w
	if l.broken {
		return
	}
	if len(l.stalled) > 0 || w.links.cut[[2]*process{l.from.p, l.to.p}] {
		l.stalled = append(l.stalled, func() { l.arrive(f) })
		return
	}
	l.to.p.do(func() {
		if !l.broken && !l.to.over {
			l.to.take(f)
		}
	})
}

// flow lets go what was held up on links that are free again.
func (l *links) flow() {
	for _, x := range l.all {
		if len(x.stalled) > 0 && !l.cut[[2]*process{x.from.p, x.to.p}] {
			waiting := x.stalled
			x.stalled = nil
			for _, do := range waiting {
				do()
			}
		}
	}
}

// close ends a host's links behind what it has sent.
func (l *links) close(h *host) {
	for _, x := range l.all {
		if x.broken || x.from != h && x.to != h {
			continue
		}
		other := x.to
		if x.to == h {
			other = x.from
			x.broken = true // nothing more is read
		}
		end := func() {
			x.broken = true
			other.p.do(func() { other.linkBroke(h, "closed") })
		}
		x.at = max(x.at, l.w.now+l.w.latency())
		l.w.after(x.at-l.w.now, func() {
			if len(x.stalled) > 0 || l.cut[[2]*process{x.from.p, x.to.p}] || l.cut[[2]*process{x.to.p, x.from.p}] {
				x.stalled = append(x.stalled, end)
				return
			}
			end()
		})
	}
	l.forget()
}

// reset breaks the links of a process that died. What is under way may be lost.
func (l *links) reset(h *host) {
	lose := l.w.one(2)
	for _, x := range l.all {
		if x.broken || x.from != h && x.to != h {
			continue
		}
		other := x.to
		if x.to == h {
			other, x.broken = x.from, true
		}
		d := l.w.between(time.Millisecond, 30*time.Millisecond)
		if !lose && x.from == h {
			d = max(d, x.at-l.w.now)
		}
		l.w.after(d, func() {
			if !l.w.reachableButDead(other.p, h.p) {
				return // silence will tell
			}
			x.broken = true
			other.p.do(func() { other.linkBroke(h, "reset") })
		})
	}
	l.forget()
}

// reachableButDead tells whether the word of a process's death comes through.
func (w *world) reachableButDead(p, dead *process) bool {
	return p.up && !w.links.cut[[2]*process{p, dead}] && !w.links.cut[[2]*process{dead, p}]
}

func (l *links) forget() {
	kept := l.all[:0]
	for _, x := range l.all {
		if !x.broken || len(x.stalled) > 0 {
			kept = append(kept, x)
		}
	}
	l.all = kept
}

// watch accuses those that are still out of reach after a while of silence.
func (l *links) watch() {
	l.w.after(silence+l.w.between(0, 50*time.Millisecond), func() {
		for _, p := range l.w.workers {
			h := p.host
			if h == nil || !p.up || p.frozen || !h.linked {
				continue
			}
			for _, other := range []*link{h.in, h.out} {
				if other == nil {
					continue
				}
				q := other.from
				if q == h {
					q = other.to
				}
				if !l.w.reachable(p, q.p) {
					h.linkBroke(q, "silent")
					break
				}
			}
		}
	})
}
