package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/jobspec"
)

func newGenerate(std streams, eng engine) *cobra.Command {
	var cfg generateConfig
	var cluster clusterFlags
	var precision, job string
	c := &cobra.Command{
		Use:   "generate MODEL [PROMPT…]",
		Short: "Let a model answer",
		Long: `Answer each PROMPT as a user message in the model's own chat template, or each
line of standard input when there is none. MODEL is a Hugging Face folder or a
GGUF file; with --job there is no MODEL, but the newest checkpoint of a job of a
cluster, whose store must be reached from here. Greedy unless --temperature is given;
the same seed gives the same answer.`,
		Example: `  skein generate ./pronounce "Pronounce: skein"
  skein generate ./SmolLM2-135M-Instruct --raw "Once upon a time" --temperature 0.8 --seed 7
  skein generate --job pronounce "Pronounce: skein"`,
		RunE: func(c *cobra.Command, args []string) error {
			cfg.Precision = jobspec.Precision(precision)
			if job != "" {
				cfg.Prompts = args
				return runGenerateJob(c.Context(), std, eng, cfg, cluster, job)
			}
			cfg.Model, cfg.Prompts = args[0], args[1:]
			return runGenerate(c.Context(), std, eng, cfg)
		},
	}
	c.Args = func(c *cobra.Command, got []string) error {
		if len(got) == 0 && job == "" {
			return args("MODEL", "[PROMPT…]")(c, got)
		}
		return nil
	}
	cluster.add(c)
	c.Flags().StringVar(&job, "job", "", "a job of a cluster: an id, the beginning of one, or a name that only one active job has")
	f := c.Flags()
	f.StringVar(&cfg.System, "system", "", "system message; the template's own if left out")
	f.BoolVar(&cfg.Raw, "raw", false, "continue the text as it is, without the chat template")
	f.IntVar(&cfg.MaxNewTokens, "max-new-tokens", 128, "longest answer")
	f.Float64Var(&cfg.Temperature, "temperature", 0, "0 takes the likeliest token each time")
	f.IntVar(&cfg.TopK, "top-k", 0, "sample from the k likeliest tokens; 0 is all")
	f.Float64Var(&cfg.TopP, "top-p", 1, "sample from the likeliest tokens that hold this share")
	f.Uint64Var(&cfg.Seed, "seed", 0, "of the sampling")
	computeFlags(c, &precision, &cfg.NumericClass, &cfg.Threads)
	return c
}

// computeFlags adds the flags of commands that run a model without a job file.
func computeFlags(c *cobra.Command, precision, class *string, threads *int) {
	c.Flags().StringVar(precision, "precision", string(jobspec.PrecisionBF16), "bf16 or fp32")
	c.Flags().StringVar(class, "numeric-class", jobspec.Auto, "kernels; skein doctor lists them")
	c.Flags().IntVar(threads, "threads", 0, "compute threads; 0 is one per core")
}

// checkCompute refuses flags of computeFlags that mean nothing.
func checkCompute(precision jobspec.Precision, threads int) error {
	if threads < 0 {
		return usageError{fmt.Errorf("--threads is %d; 0 is one per core", threads)}
	}
	return oneOf("precision", string(precision), string(jobspec.PrecisionBF16), string(jobspec.PrecisionFP32))
}

func (c generateConfig) validate() error {
	switch {
	case c.MaxNewTokens < 1:
		return usageError{fmt.Errorf("--max-new-tokens is %d; it must be at least 1", c.MaxNewTokens)}
	case !(c.Temperature >= 0 && c.Temperature <= 100):
		return usageError{fmt.Errorf("--temperature is %g; it must be between 0 and 100", c.Temperature)}
	case !(c.TopP > 0 && c.TopP <= 1):
		return usageError{fmt.Errorf("--top-p is %g; it must be more than 0 and at most 1", c.TopP)}
	case c.TopK < 0:
		return usageError{fmt.Errorf("--top-k is %d; 0 is all tokens", c.TopK)}
	case c.Raw && c.System != "":
		return usageError{fmt.Errorf("--raw and --system exclude each other: raw text has no system message")}
	}
	return checkCompute(c.Precision, c.Threads)
}

func runGenerate(ctx context.Context, std streams, eng engine, cfg generateConfig) error {
	if err := cfg.validate(); err != nil {
		return err
	}
	if len(cfg.Prompts) == 0 {
		var err error
		if cfg.Prompts, err = readPrompts(std.in); err != nil {
			return err
		}
	}
	return eng.Generate(ctx, cfg, func(piece string) { fmt.Fprint(std.out, piece) })
}

// runGenerateJob writes the job's newest checkpoint as a passing folder and asks that.
func runGenerateJob(ctx context.Context, std streams, eng engine, cfg generateConfig, cluster clusterFlags, job string) (err error) {
	if err := cfg.validate(); err != nil {
		return err
	}
	store, err := storeOf(ctx, std, cluster, job)
	if err != nil {
		return err
	}
	temp, err := os.MkdirTemp("", "skein-generate-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	cfg.Model = filepath.Join(temp, "model")
	dtype := jobspec.DTypeBF16
	if cfg.Precision == jobspec.PrecisionFP32 {
		dtype = jobspec.DTypeFP32
	}
	if _, err := eng.Export(ctx, exportConfig{Store: store, Step: newest, Dir: cfg.Model, DType: dtype, MaxShard: 5 << 30}); err != nil {
		return err
	}
	return runGenerate(ctx, std, eng, cfg)
}

// readPrompts reads prompts, one a line.
func readPrompts(r io.Reader) ([]string, error) {
	var prompts []string
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if s.Text() != "" {
			prompts = append(prompts, s.Text())
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("standard input: %w", err)
	}
	if len(prompts) == 0 {
		return nil, usageError{fmt.Errorf("nothing to answer; give a PROMPT, or one a line on standard input")}
	}
	return prompts, nil
}
