package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/internal/console"
)

// planReport is what a job would take.
type planReport struct {
	Name         string     `json:"name"`
	Parameters   int64      `json:"parameters"`
	Architecture string     `json:"architecture"`
	NumericClass string     `json:"numericClass"`
	Examples     int64      `json:"examples"`
	Sequences    int64      `json:"sequences"`
	Tokens       int64      `json:"tokens"`  // of one epoch
	Targets      int64      `json:"targets"` // of one epoch
	Padding      float64    `json:"padding"`
	Steps        int64      `json:"steps"`
	StepTokens   int64      `json:"stepTokens"` // padding included
	Epochs       float64    `json:"epochs"`
	WorldSize    int        `json:"worldSize"`
	MicroBatch   int        `json:"microBatch"`
	Memory       []planPart `json:"memory"` // of the fullest worker, by part
	MemoryTotal  int64      `json:"memoryTotal"`
	MemoryBudget int64      `json:"memoryBudget"`
	DiskBytes    int64      `json:"diskBytes"` // checkpoints kept and the export
	DiskFree     int64      `json:"diskFree"`
	StepSeconds  float64    `json:"stepSeconds,omitempty"` // measured; 0: not asked for
	Notes        []string   `json:"notes,omitempty"`
}

// planPart is one part of a worker's memory.
type planPart struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
}

func newPlan(std streams, eng engine) *cobra.Command {
	var job jobFlags
	var output, cache string
	var calibrate bool
	c := &cobra.Command{
		Use:   "plan -f job.yaml",
		Short: "Say what a job would take, and refuse what cannot fit",
		Long: `Open the job's model, prepare its data, and print tokens, steps, bytes per
worker by part, and the time it would take, from a short calibration on this
machine. Exit status 3 means that the job cannot fit; the line says what would.`,
		Example: `  skein plan -f job.yaml
  skein plan -f job.yaml --set resources.memory=8GiB --calibrate=false`,
		Args: args(),
		RunE: func(c *cobra.Command, _ []string) error {
			return runPlan(c.Context(), std, eng, job, cache, output, calibrate)
		},
	}
	job.add(c)
	outputFlag(c, &output)
	cacheFlag(c, &cache)
	c.Flags().BoolVar(&calibrate, "calibrate", true, "time a few steps")
	return c
}

func runPlan(ctx context.Context, std streams, eng engine, flags jobFlags, cache, output string, calibrate bool) error {
	if err := oneOf("output", output, outputText, outputJSON); err != nil {
		return err
	}
	job, err := flags.read(std)
	if err != nil {
		return err
	}
	progress := streams{out: std.err}.printer(outputText)
	defer progress.Close()
	var r *planReport
	err = reading(job, func() (err error) {
		r, err = eng.Plan(ctx, planConfig{Job: job, Cache: cache, Calibrate: calibrate}, progress.Emit)
		return err
	})
	if r != nil { // a job that cannot fit is shown, too: the table says why
		if printErr := std.report(output, r, r.text()); err == nil {
			err = printErr
		}
	}
	return err
}

// text is the report for people.
func (r *planReport) text() string {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-12s %s\n", name, fmt.Sprintf(format, args...))
	}
	row("job", "%s", r.Name)
	row("model", "%.1fM parameters, %s · bits: %s", float64(r.Parameters)/1e6, r.Architecture, r.NumericClass)
	row("data", "%s examples → %s sequences, %s tokens, %s targets, %.1f %% padding",
		console.Count(r.Examples), console.Count(r.Sequences), console.Count(r.Tokens), console.Count(r.Targets), 100*r.Padding)
	row("steps", "%s of %s tokens = %.2f epochs · world size %d, micro-batch %d",
		console.Count(r.Steps), console.Count(r.StepTokens), r.Epochs, r.WorldSize, r.MicroBatch)
	row("memory", "%s of %s per worker", console.Bytes(r.MemoryTotal), console.Bytes(r.MemoryBudget))
	for _, p := range r.Memory {
		if p.Bytes > 0 {
			row("", "%10s  %s", console.Bytes(p.Bytes), p.Name)
		}
	}
	row("disk", "%s of %s free, for checkpoints and the export", console.Bytes(r.DiskBytes), console.Bytes(r.DiskFree))
	if r.StepSeconds > 0 {
		row("time", "%s for %s steps at %.2f s each (%s tokens/s)", console.Duration(r.StepSeconds*float64(r.Steps)),
			console.Count(r.Steps), r.StepSeconds, console.Count(int64(float64(r.StepTokens)/r.StepSeconds)))
	}
	for _, note := range r.Notes {
		row("note", "%s", note)
	}
	return b.String()
}
