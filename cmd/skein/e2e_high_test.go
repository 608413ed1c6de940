package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/skein-ml/skein/device/cpu"
	"github.com/skein-ml/skein/worker/workertest"
)

func TestPrecisionHighTrainsOrSaysWhyNot(t *testing.T) {
	t.Parallel()
	use := slices.ContainsFunc(cpu.HighPaths(), func(p cpu.PathStatus) bool { return p.Available && p.Behind == "" })
	j := workertest.New(t)
	status, out, errs := program(t, j, "train", "-f", "job.yaml", "--set", "train.precision=high", "--set", "train.steps=4")
	switch {
	case use && (status != 0 || !strings.Contains(out, "-high r")):
		t.Errorf("status %d, printed %q and %q", status, out, errs)
	case !use && (status != exitFailure || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, "precision high is of no use here") ||
		!strings.Contains(errs, "use fp32 or bf16")):
		t.Errorf("status %d, printed %q", status, errs)
	}
}

func TestPrecisionHighTrainsOnTheKernelsThatAreAskedFor(t *testing.T) {
	t.Parallel()
	for _, p := range cpu.HighPaths() {
		t.Run(p.Name, func(t *testing.T) {
			if !p.Available {
				t.Skipf("SKIPPED: this machine lacks %s", p.Why)
			}
			j := workertest.New(t)
			status, out, errs := program(t, j, "train", "-f", "job.yaml", "--set", "train.precision=high", "--set", "train.numericClass="+p.Name, "--set", "train.steps=4")
			if status != 0 || !strings.Contains(out, "bits: "+p.Class) {
				t.Errorf("status %d, printed %q and %q", status, out, errs)
			}
		})
	}
}
