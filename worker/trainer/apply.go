package trainer

import (
	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/optim"
	"github.com/skein-ml/skein/shard"
)

// state is what the pieces' holders keep: fp32 master weights and Adam's moments.
// One worker that hosts all ranks holds all pieces, in every stage.
type state struct {
	mem          memory
	master, m, v []device.Tensor // per bucket [1, padded] F32
	ranges       [][]update      // per bucket, in order
}

// update is a range of a bucket that one AdamW call updates.
type update struct {
	lo, hi int
	decay  bool
}

func (t *Trainer) newState() error {
	s := &t.state
	s.mem.dev = t.dev
	for b := range t.table.Buckets() {
		for _, list := range []*[]device.Tensor{&s.master, &s.m, &s.v} {
			x, err := s.mem.tensor(device.KindOptimizer, device.F32, 1, int(t.table.Bucket(b).Padded))
			if err != nil {
				return err
			}
			*list = append(*list, x)
		}
		s.ranges = append(s.ranges, t.updates(b))
	}
	return nil
}

// updates cuts a bucket for AdamW: by pieces where the stage shards the optimizer,
// as a whole where it is replicated, and where weight decay starts or ends.
func (t *Trainer) updates(bucket int) []update {
	cuts := []shard.Range{{Lo: 0, Hi: t.table.Bucket(bucket).Padded}}
	if t.cfg.Stage >= shard.StageOptimizer {
		cuts = cuts[:0]
		for r := range t.cfg.WorldSize {
			cuts = append(cuts, t.table.Bucket(bucket).Piece(shard.Rank(r)))
		}
	}
	var list []update
	for _, c := range cuts {
		first := len(list)
		for _, s := range t.table.SpansOf(bucket, c.Lo, c.Hi) {
			if n := len(list); n > first && list[n-1].decay == s.Decay {
				list[n-1].hi = int(s.Bucket.Hi)
				continue
			}
			list = append(list, update{int(s.Bucket.Lo), int(s.Bucket.Hi), s.Decay})
		}
	}
	return list
}

// apply does what the decision says: AdamW with its bits on every piece held here,
// or nothing but counting the step.
func (t *Trainer) apply(d allreduce.Decision) error {
	if d.Action == allreduce.Apply {
		h := t.cfg.Optimizer.Hyper(d.RateBits, d.ScaleBits, d.Taken)
		for b := range t.table.Buckets() {
			t.fresh[b] = false
			for _, u := range t.state.ranges[b] {
				t.adamw(b, u, h.For(u.decay))
			}
		}
	}
	if err := t.stream.Record().Wait(); err != nil {
		return err
	}
	t.step, t.taken = d.Step, d.Taken
	return nil
}

func (t *Trainer) adamw(bucket int, u update, h optim.Hyper) {
	s := &t.state
	t.dev.AdamW(t.stream, device.AdamWArgs{
		Master: s.master[bucket].ColRange(u.lo, u.hi), M: s.m[bucket].ColRange(u.lo, u.hi), V: s.v[bucket].ColRange(u.lo, u.hi),
		Grad: t.ring.sums[bucket].ColRange(u.lo, u.hi), Work: t.model.Bucket(bucket).ColRange(u.lo, u.hi),
		GradScale: h.GradScale, LR: h.LR, Beta1: h.Beta1, Beta2: h.Beta2, Eps: h.Epsilon, Decay: h.Decay,
		Correction1: h.Correction1, Correction2: h.Correction2,
	})
}
