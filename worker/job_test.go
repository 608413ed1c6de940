package worker_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/device/cpu"
	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/model/hf"
	"github.com/skein-ml/skein/worker"
	"github.com/skein-ml/skein/worker/workertest"
)

// site is a tiny job and the file system that it runs on.
type site struct {
	workertest.Job
	fs     vfs.FS
	events []console.Event // of the last run
	onEmit func(console.Event)
}

// run trains the job with some settings changed.
func (s *site) run(ctx context.Context, t testing.TB, settings ...string) (worker.Outcome, error) {
	t.Helper()
	job, err := jobspec.ReadFile(s.File(), settings...)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := cpu.New(cpu.Options{Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	s.events = nil
	env := worker.Env{FS: s.fs, Device: dev, CacheDir: s.Path("cache"), Emit: func(e console.Event) {
		s.events = append(s.events, e)
		if s.onEmit != nil {
			s.onEmit(e)
		}
	}}
	return worker.Train(ctx, env, job)
}

// mustRun is run for a job that has to come to its end.
func (s *site) mustRun(t testing.TB, settings ...string) result {
	t.Helper()
	out, err := s.run(t.Context(), t, settings...)
	if err != nil {
		t.Fatal(err)
	}
	return s.result(t, out)
}

// result is what a job leaves, however it ran.
type result struct {
	Hash    string
	Export  map[string][sha256.Size]byte
	Chain   []checkpoint.Link
	Steps   []checkpoint.StepRecord
	Results []checkpoint.Result
}

func (s *site) result(t testing.TB, out worker.Outcome) result {
	t.Helper()
	l, err := checkpoint.ReadLineage(s.fs, s.Path("checkpoints/lineage.json"))
	if err != nil {
		t.Fatal(err)
	}
	names, err := s.fs.ReadDir(out.Dir)
	if err != nil {
		t.Fatal(err)
	}
	r := result{Hash: out.WeightsHash, Export: map[string][sha256.Size]byte{}, Chain: l.Chain, Steps: l.Steps, Results: l.Results}
	for _, name := range names {
		text, err := vfs.ReadFile(s.fs, filepath.Join(out.Dir, name), 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		r.Export[name] = sha256.Sum256(text)
	}
	return r
}

// notes are the sentences among the events of the last run.
func (s *site) notes() string {
	var b strings.Builder
	for _, e := range s.events {
		if n, ok := e.(console.Note); ok {
			b.WriteString(n.Text + "\n")
		}
	}
	return b.String()
}

// started is the step that the last run went on from.
func (s *site) started() int64 {
	for _, e := range s.events {
		if e, ok := e.(console.Started); ok {
			return e.From
		}
	}
	return -1
}

// inMemory puts a job's data on a file system that forgets what was not synced when
// the power goes. The model is read from the host's.
func inMemory(t testing.TB, j workertest.Job) (*site, *vfs.Mem) {
	t.Helper()
	mem := vfs.NewMem()
	if err := mem.MkdirAll(j.Dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"train.jsonl", "heldout.jsonl"} {
		if err := vfs.WriteFile(mem, j.Path(name), []byte(j.Read(t, name))); err != nil {
			t.Fatal(err)
		}
	}
	if err := mem.SyncDir(j.Dir); err != nil {
		t.Fatal(err)
	}
	return &site{Job: j, fs: mem}, mem
}

// diceFor returns random numbers from a seed that it prints.
func diceFor(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv("SKEIN_SEED"); text != "" {
		if _, err := fmt.Sscan(text, &seed); err != nil {
			t.Fatalf("SKEIN_SEED is %q; give a whole number", text)
		}
	}
	t.Logf("SKEIN_SEED=%d go test -tags invariants -run '^%s$' ./worker", seed, t.Name())
	return rand.New(rand.NewPCG(seed, 0))
}

func TestResumingFromEveryCheckpointEndsOnTheSameBits(t *testing.T) {
	t.Parallel()
	whole := &site{Job: workertest.New(t), fs: vfs.OS}
	want := whole.mustRun(t, "checkpoint.keep=100")
	steps, _, err := checkpoint.Published(vfs.OS, whole.Path("checkpoints"))
	if err != nil || len(steps) != 7 {
		t.Fatalf("checkpoints of steps %v (%v), want seven", steps, err)
	}
	for _, from := range steps {
		s := whole.cut(t, from)
		got := s.mustRun(t, "checkpoint.keep=100")
		if diff := cmp.Diff(want, got); diff != "" || s.started() != from {
			t.Errorf("from step %d (went on from %d):\n%s", from, s.started(), diff)
		}
	}
}

// cut makes a copy of a finished job as if it had been killed right after a step that
// it published.
func (s *site) cut(t testing.TB, step int64) *site {
	t.Helper()
	to := &site{Job: s.Copy(t), fs: vfs.OS}
	workertest.CopyFolder(t, s.Path("checkpoints"), to.Path("checkpoints"))
	steps, _, err := checkpoint.Published(vfs.OS, to.Path("checkpoints"))
	if err != nil {
		t.Fatal(err)
	}
	for _, later := range steps {
		if later <= step {
			continue
		}
		if err := os.RemoveAll(to.Path(fmt.Sprintf("checkpoints/step-%08d", later))); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

func TestEveryKindOfJobResumesOnTheSameBits(t *testing.T) {
	t.Parallel()
	const short = "train.steps=12"
	for _, c := range []struct {
		name     string
		settings []string
		prepare  func(testing.TB, workertest.Job)
	}{
		{"fp32", []string{short, "train.precision=fp32"}, nil},
		{"bf16 between ranks", []string{short, "cluster.wire=bf16"}, nil},
		{"ZeRO-0", []string{short, "cluster.zero=0"}, nil},
		{"ZeRO-3", []string{short, "cluster.zero=3", "cluster.worldSize=4"}, nil},
		{"activation checkpointing", []string{short, "train.activationCheckpointing=full"}, nil},
		{"one rank", []string{short, "cluster.worldSize=1"}, nil},
		{"eight ranks", []string{short, "cluster.worldSize=8"}, nil},
		{"kernels of plain Go", []string{short, "train.numericClass=generic"}, nil},
		{"no packing, order of the file", []string{short, "data.packing=false", "data.shuffle=false"}, nil},
		{"a share held out", []string{short, "data.validation=10%"}, nil},
		{"several epochs", []string{short, "train.globalBatch=32"}, func(t testing.TB, j workertest.Job) { j.Write(t, "train.jsonl", workertest.Rows(1, 80)) }},
		{"epochs, the last batch not full", nil, func(t testing.TB, j workertest.Job) { j.Edit(t, "job.yaml", "steps: 30", "epochs: 0.8") }},
		{"prompt and completion", []string{short}, func(t testing.TB, j workertest.Job) {
			j.Write(t, "train.jsonl", strings.Repeat(workertest.Completion("one two", " three four five"), 200))
			j.Write(t, "heldout.jsonl", workertest.Completion("one two", " three"))
		}},
		{"text", []string{short, "eval.exactMatch=0"}, func(t testing.TB, j workertest.Job) {
			j.Write(t, "train.jsonl", strings.Repeat(`{"text": "the rain in Spain stays mainly in the plain"}`+"\n", 120))
			j.Write(t, "heldout.jsonl", `{"text": "the rain in Spain"}`+"\n")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			whole := &site{Job: workertest.New(t), fs: vfs.OS}
			if c.prepare != nil {
				c.prepare(t, whole.Job)
			}
			settings := append([]string{"checkpoint.keep=100"}, c.settings...)
			want := whole.mustRun(t, settings...)
			s := whole.cut(t, 5)
			if diff := cmp.Diff(want, s.mustRun(t, settings...)); diff != "" || s.started() != 5 {
				t.Errorf("went on from step %d:\n%s", s.started(), diff)
			}
		})
	}
}

func TestWhatNeverChangesABitMayChangeOnTheWay(t *testing.T) {
	t.Parallel()
	whole := &site{Job: workertest.New(t), fs: vfs.OS}
	want := whole.mustRun(t, "checkpoint.keep=100", "train.microBatch=1", "cluster.zero=0")
	for _, settings := range [][]string{
		{"train.microBatch=4", "cluster.zero=1"},
		{"train.microBatch=2", "train.activationCheckpointing=full", "name=renamed", "output.export=./trained"},
	} {
		s := whole.cut(t, 15)
		got := s.mustRun(t, append(settings, "checkpoint.keep=100")...)
		if diff := cmp.Diff(want, got); diff != "" || s.started() != 15 {
			t.Errorf("%v; went on from step %d:\n%s", settings, s.started(), diff)
		}
	}
}

func TestDamagedFilesAreNamedAndTheBitsStayTheSame(t *testing.T) {
	t.Parallel()
	whole := &site{Job: workertest.New(t), fs: vfs.OS}
	want := whole.mustRun(t)
	flip := func(s *site, pattern string) {
		files, err := filepath.Glob(s.Path(pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v", pattern, err)
		}
		text, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		text[len(text)/2] ^= 1
		if err := os.WriteFile(files[0], text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(s *site, pattern string) {
		files, err := filepath.Glob(s.Path(pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v", pattern, err)
		}
		if err := os.Remove(files[0]); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name   string
		damage func(*site)
		from   int64  // step that the run goes on from
		notes  string // what it says
		lost   bool   // measurements are
	}{
		{"an object", func(s *site) { flip(s, "checkpoints/step-00000030/rank-00-master-*.obj") }, 25, "step-00000030/rank-00-master", false},
		{"an object that is gone", func(s *site) { remove(s, "checkpoints/step-00000030/rank-01-v-*.obj") }, 25, "is missing", false},
		{"a manifest", func(s *site) { flip(s, "checkpoints/step-00000030/manifest.json") }, 25, "step-00000030/manifest.json", false},
		{"two checkpoints", func(s *site) {
			flip(s, "checkpoints/step-00000030/rank-00-m-*.obj")
			flip(s, "checkpoints/step-00000025/manifest.json")
		}, 20, "step-00000025", false},
		{"all checkpoints", func(s *site) {
			for _, step := range []string{"20", "25", "30"} {
				flip(s, "checkpoints/step-000000"+step+"/rank-00-m-*.obj")
			}
		}, 0, "step-00000020", false},
		{"the lineage", func(s *site) { flip(s, "checkpoints/lineage.json") }, 30, "lineage.json", true},
		{"a lineage that is gone", func(s *site) { remove(s, "checkpoints/lineage.json") }, 30, "lineage", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := &site{Job: whole.Copy(t), fs: vfs.OS}
			workertest.CopyFolder(t, whole.Path("checkpoints"), s.Path("checkpoints"))
			c.damage(s)
			got := s.mustRun(t)
			if s.started() != c.from || !strings.Contains(s.notes(), c.notes) {
				t.Errorf("went on from step %d, want %d, and said %q, want %q", s.started(), c.from, s.notes(), c.notes)
			}
			if c.lost {
				got.Results = want.Results
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("it ends elsewhere:\n%s", diff)
			}
		})
	}
}

func TestAPowerCutAtAnyMomentEndsOnTheSameBits(t *testing.T) {
	t.Parallel()
	dice := diceFor(t)
	j := workertest.New(t)
	whole, mem := inMemory(t, j)
	counter := vfs.NewFault(mem)
	whole.fs = counter
	want := whole.mustRun(t)
	for range 10 {
		s, mem := inMemory(t, j)
		at := 1 + dice.IntN(counter.Changes())
		s.fs = vfs.NewFault(mem, vfs.CrashAt(at))
		if _, err := s.run(t.Context(), t); !errors.Is(err, vfs.ErrCrashed) {
			t.Fatalf("change %d of %d, %s: %v", at, counter.Changes(), counter.Log()[at-1], err)
		}
		mem.Crash()
		s.fs = mem
		if there, _ := vfs.Exists(mem, s.Path("trained")); there { // it was cut after the export had appeared: that is whole
			folder, err := hf.OpenFS(mem, s.Path("trained"))
			if err != nil {
				t.Fatalf("power cut at change %d, %s: %v", at, counter.Log()[at-1], err)
			}
			folder.Close()
			continue
		}
		got := s.mustRun(t)
		steps, leftovers, err := checkpoint.Published(mem, s.Path("checkpoints"))
		if err != nil || len(steps) > 3 || len(leftovers) > 0 {
			t.Errorf("power cut at change %d: checkpoints of steps %v and unfinished ones of %v are left (%v), want the newest three", at, steps, leftovers, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("power cut at change %d of %d, %s:\n%s", at, counter.Changes(), counter.Log()[at-1], diff)
		}
	}
}

func TestAFullDiskIsOneLineAndCostsNothingPublished(t *testing.T) {
	t.Parallel()
	dice := diceFor(t)
	j := workertest.New(t)
	whole, _ := inMemory(t, j)
	want := whole.mustRun(t)
	const written = 8_000_000 // bytes of a whole run, about
	struck := 0
	for i := range int64(10) {
		s, mem := inMemory(t, j)
		room := (i*written + dice.Int64N(written)) / 10
		s.fs = vfs.NewFault(mem).LimitSpace(room)
		_, err := s.run(t.Context(), t)
		if err == nil {
			continue
		}
		struck++
		if !errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "free") {
			t.Errorf("%d bytes: %v; want one line that says what to free", room, err)
		}
		var published int64
		for _, e := range s.events {
			if e, ok := e.(console.Published); ok {
				published = e.Step
			}
		}
		s.fs = mem
		if there, err := vfs.Exists(mem, s.Path("trained")); there || err != nil {
			t.Errorf("%d bytes: the export is there (%v)", room, err)
		}
		if diff := cmp.Diff(want, s.mustRun(t)); diff != "" || s.started() < published {
			t.Errorf("%d bytes; step %d was published, went on from %d:\n%s", room, published, s.started(), diff)
		}
	}
	if struck < 8 {
		t.Errorf("only %d of 10 runs filled the disk: a run writes less than %d bytes by now", struck, written)
	}
}

func TestAnInterruptionAtAnyMomentPublishesWhatWasTaken(t *testing.T) {
	t.Parallel()
	dice := diceFor(t)
	j := workertest.New(t)
	whole, _ := inMemory(t, j)
	want := whole.mustRun(t)
	total := len(whole.events)
	for range 8 {
		s, _ := inMemory(t, j)
		at, reached := 1+dice.IntN(total-1), int64(0)
		ctx, cancel := context.WithCancel(t.Context())
		s.onEmit = func(e console.Event) {
			if e, ok := e.(console.Step); ok {
				reached = e.Step
			}
			if len(s.events) == at {
				cancel()
			}
		}
		_, err := s.run(ctx, t)
		cancel()
		stopped, ok := errors.AsType[*worker.Interrupted](err)
		if err == nil { // there was nothing left that looks at the context
			continue
		}
		if !ok || !errors.Is(err, context.Canceled) || stopped.Step != reached || strings.Contains(err.Error(), "\n") {
			t.Errorf("interrupted at event %d, step %d: %v", at, reached, err)
		}
		s.onEmit = nil
		got := s.mustRun(t)
		if s.started() != reached {
			t.Errorf("interrupted at event %d: went on from step %d, had reached %d", at, s.started(), reached)
		}
		got.Chain = want.Chain // has the step of the interruption, too
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("interrupted at event %d, step %d:\n%s", at, reached, diff)
		}
	}
}

func TestARefusedJobLeavesNoFileOpen(t *testing.T) {
	files := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		if errors.Is(err, fs.ErrNotExist) {
			t.Skip("this system does not list a process's open files")
		}
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	s := &site{Job: workertest.New(t), fs: vfs.OS}
	if _, err := s.run(t.Context(), t, "train.globalBatch=4096"); err == nil { // the first device may keep something
		t.Fatal("a global batch beyond the data was taken")
	}
	before := files()
	for _, settings := range [][]string{{"train.globalBatch=4096"}, {"data.sequenceLength=65"}, {"data.train=nowhere.jsonl"}, {"model.base=nowhere"}} {
		if _, err := s.run(t.Context(), t, settings...); err == nil {
			t.Errorf("%v was taken", settings)
		}
	}
	s.Model(t, workertest.Model{Vocab: 60_000})
	if _, err := s.run(t.Context(), t, "resources.memory=64MiB"); !worker.IsTooBig(err) {
		t.Errorf("a job beyond its memory: %v", err)
	}
	if after := files(); after > before {
		t.Errorf("%d files are open, %d were", after, before)
	}
}
