package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/worker/workertest"
)

// chaosJob is one that takes some seconds, with a checkpoint every few steps.
var chaosJob = []string{"train.steps=120", "checkpoint.every=8 steps", "eval.every=40 steps"}

// TestEveryProcessIsKilledAtAnyMomentAndTheJobEndsOnTheSameBits kills all coordinators
// and workers at once, again and again, each time at another moment, and starts them
// again. SKEIN_CHAOS is how often (make chaos), SKEIN_CHAOS_SEED repeats a run.
func TestEveryProcessIsKilledAtAnyMomentAndTheJobEndsOnTheSameBits(t *testing.T) {
	kills, seed := 2, uint64(time.Now().UnixNano())
	if text := os.Getenv("SKEIN_CHAOS"); text != "" {
		var err error
		if kills, err = strconv.Atoi(text); err != nil || kills < 1 {
			t.Fatalf("SKEIN_CHAOS is %q, want how often to kill", text)
		}
	}
	if text := os.Getenv("SKEIN_CHAOS_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("SKEIN_CHAOS_SEED is %q, want a number", text)
		}
	}
	c := &chaos{T: t, kills: kills, rng: rand.New(rand.NewPCG(seed, 0))}
	began := time.Now()
	c.want, c.export = alone(t, clusterJob(t), chaosJob...)
	c.measure()
	c.say("seed %d; %d times all of three coordinators and four workers; in one process the job ends on weights %.12s", seed, kills, c.want)
	c.say("%4s  %4s  %4s  %8s  %-10s  %5s  %s", "kill", "job", "ZeRO", "moment", "phase", "step", "back after")
	for c.done < kills {
		c.jobs++
		c.life()
	}
	if t.Failed() {
		return
	}
	c.say("chaos ok: %d kills of every process in %d jobs, all ended on weights %.12s (%d s)", kills, c.jobs, c.want, int(time.Since(began).Seconds()))
}

type chaos struct {
	*testing.T
	rng         *rand.Rand
	kills, done int
	jobs        int
	zero        int           // the job's ZeRO stage
	whole       time.Duration // of an undisturbed job
	want        string
	export      map[string]string
}

// say prints a line of the table at once: a long run is watched.
func (c *chaos) say(format string, args ...any) {
	fmt.Printf(format+"\n", args...)
}

// measure runs the job undisturbed, to know how long that takes.
func (c *chaos) measure() {
	r := newRig(c.T, clusterJob(c.T), 3, 4)
	began := time.Now()
	if got := r.wait(c.submit(r)); got != c.want {
		c.Errorf("undisturbed it ends on %s", got)
	}
	c.whole = time.Since(began)
	r.kill(r.everybody()...)
}

// killsPerJob is how often one job is struck before it may end.
const killsPerJob = 5

// life is one job, from a new cluster to its end.
func (c *chaos) life() {
	j := clusterJob(c.T)
	r := newRig(c.T, j, 3, 4)
	began := time.Now()
	var id string
	for strikes := 0; strikes < killsPerJob && c.done < c.kills; strikes++ {
		if id == "" {
			id = c.submit(r)
			began = time.Now()
		}
		span := c.whole
		if strikes > 0 {
			span /= 2 // some of the job is behind it
		}
		time.Sleep(time.Duration(c.rng.Int64N(int64(span))))
		before := c.look(r, id)
		if before.Phase == "done" {
			c.whole = max(c.whole*9/10, time.Second) // too late to count; the machine has become faster
			break
		}
		c.whole += c.whole / 50
		r.kill(r.everybody()...)
		c.done++
		struck := time.Now()
		for i := range r.addresses {
			r.coordinator(i + 1)
		}
		for i := range 4 {
			r.worker(fmt.Sprint("w", i+1))
		}
		c.back(r, id)
		c.say("%4d  %4d  %4d  %7.2fs  %-10s  %5d  %.1f s", c.done, c.jobs, c.zero, time.Since(began).Seconds(), before.Phase, before.Step, time.Since(struck).Seconds())
	}
	if got := r.wait(id); got != c.want {
		c.Errorf("job %d ends on %s, undisturbed on %s", c.jobs, got, c.want)
	}
	if diff := cmp.Diff(c.export, sums(c.T, j.Path("trained"))); diff != "" {
		c.Errorf("job %d exports other files:\n%s", c.jobs, diff)
	}
	noTemporary(c.T, workertest.Job{Dir: j.Path("trained")})
	r.kill(r.everybody()...)
}

// submit is acknowledged: from then on the job must not be lost.
func (c *chaos) submit(r *rig) string {
	c.Helper()
	c.zero = c.rng.IntN(stages)
	return r.submit(append(chaosJob, fmt.Sprint("cluster.zero=", c.zero))...)
}

// look is how a job is at the moment, as far as somebody answers.
func (c *chaos) look(r *rig, id string) client.Job {
	ctx, cancel := context.WithTimeout(c.Context(), time.Second)
	defer cancel()
	api := r.client()
	defer api.Close()
	got, err := api.Get(ctx, id)
	if err != nil {
		return client.Job{Phase: "unknown"}
	}
	return client.View(got.GetJob())
}

// back waits until the job goes on: it takes steps, or is over.
func (c *chaos) back(r *rig, id string) {
	c.Helper()
	api := r.client()
	defer api.Close()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		got, err := api.Get(c.Context(), id)
		if err != nil && strings.Contains(err.Error(), "there is no job") {
			c.Fatalf("job %s was acknowledged and is lost: %v\n%s", id, err, r.logs())
		}
		if j := got.GetJob(); err == nil && (client.Over(j.GetPhase()) || j.GetProgress() != nil && j.GetProgress().GetGeneration() == j.GetGeneration()) {
			return
		}
		if time.Now().After(deadline) {
			c.Fatalf("job %s does not go on: %v, %v\n%s", id, got.GetJob(), err, r.logs())
		}
	}
}
