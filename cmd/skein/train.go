package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
)

func newTrain(std streams, eng engine) *cobra.Command {
	var job jobFlags
	var output, cache string
	var workers int
	c := &cobra.Command{
		Use:   "train -f job.yaml",
		Short: "Run a job here: prepare, train, evaluate, export",
		Long: `Run a job on this machine. Model and data are checked, what the job left open
is decided and printed, and training starts; if the job's store holds a
checkpoint of the same job, it goes on from there. Ctrl-C stops at a step; the
same command goes on. With --workers the job runs as on a cluster, to the same bits:
a coordinator in this process, and worker processes that end with it; its
checkpoints are in a folder of the job in its store.
docs/JOBFILE.md lists every key of the job file. A small one:

  kind: FineTune
  name: pronounce
  model: {base: ./SmolLM2-135M-Instruct}
  data: {train: train.jsonl, validation: 2%}
  train: {steps: 24, globalBatch: 4, optimizer: {learningRate: 3e-4}}`,
		Example: `  skein train -f job.yaml
  skein train -f job.yaml --set train.steps=8 -o json
  skein train -f job.yaml --workers 4`,
		Args: args(),
		RunE: func(c *cobra.Command, _ []string) error {
			if c.Flags().Changed("workers") && workers < 1 {
				return usageError{fmt.Errorf("--workers is %d; give 1 or more, or leave it out to train in this process", workers)}
			}
			return runTrain(c.Context(), std, eng, job, trainConfig{Cache: cache, Workers: workers}, output)
		},
	}
	job.add(c)
	outputFlag(c, &output)
	cacheFlag(c, &cache)
	c.Flags().IntVar(&workers, "workers", 0, "worker processes; left out: this process trains")
	return c
}

func runTrain(ctx context.Context, std streams, eng engine, flags jobFlags, cfg trainConfig, output string) error {
	if err := oneOf("output", output, outputText, outputJSON); err != nil {
		return err
	}
	var err error
	if cfg.Job, err = flags.read(std); err != nil {
		return err
	}
	printer := std.printer(output)
	defer printer.Close()
	return reading(cfg.Job, func() error { return eng.Train(ctx, cfg, printer.Emit) })
}
