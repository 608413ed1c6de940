package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/client"
)

// watchConfig is skein watch.
type watchConfig struct {
	cluster clusterFlags
	Job     string
	Lines   int // of the past that are shown first; −1: all
	output  string

	again string // command that goes on; "": skein watch
	after uint64 // index of the last event that was seen
}

func newWatch(std streams) *cobra.Command {
	var cfg watchConfig
	c := &cobra.Command{
		Use:   "watch JOB",
		Short: "Show a job until it is over",
		Long: `Show what a job does from now on, and some lines of what it did, until it is over.
The exit status is the job's: 0 done, 1 failed, 7 canceled. Ctrl-C stops
watching, never the job. JOB is an id, the beginning of one, or a name that only
one active job has.`,
		Example: `  skein watch pronounce-7f3a
  skein watch pronounce -o json`,
		Args: args("JOB"),
		RunE: func(c *cobra.Command, args []string) error {
			cfg.Job = args[0]
			return runWatch(c.Context(), std, cfg)
		},
	}
	cfg.cluster.add(c)
	c.Flags().IntVar(&cfg.Lines, "lines", 10, "how many lines of the past to show first; -1 is all that are kept")
	outputFlag(c, &cfg.output)
	return c
}

func runWatch(ctx context.Context, std streams, cfg watchConfig) error {
	if err := oneOf("output", cfg.output, outputText, outputJSON); err != nil {
		return err
	}
	cfg.cluster.kube.patient = true
	return cfg.cluster.with(ctx, std, func(ctx context.Context, c *client.Client) error {
		job, err := c.Find(ctx, cfg.Job)
		if err != nil {
			return err
		}
		cfg.Job = job.GetId()
		return watch(ctx, std, c, cfg)
	})
}
