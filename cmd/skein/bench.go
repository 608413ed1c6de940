package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/bench"
	"github.com/skein-ml/skein/device/cpu"
	"github.com/skein-ml/skein/internal/machine"
)

// benchConfig is skein bench.
type benchConfig struct {
	Workload      string // "": list them
	Path          string
	Threads       int
	Steps         int // timed, after one that is not
	Micro         int
	Checkpointing string
	Quick         bool
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
argument, list the workloads.

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
	f.IntVar(&c.Micro, "micro-batch", 0, "sequences of a micro-batch; 0: one")
	f.StringVar(&c.Checkpointing, "checkpointing", "none", "activations to compute again: none, selective or full")
	f.BoolVar(&c.Quick, "quick", false, "a sixteenth of the data or less, to see that it runs")
	f.BoolVar(&c.Profile, "profile", false, "show where the time went, by operation")
	f.BoolVar(&c.Lockstep, "lockstep", false, "take a step, or time a product, for each line of standard input, and answer with JSON")
	outputFlag(cmd, &c.Output)
	return cmd
}

func runBench(ctx context.Context, std streams, c benchConfig) error {
	if err := oneOf("output", c.Output, outputText, outputJSON); err != nil {
		return err
	}
	if err := oneOf("checkpointing", c.Checkpointing, "none", "selective", "full"); err != nil {
		return err
	}
	switch {
	case c.Steps < 1:
		return usageError{fmt.Errorf("--steps is %d; time at least one", c.Steps)}
	case c.Workload == "":
		return listWorkloads(std, c)
	case c.Threads == 0:
		c.Threads = machine.Look(".").Threads()
	}
	timed, err := c.timed()
	if err != nil {
		return usageError{err}
	}
	dev, err := cpu.New(cpu.Options{Path: c.Path, Threads: c.Threads})
	if err != nil {
		return usageError{err}
	}
	defer dev.Close()
	return timed(ctx, std, dev)
}

// timed is what times the workload. A workload of precision high asks for a path of its own.
func (c *benchConfig) timed() (func(context.Context, streams, *cpu.Device) error, error) {
	switch c.Workload {
	case "peak":
		return c.peak, nil
	case "products":
		return c.products, nil
	case "allocations":
		return c.allocations, nil
	}
	w, err := bench.Find(c.Workload, c.Quick)
	if err == nil && w.High && c.Path == "" {
		c.Path = "high"
	}
	return func(ctx context.Context, std streams, dev *cpu.Device) error { return c.step(ctx, std, dev, w) }, err
}

func listWorkloads(std streams, c benchConfig) error {
	type entry struct {
		Name      string  `json:"name"`
		Precision string  `json:"precision"`
		Batch     int     `json:"batch"`
		SeqLen    int     `json:"seqLen"`
		Flop      float64 `json:"flop"` // of a step's products
	}
	var b strings.Builder
	var list struct {
		Workloads []entry         `json:"workloads"`
		Products  []bench.Product `json:"products"`
	}
	row := func(name, what string) { fmt.Fprintf(&b, "%-18s %s\n", name, what) }
	for _, w := range bench.Workloads(c.Quick) {
		list.Workloads = append(list.Workloads, entry{w.Name, w.PrecisionName(), w.Batch, w.SeqLen, w.Flop()})
		row(w.Name, fmt.Sprintf("a training step: %s, %d × %d tokens, AdamW", w.PrecisionName(), w.Batch, w.SeqLen))
	}
	list.Products = bench.Products(c.Quick)
	row("products", fmt.Sprintf("the %d products of these steps, one by one", len(list.Products)))
	row("allocations", "how often a steady step allocates")
	row("peak", "what the machine can do: arithmetic in registers, reading of memory")
	return std.report(c.Output, list, b.String())
}

func (c *benchConfig) peak(_ context.Context, std streams, dev *cpu.Device) error {
	p, err := bench.MeasurePeak(dev, c.Threads)
	if err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", dev.Info().Name)
	for _, x := range []struct {
		what, unit string
		value      float64
	}{
		{"f32 multiply-adds", "GF/s", p.F32Flops}, {"bf16 pairs", "GF/s", p.PairFlops}, {"bf16 tiles", "GF/s", p.TileFlops},
		{"memory read", "GB/s", p.StreamBytes},
	} {
		if x.value > 0 {
			fmt.Fprintf(&b, "%-18s %8.1f %s\n", x.what, x.value/1e9, x.unit)
		}
	}
	return std.report(c.Output, p, b.String())
}

func (c *benchConfig) products(ctx context.Context, std streams, dev *cpu.Device) error {
	if c.Lockstep {
		return c.productsAsked(ctx, std, dev)
	}
	peak, err := bench.MeasurePeak(dev, c.Threads)
	if err != nil {
		return err
	}
	fmt.Fprintf(std.out, "%-28s %16s %9s %8s %8s\n", dev.Info().Name, "rows×in×out", "ms", "GF/s", "of peak")
	for _, p := range bench.Products(c.Quick) {
		b, err := bench.NewBench(dev, p)
		if err != nil {
			return err
		}
		var rounds []float64
		for range c.Steps {
			if err := ctx.Err(); err != nil {
				return err
			}
			s, err := b.Round()
			if err != nil {
				return err
			}
			rounds = append(rounds, s)
		}
		b.Close()
		rate := p.Flop() / bench.Best(rounds)
		fmt.Fprintf(std.out, "%-28s %16s %9.3f %8.1f %8s\n", p.Name, fmt.Sprintf("%d×%d×%d", p.Rows, p.In, p.Out), bench.Best(rounds)*1e3, rate/1e9,
			bench.Share(rate, peak.Limit(dev.Info().Path, p.DT)))
	}
	return nil
}

// productsAsked times the product that each line names.
func (c *benchConfig) productsAsked(ctx context.Context, std streams, dev *cpu.Device) error {
	known := map[string]bench.Product{}
	for _, p := range bench.Products(c.Quick) {
		known[p.Name] = p
	}
	var b *bench.Bench
	defer func() {
		if b != nil {
			b.Close()
		}
	}()
	for lines := bufio.NewScanner(std.in); lines.Scan() && ctx.Err() == nil; {
		p, ok := known[lines.Text()]
		if !ok {
			return usageError{fmt.Errorf("there is no product %q; skein bench products lists them", lines.Text())}
		}
		if b == nil || b.Name != p.Name {
			if b != nil {
				b.Close()
			}
			var err error
			if b, err = bench.NewBench(dev, p); err != nil {
				return err
			}
		}
		s, err := b.Round()
		if err != nil {
			return err
		}
		if err := std.object(map[string]any{"seconds": []float64{s}}); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// allocationSteps are few: a step that allocates does so every time.
const allocationSteps = 3

func (c *benchConfig) allocations(ctx context.Context, std streams, dev *cpu.Device) error {
	w, err := bench.Find("smollm2-bf16-step", true) // their number does not depend on how much data there is
	if err != nil {
		return err
	}
	s, err := bench.NewStepper(dev, w, bench.Choices{})
	if err != nil {
		return err
	}
	defer s.Close()
	count, bytes, err := bench.Allocations(ctx, s, allocationSteps)
	if err != nil {
		return err
	}
	return std.report(c.Output, map[string]float64{"allocations": count, "bytes": bytes}, fmt.Sprintf("allocations in a steady step: %.0f, of %.0f bytes\n", count, bytes))
}
