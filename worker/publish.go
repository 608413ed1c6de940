package worker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/internal/console"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// saving is a checkpoint on its way: every worker writes its own pieces while the next
// step is computed, and then rank 0's worker has it published.
type saving struct {
	began   time.Time
	state   checkpoint.State
	lineage checkpoint.Lineage
	blocked atomic.Int64 // ns that training has waited for it
	done    chan struct{}
	// Valid once done is closed.
	err      error
	chain    []checkpoint.Link // with this one, if it is published; only on rank 0's worker
	tokens   int64             // computed by all ranks since step 0
	seconds  float64           // that generations took until this checkpoint was asked for
	counted  bool              // tokens and seconds are those of all
	fault    string            // why it is given up, the same on all workers; empty: it is not
	told     bool              // that it is given up, or has no name
	manifest string            // of the published one; only on rank 0's worker
	unnamed  error             // why it is published and has not got its name in the store; only there
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
	// Seconds that generations took so far, as rank 0's worker has measured.
	Seconds float64 `json:"seconds"`
	Fault   string  `json:"fault,omitempty"` // why there is no part: the store's fault
	// Own are checksums of what the part holds, and Copies of what this worker has, too, of
	// what others' parts hold.
	Own    []sums `json:"own,omitempty"`
	Copies []sums `json:"copies,omitempty"`
}

// save begins the checkpoint of the step that was just taken.
func (h *hosting) save(ctx context.Context) error {
	if err := h.saved(ctx); err != nil {
		return err
	}
	h.spent.mark(h.tr.StepsDone())
	defer h.spent.lap(&h.spent.checkpoint)
	s := &saving{began: time.Now(), state: h.store.state, lineage: h.store.lineage,
		seconds: h.before.Seconds + time.Since(h.clock).Seconds(), done: make(chan struct{})}
	s.state.Step, s.state.Taken = h.tr.StepsDone(), h.tr.StepsTaken()
	s.state.History = slices.Clone(s.state.History)
	s.lineage.Results = slices.Clone(s.lineage.Results)
	own := share{Tokens: h.tokens, Seconds: s.seconds}
	read := make(chan struct{})
	h.tr.Hold(read)
	h.saving = s
	src := &reading{Trainer: h.tr, ctx: ctx, done: read}
	if h.link != nil {
		src.own, src.copies = newSums(h.Table.Buckets(), h.Config.Placement.Ranks(h.self)), newSums(h.Table.Buckets(), h.tr.Copies())
	}
	go func() {
		defer close(s.done)
		if s.err = h.write(ctx, s, own, src); s.err != nil && h.link != nil {
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
	defer h.spent.lap(&h.spent.checkpoint)
	select {
	case <-s.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.blocked.Add(int64(time.Since(began)))
	return h.failedSave()
}

// failedSave is the error of a checkpoint that has failed meanwhile. One that was given up
// for its store's sake is none: training goes on, and the checkpoint is tried again.
func (h *hosting) failedSave() error {
	if h.saving == nil {
		return nil
	}
	select {
	case <-h.saving.done:
		if h.saving.chain != nil {
			h.store.state.Chain = h.saving.chain
		}
		if h.saving.counted && h.saving.fault == "" { // if it is not published after all, who goes on from here forgets it
			h.store.result(h.saving.state.Step, tokensName, float64(h.saving.tokens))
			h.store.result(h.saving.state.Step, secondsName, h.saving.seconds)
		}
		if h.saving.err == nil && !h.saving.told {
			h.saving.told = true
			h.unsave(h.saving)
		}
		return h.saving.err
	default:
		return nil
	}
}

// write writes this worker's pieces, hears of the others', compares them with their copies, and
// has it all published. Where the store fails, all workers give the checkpoint up and remove
// their parts.
func (h *hosting) write(ctx context.Context, s *saving, own share, src *reading) error {
	part, err := checkpoint.SavePart(ctx, h.FS, h.dir, h.Table, s.state.Step, h.Order.GetGeneration(),
		h.Config.Placement.Ranks(h.self), src, h.chain(s.state.Step))
	if err != nil {
		if ctx.Err() != nil || !errors.Is(err, checkpoint.ErrUnwritten) {
			return err
		}
		own.Fault = h.Worker + ": " + err.Error()
	}
	if src.err != nil {
		return src.err
	}
	own.Part, own.Own, own.Copies = part, src.own, src.copies
	all, err := h.shares(ctx, s, own)
	if err != nil {
		return err
	}
	if err := h.agree(ctx, s, all); err != nil {
		checkpoint.Withdraw(h.FS, h.dir, s.state.Step, part)
		return err
	}
	var m checkpoint.Manifest
	var ck *skeinv1.Checkpoint
	if s.fault == "" {
		if m, ck, err = h.manifest(ctx, s, all); err != nil {
			return err
		}
	}
	if s.fault != "" {
		checkpoint.Withdraw(h.FS, h.dir, s.state.Step, part)
		return nil
	}
	if !h.leads() {
		return nil
	}
	if err := h.Publish(ctx, ck); err != nil {
		return err
	}
	s.chain, s.manifest = m.Chain, ck.Manifest
	return h.published(s, m, ck)
}

// manifest has rank 0's worker write it, and lets every worker know whether the store took it.
func (h *hosting) manifest(ctx context.Context, s *saving, all []share) (m checkpoint.Manifest, ck *skeinv1.Checkpoint, err error) {
	if h.leads() {
		var parts []checkpoint.Part
		for _, x := range all {
			parts = append(parts, x.Part)
		}
		ck = &skeinv1.Checkpoint{Generation: h.Order.GetGeneration(), Step: s.state.Step}
		m, ck.Manifest, ck.Bytes, err = checkpoint.WriteManifest(ctx, h.FS, h.dir, h.Table, s.state, h.Order.GetGeneration(), parts)
		ck.Weights = m.Weights.String()
		if err != nil && (ctx.Err() != nil || !ofFiles(err)) {
			return m, nil, err
		}
		if err != nil {
			s.fault = h.Worker + ": " + err.Error()
		}
	}
	if h.link == nil {
		return m, ck, nil
	}
	blobs, err := h.link.Exchange(ctx, fmt.Sprintf("manifest of step %d", s.state.Step), []byte(s.fault))
	if err != nil {
		return m, nil, err
	}
	s.fault = string(blobs[0])
	return m, ck, nil
}

// published follows up on a checkpoint that is in the log: what reads the folder sees it
// too, and old ones go.
func (h *hosting) published(s *saving, m checkpoint.Manifest, ck *skeinv1.Checkpoint) error {
	var err error
	if s.unnamed, err = h.commit(ck.Manifest); err != nil {
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

// shares gathers what all workers wrote, or which of them could not, and what they counted.
func (h *hosting) shares(ctx context.Context, saving *saving, own share) ([]share, error) {
	step := saving.state.Step
	all := []share{own}
	if h.link != nil {
		blob, err := json.Marshal(own)
		if err != nil {
			return nil, err
		}
		blobs, err := h.link.Exchange(ctx, fmt.Sprintf("checkpoint of step %d", step), blob)
		if err != nil {
			return nil, err
		}
		all = make([]share, len(blobs))
		for i, b := range blobs {
			if err := json.Unmarshal(b, &all[i]); err != nil {
				return nil, fmt.Errorf("%s's part of the checkpoint of step %d: %w", h.nameOf(i), step, err)
			}
		}
	}
	saving.tokens, saving.seconds = h.before.Tokens, all[0].Seconds
	for _, s := range all {
		saving.tokens += s.Tokens
		saving.fault = cmp.Or(saving.fault, s.Fault)
	}
	saving.counted = saving.fault == ""
	return all, nil
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
