package trainer

import "github.com/skein-ml/skein/checkpoint"

// In ZeRO stage 3 a worker keeps no working weights. It has room for those of two layers, and of the
// buckets at the two ends of the model, and makes them when a run needs them: its own pieces from the
// master weights, the others come from their owners. While one layer is computed, the next one comes.

// layerSlots is how many layers' weights there is room for: one is computed, one comes.
const layerSlots = 2

// onDemand tells whether working weights come when they are needed. A world of one rank owns
// all of them.
func (t *Trainer) onDemand() bool { return t.cfg.cutsWeights() }

// OnDemand tells whether weights go round the ring bucket by bucket, when they are needed.
func (t *Trainer) OnDemand() bool { return t.onDemand() }

// slot is where a layer's weights stand, -1 for a bucket that has memory of its own.
func (t *Trainer) slot(bucket int) int {
	if bucket < 1 || bucket > t.cfg.Model.Layers {
		return -1
	}
	return (bucket - 1) % layerSlots
}

// bring begins to make a bucket's working weights, in place of those that nobody needs now.
func (t *Trainer) bring(bucket int) error {
	if t.coming == bucket {
		return nil
	}
	if at := t.slot(bucket); at >= 0 {
		if was := t.inSlot[at]; was > 0 && was != bucket {
			t.fresh[was] = false
			if err := t.peers.written(t.ctx, was); err != nil {
				return err
			}
		}
		t.inSlot[at] = bucket
	}
	for _, r := range t.ranks {
		piece := t.table.Bucket(bucket).Piece(r.id)
		t.dev.Cast(t.stream, t.model.Bucket(bucket).ColRange(int(piece.Lo), int(piece.Hi)), t.segments[r.id].state[checkpoint.Master][bucket])
	}
	t.coming = bucket
	return t.peers.gather(bucket)
}
