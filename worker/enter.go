package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/skein-ml/skein/checkpoint"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/shard"
)

// entry is what a worker brings into a live generation.
type entry struct {
	Ranks []shard.Rank `json:"ranks"` // whose state it has
	// Journal is the job's history, from the worker that rank 0's state is taken from.
	Journal *journal `json:"journal,omitempty"`
}

// journal is what every worker knows of a job and no checkpoint has yet.
type journal struct {
	History []checkpoint.StepRecord `json:"history"`
	Chain   []checkpoint.Link       `json:"chain"`
	Results []checkpoint.Result     `json:"results"`
	Resumed []int64                 `json:"resumed"`
	Counts  counts                  `json:"counts"`
}

// enter goes on from what the workers hold in memory: each brings what it has to the
// generation's step, and what is missing somewhere comes from where the order says.
func (h *hosting) enter(ctx context.Context) error {
	o := h.Order
	if err := h.catchUp(); err != nil {
		return err
	}
	if err := h.connect(ctx); err != nil {
		return err
	}
	h.entered = true
	if h.link == nil {
		if err := h.tr.Spread(); err != nil {
			return fmt.Errorf("%w: %w", errUnreachable, err)
		}
		return h.keepCommitted()
	}
	sources := o.GetSources()
	own := entry{Ranks: h.tr.Ready()}
	if len(sources) > 0 && sources[0].GetWorker() == h.Worker {
		own.Journal = h.journal()
	}
	entries, err := h.exchange(ctx, own)
	if err != nil {
		return err
	}
	has, source := make([][]shard.Rank, len(entries)), make([]int, h.Config.WorldSize)
	for i, e := range entries {
		has[i] = e.Ranks
		if e.Journal != nil {
			h.adopt(e.Journal)
		}
	}
	for _, s := range sources {
		i := h.member(s.GetWorker())
		if i < 0 || int(s.GetRank()) >= len(source) || !slices.Contains(has[i], shard.Rank(s.GetRank())) {
			return fmt.Errorf("%w: the state of rank %d is to come from %s, which does not have it", errUnreachable, s.GetRank(), s.GetWorker())
		}
		source[s.GetRank()] = i
	}
	hosts, mirrors := h.tr.Moves(has, source)
	if err := h.tr.Transfer(ctx, hosts); err != nil {
		return fmt.Errorf("%w: %w", errUnreachable, err)
	}
	if err := h.tr.Spread(); err != nil {
		return fmt.Errorf("%w: %w", errUnreachable, err)
	}
	if err := h.keepCommitted(); err != nil {
		return err
	}
	return h.tr.Fill(mirrors)
}

// catchUp brings what is kept to the generation's step, or begins with nothing.
func (h *hosting) catchUp() error {
	o := h.Order
	source := slices.ContainsFunc(o.GetSources(), func(s *skeinv1.Source) bool { return s.GetWorker() == h.Worker })
	var err error
	if h.entered {
		if err = h.tr.Enter(o.GetTarget(), o.GetDecision()); err == nil {
			if d, ok := h.tr.LastDecision(); ok {
				h.noteDecision(d)
			}
			return nil
		}
	}
	if source {
		return fmt.Errorf("%w: %s is to bring state of step %d, and keeps none of it: %w", errUnreachable, h.Worker, o.GetTarget(), err)
	}
	var taken int64
	if len(o.GetDecision()) == 0 { // all go on from a checkpoint that nobody has taken a step from
		ck, err := checkpoint.OpenNamed(h.FS, h.dir, o.GetResume().GetManifest())
		if err != nil {
			return h.missing(err)
		}
		defer ck.Close()
		taken = ck.Manifest.Taken
	}
	return h.tr.Forget(o.GetTarget(), taken, o.GetDecision())
}

// exchange tells the others what is brought here, and hears the same of them.
func (h *hosting) exchange(ctx context.Context, own entry) ([]entry, error) {
	ctx, cancel := context.WithTimeout(ctx, connectMax)
	defer cancel()
	b, err := json.Marshal(own)
	if err != nil {
		return nil, err
	}
	blobs, err := h.link.Exchange(ctx, "what each brings", b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnreachable, err)
	}
	entries := make([]entry, len(blobs))
	for i, b := range blobs {
		if err := json.Unmarshal(b, &entries[i]); err != nil {
			return nil, fmt.Errorf("%w: what %s brings: %w", errUnreachable, h.Order.GetMembers()[i].GetWorker(), err)
		}
	}
	return entries, nil
}

// member is a worker's place among the members, -1 if it is none.
func (h *hosting) member(name string) int {
	for i, m := range h.Order.GetMembers() {
		if m.GetWorker() == name {
			return i
		}
	}
	return -1
}

func (h *hosting) journal() *journal {
	s := h.store
	return &journal{History: s.state.History, Chain: s.state.Chain, Results: s.lineage.Results, Resumed: s.lineage.ResumedAt, Counts: h.before}
}

func (h *hosting) adopt(j *journal) {
	s := h.store
	s.state.History, s.state.Chain, s.lineage.Results, s.lineage.ResumedAt = j.History, j.Chain, j.Results, j.Resumed
	h.before = j.Counts
	h.countTargets()
}

// keepCommitted makes sure that the folder says of the newest checkpoint what the log says:
// a publisher that was killed may not have got as far.
func (h *hosting) keepCommitted() error {
	if !h.leads() {
		return nil
	}
	return checkpoint.Commit(h.FS, h.dir, h.Order.GetResume().GetManifest())
}

// addUp adds what this generation has come to so far to what those before it have.
func (h *hosting) addUp() {
	if h.self < 0 { // it was not entered
		return
	}
	// The other ranks' padding is about the same.
	h.before.Tokens += h.tokens * int64(h.Config.WorldSize) / int64(len(h.Config.Placement.Ranks(h.self)))
	h.before.Seconds += time.Since(h.clock).Seconds()
	h.tokens = 0
}

// protection tells whether the loss of any one worker would cost no decided step, and if not,
// why.
func (h *hosting) protection() (protected bool, exposed string) {
	switch {
	case len(h.Order.GetMembers()) == 1:
		return false, "one worker has all ranks; another worker would mirror them"
	case !h.tr.Mirrors() && !h.tr.GathersFirst():
		return false, "the job asks for checkpoints alone (cluster.protect)"
	case !h.tr.Protected():
		return false, "mirrors are being filled; until the next step"
	}
	return true, ""
}
