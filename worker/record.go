package worker

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/internal/vfs"
)

// The worker of rank 0 writes the job's record: all decisions, the chain of published weights,
// and what was measured. Any other may have to go on with it, so every worker knows all that
// is not in the newest manifest yet. Decisions all of them hear anyway; measurements rank 0's
// worker tells the others as it makes them.

// measuredTag marks the messages about measurements among all that go round the ring.
const measuredTag = 1 << 61

// measuringTag marks those about whether there is something to measure.
const measuringTag = 1 << 60

// measureAndTell has rank 0's worker measure at this step and pass on what it has found. The
// others note that it will come.
func (h *hosting) measureAndTell(ctx context.Context, full bool) error {
	if h.together() {
		return h.measure(ctx, full)
	}
	step := h.tr.StepsDone()
	if !h.leads() {
		h.expects = append(h.expects, step)
		return nil
	}
	if err := h.measure(ctx, full); err != nil || h.link == nil {
		return err
	}
	var results []checkpoint.Result
	for _, r := range h.store.lineage.Results {
		if r.Step == step {
			results = append(results, r)
		}
	}
	b, err := json.Marshal(results)
	if err != nil {
		return err
	}
	return h.link.Pass(measuredTag|uint64(step), b)
}

// measure evaluates unless an earlier generation has done so at this step.
func (h *hosting) measure(ctx context.Context, full bool) error {
	defer h.spent.lap(&h.spent.evaluation)
	name := lossName
	if full && h.Validation == nil {
		name = ""
	}
	_, measured := h.store.at(h.tr.StepsDone(), name)
	if h.together() {
		var err error
		if measured, err = h.hearLeader(ctx, measured); err != nil {
			return err
		}
	}
	if measured {
		return nil
	}
	h.mute = !h.leads()
	return h.evaluate(ctx, full)
}

// together tells whether workers measure together: in ZeRO stage 3 none has all weights. Each then
// runs the same model on the same data and finds the same, and rank 0's tells of it.
func (h *hosting) together() bool { return h.link != nil && h.tr.OnDemand() }

// hearLeader is what rank 0's worker knows: whether an earlier generation has measured here.
func (h *hosting) hearLeader(ctx context.Context, measured bool) (bool, error) {
	tag := measuringTag | uint64(h.tr.StepsDone())
	word := []byte{0}
	if measured {
		word[0] = 1
	}
	if !h.leads() {
		var err error
		if word, err = h.link.Take(ctx, tag); err != nil {
			return false, err
		}
		if len(word) != 1 {
			return false, fmt.Errorf("%w: %d bytes of whether step %d is measured", errUnreachable, len(word), h.tr.StepsDone())
		}
	}
	if h.self+1 < len(h.Order.GetMembers()) {
		if err := h.link.Pass(tag, word); err != nil {
			return false, err
		}
	}
	return word[0] == 1, nil
}

// hearMeasured takes in what rank 0's worker has measured, and passes it on. By the end of the
// next step that has come: it travels ahead of that step's gradients.
func (h *hosting) hearMeasured(ctx context.Context) error {
	for len(h.expects) > 0 {
		tag := measuredTag | uint64(h.expects[0])
		b, err := h.link.Take(ctx, tag)
		if err != nil {
			return err
		}
		var results []checkpoint.Result
		if err := json.Unmarshal(b, &results); err != nil {
			return fmt.Errorf("%w: what was measured at step %d: %w", errUnreachable, h.expects[0], err)
		}
		h.store.learn(results)
		h.expects = h.expects[1:]
		if h.self+1 == len(h.Order.GetMembers()) {
			continue
		}
		if err := h.link.Pass(tag, b); err != nil {
			return err
		}
	}
	return nil
}

// overhear takes in what had come of measurements when the link ended.
func (h *hosting) overhear() {
	if h.link == nil {
		return
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_ = h.hearMeasured(ended) // what has not come, another worker may have
}

// learn adds measurements that were not known. The order is that of their steps.
func (s *store) learn(results []checkpoint.Result) {
	type key struct {
		step int64
		name string
	}
	known := map[key]bool{}
	for _, r := range s.lineage.Results {
		known[key{r.Step, r.Name}] = true
	}
	for _, r := range results {
		if k := (key{r.Step, r.Name}); !known[k] {
			known[k] = true
			s.lineage.Results = append(s.lineage.Results, r)
		}
	}
	slices.SortStableFunc(s.lineage.Results, func(a, b checkpoint.Result) int { return cmp.Compare(a.Step, b.Step) })
}

// dropUnpublished forgets what was counted for checkpoints that were not published.
func (s *store) dropUnpublished() {
	s.lineage.Results = slices.DeleteFunc(slices.Clone(s.lineage.Results), func(r checkpoint.Result) bool {
		return (r.Name == tokensName || r.Name == secondsName) &&
			!slices.ContainsFunc(s.state.Chain, func(l checkpoint.Link) bool { return l.Step == r.Step })
	})
}

// remember brings what was measured up to a checkpoint to all workers that go on from it: rank
// 0's worker reads it, and who took part before may know more.
func (h *hosting) remember(ctx context.Context, step int64) error {
	known := resultsUntil(h.store.lineage.Results, step)
	own := entry{Results: known}
	if h.leads() {
		if err := h.recall(step); err != nil {
			return err
		}
		h.store.learn(known)
		own = entry{Results: h.store.lineage.Results, Journal: &journal{Resumed: h.store.lineage.ResumedAt}}
	}
	if h.link == nil {
		return nil
	}
	entries, err := h.exchange(ctx, "what was measured", own)
	if err != nil {
		return err
	}
	s := h.store
	s.lineage.Results = slices.Clone(entries[0].Results)
	for _, e := range entries[1:] {
		s.learn(e.Results)
	}
	if j := entries[0].Journal; j != nil {
		s.lineage.ResumedAt = j.Resumed
	}
	return nil
}

// recall is store.recall; before the first step there is no lineage yet.
func (h *hosting) recall(step int64) error {
	there, err := vfs.Exists(h.FS, h.store.lineagePath())
	if err != nil {
		return err
	}
	if !there && step == 0 {
		h.store.lineage.Results, h.store.lineage.ResumedAt = nil, nil
		return h.store.writeLineage()
	}
	return h.store.recall(step)
}

// stepsPart is how many steps' records are told at a time: a message has a limit.
const stepsPart = 100_000

// tellSteps gives everybody the records of the steps up to the one that the generation goes on
// from, where anybody lacks some. Those since the newest checkpoint come from a worker that
// knows them, those before are in the manifest.
func (h *hosting) tellSteps(ctx context.Context, from int, entries []entry) error {
	s, target, newest := h.store, h.Order.GetTarget(), h.Order.GetResume().GetStep()
	lacks := func(e entry) bool { return e.Steps < target }
	if !slices.ContainsFunc(entries, lacks) {
		s.state.History = stepsUntil(s.state.History, target)
		return nil
	}
	known := s.state.History
	if h.self != from {
		known = nil
	}
	tail, err := passSteps(known, from, newest, target, stepsPart, func(what string, own []byte) ([][]byte, error) {
		return h.link.Exchange(ctx, what, own)
	})
	if err != nil {
		return fmt.Errorf("%w: %w", errUnreachable, err)
	}
	if !lacks(entries[h.self]) {
		s.state.History = stepsUntil(s.state.History, target)
		return nil
	}
	before := stepsUntil(s.state.History, newest)
	if int64(len(before)) < newest {
		m, err := h.newest()
		if err != nil {
			return err
		}
		before = m.History
	}
	s.state.History = append(slices.Clip(before), tail...)
	if n := int64(len(s.state.History)); n != target {
		return fmt.Errorf("%w: the records of %d steps have come, the job goes on from step %d", errUnreachable, n, target)
	}
	return nil
}

// passSteps gives everybody the records of the steps after one and up to another, in parts,
// from the worker that knows them; the others know nothing.
func passSteps(known []checkpoint.StepRecord, from int, after, until, part int64, exchange func(what string, own []byte) ([][]byte, error)) ([]checkpoint.StepRecord, error) {
	var all []checkpoint.StepRecord
	for ; after < until; after += part {
		var own []byte
		var err error
		if known != nil {
			if own, err = json.Marshal(stepsAfter(known, after, min(after+part, until))); err != nil {
				return nil, err
			}
		}
		blobs, err := exchange(fmt.Sprintf("the steps after %d", after), own)
		if err != nil {
			return nil, err
		}
		var some []checkpoint.StepRecord
		if err := json.Unmarshal(blobs[from], &some); err != nil {
			return nil, fmt.Errorf("the steps after %d: %w", after, err)
		}
		all = append(all, some...)
	}
	return all, nil
}

// newest is the manifest of the newest checkpoint that the log names.
func (h *hosting) newest() (checkpoint.Manifest, error) {
	ck, err := checkpoint.OpenNamed(h.FS, h.dir, h.Order.GetResume().GetManifest())
	if err != nil {
		return checkpoint.Manifest{}, h.missing(err)
	}
	defer ck.Close()
	return ck.Manifest, nil
}

// stepsUntil are the records up to a step.
func stepsUntil(history []checkpoint.StepRecord, step int64) []checkpoint.StepRecord {
	return stepsAfter(history, 0, step)
}

// stepsAfter are the records after a step, up to another one. A history is ascending.
func stepsAfter(history []checkpoint.StepRecord, after, until int64) []checkpoint.StepRecord {
	place := func(step int64) int {
		i, _ := slices.BinarySearchFunc(history, step+1, func(r checkpoint.StepRecord, s int64) int { return cmp.Compare(r.Step, s) })
		return i
	}
	return history[place(after):place(until)]
}
