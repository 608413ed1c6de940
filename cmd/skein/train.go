package main

import (
	"context"

	"github.com/spf13/cobra"
)

func newTrain(std streams, eng engine) *cobra.Command {
	var job jobFlags
	var output, cache string
	c := &cobra.Command{
		Use:   "train -f job.yaml",
		Short: "Run a job here: prepare, train, evaluate, export",
		Long: `Run a job on this machine. Model and data are checked, what the job left open
is decided and printed, and training starts; if the job's store holds a
checkpoint of the same job, it goes on from there. Ctrl-C stops at a step; the
same command goes on. docs/JOBFILE.md lists every key of the job file. A small one:

  kind: FineTune
  name: pronounce
  model: {base: ./SmolLM2-135M-Instruct}
  data: {train: train.jsonl, validation: 2%}
  train: {steps: 24, globalBatch: 4, optimizer: {learningRate: 3e-4}}`,
		Example: `  skein train -f job.yaml
  skein train -f job.yaml --set train.steps=8 -o json`,
		Args: args(),
		RunE: func(c *cobra.Command, _ []string) error {
			return runTrain(c.Context(), std, eng, job, cache, output)
		},
	}
	job.add(c)
	outputFlag(c, &output)
	cacheFlag(c, &cache)
	return c
}

func runTrain(ctx context.Context, std streams, eng engine, flags jobFlags, cache, output string) error {
	if err := oneOf("output", output, outputText, outputJSON); err != nil {
		return err
	}
	job, err := flags.read(std)
	if err != nil {
		return err
	}
	printer := std.printer(output)
	defer printer.Close()
	return eng.Train(ctx, trainConfig{Job: job, Cache: cache}, printer.Emit)
}
