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
	Steps int64        `json:"steps"` // up to which it has the records of all
	// Results are what it knows to have been measured: all of it with the journal, else what
	// may be news.
	Results []checkpoint.Result `json:"results,omitempty"`
	Journal *journal            `json:"journal,omitempty"` // from the worker that rank 0's state is taken from
}

// journal is what else one worker knows for all.
type journal struct {
	Resumed []int64 `json:"resumed"`
	Counts  counts  `json:"counts"`
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
	entries, err := h.exchange(ctx, "what each brings", h.entry())
	if err != nil {
		return err
	}
	if err := h.adopt(ctx, entries); err != nil {
		return err
	}
	has, source := make([][]shard.Rank, len(entries)), make([]int, h.Config.WorldSize)
	for i, e := range entries {
		has[i] = e.Ranks
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
		before := h.tr.StepsDone()
		if err = h.tr.Enter(o.GetTarget(), o.GetDecision()); err == nil {
			if h.tr.StepsDone() > before { // it had computed that step in the generation before
				h.before.Tokens += h.tr.StepTokens() * int64(h.Config.WorldSize) / int64(h.tr.Hosts())
			}
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
func (h *hosting) exchange(ctx context.Context, what string, own entry) ([]entry, error) {
	if h.Order.GetLive() { // otherwise somebody may have to read much first
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, connectMax)
		defer cancel()
	}
	b, err := json.Marshal(own)
	if err != nil {
		return nil, err
	}
	blobs, err := h.link.Exchange(ctx, what, b)
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

// entry is what this worker brings.
func (h *hosting) entry() entry {
	s, o := h.store, h.Order
	own := entry{Ranks: h.tr.Ready()}
	if n := len(s.state.History); n > 0 && s.state.History[n-1].Step == int64(n) {
		own.Steps = int64(n)
	}
	switch {
	case len(o.GetSources()) > 0 && o.GetSources()[0].GetWorker() == h.Worker:
		own.Results, own.Journal = s.lineage.Results, &journal{Resumed: s.lineage.ResumedAt, Counts: h.before}
	case len(own.Ranks) > 0:
		for _, r := range s.lineage.Results {
			if r.Step >= o.GetResume().GetStep() {
				own.Results = append(own.Results, r)
			}
		}
	}
	return own
}

// adopt makes the job's record here what all workers together know of it.
func (h *hosting) adopt(ctx context.Context, entries []entry) error {
	from := slices.IndexFunc(entries, func(e entry) bool { return e.Journal != nil })
	if from < 0 {
		return fmt.Errorf("%w: nobody brings the state of rank 0", errUnreachable)
	}
	s, j := h.store, entries[from].Journal
	s.lineage.ResumedAt, h.before = j.Resumed, j.Counts
	s.lineage.Results = slices.Clone(entries[from].Results)
	for i, e := range entries {
		if i != from {
			s.learn(e.Results)
		}
	}
	err := h.tellSteps(ctx, from, entries)
	h.countTargets()
	return err
}

// keepCommitted makes sure that the folder says of the newest checkpoint what the log says:
// a publisher that was killed may not have got as far. Rank 0's worker builds on its chain.
func (h *hosting) keepCommitted() error {
	if !h.leads() {
		return nil
	}
	if err := h.commitResumed(); err != nil {
		return err
	}
	m, err := h.newest()
	if err != nil {
		return err
	}
	h.store.state.Chain = m.Chain
	h.store.dropUnpublished()
	return nil
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
