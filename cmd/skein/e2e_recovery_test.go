package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/worker/workertest"
)

// Sizes of the benchmark: a model of 6.8 million parameters whose steps are made as long as
// is asked for by the number of their sequences.
const (
	benchWorkers   = 4
	benchRanks     = 8
	benchKillMean  = time.Minute
	benchDownMost  = 2 * time.Second // until a killed worker is started again
	benchPatience  = 5 * time.Minute
	benchUndisturb = 8 // steps that are timed before the first kill, and after the last
)

var benchModel = workertest.Model{Hidden: 256, Layers: 8, MLP: 1024}

// TestBenchRecovery is our side of `make bench-recovery`: real processes, kill -9 of a worker
// once a minute in the mean, at moments drawn from a seed, each started again shortly after.
// SKEIN_BENCH_RECOVERY is the minutes, SKEIN_BENCH_STEP the seconds of a step.
func TestBenchRecovery(t *testing.T) {
	if os.Getenv("SKEIN_BENCH_RECOVERY") == "" {
		t.Skip("a benchmark of many minutes; run `make bench-recovery`")
	}
	b := &recoveryBench{rig: benchRig(t), want: seconds(t, "SKEIN_BENCH_STEP", 1)}
	b.api = b.client()
	minutes := seconds(t, "SKEIN_BENCH_RECOVERY", 10) * 60
	seed := number(t, "SKEIN_BENCH_SEED", 1)
	b.rng = rand.New(rand.NewPCG(seed, 2))
	batch := b.calibrate()
	id := b.submit(b.settings(batch)...)
	b.next(id)
	before := b.undisturbed(id)
	began, from := b.snapshot(id)
	kills := b.storm(id, minutes)
	ended, to := b.snapshot(id)
	after := b.undisturbed(id)
	b.must("cancel", id)

	wall := ended.Sub(began).Seconds()
	step := (before + after) / 2
	spent := difference(*from.Goodput, *to.Goodput)
	fmt.Printf("recovery-%gs skein: step %.2f s undisturbed before, %.2f after; %d sequences a step; %d kills in %.0f s; steps %d; generations %d; %s; capacity %.3f\n",
		b.want, before, after, batch, kills, wall, to.Step-from.Step, to.Generation-from.Generation, goodput(spent), spent.Capacity)
	fmt.Printf("bench recovery-%gs ours=%.1f unit=%% by=ledger kills=%d\n", b.want, 100*spent.Share, kills)
	fmt.Printf("bench recovery-%gs-counted ours=%.1f unit=%% by=steps_x_undisturbed_time kills=%d\n", b.want, 100*float64(to.Step-from.Step)*step/wall, kills)
	if short := spent.Wall - wall; short > .005*wall+1 || short < -.005*wall-1 {
		t.Errorf("the ledger accounts for %.1f s of %.1f", spent.Wall, wall)
	}
}

// difference is where the time between two looks at a job went.
func difference(from, to client.Goodput) client.Goodput {
	to.Wall -= from.Wall
	to.Preparing -= from.Preparing
	to.Productive -= from.Productive
	to.Recovery -= from.Recovery
	to.Rework -= from.Rework
	to.Checkpoint -= from.Checkpoint
	to.DataWait -= from.DataWait
	to.Evaluation -= from.Evaluation
	to.Paused -= from.Paused
	to.Share = to.Productive / to.Wall
	return to
}

// accounted checks that the ledger of a job that is over adds up to its wall time.
func (r *rig) accounted(id string) client.Goodput {
	r.Helper()
	v := r.describe(id)
	if v.Goodput == nil {
		r.Fatalf("%s has no ledger", id)
	}
	g, wall := *v.Goodput, v.Changed.Sub(v.Submitted).Seconds()
	if g.Wall < .995*wall || g.Wall > 1.005*wall || g.Productive <= 0 || g.Preparing <= 0 {
		r.Errorf("of %.3f s the ledger tells %+v", wall, g)
	}
	return g
}

// recoveryBench is a run of it on a cluster.
type recoveryBench struct {
	*rig
	rng  *rand.Rand
	api  *client.Client
	want float64 // seconds of a step
}

func benchRig(t *testing.T) *rig {
	j := workertest.New(t)
	j.Model(t, benchModel)
	j.Write(t, "train.jsonl", workertest.Rows(1, 4000))
	return newRig(t, j, faultCoordinators, benchWorkers)
}

// seconds is what a variable of the environment says.
func seconds(t *testing.T, name string, otherwise float64) float64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	x, err := strconv.ParseFloat(text, 64)
	if err != nil || x <= 0 {
		t.Fatalf("%s is %q, want a number above zero", name, text)
	}
	return x
}

func (b *recoveryBench) settings(batch int) []string {
	every := max(1, int(30/b.want)) // a checkpoint in half a minute
	return []string{
		"train.steps=1000000", fmt.Sprint("cluster.worldSize=", benchRanks), fmt.Sprint("train.globalBatch=", batch), "train.microBatch=1",
		"cluster.protect=mirror", "cluster.workers.min=1", fmt.Sprint("cluster.workers.max=", benchWorkers), fmt.Sprintf("checkpoint.every=%d steps", every),
		"eval.every=1000000 steps", "eval.exactMatch=0", "train.precision=fp32",
	}
}

// look is the job as the leader tells it now.
func (b *recoveryBench) look(id string) (v client.Job) {
	b.Helper()
	b.eventually("the leader answers", func() bool {
		got, err := b.api.Get(b.Context(), id)
		if err == nil {
			v = client.View(got.GetJob())
		}
		return err == nil
	})
	return v
}

// undisturbed is the mean time of a few steps while nothing happens.
func (b *recoveryBench) undisturbed(id string) float64 {
	b.Helper()
	b.eventually("all workers train", func() bool { return len(b.look(id).Workers) == benchWorkers })
	first := b.next(id)
	for range benchUndisturb - 1 {
		b.next(id)
	}
	last := b.next(id)
	return last.Sub(first).Seconds() / benchUndisturb
}

// next waits until the job has taken a step more, and returns the moment.
func (b *recoveryBench) next(id string) time.Time {
	b.Helper()
	from := b.look(id).Step
	for deadline := time.Now().Add(benchPatience); ; time.Sleep(10 * time.Millisecond) {
		if b.look(id).Step > from {
			return time.Now()
		}
		if time.Now().After(deadline) {
			b.Fatalf("no step after step %d\n%s", from, b.logs())
		}
	}
}

// snapshot is the job at a step boundary.
func (b *recoveryBench) snapshot(id string) (time.Time, client.Job) {
	b.Helper()
	at := b.next(id)
	v := b.look(id)
	if v.Goodput == nil {
		text, _ := json.Marshal(v)
		b.Fatalf("the job has no ledger: %s", text)
	}
	return at, v
}

// calibrate finds how many sequences make a step of the length that is asked for.
func (b *recoveryBench) calibrate() int {
	b.Helper()
	batch := benchRanks
	for range 3 {
		id := b.submit(b.settings(batch)...)
		b.next(id)
		took := b.undisturbed(id)
		b.must("cancel", id)
		share := float64(batch/benchRanks) * b.want / took
		if next := benchRanks * max(1, int(share+.5)); next == batch {
			break
		} else {
			batch = next
		}
	}
	return batch
}

// storm kills workers for so many seconds and starts them again.
func (b *recoveryBench) storm(id string, length float64) (kills int) {
	b.Helper()
	end := time.Now().Add(time.Duration(length * float64(time.Second)))
	for {
		gap := time.Duration(b.rng.ExpFloat64() * float64(benchKillMean))
		if time.Now().Add(gap).After(end) {
			time.Sleep(time.Until(end))
			return kills
		}
		time.Sleep(gap)
		placed := b.look(id).Workers
		if len(placed) == 0 {
			continue // it recovers still: whoever is hit then is not in it
		}
		victim := placed[b.rng.IntN(len(placed))].Worker
		b.kill(victim)
		kills++
		time.Sleep(time.Duration(b.rng.Int64N(int64(benchDownMost))))
		b.worker(victim)
	}
}
