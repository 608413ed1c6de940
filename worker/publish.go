package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/internal/console"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/worker/trainer"
)

// saving is a checkpoint on its way: every worker writes its own pieces while the next
// step is computed, and then rank 0's worker has it published.
type saving struct {
	began   time.Time
	state   checkpoint.State
	lineage checkpoint.Lineage
	blocked atomic.Int64 // ns that training has waited for it
	done    chan struct{}
	// Valid once done is closed; chain and tokens only on rank 0's worker.
	err     error
	chain   []checkpoint.Link
	tokens  int64   // computed by all ranks since step 0
	seconds float64 // that generations took until this checkpoint was asked for
}

// What is counted up to a checkpoint, over generations: tokens computed, padding left out, and
// the wall time that they took.
const (
	tokensName  = "tokens"
	secondsName = "seconds"
)

// share is what a worker tells the others of its part of a checkpoint.
type share struct {
	Part   checkpoint.Part `json:"part"`
	Tokens int64           `json:"tokens"` // computed by its ranks in this generation
}

// save begins the checkpoint of the step that was just taken.
func (h *hosting) save(ctx context.Context) error {
	if err := h.saved(ctx); err != nil {
		return err
	}
	s := &saving{began: time.Now(), state: h.store.state, lineage: h.store.lineage,
		seconds: h.before.Seconds + time.Since(h.clock).Seconds(), done: make(chan struct{})}
	s.state.Step, s.state.Taken = h.tr.StepsDone(), h.tr.StepsTaken()
	s.state.History = slices.Clone(s.state.History)
	s.lineage.Results = slices.Clone(s.lineage.Results)
	own := share{Tokens: h.tokens}
	read := make(chan struct{})
	h.tr.Hold(read)
	h.saving = s
	go func() {
		defer close(s.done)
		if s.err = h.write(ctx, s, own, read); s.err != nil && h.link != nil {
			_ = h.link.Close() // nobody is to wait for what will not come
		}
	}()
	return nil
}

// saved waits until no checkpoint is on its way.
func (h *hosting) saved(ctx context.Context) error {
	s := h.saving
	if s == nil {
		return nil
	}
	began := time.Now()
	select {
	case <-s.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.blocked.Add(int64(time.Since(began)))
	return h.failedSave()
}

// failedSave is the error of a checkpoint that has failed meanwhile.
func (h *hosting) failedSave() error {
	if h.saving == nil {
		return nil
	}
	select {
	case <-h.saving.done:
		if h.saving.chain != nil {
			h.store.state.Chain = h.saving.chain
			h.store.result(h.saving.state.Step, tokensName, float64(h.saving.tokens))
			h.store.result(h.saving.state.Step, secondsName, h.saving.seconds)
		}
		return h.saving.err
	default:
		return nil
	}
}

// write writes this worker's pieces, hears of the others', and has it all published.
func (h *hosting) write(ctx context.Context, s *saving, own share, read chan<- struct{}) error {
	part, err := checkpoint.SavePart(ctx, h.FS, h.dir, h.Table, s.state.Step, h.Order.GetGeneration(),
		h.Config.Placement.Ranks(h.self), reading{h.tr, read}, h.chain(s.state.Step))
	if err != nil {
		return err
	}
	own.Part = part
	parts, tokens, err := h.shares(ctx, s.state.Step, own)
	if err != nil || !h.leads() {
		return err
	}
	m, name, bytes, err := checkpoint.WriteManifest(ctx, h.FS, h.dir, h.Table, s.state, h.Order.GetGeneration(), parts)
	if err != nil {
		return err
	}
	s.chain, s.tokens = m.Chain, h.before.Tokens+tokens
	ck := &skeinv1.Checkpoint{Generation: h.Order.GetGeneration(), Step: m.Step, Manifest: name, Weights: m.Weights.String(), Bytes: bytes}
	if err := h.Publish(ctx, ck); err != nil {
		return err
	}
	return h.published(s, m, ck)
}

// reading lets training go on as soon as its state has been read.
type reading struct {
	*trainer.Trainer
	done chan<- struct{}
}

// ReadDone implements [checkpoint.Releaser].
func (r reading) ReadDone() { close(r.done) }

// published follows up on a checkpoint that is in the log: what reads the folder sees it
// too, and old ones go.
func (h *hosting) published(s *saving, m checkpoint.Manifest, ck *skeinv1.Checkpoint) error {
	if err := checkpoint.Commit(h.FS, h.dir, ck.Manifest); err != nil {
		return err
	}
	s.lineage.Chain, s.lineage.Steps = m.Chain, s.state.History
	s.lineage.Results = append(s.lineage.Results, checkpoint.Result{Step: m.Step, Name: tokensName, Value: checkpoint.Number(s.tokens)},
		checkpoint.Result{Step: m.Step, Name: secondsName, Value: checkpoint.Number(s.seconds)})
	if err := checkpoint.AdvanceLineage(h.FS, h.store.lineagePath(), s.lineage); err != nil {
		h.note("step %d is published, its lineage is not written: %v", m.Step, err)
	}
	if _, err := checkpoint.PruneOlder(h.FS, h.dir, h.Spec.Job.Checkpoint.Keep); err != nil {
		h.note("step %d is published, older ones are not removed: %v", m.Step, err)
	}
	blocked := time.Duration(s.blocked.Load())
	if m.Step == h.Steps { // there is nothing else to do meanwhile
		blocked = time.Since(s.began)
	}
	h.emit(console.Published{
		Step: m.Step, Bytes: ck.Bytes, Seconds: time.Since(s.began).Seconds(),
		BlockedSeconds: blocked.Seconds(), WeightsHash: ck.Weights, Path: h.dir,
	})
	return nil
}

// shares gathers what all workers wrote; only rank 0's worker looks at it.
func (h *hosting) shares(ctx context.Context, step int64, own share) (parts []checkpoint.Part, tokens int64, err error) {
	if h.link == nil {
		return []checkpoint.Part{own.Part}, own.Tokens, nil
	}
	blob, err := json.Marshal(own)
	if err != nil {
		return nil, 0, err
	}
	blobs, err := h.link.Exchange(ctx, fmt.Sprintf("checkpoint of step %d", step), blob)
	if err != nil {
		return nil, 0, err
	}
	for i, b := range blobs {
		var s share
		if err := json.Unmarshal(b, &s); err != nil {
			return nil, 0, fmt.Errorf("%s's part of the checkpoint of step %d: %w", h.Order.GetMembers()[i].GetWorker(), step, err)
		}
		parts, tokens = append(parts, s.Part), tokens+s.Tokens
	}
	return parts, tokens, nil
}

// chain hands the hash of the weights on along the ring.
func (h *hosting) chain(step int64) checkpoint.Chain {
	if h.link == nil {
		return nil
	}
	return hashChain{h.link, uint64(step) * uint64(h.Table.Buckets())}
}

type hashChain struct {
	link  *allreduce.Link
	first uint64 // tag of bucket 0
}

// Take implements [checkpoint.Chain].
func (c hashChain) Take(ctx context.Context, bucket int) ([]byte, error) {
	return c.link.Take(ctx, c.first+uint64(bucket))
}

// Pass implements [checkpoint.Chain].
func (c hashChain) Pass(_ context.Context, bucket int, state []byte) error {
	return c.link.Pass(c.first+uint64(bucket), state)
}
