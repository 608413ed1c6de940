package allreduce

import (
	"context"
	"errors"
	"fmt"
)

// With weights on demand (ZeRO stage 3) no worker has room for all of them. In a step, all
// workers gather the same buckets in the same order, each as often as the model needs it: one
// gather at a time, whose frames carry the number of the gather, its round. The weights are those
// that the step begins with, so all gathers of step k+1 come after Begin(k+1), and so after D(k).
//
// A reader that meets a frame of the next gather waits for its own program to come to it. That
// ends: programs are the same everywhere, and whatever this one waits for before it
// comes there, the sender has sent before it began its gather. DESIGN.md says more.

// roundEnd bounds the rounds of a bucket, which begin with 1 and start over.
const roundEnd = 255

func nextRound(r uint8) uint8 { return r%(roundEnd-1) + 1 }

// Gather begins to gather a bucket's weights, of which the pieces owned here are final in Gathered
// memory, and returns at once. The gather before it must be complete here, and of this
// bucket written, see [Link.WaitWritten].
func (l *Link) Gather(bucket int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	switch {
	case !l.c.OnDemand || !l.reducing || l.decision != nil:
		return errors.New("ring: weights are gathered on demand in a step that has begun and is not decided")
	case l.unsent[bucket] != 0:
		return fmt.Errorf("ring: bucket %d is gathered again while %d frames of it are not written", bucket, l.unsent[bucket])
	}
	for b, left := range l.gatheredLeft {
		if left != 0 {
			return fmt.Errorf("ring: bucket %d is to be gathered while bucket %d is", bucket, b)
		}
	}
	l.round[bucket] = nextRound(l.round[bucket])
	clear(l.gatherAt[bucket])
	l.gatheredLeft[bucket] = len(l.engine.hosted)
	l.postLocked(event{what: gatherReady, bucket: bucket, round: l.round[bucket]})
	l.changed.Broadcast()
	return nil
}

// WaitWritten waits until no frame of a bucket's weights is waiting to be written: Gathered memory may
// then change.
func (l *Link) WaitWritten(ctx context.Context, bucket int) error {
	return l.stall(ctx, kindGather, bucket, func() bool { return l.unsent[bucket] == 0 })
}

// admitOnDemand is admitGather for weights on demand: it waits until this worker has begun the
// frame's gather.
func (l *Link) admitOnDemand(h *header) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.err == nil {
		round := l.round[h.Bucket]
		here := l.reducing && h.Step == l.step
		switch {
		case here && h.Part == round && round != 0:
			return l.placeGather(h)
		case here && h.Part == nextRound(round) && l.decision == nil:
		case h.Part == 1 && (!l.reducing || h.Step == l.step+1 && l.decision != nil):
		default:
			return outOfPlace(h, "step %d is under way, decided: %t, and gather %d of this bucket is followed by %d, not by %d",
				l.step, l.decision != nil, round, nextRound(round), h.Part)
		}
		l.changed.Wait()
	}
	return l.err
}
