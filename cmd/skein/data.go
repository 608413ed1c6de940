package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/data"
	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/worker"
)

// prepareConfig is skein data prepare.
type prepareConfig struct {
	Job *jobspec.Job
	Dir string
}

// preparedReport is what skein data prepare reports.
type preparedReport struct {
	Train          string       `json:"train"` // folder
	TrainHash      string       `json:"trainHash"`
	TrainCounts    data.Report  `json:"trainCounts"`
	Validation     string       `json:"validation,omitempty"`
	ValidationHash string       `json:"validationHash,omitempty"`
	Held           *data.Report `json:"validationCounts,omitempty"`
	Cached         bool         `json:"cached"` // it was there already
}

func newData(std streams) *cobra.Command {
	c := &cobra.Command{
		Use:     "data",
		Short:   "Prepare training data",
		Example: "  skein data prepare -f job.yaml",
		Args:    args(),
		RunE:    func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newPrepare(std))
	return c
}

func newPrepare(std streams) *cobra.Command {
	var job jobFlags
	var output, dir string
	c := &cobra.Command{
		Use:   "prepare -f job.yaml",
		Short: "Render, tokenize and pack a job's data into Arrow files",
		Long: `Do the first part of skein train and nothing else: read the job's JSONL, render
it with the model's chat template, tokenize and pack it, and store it as Arrow IPC
files with a manifest and a content hash. Training finds the result and does not
do it again. A malformed line is named by file and line.`,
		Example: `  skein data prepare -f job.yaml
  skein data prepare -f job.yaml --cache ./prepared -o json`,
		Args: args(),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := oneOf("output", output, outputText, outputJSON); err != nil {
				return err
			}
			read, err := job.read(std)
			if err != nil {
				return err
			}
			return runPrepare(c.Context(), std, prepareConfig{Job: read, Dir: dir}, output)
		},
	}
	job.add(c)
	outputFlag(c, &output)
	cacheFlag(c, &dir)
	return c
}

func runPrepare(ctx context.Context, std streams, cfg prepareConfig, output string) error {
	base, err := worker.OpenBase(cfg.Job.Path(cfg.Job.Model.Base))
	if err != nil {
		return err
	}
	defer base.Close()
	language, err := base.Language()
	if err != nil {
		return err
	}
	p, err := data.Prepare(ctx, vfs.OS, worker.DataSpec(cfg.Job, cfg.Dir), language.Encoder)
	if err != nil {
		return err
	}
	r := preparedReport{Train: p.Train, TrainHash: p.TrainManifest.ContentHash, TrainCounts: p.TrainManifest.Report, Cached: p.Cached}
	if v := p.ValidationManifest; v != nil {
		r.Validation, r.ValidationHash, r.Held = p.Validation, v.ContentHash, &v.Report
	}
	return std.report(output, r, r.text())
}

func (r preparedReport) text() string {
	var b strings.Builder
	side := func(name, folder, hash string, counts data.Report) {
		fmt.Fprintf(&b, "%-11s %s\n%-11s %s\n%-11s sha256 %s\n", name, counts, "", folder, "", hash)
		for _, bad := range counts.BadLineErrors {
			fmt.Fprintf(&b, "%-11s skipped %s\n", "", bad)
		}
	}
	side("train", r.Train, r.TrainHash, r.TrainCounts)
	if r.Held != nil {
		side("validation", r.Validation, r.ValidationHash, *r.Held)
	}
	return b.String()
}
