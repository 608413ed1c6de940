package trainer

import (
	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/optim"
	"github.com/skein-ml/skein/shard"
)

// apply does what the decision says: AdamW with its bits on every piece held here, or
// nothing but counting the step. Once a step is decided it is applied whatever happens to
// the links: their error is returned at the end, and the step is taken.
func (t *Trainer) apply(d allreduce.Decision) error {
	var link error
	if d.Action == allreduce.Apply {
		link = t.update(d)
	}
	if err := t.stream.Record().Wait(); err != nil {
		return err
	}
	t.record = d
	t.step, t.taken, t.last, t.pending = d.Step, d.Taken, &t.record, nil
	t.dropOthers()
	return link
}

// update runs AdamW: first on what others wait for, then on mirrors. It returns the first
// error of the links.
func (t *Trainer) update(d allreduce.Decision) error {
	// Who stops here goes on in another generation, which brings the weights to all again.
	stops := d.Requests&allreduce.RequestYield != 0
	var link error
	if !stops {
		link = t.peers.begin(d.Step)
	}
	h := t.cfg.Optimizer.Hyper(d.RateBits, d.ScaleBits, d.Taken)
	for b := range t.table.Buckets() {
		t.fresh[b] = false
		for _, s := range t.segments {
			if s != nil && t.applies(s.rank) {
				t.updatePiece(s, b, h, true)
			}
		}
		if link == nil && !stops {
			link = t.peers.changed(b)
		}
	}
	for _, s := range t.segments {
		if s == nil || t.applies(s.rank) || !t.keeps(s.rank) || !s.ready {
			continue
		}
		for b := range t.table.Buckets() {
			t.updatePiece(s, b, h, false)
		}
	}
	return link
}

// updatePiece updates a segment's piece of a bucket, and the working weights if this worker
// is the one to make them.
func (t *Trainer) updatePiece(s *segment, bucket int, h optim.Hyper, work bool) {
	for _, u := range s.updates[bucket] {
		x := h.For(u.decay)
		a := device.AdamWArgs{
			Master: t.part(s, s.state[checkpoint.Master], bucket, u.Range), M: t.part(s, s.state[checkpoint.Moment1], bucket, u.Range),
			V: t.part(s, s.state[checkpoint.Moment2], bucket, u.Range), Grad: t.part(s, s.sum, bucket, u.Range),
			GradScale: x.GradScale, LR: x.LR, Beta1: x.Beta1, Beta2: x.Beta2, Eps: x.Epsilon, Decay: x.Decay,
			Correction1: x.Correction1, Correction2: x.Correction2,
		}
		if work && !t.onDemand() {
			a.Work = t.model.Bucket(bucket).ColRange(int(u.Lo), int(u.Hi))
		}
		t.dev.AdamW(t.stream, a)
	}
}

// owns are the pieces of a bucket whose ranks are hosted here: one stretch.
func (t *Trainer) owns(bucket int) shard.Range {
	b := t.table.Bucket(bucket)
	return shard.Range{Lo: b.Piece(t.ranks[0].id).Lo, Hi: b.Piece(t.ranks[len(t.ranks)-1].id).Hi}
}
