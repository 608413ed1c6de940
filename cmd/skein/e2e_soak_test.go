package main

import (
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/skein-ml/skein/client"
)

// asSpinner makes the test binary keep one core busy for ever.
const asSpinner = "SKEIN_TEST_AS_SPINNER"

func spin() {
	for n := uint64(1); ; n++ {
		if n == 0 { // the compiler is to think that it may end
			return
		}
	}
}

// spinners keep every core busy until the test ends.
func spinners(t *testing.T) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for range runtime.NumCPU() {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), asSpinner+"=1")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill() // it does not end by itself
			_ = cmd.Wait()         // that it was killed is no news
		})
	}
}

// TestNobodyIsAccusedWhileEveryCoreIsBusy trains undisturbed for SKEIN_SOAK minutes (make
// soak): not one generation after the first, not one election.
func TestNobodyIsAccusedWhileEveryCoreIsBusy(t *testing.T) {
	if os.Getenv("SKEIN_SOAK") == "" {
		t.Skip("SKIPPED: it takes minutes; make soak")
	}
	minutes := number(t, "SKEIN_SOAK", 0)
	spinners(t)
	r := newRig(t, clusterJob(t), 3, 4)
	c := r.client()
	term := r.term(c)
	id := r.submit("train.steps=100000000", "checkpoint.every=2000 steps", "cluster.protect=mirror", "cluster.workers.min=4", "eval.every=1000000 steps")
	r.at(id, 1)
	began, step, moved := time.Now(), int64(0), time.Now()
	for time.Since(began) < time.Duration(minutes)*time.Minute {
		time.Sleep(time.Second)
		got, err := c.Get(r.Context(), id)
		if err != nil {
			r.Fatalf("after %v: %v\n%s", time.Since(began).Round(time.Second), err, r.logs())
		}
		v := client.View(got.GetJob())
		if v.Generation != 1 || v.Phase != "running" {
			r.Fatalf("after %v the job is %s in generation %d: %s\n%s\n%s", time.Since(began).Round(time.Second), v.Phase, v.Generation, v.Reason, r.must("describe", id), r.logs())
		}
		if now := r.term(c); now != term {
			r.Fatalf("after %v the coordinators are in term %d, before in %d\n%s", time.Since(began).Round(time.Second), now, term, r.logs())
		}
		if v.Step > step {
			step, moved = v.Step, time.Now()
		}
		if time.Since(moved) > patience {
			r.Fatalf("no step after %d for %v\n%s", step, time.Since(moved), r.logs())
		}
	}
	r.must("cancel", id)
	say("soak ok: minutes=%d generations=1 elections=0 steps=%d cores=%d", minutes, step, runtime.NumCPU())
}

// term is that of the coordinators, which rises with each election.
func (r *rig) term(c *client.Client) (term uint64) {
	r.Helper()
	for _, s := range c.Statuses(r.Context()) {
		if s.Fault != "" {
			r.Fatalf("%s: %s\n%s", s.ID, s.Fault, r.logs())
		}
		term = max(term, s.Term)
	}
	return term
}
