package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/client"
)

// waitConfig is skein wait.
type waitConfig struct {
	cluster clusterFlags
	Job     string
	For     string
	Timeout time.Duration // 0: none
	output  string
}

// timeoutError says that what was waited for has not come.
type timeoutError struct{ error }

func newWait(std streams) *cobra.Command {
	var cfg waitConfig
	c := &cobra.Command{
		Use:   "wait JOB",
		Short: "Wait until a job is done",
		Long: `Wait until a job is done, or has reached the phase of --for: queued, running, done,
failed, canceled, or over, which is any end. The exit status is 0 when it has; 1 or
7 when the job failed or was canceled instead; 6 when --timeout has passed.`,
		Example: `  skein wait pronounce-7f3a --timeout 2h
  skein wait pronounce --for running`,
		Args: args("JOB"),
		RunE: func(c *cobra.Command, args []string) error {
			cfg.Job = args[0]
			return runWait(c.Context(), std, cfg)
		},
	}
	cfg.cluster.add(c)
	c.Flags().StringVar(&cfg.For, "for", "done", "phase to wait for")
	c.Flags().DurationVar(&cfg.Timeout, "timeout", 0, "give up after so long, such as 90s or 2h; 0 is never")
	listFlag(c, &cfg.output)
	return c
}

func runWait(ctx context.Context, std streams, cfg waitConfig) error {
	if err := checkList(cfg.output); err != nil {
		return err
	}
	if err := oneOf("for", cfg.For, client.Awaited()...); err != nil {
		return err
	}
	if cfg.Timeout < 0 {
		return usageError{fmt.Errorf("--timeout is %s; give a time such as 2h", cfg.Timeout)}
	}
	cfg.cluster.kube.patient = true
	return cfg.cluster.with(ctx, std, func(ctx context.Context, c *client.Client) error {
		within, cancel := ctx, context.CancelFunc(func() {})
		if cfg.Timeout > 0 {
			within, cancel = context.WithTimeout(ctx, cfg.Timeout)
		}
		defer cancel()
		finding := ctx
		if cfg.cluster.kube.on { // where the coordinators may not have the job yet
			finding = within
		}
		job, err := c.Find(finding, cfg.Job)
		if err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
			return timeoutError{fmt.Errorf("the coordinators do not have job %s after %s; `kubectl describe finetunejob %s` says why", cfg.Job, cfg.Timeout, cfg.Job)}
		}
		if err != nil {
			return err
		}
		reached, err := c.Wait(within, job.GetId(), cfg.For)
		switch {
		case err == nil:
			return one(std, cfg.output, client.View(reached), func() string {
				return fmt.Sprintf("%s  %s\n", reached.GetId(), client.Word(reached.GetPhase()))
			})
		case ctx.Err() != nil:
			return stoppedError{fmt.Sprintf("stopped waiting; the job goes on; wait again with: skein wait %s --for %s%s", job.GetId(), cfg.For, cfg.cluster.again()), ctx.Err()}
		case errors.Is(err, context.DeadlineExceeded):
			return timeoutError{fmt.Errorf("job %s is not %s after %s; `skein describe %s` says where it is", job.GetId(), cfg.For, cfg.Timeout, job.GetId())}
		}
		return err
	})
}
