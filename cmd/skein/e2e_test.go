package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/shard"
	"github.com/skein-ml/skein/worker/workertest"
)

// asProgram makes the test binary the program: a process of its own, with the
// signals, exit statuses and files of the real one, and with invariants on.
const asProgram = "SKEIN_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	if os.Getenv(asSpinner) != "" {
		spin()
	}
	namespaced()
	os.Exit(m.Run())
}

// process is a skein under way. What it prints is read while it runs.
type process struct {
	cmd      *exec.Cmd
	out, err transcript
	started  time.Time
	done     chan struct{} // closed when it has ended
	failure  error         // then: of waiting, or the exit status
}

// start runs a command line in the job's folder.
func start(t *testing.T, j workertest.Job, args ...string) *process {
	t.Helper()
	return startBy(t, j, nil, args...)
}

// startBy is start by means of another command line, which becomes the program.
func startBy(t *testing.T, j workertest.Job, by []string, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	line := append(append(slices.Clone(by), self), args...)
	p := &process{cmd: exec.Command(line[0], line[1:]...), started: time.Now(), done: make(chan struct{})}
	p.cmd.Dir = j.Dir
	p.cmd.Env = append(os.Environ(), asProgram+"=1", "XDG_CACHE_HOME="+j.Path("cache"))
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.err
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.failure = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // of a test that has failed; the others have waited
		<-p.done
	})
	return p
}

// wait returns the exit status, −1 for a process that a signal has ended.
func (p *process) wait(t *testing.T) int {
	t.Helper()
	<-p.done
	if _, exited := errors.AsType[*exec.ExitError](p.failure); p.failure != nil && !exited {
		t.Fatal(p.failure)
	}
	return p.cmd.ProcessState.ExitCode()
}

// program runs a command line to its end.
func program(t *testing.T, j workertest.Job, args ...string) (status int, out, errs string) {
	t.Helper()
	p := start(t, j, args...)
	status = p.wait(t)
	return status, p.out.String(), p.err.String()
}

// mustRun is program for a command that has to succeed; it returns what was printed.
func mustRun(t *testing.T, j workertest.Job, args ...string) string {
	t.Helper()
	status, out, errs := program(t, j, args...)
	if status != exitOK || errs != "" {
		t.Fatalf("skein %s: status %d, printed %q, %q", strings.Join(args, " "), status, out, errs)
	}
	return out
}

// event is what a line of -o json may hold.
type event struct {
	Event        string
	Step, From   int64
	Loss         float64
	Targets      int64
	WeightsHash  string
	LossAfter    float64
	Text, Answer string
}

// events reads what -o json printed; a last line that a kill has cut is left out.
func events(t *testing.T, out string) (list []event) {
	t.Helper()
	for line := range strings.Lines(out) {
		if !strings.HasSuffix(line, "\n") {
			break
		}
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		list = append(list, e)
	}
	return list
}

// last is the last event of a name; its Event is "" if there was none.
func last(list []event, name string) (found event) {
	for _, e := range list {
		if e.Event == name {
			found = e
		}
	}
	return found
}

// outcome is all that a finished job leaves and that must not depend on how it ran.
type outcome struct {
	Hash    string            // of the final weights
	Export  map[string]string // SHA-256 of each file
	Chain   []checkpoint.Link // every published step
	Steps   []checkpoint.StepRecord
	Results []checkpoint.Result
}

// finished reads the outcome of a job and checks that nothing else lies around.
func finished(t *testing.T, j workertest.Job) outcome {
	t.Helper()
	l, err := checkpoint.ReadLineage(vfs.OS, j.Path("checkpoints/lineage.json"))
	if err != nil {
		t.Fatal(err)
	}
	o := outcome{Export: sums(t, j.Path("trained")), Chain: l.Chain, Steps: l.Steps, Results: l.Results}
	o.Hash = l.Chain[len(l.Chain)-1].Weights.String()
	steps, leftovers, err := checkpoint.Published(vfs.OS, j.Path("checkpoints"))
	if err != nil || len(steps) > 3 || len(leftovers) > 0 {
		t.Errorf("checkpoints of steps %v and unfinished ones of %v are left (%v), want the newest three", steps, leftovers, err)
	}
	noTemporary(t, j)
	return o
}

// sums hashes every file below a folder.
func sums(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		found[name] = shard.Digest(sha256.Sum256(text)).String()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// noTemporary fails if a half-written file or folder is left. Data that was being
// prepared when its process was killed may stay: the next day's run removes it.
func noTemporary(t *testing.T, j workertest.Job) {
	t.Helper()
	err := filepath.WalkDir(j.Dir, func(path string, d fs.DirEntry, err error) error {
		name := filepath.Base(path)
		if strings.HasPrefix(name, ".preparing-") {
			return fs.SkipDir
		}
		if strings.HasSuffix(name, ".tmp") || strings.HasSuffix(name, ".partial") {
			t.Errorf("%s is left", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTheSameJobEndsOnTheSameBitsHoweverItIsRun(t *testing.T) {
	j := workertest.New(t)
	run := func(settings ...string) outcome {
		args := []string{"train", "-f", "job.yaml", "-o", "json", "--set", "train.steps=20"}
		for _, s := range settings {
			args = append(args, "--set", s)
		}
		fresh := j.Copy(t)
		done := last(events(t, mustRun(t, fresh, args...)), "done")
		o := finished(t, fresh)
		if done.WeightsHash != o.Hash {
			t.Errorf("%v: the last line says weights %s, the lineage %s", settings, done.WeightsHash, o.Hash)
		}
		return o
	}
	want := run()
	for _, settings := range [][]string{
		{"cluster.zero=0"}, {"resources.threads=1"}, {"resources.threads=4"}, {"train.microBatch=1"}, {"train.microBatch=2"},
		{"train.activationCheckpointing=full"},
		{"cluster.zero=0", "train.microBatch=2", "resources.threads=1", "train.activationCheckpointing=full"},
	} {
		got := run(settings...)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%v changes what comes out:\n%s", settings, diff)
		}
	}
}

func TestCtrlCStopsInGoodOrderAndTheSameCommandGoesOn(t *testing.T) {
	j := workertest.New(t)
	want := func() outcome {
		other := j.Copy(t)
		mustRun(t, other, "train", "-f", "job.yaml")
		return finished(t, other)
	}()
	p := start(t, j, "train", "-f", "job.yaml", "-o", "json")
	p.out.waitFor(t, `"event":"step","step":12,`)
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if status := p.wait(t); status != exitInterrupted {
		t.Errorf("status %d, want %d", status, exitInterrupted)
	}
	step := last(events(t, p.out.String()), "step").Step
	said := p.err.String()
	if strings.Count(said, "\n") != 1 || !strings.Contains(said, "the same command goes on") {
		t.Errorf("printed %q, want one line that says how to go on", said)
	}
	if _, err := os.Stat(j.Path("trained")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an interrupted job has exported: %v", err)
	}
	again := events(t, mustRun(t, j, "train", "-f", "job.yaml", "-o", "json"))
	if from := last(again, "running").From; from != step {
		t.Errorf("went on from step %d, the run before had reached %d", from, step)
	}
	got := finished(t, j)
	if got.Hash != want.Hash || !cmp.Equal(got.Export, want.Export) || !cmp.Equal(got.Steps, want.Steps) || !cmp.Equal(got.Results, want.Results) {
		t.Errorf("after an interruption at step %d: %s", step, cmp.Diff(want, got))
	}
}

func TestASecondRunOfAJobIsKeptOutOfItsStore(t *testing.T) {
	j := workertest.New(t)
	first := start(t, j, "train", "-f", "job.yaml", "-o", "json")
	first.out.waitFor(t, `"event":"step","step":2,`)
	if err := first.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	status, _, errs := program(t, j, "train", "-f", "job.yaml")
	if status != exitFailure || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, "another run trains into") {
		t.Errorf("status %d, printed %q", status, errs)
	}
	if err := first.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if status := first.wait(t); status != exitOK {
		t.Errorf("the first run: status %d, printed %q", status, first.err.String())
	}
	finished(t, j)
}

func TestAGGUFFileIsImportedTrainedExportedAskedAndMeasured(t *testing.T) {
	j := workertest.New(t)
	workertest.Model{}.WriteGGUF(t, j.Path("model.gguf"))
	mustRun(t, j, "import", "model.gguf", "imported", "--dtype", "fp32")
	if got, want := sums(t, j.Path("imported")), sums(t, j.Path("model")); got["model.safetensors"] != want["model.safetensors"] || got["config.json"] != want["config.json"] {
		t.Errorf("the import differs from the same model in a Hugging Face folder:\n%s", cmp.Diff(want, got))
	}
	_, plan, _ := program(t, j, "plan", "-f", "job.yaml", "--set", "model.base=./imported", "--calibrate=false", "-o", "json")
	var planned planReport
	if err := json.Unmarshal([]byte(plan), &planned); err != nil || planned.Steps != 30 || planned.MemoryTotal == 0 {
		t.Errorf("plan: %v, %+v", err, planned)
	}
	trained := events(t, mustRun(t, j, "train", "-f", "job.yaml", "--set", "model.base=./imported", "-o", "json"))
	first, reported := trained[slices.IndexFunc(trained, func(e event) bool { return e.Event == "evaluated" })], last(trained, "evaluated")
	if before, after := first.Loss, reported.Loss; before < 4 || after > 2.5 {
		t.Errorf("held-out loss %.3f → %.3f: nothing was learnt", before, after)
	}
	mustRun(t, j, "export", "checkpoints", "again")
	mustRun(t, j, "export", "checkpoints", "exact", "--dtype", "fp32")
	if diff := cmp.Diff(sums(t, j.Path("trained")), sums(t, j.Path("again"))); diff != "" {
		t.Errorf("the last checkpoint's export is not the run's:\n%s", diff)
	}
	for _, dir := range []string{"trained", "exact"} { // the compute type rounds the second one as the export the first
		out := mustRun(t, j, "eval", dir, "heldout.jsonl", "--sequence-length", "48", "--exact-match", "4", "-o", "json")
		if got := last(events(t, out), "evaluated"); got.Loss != reported.Loss || got.Targets != reported.Targets {
			t.Errorf("%s has a held-out loss of %v over %d targets, the run reported %v over %d", dir, got.Loss, got.Targets, reported.Loss, reported.Targets)
		}
	}
	answer := mustRun(t, j, "generate", "trained", "seat", "--max-new-tokens", "12")
	if again := mustRun(t, j, "generate", "exact", "seat", "--max-new-tokens", "12", "--threads", "1"); again != answer || strings.Count(answer, "-") < 2 {
		t.Errorf("answers %q and %q, want a spelt word, twice the same", answer, again)
	}
}

// transcript is what a process has printed so far. It is safe for concurrent use.
type transcript struct {
	mu   sync.Mutex
	text strings.Builder
}

// Write implements io.Writer.
func (l *transcript) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *transcript) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// waitFor returns once the text has been printed.
func (l *transcript) waitFor(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !strings.Contains(l.String(), text); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%q was not printed in a minute; all there is: %q", text, l.String())
		}
	}
}
