package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/client"
)

// scaleConfig is skein scale.
type scaleConfig struct {
	cluster clusterFlags
	Job     string
	Workers int32
}

func newScale(std streams) *cobra.Command {
	var cfg scaleConfig
	c := &cobra.Command{
		Use:   "scale JOB --workers N",
		Short: "Change the most workers that a job uses",
		Long: `Change the most workers that a job uses, from its minimum up to its world size. A
running job follows after a step, and its weights have the same bits as if it had
not. Workers that come are used as far as they shorten a step; the rest stay free. To
change the world size itself would change the bits.`,
		Example: `  skein scale pronounce-7f3a --workers 2`,
		Args:    args("JOB"),
		RunE: func(c *cobra.Command, args []string) error {
			cfg.Job = args[0]
			if !c.Flags().Changed("workers") {
				return usageError{errors.New("to how many? give --workers N")}
			}
			return runScale(c.Context(), std, cfg)
		},
	}
	cfg.cluster.add(c)
	c.Flags().Int32Var(&cfg.Workers, "workers", 0, "the most workers from now on")
	return c
}

func runScale(ctx context.Context, std streams, cfg scaleConfig) error {
	if cfg.Workers < 1 {
		return usageError{fmt.Errorf("--workers is %d; a job needs at least 1, and `skein pause` stops it", cfg.Workers)}
	}
	if cfg.cluster.kube.on {
		if done, err := scaleKube(ctx, std, cfg); done || err != nil {
			return err
		}
	}
	return cfg.cluster.with(ctx, std, func(ctx context.Context, c *client.Client) error {
		job, err := c.Find(ctx, cfg.Job)
		if err != nil {
			return err
		}
		useful, err := c.Scale(ctx, job.GetId(), cfg.Workers)
		if err != nil {
			return err
		}
		text := fmt.Sprintf("%s  at most %d workers", job.GetId(), cfg.Workers)
		if useful < cfg.Workers {
			text += fmt.Sprintf("; %d take as long for a step of %d ranks, so the others stay free", useful, job.GetWorldSize())
		}
		_, err = fmt.Fprintln(std.out, text)
		return err
	})
}

// pauseConfig is skein pause and skein resume.
type pauseConfig struct {
	cluster clusterFlags
	Jobs    []string
	Reason  string
}

func newPause(std streams) *cobra.Command {
	var cfg pauseConfig
	c := &cobra.Command{
		Use:   "pause JOB…",
		Short: "Stop a job after its next step, to go on later",
		Long: `Pause jobs. Each stops after its next step with a checkpoint of that very step,
and gives its workers back; nothing is lost. A job that waits in the queue stays
there. Pausing a paused job succeeds; skein wait JOB --for paused waits for it.`,
		Example: `  skein pause pronounce-7f3a --reason "maintenance"`,
		Args:    args("JOB…"),
		RunE: func(c *cobra.Command, args []string) error {
			cfg.Jobs = args
			return each(c.Context(), std, cfg, "pauses after its next step", func(ctx context.Context, c *client.Client, id string) error {
				return c.Pause(ctx, id, cfg.Reason)
			})
		},
	}
	cfg.cluster.add(c)
	c.Flags().StringVar(&cfg.Reason, "reason", "", "one line for others to read")
	return c
}

func newResume(std streams) *cobra.Command {
	var cfg pauseConfig
	c := &cobra.Command{
		Use:   "resume JOB…",
		Short: "Let a paused job go on",
		Long: `Let paused jobs go on where they stopped, as soon as enough workers are free.
Resuming a job that is not paused succeeds.`,
		Example: `  skein resume pronounce-7f3a`,
		Args:    args("JOB…"),
		RunE: func(c *cobra.Command, args []string) error {
			cfg.Jobs = args
			return each(c.Context(), std, cfg, "goes on when enough workers are free", func(ctx context.Context, c *client.Client, id string) error {
				if cfg.cluster.kube.on {
					if err := heldKube(ctx, cfg.cluster, id); err != nil {
						return err
					}
				}
				return c.Resume(ctx, id)
			})
		},
	}
	cfg.cluster.add(c)
	return c
}

// each does the same with several jobs, and says of each that it is done.
func each(ctx context.Context, std streams, cfg pauseConfig, done string, do func(context.Context, *client.Client, string) error) error {
	return cfg.cluster.with(ctx, std, func(ctx context.Context, c *client.Client) error {
		var errs []error
		for _, word := range cfg.Jobs {
			job, err := c.Find(ctx, word)
			if err == nil {
				err = do(ctx, c, job.GetId())
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			fmt.Fprintf(std.out, "%s  %s\n", job.GetId(), done)
		}
		return errors.Join(errs...)
	})
}
