package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/bench"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu"
	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/internal/machine"
	"github.com/skein-ml/skein/model"
)

// benchConfig is skein bench.
type benchConfig struct {
	Workload      string // "": list them
	Path          string
	Threads       int
	Steps         int // timed, after one that is not
	Micro         int
	Checkpointing string
	Profile       bool
	Lockstep      bool
	Output        string
}

func newBench(std streams) *cobra.Command {
	var c benchConfig
	cmd := &cobra.Command{
		Use:   "bench [WORKLOAD]",
		Short: "Time training steps of known models, and the machine itself",
		Long: `Time a workload with random weights and data: it needs no files. Without an
argument, list the workloads. "peak" is what the machine can do in loops that do
nothing else: multiply-adds in registers, reads of memory.

Figures are the best of the timed steps. Only figures of one run compare well; make
bench of the source tree compares with PyTorch, taking turns.`,
		Example: `  skein bench
  skein bench peak
  skein bench smollm2-bf16-step --steps 3 --profile`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("skein bench takes one workload, but was given %d arguments; skein bench lists the workloads", len(args))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				c.Workload = args[0]
			}
			return runBench(cmd.Context(), std, c)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Path, "path", "", "kernel path; the best that this machine has by default")
	f.IntVar(&c.Threads, "threads", 0, "compute threads; 0: one for each core")
	f.IntVar(&c.Steps, "steps", 3, "steps to time, after one to warm up")
	f.IntVar(&c.Micro, "micro-batch", 0, "sequences of a micro-batch; 0: all of the step")
	f.StringVar(&c.Checkpointing, "checkpointing", "none", "activations to keep: none or full")
	f.BoolVar(&c.Profile, "profile", false, "show where the time went, by operation")
	f.BoolVar(&c.Lockstep, "lockstep", false, "take a step for each line of standard input: somebody else compares")
	outputFlag(cmd, &c.Output)
	return cmd
}

func runBench(ctx context.Context, std streams, c benchConfig) error {
	if err := oneOf("output", c.Output, outputText, outputJSON); err != nil {
		return err
	}
	if c.Steps < 1 {
		return usageError{fmt.Errorf("--steps is %d; time at least one", c.Steps)}
	}
	if c.Workload == "" {
		return listWorkloads(std)
	}
	if c.Threads == 0 {
		c.Threads = machine.Look(".").Threads()
	}
	dev, err := cpu.New(cpu.Options{Path: c.Path, Threads: c.Threads})
	if err != nil {
		return usageError{err}
	}
	defer dev.Close()
	if c.Workload == "peak" {
		return benchPeak(std, dev, c)
	}
	w, err := bench.Find(c.Workload)
	if err != nil {
		return usageError{err}
	}
	return benchStep(ctx, std, dev, w, c)
}

func listWorkloads(std streams) error {
	var b strings.Builder
	for _, w := range bench.Workloads() {
		fmt.Fprintf(&b, "%-18s %s, %d sequences of %d tokens, AdamW\n", w.Name, w.Precision, w.Batch, w.SeqLen)
	}
	fmt.Fprintf(&b, "%-18s what the machine can do\n", "peak")
	_, err := fmt.Fprint(std.out, b.String())
	return err
}

func benchPeak(std streams, dev *cpu.Device, c benchConfig) error {
	p, err := bench.MeasurePeak(dev, c.Threads)
	if err != nil {
		return err
	}
	return std.report(c.Output, p, fmt.Sprintf("%s\nmultiply-adds in registers, f32  %8.1f GF/s\nmemory read                      %8.1f GB/s\n",
		dev.Info().Name, p.F32Flops/1e9, p.StreamBytes/1e9))
}

// stepReport is what a workload's steps have cost.
type stepReport struct {
	Name            string     `json:"name"`
	Device          string     `json:"device"`
	Class           string     `json:"class"`
	Tokens          int        `json:"tokens"` // of a step
	Seconds         []float64  `json:"seconds"`
	TokensPerSecond float64    `json:"tokensPerSecond"` // of the best step
	Loss            float64    `json:"loss"`            // of the last one
	DeviceBytes     int64      `json:"deviceBytes"`     // most in use at once
	ResidentBytes   int64      `json:"residentBytes"`   // most that the process had in memory, 0 if unknown
	Peak            bench.Peak `json:"peak,omitzero"`
	table           string
}

func benchStep(ctx context.Context, std streams, dev *cpu.Device, w bench.Workload, c benchConfig) error {
	if err := oneOf("checkpointing", c.Checkpointing, "none", "full"); err != nil {
		return err
	}
	choices := bench.Choices{Micro: c.Micro}
	if c.Checkpointing == "full" {
		choices.Checkpointing = model.CheckpointFull
	}
	var on device.Device = dev
	var profiler *bench.Profiler
	var peak bench.Peak
	if c.Profile {
		profiler = bench.NewProfiler(dev)
		on = profiler
	}
	s, err := bench.NewStepper(on, w, choices)
	if err != nil {
		return err
	}
	defer s.Close()
	if c.Lockstep {
		return lockstep(ctx, std, s, dev)
	}
	if _, err := s.Step(ctx); err != nil { // faults pages in
		return err
	}
	if profiler != nil {
		profiler.Reset()
	}
	r := stepReport{Name: w.Name}
	for range c.Steps {
		round, err := s.Step(ctx)
		if err != nil {
			return err
		}
		r.add(round)
	}
	r.complete(w, dev)
	if profiler != nil {
		costs, wall := profiler.Report()
		if peak, err = bench.MeasurePeak(dev, c.Threads); err != nil {
			return err
		}
		r.Peak, r.table = peak, "\n"+bench.Table(costs, wall, c.Steps, peak)
	}
	return std.report(c.Output, r, r.text())
}

// lockstep takes a step for each line that it reads and answers with a line of JSON, so
// that another program can let the steps of several take turns.
func lockstep(ctx context.Context, std streams, s *bench.Stepper, dev *cpu.Device) error {
	var r stepReport
	for lines := bufio.NewScanner(std.in); lines.Scan(); {
		round, err := s.Step(ctx)
		if err != nil {
			return err
		}
		r = stepReport{Name: s.Name}
		r.add(round)
		r.complete(s.Workload, dev)
		if err := std.object(r); err != nil {
			return err
		}
	}
	return nil
}

func (r *stepReport) add(round bench.Round) {
	r.Seconds, r.Loss = append(r.Seconds, round.Seconds), round.Loss
}

func (r *stepReport) complete(w bench.Workload, dev *cpu.Device) {
	info := dev.Info()
	r.Device, r.Class, r.Tokens, r.DeviceBytes, r.ResidentBytes = info.Name, info.Class, w.Tokens(), info.Peak, bench.ResidentPeak()
	r.TokensPerSecond = float64(w.Tokens()) / bench.Best(r.Seconds)
}

func (r *stepReport) text() string {
	var each []string
	for _, s := range r.Seconds {
		each = append(each, fmt.Sprintf("%.3f", s))
	}
	return fmt.Sprintf("%s  %.1f tok/s  steps %s s  loss %.4f  device %s  resident %s  (%s, %s)\n%s", r.Name, r.TokensPerSecond,
		strings.Join(each, " "), r.Loss, console.Bytes(r.DeviceBytes), console.Bytes(r.ResidentBytes), r.Device, r.Class, r.table)
}
