package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/jobspec"
)

// submitConfig is skein submit.
type submitConfig struct {
	cluster clusterFlags
	file    string // that the job was read from
	Job     *jobspec.Job
	Watch   bool
	Upload  *bool  // nil: unless all coordinators are on this machine
	Request string // of an earlier try; empty: a new one
	until   bool   // standard input ends
	output  string
}

const outputName = "name"

func newSubmit(std streams) *cobra.Command {
	var cfg submitConfig
	var job jobFlags
	var upload, noUpload bool
	var priority int
	c := &cobra.Command{
		Use:   "submit -f job.yaml",
		Short: "Give a job to a cluster",
		Long: `Submit a job. It is taken when a majority of the coordinators has it on disk, and
it is one job however often this command had to ask. Where no answer came, the error
says with which --request the same command asks again for the same job.

Model and data are copied into the job's checkpoint.store, a folder that all
workers reach, unless they lie there already or the whole cluster is on this
machine; --upload and --no-upload decide otherwise. Without a copy, paths must
lead to the same files on every worker.

With --watch the job is shown until it is over. Ctrl-C stops watching, never the
job.

With --kube the job becomes a FineTuneJob, on a SkeinCluster of a Kubernetes that
your kubeconfig leads to. Its name has to be new there. Nothing is uploaded: relative
paths start from the storage that the workers share.`,
		Example: `  skein submit -f job.yaml --watch --coordinator 10.0.0.1:7401,10.0.0.2:7401 --tls ./me
  skein submit -f job.yaml --set train.steps=8 -o name
  skein submit -f job.yaml --kube --namespace team --watch`,
		Args: args(),
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if err := oneOf("output", cfg.output, outputText, outputJSON, outputName); err != nil {
				return err
			}
			if upload && noUpload {
				return usageError{fmt.Errorf("--upload and --no-upload exclude each other")}
			}
			if upload || noUpload {
				cfg.Upload = &upload
			}
			if cfg.Job, err = job.read(std); err != nil {
				return err
			}
			if c.Flags().Changed("priority") {
				cfg.Job.Cluster.Priority = priority
				if err := cfg.Job.Validate(); err != nil {
					return err
				}
			}
			cfg.file = job.file
			return runSubmit(c.Context(), std, cfg)
		},
	}
	cfg.cluster.add(c)
	job.add(c)
	c.Flags().BoolVarP(&cfg.Watch, "watch", "w", false, "show the job until it is over; the exit status is its own")
	c.Flags().BoolVar(&upload, "upload", false, "copy model and data into the store")
	c.Flags().BoolVar(&noUpload, "no-upload", false, "leave model and data where they are")
	c.Flags().IntVar(&priority, "priority", 0, "-100 to 100; higher goes first; that of the job file if left out")
	c.Flags().StringVarP(&cfg.output, "output", "o", outputText, "text, name for the id alone, or json for machines")
	c.Flags().StringVar(&cfg.Request, "request", "", "ask again for the job of an earlier try, by the id that it printed")
	addLifeline(c, &cfg.until)
	return c
}

// submitted is what skein submit reports.
type submitted struct {
	Event  string `json:"event"`
	Job    string `json:"job"`
	At     string `json:"coordinator"`
	Leader string `json:"leader"`
}

func runSubmit(ctx context.Context, std streams, cfg submitConfig) error {
	lifeline(std, cfg.until)
	if cfg.cluster.kube.on {
		return submitKube(ctx, std, cfg)
	}
	config, err := cfg.cluster.config(ctx, std)
	if err != nil {
		return err
	}
	s, err := client.NewSubmission(cfg.Job)
	if err != nil {
		return err
	}
	if cfg.Request != "" {
		if err := s.Repeat(cfg.Request); err != nil {
			return usageError{fmt.Errorf("--request: %w", err)}
		}
	}
	copies := !config.Local()
	if cfg.Upload != nil {
		copies = *cfg.Upload
	}
	if config.Local() { // so are its workers: what this machine lacks, nobody has
		if err := s.Check(vfs.OS); err != nil {
			return inFile(err, cfg.file)
		}
	}
	if copies {
		say := func(text string) {
			fmt.Fprintf(std.err, "%-11s %s → %s\n", "uploading", text, s.Job.Checkpoint.Store)
		}
		if err := s.Upload(ctx, vfs.OS, say); err != nil {
			return unsent(ctx, err)
		}
	}
	c, err := client.New(config)
	if err != nil {
		return err
	}
	defer c.Close()
	id, leader, err := c.Submit(ctx, s)
	if unsure, ok := errors.AsType[*client.UncertainError](err); ok {
		return fmt.Errorf("%w: `skein jobs` shows it; the same command with --request %s asks again and makes no second one", err, unsure.Request)
	}
	if err != nil {
		return unsent(ctx, err)
	}
	switch cfg.output {
	case outputName:
		fmt.Fprintln(std.out, id)
	case outputJSON:
		err = std.object(submitted{"submitted", id, c.Leader(), leader})
	default:
		_, err = fmt.Fprintf(std.out, "%s  submitted to %s (leader %s)\n", id, c.Leader(), leader)
	}
	if err != nil || !cfg.Watch {
		return err
	}
	return watch(ctx, std, c, watchConfig{cluster: cfg.cluster, Job: id, Lines: -1, output: strings.Replace(cfg.output, outputName, outputText, 1)})
}

// inFile names the job file in the problems of a job.
func inFile(err error, file string) error {
	if invalid, ok := errors.AsType[*jobspec.Invalid](err); ok && file != "-" {
		for i := range invalid.Problems {
			invalid.Problems[i].Source = file
		}
	}
	return err
}

// unsent says of an interruption that came before the job was sent that nothing was.
func unsent(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return stoppedError{"interrupted; nothing was submitted", ctx.Err()}
	}
	return err
}

// watch shows a job until it is over.
func watch(ctx context.Context, std streams, c *client.Client, cfg watchConfig) error {
	printer := std.printer(cfg.output)
	defer printer.Close()
	story := &client.Story{Emit: printer.Emit, Machine: cfg.output == outputJSON, Job: cfg.Job}
	defer story.Close()
	job, err := c.Watch(ctx, cfg.Job, client.Watching{After: cfg.after, Lines: true, Before: cfg.Lines}, story.Show)
	if err != nil {
		if ctx.Err() == nil {
			return err
		}
		printer.Close()
		return stoppedError{fmt.Sprintf("stopped watching; the job goes on; watch it again with: %s %s%s", cmp.Or(cfg.again, "skein watch"), cfg.Job, cfg.cluster.again()), ctx.Err()}
	}
	story.End(job)
	printer.Close()
	return client.Ended(job)
}
