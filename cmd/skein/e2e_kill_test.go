package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/worker/workertest"
)

// killer runs one job many times, kills it at random moments, and lets it go on.
type killer struct {
	t     *testing.T
	rng   *rand.Rand
	job   workertest.Job
	want  outcome       // of the undisturbed run
	whole time.Duration // that the undisturbed run took

	kills, inside int // so far: kill -9s that hit a live process, and those inside a checkpoint write
	total         int // to come to
	loud          bool
}

func TestAKilledJobEndsOnTheUndisturbedHash(t *testing.T) {
	k := newKiller(t)
	for attempts := 0; k.kills < k.total || k.inside < k.insideWanted(); attempts++ {
		if attempts > 4*k.total {
			t.Fatalf("%d runs, but only %d kills, %d of them inside a checkpoint write", attempts, k.kills, k.inside)
		}
		k.trial()
	}
	k.say("kills ok: kills=%d inside_checkpoint=%d hash=%s", k.kills, k.inside, k.want.Hash)
}

// newKiller takes SKEIN_KILLS, how many kills, and SKEIN_SEED, of their moments.
func newKiller(t *testing.T) *killer {
	t.Helper()
	k := &killer{t: t, job: workertest.New(t), total: 5}
	if text := os.Getenv("SKEIN_KILLS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("SKEIN_KILLS is %q; give a number from 1 up", text)
		}
		k.total, k.loud = n, true
	}
	seed := rand.Uint64()
	if text := os.Getenv("SKEIN_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("SKEIN_SEED is %q; give a whole number", text)
		}
	}
	k.rng = rand.New(rand.NewPCG(seed, 0))
	undisturbed := k.job.Copy(t)
	p := start(t, undisturbed, "train", "-f", "job.yaml")
	if status := p.wait(t); status != exitOK {
		t.Fatalf("undisturbed: status %d, printed %q", status, p.err.String())
	}
	k.whole = time.Since(p.started)
	k.want = finished(t, undisturbed)
	k.say("seed %d; undisturbed: %v, weights %s; again with SKEIN_KILLS=%d SKEIN_SEED=%d make kills", seed, k.whole.Round(time.Millisecond), k.want.Hash, k.total, seed)
	return k
}

// insideWanted is how many kills must fall inside a checkpoint write.
func (k *killer) insideWanted() int { return (k.total + 4) / 5 }

func (k *killer) say(format string, args ...any) {
	if k.loud {
		fmt.Printf(format+"\n", args...)
		return
	}
	k.t.Logf(format, args...)
}

// trial takes the job from nothing to its end, with kills on the way.
func (k *killer) trial() {
	k.t.Helper()
	j := k.job.Copy(k.t)
	reached := int64(0) // step of the newest checkpoint that was seen published
	for {
		before := unfinished(k.t, j)
		p := start(k.t, j, "train", "-f", "job.yaml", "-o", "json")
		when := k.strike(j, p, before)
		status, after := p.wait(k.t), time.Since(p.started)
		seen := events(k.t, p.out.String())
		if from := last(seen, "running"); from.Event != "" && from.From < reached {
			k.t.Errorf("went on from step %d, though step %d was published", from.From, reached)
		}
		if status >= 0 { // it came to its end before the kill did
			if status != exitOK {
				k.t.Fatalf("after %d kills: status %d, printed %q", k.kills, status, p.err.String())
			}
			break
		}
		k.kills++
		at := k.scene(j, before)
		if at.writing > 0 {
			k.inside++
		}
		reached = max(reached, last(seen, "published").Step)
		k.say("kill %d/%d: %s; hit after %v, at step %d, %s", k.kills, k.total, when, after.Round(time.Millisecond), last(seen, "step").Step, at)
		if at.exported { // nothing was left to do but to say so
			break
		}
	}
	if diff := cmp.Diff(k.want, finished(k.t, j)); diff != "" {
		k.t.Errorf("after kills the job ends elsewhere:\n%s", diff)
	}
}

// strike kills the process at a moment drawn over the whole run, or inside one of
// its checkpoint writes, and says what was drawn. Now and then it lets the process run.
func (k *killer) strike(j workertest.Job, p *process, before files) string {
	lacking := k.insideWanted() - k.inside
	switch {
	case lacking > 0 && (k.kills+lacking >= k.total || k.rng.IntN(3) == 0):
		write, objects := k.rng.IntN(5), k.rng.IntN(7)
		k.watch(j, p, before, write, objects)
		return fmt.Sprintf("drawn write %d, file %d", write+1, objects)
	case k.kills < k.total && k.rng.IntN(4) > 0:
		moment := time.Duration(k.rng.Int64N(int64(k.whole)))
		select {
		case <-time.After(time.Until(p.started.Add(moment))):
			_ = p.cmd.Process.Kill() // fails if it has ended, which wait will show
		case <-p.done:
		}
		return fmt.Sprintf("drawn %v", moment.Round(time.Millisecond))
	}
	return "let run"
}

// watch kills the process when it has begun so many checkpoint writes, and has that
// many files of the last one.
func (k *killer) watch(j workertest.Job, p *process, before files, writes, objects int) {
	seen := map[int64]bool{}
	for {
		select {
		case <-p.done:
			return
		case <-time.After(50 * time.Microsecond):
		}
		step, n := unfinished(k.t, j).since(before)
		if step < 0 {
			continue
		}
		if seen[step] = true; len(seen) > writes && n >= objects {
			_ = p.cmd.Process.Kill() // as above
			return
		}
	}
}

// files are those of checkpoints that have no manifest yet, with size and time of
// their last change; the folders themselves are among them.
type files map[string]string

// unfinished lists them. Those of steps before a published one are left out: they are
// being removed.
func unfinished(t *testing.T, j workertest.Job) files {
	t.Helper()
	published, leftovers, err := checkpoint.Published(vfs.OS, j.Path("checkpoints"))
	if err != nil {
		t.Fatal(err)
	}
	found := files{}
	for _, step := range leftovers {
		if len(published) > 0 && step < published[len(published)-1] {
			continue
		}
		folder := fmt.Sprintf("step-%08d", step)
		found[folder] = ""
		entries, _ := os.ReadDir(j.Path("checkpoints/" + folder)) // gone by now: none
		for _, e := range entries {
			if info, err := e.Info(); err == nil {
				found[folder+"/"+e.Name()] = fmt.Sprint(info.Size(), info.ModTime().UnixNano())
			}
		}
	}
	return found
}

// since is the step that has been worked at since before was listed, -1 for none, and
// how many of its files have been.
func (f files) since(before files) (step int64, n int) {
	step = -1
	for name, stamp := range f {
		if was, ok := before[name]; ok && was == stamp {
			continue
		}
		folder, file, _ := strings.Cut(name, "/")
		if _, err := fmt.Sscanf(folder, "step-%d", &step); err != nil {
			panic(err) // as listed
		}
		if file != "" {
			n++
		}
	}
	return step, n
}

// scene is what a kill has left behind.
type scene struct {
	step      int64 // whose checkpoint was being written
	writing   int   // files and folders of it that are there, 0: none was
	exporting bool
	exported  bool
	preparing bool
}

func (k *killer) scene(j workertest.Job, before files) scene {
	there := func(pattern string) bool {
		found, _ := filepath.Glob(j.Path(pattern)) // the patterns are good
		return len(found) > 0
	}
	s := scene{exporting: there(".trained.*.partial"), exported: there("trained")}
	s.preparing = !there("checkpoints/lineage.json")
	var n int
	if s.step, n = unfinished(k.t, j).since(before); s.step >= 0 {
		s.writing = n + 1
	}
	return s
}

func (s scene) String() string {
	switch {
	case s.writing > 0:
		return fmt.Sprintf("inside the checkpoint of step %d with %d of its files", s.step, s.writing-1)
	case s.exporting:
		return "inside the export"
	case s.exported:
		return "after the export"
	case s.preparing:
		return "before the first step was prepared"
	}
	return "between writes"
}
