package worker_test

import (
	"sync"
	"testing"
	"time"

	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/worker/workertest"
)

func TestAGenerationTellsWhereItsTimeWent(t *testing.T) {
	c := newCluster(t, workertest.New(t), 2, "cluster.worldSize=4")
	c.mustPrepare()
	var mu sync.Mutex
	last := map[string]*skeinv1.Spent{}
	c.onStep = func(name string, p *skeinv1.Progress) {
		mu.Lock()
		defer mu.Unlock()
		if s := last[name]; p.Spent.Step != p.Step || s != nil && (p.Spent.Step != s.Step+1 || p.Spent.ProductiveMs < s.ProductiveMs) {
			t.Errorf("%s tells %v of step %d, after %v", name, p.Spent, p.Step, s)
		}
		last[name] = p.Spent
	}
	began := time.Now()
	c.mustRun(c.places)
	wall := time.Since(began).Milliseconds()
	for name, s := range map[string]*skeinv1.Spent{"w1": last["w1"], "w2": last["w2"], "the result": c.spent} {
		sum := s.GetEnteringMs() + s.GetProductiveMs() + s.GetDataWaitMs() + s.GetCheckpointMs() + s.GetEvaluationMs() + s.GetUnfinishedMs()
		if sum <= 0 || sum > wall || s.GetStep() != 30 || s.GetUnfinishedMs() != 0 {
			t.Errorf("%s: %d ms of %d are in %v", name, sum, wall, s)
		}
	}
	s := c.spent
	if n := len(s.GetMarks()); n < 2 || s.GetMarks()[n-1].GetStep() != 30 || s.GetMarks()[n-2].GetStep() != 25 || s.GetMarks()[n-1].GetProductiveMs() != s.GetProductiveMs() {
		t.Errorf("the newest checkpoints are %v, of %d ms", s.GetMarks(), s.GetProductiveMs())
	}
	if s.GetEvaluationMs() < last["w1"].GetEvaluationMs() {
		t.Errorf("%d ms of evaluation with the last one, %d before", s.GetEvaluationMs(), last["w1"].GetEvaluationMs())
	}
}
