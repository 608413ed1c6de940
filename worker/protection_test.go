package worker_test

import (
	"strings"
	"sync"
	"testing"

	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/worker/workertest"
)

// TestAWorkerSaysFromTheFirstStepOnWhetherALossWouldCostAStep runs a job on one worker, on more with mirrors, with
// replicas, and with neither. Mirrors are filled before the first step of a generation is decided, so what is told
// after it holds for all workers.
func TestAWorkerSaysFromTheFirstStepOnWhetherALossWouldCostAStep(t *testing.T) {
	j := workertest.New(t)
	for name, x := range map[string]struct {
		workers int
		mirror  bool
		zero    string
		exposed string // "": it is protected
	}{
		"alone":            {1, true, "cluster.zero=1", "one worker has all ranks; another worker would mirror them"},
		"mirrors":          {3, true, "cluster.zero=1", ""},
		"mirrors, stage 3": {2, true, "cluster.zero=3", ""},
		"replicas":         {2, false, "cluster.zero=0", ""},
		"checkpoints":      {2, false, "cluster.zero=1", "the job asks for checkpoints alone (cluster.protect)"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, j.Copy(t), x.workers, "cluster.worldSize=4", "train.steps=6", "eval.every=100 steps", x.zero)
			c.mirror = x.mirror
			c.mustPrepare()
			var mu sync.Mutex
			told := 0
			c.onStep = func(worker string, p *skeinv1.Progress) {
				mu.Lock()
				defer mu.Unlock()
				told++
				if p.Protected != (x.exposed == "") || !strings.Contains(p.Exposed, x.exposed) || x.exposed == "" && p.Exposed != "" {
					t.Errorf("%s after step %d: protected %t, exposed %q; want %q", worker, p.Step, p.Protected, p.Exposed, x.exposed)
				}
			}
			c.mustRun(c.places)
			if told < 6*x.workers {
				t.Errorf("%d reports of 6 steps on %d workers", told, x.workers)
			}
		})
	}
}
