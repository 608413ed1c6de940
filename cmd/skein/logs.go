package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/client"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// logsConfig is skein logs.
type logsConfig struct {
	cluster clusterFlags
	Job     string
	Follow  bool
	output  string
}

func newLogs(std streams) *cobra.Command {
	var cfg logsConfig
	c := &cobra.Command{
		Use:   "logs JOB",
		Short: "Print what a job has said",
		Long: `Print the lines of a job that are kept (the last 2,000), a line for each event; with
-f also those to come, until the job is over. They are kept in the leader's memory,
and workers that live send theirs again to the next leader: those of a worker that
is gone are lost when the leader changes. JOB is an id, the beginning of one, or a
name that only one active job has.`,
		Example: `  skein logs pronounce-7f3a
  skein logs -f pronounce`,
		Args: args("JOB"),
		RunE: func(c *cobra.Command, args []string) error {
			cfg.Job = args[0]
			return runLogs(c.Context(), std, cfg)
		},
	}
	cfg.cluster.add(c)
	c.Flags().BoolVarP(&cfg.Follow, "follow", "f", false, "go on until the job is over")
	outputFlag(c, &cfg.output)
	return c
}

func runLogs(ctx context.Context, std streams, cfg logsConfig) error {
	if err := oneOf("output", cfg.output, outputText, outputJSON); err != nil {
		return err
	}
	std.plain = true // a log is read later
	cfg.cluster.kube.patient = cfg.Follow
	return cfg.cluster.with(ctx, std, func(ctx context.Context, c *client.Client) error {
		job, err := c.Find(ctx, cfg.Job)
		if err != nil {
			return err
		}
		if cfg.Follow {
			return watch(ctx, std, c, watchConfig{cluster: cfg.cluster, Job: job.GetId(), Lines: -1, output: cfg.output, again: "skein logs -f"})
		}
		return past(ctx, std, c, job.GetId(), cfg.output)
	})
}

// past prints what is kept of a job, and nothing that comes later.
func past(ctx context.Context, std streams, c *client.Client, id, output string) error {
	printer := std.printer(output)
	defer printer.Close()
	story := &client.Story{Emit: printer.Emit, Machine: output == outputJSON, Ends: true, Job: id}
	defer story.Close()
	within, cancel := context.WithCancel(ctx)
	defer cancel()
	job, err := c.Watch(within, id, client.Watching{Lines: true, Before: -1}, func(m *skeinv1.WatchResponse) {
		// What is kept comes before the first look at the job; clocks have no say in it.
		if m.GetProgress() != nil || m.GetJob() != nil && !client.Over(m.GetJob().GetPhase()) {
			cancel()
		}
		if within.Err() == nil {
			story.Show(m)
		}
	})
	if within.Err() != nil && ctx.Err() == nil {
		return nil
	}
	if err == nil {
		story.End(job)
	}
	if ended, ok := errors.AsType[*client.EndedError](err); ok {
		return ended
	}
	return err
}
