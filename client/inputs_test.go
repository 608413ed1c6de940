package client

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/jobspec"
)

func TestAJobThatCannotWorkIsRefusedWithAllThatIsWrong(t *testing.T) {
	dir := t.TempDir()
	job := &jobspec.Job{Name: "tiny"}
	job.Model.Base = filepath.Join(dir, "model")
	job.Data.Train = []string{filepath.Join(dir, "train.jsonl"), filepath.Join(dir, "more*.jsonl")}
	job.Data.Validation.Paths = []string{filepath.Join(dir, "heldout.jsonl")}
	job.Output.Export = filepath.Join(dir, "out")
	folder := func(name string) {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	folder("out")
	s, err := NewSubmission(job)
	if err != nil {
		t.Fatal(err)
	}
	var invalid *jobspec.Invalid
	if err := s.Check(vfs.OS); !errors.As(err, &invalid) || len(invalid.Problems) != 5 {
		t.Fatalf("got %v, want five problems", err)
	}
	for i, want := range []string{"model.base: " + job.Model.Base, "data.train: " + job.Data.Train[0], "more*.jsonl", "data.validation: ", "output.export: "} {
		if got := invalid.Problems[i].String(); !strings.Contains(got, want) {
			t.Errorf("problem %d is %q, want %q in it", i, got, want)
		}
	}
	if !Missing(vfs.OS, job) {
		t.Error("nothing is missing")
	}
	if err := s.Repeat("0123456789abcdef"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"model", "train.jsonl", "more1.jsonl", "heldout.jsonl"} {
		if os.WriteFile(filepath.Join(dir, name), nil, 0o644) != nil {
			t.Fatal(name)
		}
	}
	if err := s.Check(vfs.OS); err != nil {
		t.Errorf("the output may be that of the try before: %v", err)
	}
}
