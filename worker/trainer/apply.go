package trainer

import (
	"context"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/optim"
	"github.com/skein-ml/skein/shard"
)

// state is what the pieces' holders keep: fp32 master weights and Adam's moments.
// A worker holds the pieces of its ranks; of a replicated optimizer, all pieces.
type state struct {
	mem          memory
	held         []shard.Range   // per bucket: the elements that are held, always one stretch
	master, m, v []device.Tensor // per bucket [1, held] F32
	ranges       [][]update      // per bucket, in order
}

// update is a range of a bucket that one AdamW call updates.
type update struct {
	shard.Range
	decay bool
}

func (t *Trainer) newState() error {
	s := &t.state
	s.mem.dev = t.dev
	for b := range t.table.Buckets() {
		s.held = append(s.held, t.holds(b))
		for _, list := range []*[]device.Tensor{&s.master, &s.m, &s.v} {
			x, err := s.mem.tensor(device.KindOptimizer, device.F32, 1, int(s.held[b].Len()))
			if err != nil {
				return err
			}
			*list = append(*list, x)
		}
		s.ranges = append(s.ranges, t.updates(b))
	}
	return nil
}

// holds are the elements of a bucket that this worker keeps the optimizer of.
func (t *Trainer) holds(bucket int) shard.Range {
	b := t.table.Bucket(bucket)
	if t.cfg.Stage < shard.StageOptimizer {
		return shard.Range{Lo: 0, Hi: b.Padded}
	}
	return t.owns(bucket)
}

// owns are the pieces of a bucket whose ranks are hosted here.
func (t *Trainer) owns(bucket int) shard.Range {
	b, ranks := t.table.Bucket(bucket), t.cfg.Placement.Ranks(t.cfg.Worker)
	return shard.Range{Lo: b.Piece(ranks[0]).Lo, Hi: b.Piece(ranks[len(ranks)-1]).Hi}
}

// updates cuts what is held of a bucket for AdamW: by pieces where the stage shards the
// optimizer, as a whole where it is replicated, and where weight decay starts or ends.
func (t *Trainer) updates(bucket int) []update {
	cuts := []shard.Range{t.state.held[bucket]}
	if t.cfg.Stage >= shard.StageOptimizer {
		cuts = cuts[:0]
		for _, r := range t.cfg.Placement.Ranks(t.cfg.Worker) {
			cuts = append(cuts, t.table.Bucket(bucket).Piece(r))
		}
	}
	var list []update
	for _, c := range cuts {
		first := len(list)
		for _, s := range t.table.SpansOf(bucket, c.Lo, c.Hi) {
			if n := len(list); n > first && list[n-1].decay == s.Decay {
				list[n-1].Hi = s.Bucket.Hi
				continue
			}
			list = append(list, update{s.Bucket, s.Decay})
		}
	}
	return list
}

// apply does what the decision says: AdamW with its bits on every piece held here,
// or nothing but counting the step.
func (t *Trainer) apply(ctx context.Context, d allreduce.Decision) error {
	if d.Action == allreduce.Apply {
		if err := t.update(ctx, d); err != nil {
			return err
		}
	}
	if err := t.stream.Record().Wait(); err != nil {
		return err
	}
	t.step, t.taken = d.Step, d.Taken
	return nil
}

func (t *Trainer) update(ctx context.Context, d allreduce.Decision) error {
	if err := t.peers.average(ctx, d.Step); err != nil {
		return err
	}
	if err := t.peers.begin(d.Step); err != nil {
		return err
	}
	h := t.cfg.Optimizer.Hyper(d.RateBits, d.ScaleBits, d.Taken)
	for b := range t.table.Buckets() {
		t.fresh[b] = false
		for _, u := range t.state.ranges[b] {
			t.adamw(b, u.Range, h.For(u.decay))
		}
		if err := t.peers.changed(b); err != nil {
			return err
		}
	}
	return nil
}

// at is a stretch of a bucket in a tensor that has what is held of it.
func (t *Trainer) at(flat device.Tensor, bucket int, r shard.Range) device.Tensor {
	base := t.state.held[bucket].Lo
	return flat.ColRange(int(r.Lo-base), int(r.Hi-base))
}

func (t *Trainer) adamw(bucket int, r shard.Range, h optim.Hyper) {
	s := &t.state
	t.dev.AdamW(t.stream, device.AdamWArgs{
		Master: t.at(s.master[bucket], bucket, r), M: t.at(s.m[bucket], bucket, r), V: t.at(s.v[bucket], bucket, r),
		Grad: t.sum(bucket, r), Work: t.model.Bucket(bucket).ColRange(int(r.Lo), int(r.Hi)),
		GradScale: h.GradScale, LR: h.LR, Beta1: h.Beta1, Beta2: h.Beta2, Eps: h.Epsilon, Decay: h.Decay,
		Correction1: h.Correction1, Correction2: h.Correction2,
	})
}
