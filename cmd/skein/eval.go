package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/jobspec"
)

func newEval(std streams, eng engine) *cobra.Command {
	var cfg evalConfig
	var output, precision string
	c := &cobra.Command{
		Use:   "eval MODEL DATA…",
		Short: "Measure a model on held-out data",
		Long: `Print the mean loss over the target tokens of JSONL files: what the assistant
says, rendered and packed as for training. With --exact-match, that many examples
are answered greedily too, and compared word for word. MODEL is a Hugging Face
folder or a GGUF file.`,
		Example: `  skein eval ./pronounce heldout.jsonl
  skein eval ./pronounce heldout.jsonl --exact-match 32 --show 3 -o json`,
		Args: args("MODEL", "DATA…"),
		RunE: func(c *cobra.Command, args []string) error {
			cfg.Model, cfg.Data, cfg.Precision = args[0], args[1:], jobspec.Precision(precision)
			return runEval(c.Context(), std, eng, cfg, output)
		},
	}
	f := c.Flags()
	f.IntVar(&cfg.SequenceLength, "sequence-length", 0, "tokens in one sequence; 0 is 512, or what the model takes")
	f.IntVar(&cfg.ExactMatch, "exact-match", 0, "examples to answer and compare")
	f.IntVar(&cfg.Show, "show", 0, "of those, how many answers to print")
	f.IntVar(&cfg.MaxNewTokens, "max-new-tokens", 64, "longest answer")
	f.IntVar(&cfg.Limit, "limit", 0, "stop after this many target tokens; 0 measures all")
	computeFlags(c, &precision, &cfg.NumericClass, &cfg.Threads)
	outputFlag(c, &output)
	cacheFlag(c, &cfg.Cache)
	return c
}

func (c evalConfig) validate() error {
	switch {
	case c.SequenceLength != 0 && c.SequenceLength < 8:
		return usageError{fmt.Errorf("--sequence-length is %d; it must be at least 8", c.SequenceLength)}
	case c.ExactMatch < 0 || c.Show < 0 || c.Limit < 0:
		return usageError{fmt.Errorf("--exact-match, --show and --limit must not be negative")}
	case c.Show > c.ExactMatch:
		return usageError{fmt.Errorf("--show %d asks for more answers than --exact-match %d gives", c.Show, c.ExactMatch)}
	case c.MaxNewTokens < 1:
		return usageError{fmt.Errorf("--max-new-tokens is %d; it must be at least 1", c.MaxNewTokens)}
	}
	return checkCompute(c.Precision, c.Threads)
}

func runEval(ctx context.Context, std streams, eng engine, cfg evalConfig, output string) error {
	if err := oneOf("output", output, outputText, outputJSON); err != nil {
		return err
	}
	if err := cfg.validate(); err != nil {
		return err
	}
	printer := std.printer(output)
	defer printer.Close()
	return eng.Eval(ctx, cfg, printer.Emit)
}
