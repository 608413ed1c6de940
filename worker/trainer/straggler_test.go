package trainer

import (
	"testing"
	"time"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/model/modeltest"
	"github.com/skein-ml/skein/shard"
)

func TestAStragglerIsTheRankThatAllOthersWaitForStepAfterStep(t *testing.T) {
	const ms = time.Millisecond
	votes := func(compute ...time.Duration) (list []allreduce.Vote) {
		for r, d := range compute {
			list = append(list, allreduce.Vote{Rank: shard.Rank(r), Data: ms, Compute: d})
		}
		return list
	}
	for _, c := range []struct {
		name  string
		steps [][]allreduce.Vote // the last one is repeated until the rank would be named
		want  *Straggler
	}{
		{"all alike", [][]allreduce.Vote{votes(100*ms, 110*ms, 90*ms, 140*ms)}, nil},
		{"one computes twice as long", [][]allreduce.Vote{votes(99*ms, 99*ms, 199*ms, 99*ms)}, &Straggler{Rank: 2, Times: 2, Steps: slowSteps}},
		{"one of two", [][]allreduce.Vote{votes(99*ms, 299*ms)}, &Straggler{Rank: 1, Times: 3, Steps: slowSteps}},
		{"a slow machine with half of the ranks", [][]allreduce.Vote{votes(99*ms, 99*ms, 199*ms, 249*ms)}, &Straggler{Rank: 3, Times: 2.5, Steps: slowSteps}},
		{"one that was slow once in a while", [][]allreduce.Vote{votes(99*ms, 299*ms, 99*ms), votes(99*ms, 299*ms, 99*ms), votes(99*ms, 99*ms, 99*ms)}, nil},
		{"one that waits for its data", [][]allreduce.Vote{func() []allreduce.Vote {
			v := votes(99*ms, 99*ms, 99*ms)
			v[0].Data = 201 * ms
			return v
		}()}, &Straggler{Rank: 0, Data: true, Times: 3, Steps: slowSteps}},
		{"nobody has measured", [][]allreduce.Vote{make([]allreduce.Vote, 3)}, nil},
	} {
		var l laggards
		for step := range slowSteps - 1 {
			if s, found := l.look(c.steps[min(step, len(c.steps)-1)]); found {
				t.Errorf("%s: %+v is named after %d steps", c.name, s, step+1)
			}
		}
		s, found := l.look(c.steps[len(c.steps)-1])
		if found != (c.want != nil) || found && s != *c.want {
			t.Errorf("%s: %+v, %t; want %+v", c.name, s, found, c.want)
		}
	}
}

func TestRankZerosWorkerNamesTheWorkerOfTheStraggler(t *testing.T) {
	g := golden{modeltest.Load(t, "llama-tied-gqa")}
	m := newTeam(t, func(int) device.Device { return newDevice(t, "generic", 1) }, g, g.config(4, 4), 2)
	tr := m.trainers[0]
	var votes []allreduce.Vote
	for r := range shard.Rank(4) {
		votes = append(votes, allreduce.Vote{Step: 1, Rank: r, SqNorms: make([]float64, tr.table.Buckets()), Loss: 1, Tokens: 1, Finite: true, Compute: time.Second})
	}
	votes[3].Compute *= 4
	for step := range slowSteps {
		if tr.slowest != nil {
			t.Errorf("%+v is named after %d steps", tr.slowest, step)
		}
		if _, err := tr.Decide(votes); err != nil {
			t.Fatal(err)
		}
	}
	if want := (Straggler{Rank: 3, Worker: 1, Times: 4, Steps: slowSteps}); tr.slowest == nil || *tr.slowest != want {
		t.Errorf("%+v, want %+v", tr.slowest, want)
	}
}
