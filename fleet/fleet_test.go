package fleet

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-ml/skein/internal/leak"
	"github.com/skein-ml/skein/jobspec"
)

func TestMain(m *testing.M) { leak.Main(m) }

func TestSettingsThatAJobCannotChangeAreNamed(t *testing.T) {
	was := `{"train":{"seed":7,"steps":30},"resources":{"threads":2},"cluster":{"worldSize":2,"workers":{"max":2}},"data":{"shuffle":true}}`
	is := `{"train":{"seed":8,"steps":30,"epochs":1},"resources":{"threads":4},"cluster":{"worldSize":2,"workers":{"max":1}},"data":{}}`
	want := []string{"train.epochs was left out and is 1", "train.seed was 7 and is 8", "data.shuffle was true and is left out"}
	if diff := cmp.Diff(want, differing([]byte(was), []byte(is))); diff != "" {
		t.Error(diff)
	}
	if got := listed([]string{"a", "b", "c", "d", "e"}); got != "a, b, c and 2 more" {
		t.Errorf("listed as %q", got)
	}
	if same := differing([]byte(was), []byte(was)); len(same) > 0 {
		t.Errorf("the same job differs in %v", same)
	}
}

func job(t *testing.T) *jobspec.Job {
	t.Helper()
	dir := t.TempDir()
	text := "name: tiny\nmodel: {base: m}\ndata: {train: t.jsonl}\ntrain: {steps: 1, globalBatch: 4, optimizer: {learningRate: 1e-4}}\ncluster: {worldSize: 4, workers: {min: 2, max: 4}}\n"
	if err := os.WriteFile(filepath.Join(dir, "job.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	j, err := jobspec.ReadFile(filepath.Join(dir, "job.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestWorkersThatCannotRunEndTheRunWithTheirLastWords(t *testing.T) {
	c := Config{Job: job(t), Workers: 2, Program: []string{"/bin/sh", "-c", "echo skein: no kernels for this processor >&2; exit 1", "sh"}, Threads: 1, Build: "test"}
	began := time.Now()
	err := Run(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), "cannot run: no kernels for this processor") || time.Since(began) > time.Minute {
		t.Errorf("%v after %s", err, time.Since(began))
	}
}

func TestNumbersOfWorkersThatTheJobCannotUseAreRefused(t *testing.T) {
	for workers, want := range map[int]string{0: "1 to 4", 5: "1 to 4", 1: "cluster.workers.min is 2"} {
		err := Run(t.Context(), Config{Job: job(t), Workers: workers})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%d workers: %v, want %q", workers, err, want)
		}
	}
}

func TestARunThatIsInterruptedBeforeItsJobIsTakenSaysHowToGoOn(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	err := Run(ctx, Config{Job: job(t), Workers: 2, Program: []string{"/bin/false"}, Threads: 1, Build: "test"})
	if _, ok := errors.AsType[*Interrupted](err); !ok || !errors.Is(err, context.Canceled) || err.Error() != "interrupted before it took a step; the same command goes on" {
		t.Errorf("%v", err)
	}
}
