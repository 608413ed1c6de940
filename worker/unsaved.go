package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/checkpoint"
)

// What a store that is full, or does not answer, does to a job: a checkpoint comes later, and
// nothing else.

// storeRetry is for how long such a store is left alone.
const storeRetry = 5 * time.Second

// refusal is what a store has refused.
type refusal struct {
	unsaved string    // for people; empty: nothing
	unnamed string    // manifest that is in the log and has not got its name, if it is that
	retry   time.Time // when that is tried again; zero: it is not
}

// refuse notes what the store has refused.
func (h *hosting) refuse(unnamed, format string, args ...any) {
	h.refusal = refusal{fmt.Sprintf(format, args...), unnamed, time.Now().Add(cmp.Or(h.StoreRetry, storeRetry))}
	if h.leads() {
		h.note("training goes on, though the store refuses a checkpoint: %s", h.unsaved)
	}
}

// unsave notes what became of a checkpoint whose workers are all well.
func (h *hosting) unsave(s *saving) {
	h.refusal = refusal{}
	switch {
	case s.fault != "":
		h.refuse("", "that of step %d failed: %s", s.state.Step, s.fault)
	case s.unnamed != nil:
		h.refuse(s.manifest, "that of step %d is not named in the store: %v", s.state.Step, s.unnamed)
	}
}

// commit gives a checkpoint of the log its name in the store. If the store refuses that, and
// nothing else is wrong, that is no error: a job goes on from it all the same.
func (h *hosting) commit(manifest string) (refused, err error) {
	err = checkpoint.Commit(h.FS, h.dir, manifest)
	if err != nil && ofFiles(err) && !errors.Is(err, fs.ErrNotExist) {
		return err, nil
	}
	return nil, err
}

// commitResumed does so for the checkpoint that the generation's order names: a publisher that
// was killed may not have got as far.
func (h *hosting) commitResumed() error {
	r := h.Order.GetResume()
	refused, err := h.commit(r.GetManifest())
	if refused != nil {
		h.refuse(r.GetManifest(), "that of step %d is not named in the store: %v", r.GetStep(), refused)
	}
	return err
}

// saveAgain tries again what the store has refused: all workers are asked for a checkpoint.
func (h *hosting) saveAgain() error {
	if !h.leads() || h.retry.IsZero() || time.Now().Before(h.retry) {
		return nil
	}
	if h.unnamed != "" {
		return h.nameAgain()
	}
	h.retry = time.Time{}
	h.tr.Request(allreduce.RequestCheckpoint)
	return nil
}

// nameAgain tries to give a checkpoint its name once more.
func (h *hosting) nameAgain() error {
	refused, err := h.commit(h.unnamed)
	switch {
	case refused != nil:
		h.retry = time.Now().Add(cmp.Or(h.StoreRetry, storeRetry))
	case err == nil:
		h.refusal = refusal{}
	}
	return err
}

// mustSave waits until the state of this step is published: nothing goes on without it. The
// checkpoint is on its way; as often as the store refuses it, it is tried again.
func (h *hosting) mustSave(ctx context.Context) error {
	for {
		if err := h.saved(ctx); err != nil || h.unsaved == "" {
			return err
		}
		if h.told != nil {
			again := proto.CloneOf(h.told)
			again.Unsaved = h.unsaved
			h.Report(again, Phases{Again: true})
		}
		select {
		case <-time.After(time.Until(h.retry)):
		case <-ctx.Done():
			return ctx.Err()
		}
		var err error
		if h.unnamed != "" {
			err = h.nameAgain()
		} else {
			err = h.save(ctx)
		}
		if err != nil {
			return err
		}
	}
}
