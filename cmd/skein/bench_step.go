package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"

	"github.com/skein-ml/skein/bench"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu"
	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/model"
)

// stepReport is what a workload's steps have cost.
type stepReport struct {
	Name            string    `json:"name"`
	Device          string    `json:"device"`
	Path            string    `json:"path"`
	Class           string    `json:"class"`
	Tokens          int       `json:"tokens"` // of a step
	Seconds         []float64 `json:"seconds"`
	TokensPerSecond float64   `json:"tokensPerSecond"` // of the best step
	Flops           float64   `json:"flops"`           // products' flop a second, of the best step
	Loss            float64   `json:"loss"`            // of the last one
	DeviceBytes     int64     `json:"deviceBytes"`     // most in use at once
	ResidentBytes   int64     `json:"residentBytes"`   // most that the process had in memory, 0 if unknown
}

func (c *benchConfig) step(ctx context.Context, std streams, dev *cpu.Device, w bench.Workload) error {
	choices := bench.Choices{Micro: c.Micro}
	switch c.Checkpointing {
	case "selective":
		choices.Checkpointing = model.CheckpointSelective
	case "full":
		choices.Checkpointing = model.CheckpointFull
	}
	var on device.Device = dev
	var profiler *bench.Profiler
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
	var rounds []bench.Round
	for range c.Steps {
		round, err := s.Step(ctx)
		if err != nil {
			return err
		}
		rounds = append(rounds, round)
	}
	r := newStepReport(w, dev, rounds...)
	if profiler == nil {
		return std.report(c.Output, r, r.text())
	}
	costs, wall := profiler.Report()
	peak, err := bench.MeasurePeak(dev, c.Threads)
	if err != nil {
		return err
	}
	profile := struct {
		stepReport
		Peak       bench.Peak   `json:"peak"`
		Operations []bench.Cost `json:"operations"`
	}{r, peak, costs}
	return std.report(c.Output, profile, r.text()+"\n"+bench.Table(costs, wall, c.Steps, peak.Limit(r.Path, w.Precision), peak.StreamBytes))
}

// lockstep takes a step for each line that it reads and answers with a line of JSON, so
// that another program can let the steps of several take turns.
func lockstep(ctx context.Context, std streams, s *bench.Stepper, dev *cpu.Device) error {
	for lines := bufio.NewScanner(std.in); lines.Scan(); {
		round, err := s.Step(ctx)
		if err != nil {
			return err
		}
		if err := std.object(newStepReport(s.Workload, dev, round)); err != nil {
			return err
		}
	}
	return nil
}

func newStepReport(w bench.Workload, dev *cpu.Device, rounds ...bench.Round) stepReport {
	info := dev.Info()
	r := stepReport{Name: w.Name, Device: info.Name, Path: info.Path, Class: info.Class, Tokens: w.Tokens(), DeviceBytes: info.Peak, ResidentBytes: bench.ResidentPeak()}
	for _, x := range rounds {
		r.Seconds, r.Loss = append(r.Seconds, x.Seconds), x.Loss
	}
	best := bench.Best(r.Seconds)
	r.TokensPerSecond, r.Flops = float64(r.Tokens)/best, w.Flop()/best
	return r
}

func (r stepReport) text() string {
	var each []string
	for _, s := range r.Seconds {
		each = append(each, fmt.Sprintf("%.3f", s))
	}
	return fmt.Sprintf("%s  %.1f tok/s  %.0f GF/s  steps %s s  loss %.4f  device %s  resident %s  (%s, %s)\n", r.Name, r.TokensPerSecond, r.Flops/1e9,
		strings.Join(each, " "), r.Loss, console.Bytes(r.DeviceBytes), console.Bytes(r.ResidentBytes), r.Device, r.Class)
}
