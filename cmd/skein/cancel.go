package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/client"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// cancelConfig is skein cancel.
type cancelConfig struct {
	cluster clusterFlags
	Jobs    []string
	Reason  string
}

func newCancel(std streams) *cobra.Command {
	var cfg cancelConfig
	c := &cobra.Command{
		Use:   "cancel JOB…",
		Short: "End a job",
		Long: `End jobs that are not over. What was published stays in the store, for skein
export. Canceling a canceled job succeeds. JOB is an id, the beginning of one, or a
name that only one active job has.`,
		Example: `  skein cancel pronounce-7f3a
  skein cancel pronounce --reason "wrong data"`,
		Args: args("JOB…"),
		RunE: func(c *cobra.Command, args []string) error {
			cfg.Jobs = args
			return runCancel(c.Context(), std, cfg)
		},
	}
	cfg.cluster.add(c)
	c.Flags().StringVar(&cfg.Reason, "reason", "", "one line for others to read")
	return c
}

func runCancel(ctx context.Context, std streams, cfg cancelConfig) error {
	return cfg.cluster.with(ctx, std, func(ctx context.Context, c *client.Client) error {
		var errs []error
		for _, word := range cfg.Jobs {
			job, err := c.Find(ctx, word)
			if p := job.GetPhase(); err == nil && client.Over(p) && p != skeinv1.Phase_PHASE_CANCELED {
				err = fmt.Errorf("job %s is over: it is %s", job.GetId(), client.Word(p))
			}
			if err == nil {
				err = c.Cancel(ctx, job.GetId(), cfg.Reason)
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			fmt.Fprintf(std.out, "%s  canceled\n", job.GetId())
		}
		return errors.Join(errs...)
	})
}
