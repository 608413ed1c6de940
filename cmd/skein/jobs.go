package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/internal/console"
)

// jobsConfig is skein jobs.
type jobsConfig struct {
	cluster clusterFlags
	Active  bool
	output  string
}

func newJobs(std streams) *cobra.Command {
	var cfg jobsConfig
	c := &cobra.Command{
		Use:   "jobs",
		Short: "List the jobs of a cluster",
		Long: `List jobs in order of submission, which is the order of the queue among jobs of one
priority. WHY is what a
job waits for, or why it ended as it did.`,
		Example: `  skein jobs
  skein jobs --active -o wide`,
		Args: args(),
		RunE: func(c *cobra.Command, _ []string) error { return runJobs(c.Context(), std, cfg) },
	}
	cfg.cluster.add(c)
	c.Flags().BoolVar(&cfg.Active, "active", false, "leave out jobs that are over")
	listFlag(c, &cfg.output)
	return c
}

func runJobs(ctx context.Context, std streams, cfg jobsConfig) error {
	if err := checkList(cfg.output); err != nil {
		return err
	}
	if cfg.cluster.kube.on {
		note := func(text string) { fmt.Fprintf(std.err, "skein: %s\n", text) }
		if err := awaitedKube(ctx, cfg.cluster, note); err != nil {
			return err
		}
	}
	return cfg.cluster.with(ctx, std, func(ctx context.Context, c *client.Client) error {
		got, err := c.List(ctx, cfg.Active)
		if err != nil {
			return err
		}
		var jobs []client.Job
		for _, j := range got {
			jobs = append(jobs, client.View(j))
		}
		return list(std, cfg.output, jobs, func() string {
			text := jobTable(jobs, cfg.output == outputWide, time.Now())
			if cfg.output == outputWide {
				return text
			}
			return clipLines(text, std.columns())
		})
	})
}

// columns is how wide the terminal is that output goes to; 0: it is none.
func (s streams) columns() int {
	file, ok := s.out.(*os.File)
	if !ok {
		return 0
	}
	columns, _, err := term.GetSize(int(file.Fd()))
	if err != nil {
		return 0
	}
	return columns
}

// clipLines cuts each line to so many characters; 0: to none.
func clipLines(text string, columns int) string {
	if columns < 2 {
		return text
	}
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(console.Clip(strings.TrimSuffix(line, "\n"), columns) + "\n")
	}
	return b.String()
}

func jobTable(jobs []client.Job, wide bool, now time.Time) string {
	if len(jobs) == 0 {
		return "no jobs\n"
	}
	header := []string{"JOB", "PHASE", "STEP", "LOSS", "WORKERS", "AGE", "WHY"}
	if wide {
		header = []string{"JOB", "PHASE", "STEP", "LOSS", "VAL", "TOK/S", "ETA", "WORKERS", "GENERATION", "PUBLISHED", "BITS", "AGE", "WHY"}
	}
	var rows [][]string
	for _, j := range jobs {
		var loss, val, speed, eta, published string
		if p := j.Progress; p != nil {
			loss, speed, eta = fmt.Sprintf("%.3f", p.Loss), console.Count(int64(p.TokensPerSecond)), console.Duration(p.ETASeconds)
			if p.Validation != nil {
				val = fmt.Sprintf("%.3f@%d", *p.Validation, p.ValidationStep)
			}
		}
		if j.Published != nil {
			published = fmt.Sprint(j.Published.Step)
		}
		if val == "" && j.Phase == "done" {
			val = ended(j)
		}
		age := console.Age(now.Sub(j.Submitted))
		if !wide {
			rows = append(rows, []string{j.ID, j.Phase, stepsOf(j), loss, workersOf(j), age, why(j)})
			continue
		}
		rows = append(rows, []string{j.ID, j.Phase, stepsOf(j), loss, val, speed, eta, placed(j.Workers), fmt.Sprint(j.Generation), published, j.NumericClass, age, why(j)})
	}
	return console.Table(header, rows)
}

// ended is the held-out loss that a job has ended with; empty: it has none.
func ended(j client.Job) string {
	var done console.Done
	if json.Unmarshal(j.Result, &done) != nil || done.LossAfter == nil {
		return ""
	}
	return fmt.Sprintf("%.3f@%d", *done.LossAfter, done.Steps)
}

func stepsOf(j client.Job) string {
	if j.Steps == 0 {
		return ""
	}
	return fmt.Sprintf("%d/%d", j.Step, j.Steps)
}

// workersOf is how many workers a job has, or may have.
func workersOf(j client.Job) string {
	switch {
	case len(j.Workers) > 0:
		return fmt.Sprint(len(j.Workers))
	case j.Phase != "preparing" && j.Phase != "queued" && j.Phase != "paused":
		return ""
	case j.WorkersMin == j.WorkersMax:
		return fmt.Sprintf("(%d)", j.WorkersMin)
	}
	return fmt.Sprintf("(%d–%d)", j.WorkersMin, j.WorkersMax)
}

// placed lists workers with their ranks: w1:0,1 w2:2,3.
func placed(workers []client.Placed) string {
	var list []string
	for _, w := range workers {
		list = append(list, w.Worker+":"+ranksOf(w.Ranks))
	}
	return strings.Join(list, " ")
}

func ranksOf(ranks []int32) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(ranks), " ", ","), "[]")
}

// why is what a job waits for, or why it ended.
func why(j client.Job) string {
	switch j.Phase {
	case "preparing", "queued":
		if j.WaitingFor != "" {
			return j.WaitingFor
		}
		return j.Reason
	case "paused", "failed", "canceled":
		return j.Reason
	}
	return ""
}
