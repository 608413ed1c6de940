package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/internal/console"
)

// describeConfig is skein describe.
type describeConfig struct {
	cluster clusterFlags
	Job     string
	output  string
}

func newDescribe(std streams) *cobra.Command {
	var cfg describeConfig
	c := &cobra.Command{
		Use:   "describe JOB",
		Short: "Say all that is known of a job",
		Long: `Say where a job is in its life and why, who hosts which ranks, what is published,
and what happened. JOB is an id, the beginning of one, or a name that only one
active job has.`,
		Example: `  skein describe pronounce-7f3a
  skein describe pronounce -o yaml`,
		Args: args("JOB"),
		RunE: func(c *cobra.Command, args []string) error {
			cfg.Job = args[0]
			return runDescribe(c.Context(), std, cfg)
		},
	}
	cfg.cluster.add(c)
	listFlag(c, &cfg.output)
	return c
}

func runDescribe(ctx context.Context, std streams, cfg describeConfig) error {
	if err := checkList(cfg.output); err != nil {
		return err
	}
	return cfg.cluster.with(ctx, std, func(ctx context.Context, c *client.Client) error {
		job, err := c.Find(ctx, cfg.Job)
		if err != nil {
			return err
		}
		got, err := c.Get(ctx, job.GetId())
		if err != nil {
			return err
		}
		v := client.Describe(got)
		return one(std, cfg.output, v, func() string { return description(v, time.Now()) })
	})
}

// description is a job for people.
func description(j client.Job, now time.Time) string {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-12s %s\n", name, fmt.Sprintf(format, args...))
	}
	describePhase(row, j, now)
	row("World size", "%d, on %s", j.WorldSize, bounds(j))
	if len(j.Workers) > 0 {
		row("Workers", "%s", placed(j.Workers))
	}
	describeSafety(row, j, now)
	if g := j.Goodput; g != nil {
		row("Goodput", "%s", goodput(*g))
		row("Capacity", "%.1f %% of the workers that it could use, in the mean", 100*g.Capacity)
	}
	if j.Priority != 0 {
		row("Priority", "%d", j.Priority)
	}
	if j.Store != "" {
		row("Store", "%s", j.Store)
	}
	if j.NumericClass != "" {
		row("Bits", "%s · spec %s", j.NumericClass, console.Short(j.SpecHash))
	}
	if done, ok := resultOf(j); ok {
		row("Result", "%s", done)
	}
	row("Submitted", "%s, %s ago", j.Submitted.Local().Format(time.DateTime), console.Age(now.Sub(j.Submitted)))
	describeEvents(row, j)
	return b.String()
}

// rower writes a line of a description.
type rower func(name, format string, args ...any)

// describePhase says where a job is in its life, and how it gets on.
func describePhase(row rower, j client.Job, now time.Time) {
	row("Job", "%s", j.ID)
	phase := fmt.Sprintf("%s since %s", j.Phase, console.Age(now.Sub(j.Changed)))
	if j.Generation > 0 {
		phase += fmt.Sprintf(" · generation %d", j.Generation)
	}
	if j.Steps > 0 {
		phase += fmt.Sprintf(" · step %s of %s", console.Count(j.Step), console.Count(j.Steps))
	}
	row("Phase", "%s", phase)
	row("Why", "%s", j.Reason)
	if j.Pausing {
		row("Pauses", "after its next step")
	}
	if j.WaitingFor != "" {
		row("Waits for", "%s", j.WaitingFor)
	}
	if j.Preparer != "" && j.Phase == "preparing" {
		row("Prepared by", "%s", j.Preparer)
	}
	if p := j.Progress; p != nil && j.Phase == "running" {
		val := ""
		if p.Validation != nil {
			val = fmt.Sprintf(" · val %.3f@%d", *p.Validation, p.ValidationStep)
		}
		row("Progress", "loss %.3f%s · |g| %.2f · %s tok/s · ETA %s · %.1f %% of the time waiting for data",
			p.Loss, val, p.GradientNorm, console.Count(int64(p.TokensPerSecond)), console.Duration(p.ETASeconds), 100*p.DataWaitShare)
	}
}

// describeSafety says what is kept of a job, and what the loss of a worker would cost.
func describeSafety(row rower, j client.Job, now time.Time) {
	if p := j.Published; p != nil {
		row("Published", "step %d, %s ago · %s · weights %s", p.Step, console.Age(now.Sub(p.At)), console.Bytes(p.Bytes), console.Short(p.Weights))
	}
	if p := j.Progress; p != nil && p.Unsaved != "" && j.Phase == "running" {
		row("Checkpoint", "%s; it is tried again", p.Unsaved)
	}
	if j.Phase == "running" && j.Published != nil {
		row("Protection", "%s", protection(j))
	}
	if p := j.Progress; p != nil && p.Straggler != "" && j.Phase == "running" {
		row("Straggler", "%s", p.Straggler)
	}
}

// describeEvents says what has happened to a job.
func describeEvents(row rower, j client.Job) {
	name, like := "Events", 0
	for i, e := range j.Events {
		if e.Kind == "published" && i+1 < len(j.Events) && j.Events[i+1].Kind == e.Kind {
			like++ // of many in a row the last one tells all
			continue
		}
		text := strings.TrimPrefix(e.Text, e.Kind+": ")
		if like > 0 {
			text += fmt.Sprintf(" (and %d before)", like)
		}
		row(name, "%s  %-10s  %s", e.At.Local().Format(time.TimeOnly), e.Kind, text)
		name, like = "", 0
	}
}

// protection says what the loss of a worker would cost.
func protection(j client.Job) string {
	switch p := j.Progress; {
	case p != nil && p.Protected && j.Domains != "":
		return fmt.Sprintf("protected: the loss of any one worker costs no step; but %s: to lose that sets it back to step %d", j.Domains, j.Published.Step)
	case p != nil && p.Protected:
		return "protected: the loss of any one worker costs no step"
	case p != nil && p.Exposed != "":
		return fmt.Sprintf("exposed: %s; a lost worker sets it back to step %d", p.Exposed, j.Published.Step)
	case j.Mirror:
		return fmt.Sprintf("exposed until its mirrors are filled: a lost worker sets it back to step %d", j.Published.Step)
	}
	return fmt.Sprintf("exposed (protect: checkpoint): a lost worker sets it back to step %d", j.Published.Step)
}

// goodput says where a job's time went.
func goodput(g client.Goodput) string {
	var parts []string
	for _, c := range []struct {
		name    string
		seconds float64
		always  bool
	}{
		{"productive", g.Productive, true}, {"recovery", g.Recovery, true}, {"rework", g.Rework, true}, {"checkpoint", g.Checkpoint, true},
		{"data wait", g.DataWait, true}, {"evaluation", g.Evaluation, false}, {"paused", g.Paused, true}, {"preparing", g.Preparing, false},
	} {
		if c.always || c.seconds >= .05 {
			parts = append(parts, fmt.Sprintf("%s %.1f s", c.name, c.seconds))
		}
	}
	return fmt.Sprintf("%.1f %%  %s", 100*g.Share, strings.Join(parts, " · "))
}

func bounds(j client.Job) string {
	switch {
	case j.WorkersMax == 1:
		return "1 worker"
	case j.WorkersMin == j.WorkersMax:
		return fmt.Sprintf("%d workers", j.WorkersMin)
	}
	return fmt.Sprintf("%d to %d workers", j.WorkersMin, j.WorkersMax)
}

// resultOf is what a done job has to show, as a line.
func resultOf(j client.Job) (string, bool) {
	if len(j.Result) == 0 {
		return "", false
	}
	return console.Unmarshal(console.Done{}.Name(), j.Result).Line(), true
}
