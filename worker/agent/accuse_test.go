package agent

import (
	"context"
	"testing"

	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/jobspec"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/worker"
)

// TestAnAccusationIsHeardWhileTheAccuserStillSeals has a worker take its time to say what it
// keeps: the leader has the generation end by the accusation alone.
func TestAnAccusationIsHeardWhileTheAccuserStillSeals(t *testing.T) {
	r := newRig(t, 1)
	sealed := func(accuses string) func(*Config, *fake) {
		return func(_ *Config, f *fake) {
			f.host = func(ctx context.Context, _ func(console.Event), h worker.HostConfig) (bool, error) {
				if h.Order.GetGeneration() > 1 {
					return false, nil
				}
				broken := &worker.BrokenError{Reason: "told to stop where it is", Sealed: &skeinv1.Sealed{}}
				if accuses != "" {
					broken.Accused, broken.Reason = accuses, accuses+" has been silent"
					h.Accuse(broken.Accused, broken.Reason)
				}
				select {
				case <-h.Seal:
					return true, broken
				case <-ctx.Done():
					return true, ctx.Err()
				}
			}
		}
	}
	r.worker("w1", sealed("w2"))
	r.worker("w2", sealed(""))
	r.joined(2)
	id := r.submit(func(j *jobspec.Job) { j.Cluster.Workers.Min, j.Cluster.Workers.Max = 2, 2 })
	j := r.eventually(id, "it is done", inPhase(skeinv1.Phase_PHASE_DONE))
	if j.GetGeneration() < 2 {
		t.Errorf("it is done in generation %d", j.GetGeneration())
	}
}
