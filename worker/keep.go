package worker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"

	"github.com/skein-ml/skein/data/stream"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/worker/trainer"
)

// Keep is what a worker process keeps of a job between the generations that it takes part
// in: its device, its trainer and all that is in its memory. One process has one; Host, Warm
// and Drop are never called at the same time.
type Keep struct {
	kept       *hosting
	generation uint64 // the newest one that the process was called into; 0: none yet
}

// NewKeep is a Keep of nothing.
func NewKeep() *Keep { return &Keep{} }

// Drop gives back whatever is kept.
func (k *Keep) Drop() {
	if k.kept != nil {
		k.kept.close()
	}
	*k = Keep{}
}

// take hands over what is kept of the job that an order is about. What has state for the
// order keeps it; of anything else at most memory is of use.
func (k *Keep) take(o *skeinv1.Assignment) *hosting {
	if k == nil {
		return &hosting{}
	}
	h := k.kept
	if h == nil || h.job != o.GetJob() || h.specHash != o.GetSpecHash() {
		k.Drop()
		h = &hosting{}
	}
	if !o.GetLive() || k.generation != o.GetAfter() {
		h.entered = false
	}
	k.kept, k.generation = nil, o.GetGeneration()
	return h
}

// errSealed is why Host ends when it is told to.
var errSealed = errors.New("told to stop where it is")

// errYielded is why Host ends when all workers of the job stop at a step boundary.
var errYielded = errors.New("all stop after this step, as was asked")

// part ends a generation for this worker: nothing of it runs any more. What the worker has
// in memory stays if another generation may want it, and is then told in the cause.
func (h *hosting) part(ctx context.Context, cause error) error {
	h.leave()
	defer func() {
		if h.reached != nil { // nobody wants to know
			h.reaches()
		}
	}()
	h.overhear()
	_ = h.failedSave()                                       // what the checkpoint came to counts; its error is the cause, or follows it
	if h.saving != nil && cause != nil && ctx.Err() == nil { // it may have lost the race with a neighbour that left for the same reason
		if d, found := errors.AsType[*trainer.DivergedError](h.saving.err); found {
			cause = h.cause(ctx, d)
		}
	}
	broken, ok := errors.AsType[*BrokenError](cause)
	if !ok && cause != nil && h.entered && h.Keep != nil && ctx.Err() != nil {
		broken, ok = &BrokenError{Reason: "it was stopped here: " + cause.Error()}, true
	}
	if !ok || h.Keep == nil || h.tr == nil || broken.Diverged != nil {
		h.close()
		return cause
	}
	broken.Sealed = &skeinv1.Sealed{}
	if h.entered {
		if err := h.seal(broken.Sealed); err != nil {
			h.note("what this worker had of the job is lost: %v", err)
			h.close()
			broken.Sealed = nil
			return broken
		}
	}
	h.addUp()
	broken.Sealed.Yielded = errors.Is(h.ended, errYielded)
	broken.Sealed.Reaches = h.reaches()
	h.Keep.kept = h
	return broken
}

// seal brings the trainer to rest and says what it holds.
func (h *hosting) seal(m *skeinv1.Sealed) error {
	before := h.tr.StepsDone()
	held, err := h.tr.Seal()
	if err != nil {
		return err
	}
	if held.Step > before { // the step under way was decided
		h.tokens += h.tr.StepTokens()
		h.spent.finished(held.Step)
	}
	m.Spent, m.ComputedMs = h.spent.message(), held.Took.Milliseconds()
	for _, r := range held.Computed {
		m.Computed = append(m.Computed, int32(r))
	}
	if d, ok := h.tr.LastDecision(); ok {
		h.noteDecision(d)
	}
	m.Step, m.Decision = held.Step, held.Decision
	for _, r := range held.Ranks {
		m.Held = append(m.Held, int32(r))
	}
	for _, r := range held.Summed {
		m.Summed = append(m.Summed, int32(r))
	}
	return nil
}

// WarmConfig is an order to make ready to enter a job, without ranks of it yet.
type WarmConfig struct {
	Order   *skeinv1.Warm
	Worker  string // own name
	Streams *stream.Server
	TLS     *tls.Config // to dial streams; nil: plain
	Keep    *Keep
}

// Warm opens what does not depend on ranks and puts it into the Keep: a generation that
// takes this worker in then waits for nothing but state.
func Warm(ctx context.Context, env Env, c WarmConfig) error {
	if c.Keep == nil {
		return nil
	}
	if h := c.Keep.kept; h != nil && h.job == c.Order.GetJob() && h.specHash == c.Order.GetSpecHash() {
		return nil
	}
	c.Keep.Drop()
	h := &hosting{}
	h.begin(env, HostConfig{Worker: c.Worker, Streams: c.Streams, TLS: c.TLS, Keep: c.Keep, Order: &skeinv1.Assignment{
		Job: c.Order.GetJob(), Resolved: c.Order.GetResolved(), SpecHash: c.Order.GetSpecHash(), DataServers: c.Order.GetDataServers()}})
	if err := h.admit(); err != nil {
		h.close()
		return fmt.Errorf("make ready for %s: %w", c.Order.GetJob(), err)
	}
	if ctx.Err() != nil {
		h.close()
		return ctx.Err()
	}
	c.Keep.kept = h
	return nil
}
