// Package fleet is a whole cluster on one machine, for one job: a coordinator in this
// process, workers as processes of their own, and a job that is submitted and watched.
// Its workers end when this process does, however it does; its state lies in the job's
// store, so that the same call goes on after any interruption.
package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/coordinator"
	"github.com/skein-ml/skein/coordinator/raftlog"
	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/jobspec"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// Config is what a fleet needs.
type Config struct {
	Job     *jobspec.Job
	Workers int      // processes; at least 1
	Program []string // command line that starts this program
	Build   string   // version of this program
	Threads int      // of each worker
	Memory  int64    // bytes that each worker may use; 0: unknown

	Emit func(console.Event) // what happens; from any goroutine; nil: nobody listens
}

// Validate names every conflict.
func (c *Config) Validate() error {
	switch {
	case c.Workers < 1 || c.Workers > c.Job.Cluster.WorldSize:
		return fmt.Errorf("--workers is %d; the job's %d ranks can be on 1 to %d workers", c.Workers, c.Job.Cluster.WorldSize, c.Job.Cluster.WorldSize)
	case c.Workers < c.Job.Cluster.Workers.Min:
		return fmt.Errorf("--workers is %d, and the job's cluster.workers.min is %d; lower that, or ask for more workers", c.Workers, c.Job.Cluster.Workers.Min)
	}
	return nil
}

// Folders of the cluster in the job's store.
const (
	coordinatorFolder = "coordinator"
	workersFolder     = "workers"
)

// settle is how long workers get to publish where they are when they are asked to stop.
const settle = 40 * time.Second

// Interrupted is the error of a run that was asked to stop and can go on.
type Interrupted struct {
	Step, Steps int64
	Store       string
	Err         error // the context's
}

func (e *Interrupted) Error() string {
	if e.Steps == 0 {
		return "interrupted before it took a step; the same command goes on"
	}
	return fmt.Sprintf("interrupted; step %d of %d is published in %s; the same command goes on from there", e.Step, e.Steps, e.Store)
}

// Unwrap gives the context's error.
func (e *Interrupted) Unwrap() error { return e.Err }

// Run runs a job to its end.
func Run(ctx context.Context, c Config) (err error) {
	if err := c.Validate(); err != nil {
		return err
	}
	sub, err := client.NewSubmission(c.Job)
	if err != nil {
		return err
	}
	if there, err := vfs.Exists(vfs.OS, sub.Job.Output.Export); err != nil || there {
		return errors.Join(err, fmt.Errorf("output.export: %s exists already; choose another folder or remove it", sub.Job.Output.Export))
	}
	w := &sub.Job.Cluster.Workers
	w.Max = min(w.Max, c.Workers) // nobody else will come
	store := sub.Job.Checkpoint.Store
	if inside, err := filepath.Rel(sub.Job.Output.Export, store); err == nil && filepath.IsLocal(inside) {
		return fmt.Errorf("checkpoint.store: %s lies inside output.export %s, which must not exist before the end; choose a folder beside it", store, sub.Job.Output.Export)
	}
	if c.Emit == nil {
		c.Emit = func(console.Event) {}
	}
	f := &fleet{Config: c, sub: sub, store: store}
	if err := f.open(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	return f.run(ctx)
}

// fleet is a running one.
type fleet struct {
	Config
	sub    *client.Submission
	store  string
	log    *os.File // of the coordinator
	co     *coordinator.Coordinator
	client *client.Client
	crew   crew
}

// open starts the coordinator.
func (f *fleet) open() (err error) {
	if err := os.MkdirAll(filepath.Join(f.store, workersFolder), 0o755); err != nil {
		return fmt.Errorf("checkpoint.store: %w", err)
	}
	if f.log, err = logFile(filepath.Join(f.store, workersFolder, "coordinator.log")); err != nil {
		return fmt.Errorf("checkpoint.store: %w", err)
	}
	f.co, err = coordinator.Start(coordinator.Config{
		ID: "local", Dir: filepath.Join(f.store, coordinatorFolder), Build: f.Build, Listen: "127.0.0.1:0", Alone: true,
		ElectionTimeout: 200 * time.Millisecond, // there is nobody to wait for
		Logger:          slog.New(slog.NewTextHandler(f.log, nil)),
	})
	if errors.Is(err, raftlog.ErrInUse) {
		err = fmt.Errorf("checkpoint.store: another run trains into %s; wait for it, end it, or choose another folder", f.store)
	}
	if err != nil {
		return errors.Join(err, f.log.Close())
	}
	f.client, err = client.New(client.Config{Coordinators: []string{f.co.Address()}, Build: f.Build, Patience: 30 * time.Second})
	if err != nil {
		return errors.Join(err, f.close())
	}
	return nil
}

// close ends everything that runs.
func (f *fleet) close() error {
	errs := []error{f.crew.stop(0)}
	if f.client != nil {
		errs = append(errs, f.client.Close())
	}
	return errors.Join(append(errs, f.co.Stop(), f.log.Close())...)
}

// run submits the job, or finds it as an earlier run has left it, and sees it through.
func (f *fleet) run(ctx context.Context) error {
	id, err := f.adopt(ctx)
	if ctx.Err() != nil { // if the job was taken, the next run finds it
		return &Interrupted{Store: f.store, Err: ctx.Err()}
	}
	if err != nil {
		return err
	}
	f.crew = crew{config: f.Config, dir: filepath.Join(f.store, workersFolder), coordinator: f.co.Address()}
	watching, end := context.WithCancelCause(ctx)
	defer end(nil)
	f.crew.start(func(err error) { end(err) })
	story := &client.Story{Emit: f.Emit, Job: id}
	defer story.Close()
	job, err := f.client.Watch(watching, id, client.Watching{Lines: true, Before: -1}, story.Show)
	switch {
	case ctx.Err() != nil:
		return f.interrupted(ctx, id)
	case watching.Err() != nil:
		return context.Cause(watching)
	case err != nil:
		return err
	}
	story.End(job)
	return client.Ended(job)
}

// adopt returns the id of the job that an earlier run of the same command has left, or
// of a new one.
func (f *fleet) adopt(ctx context.Context) (string, error) {
	jobs, err := f.client.List(ctx, true)
	if err != nil {
		return "", err
	}
	if len(jobs) == 0 {
		id, _, err := f.client.Submit(ctx, f.sub)
		return id, err
	}
	id := jobs[len(jobs)-1].GetId()
	got, err := f.client.Get(ctx, id)
	if err != nil {
		return "", err
	}
	ours, err := json.Marshal(f.sub.Job)
	if err != nil {
		return "", err
	}
	if changed := differing(got.GetSpec(), ours); len(changed) > 0 {
		return "", fmt.Errorf("checkpoint.store: %s holds a job that is not over and was begun with other settings: %s; set them as they were, or choose another folder", f.store, listed(changed))
	}
	return id, nil
}

// differing lists the settings in which two specs differ and that a job cannot change.
func differing(was, is []byte) []string {
	before, after := map[string]string{}, map[string]string{}
	leaves(before, "", was)
	leaves(after, "", is)
	var changed []string
	for _, key := range slices.Sorted(maps.Keys(after)) {
		if !free(key) && before[key] != after[key] {
			changed = append(changed, fmt.Sprintf("%s was %s and is %s", key, shown(before[key]), after[key]))
		}
		delete(before, key)
	}
	for _, key := range slices.Sorted(maps.Keys(before)) {
		if !free(key) {
			changed = append(changed, fmt.Sprintf("%s was %s and is left out", key, before[key]))
		}
	}
	return changed
}

// free tells whether a setting is of the machine more than of the job.
func free(key string) bool {
	return strings.HasPrefix(key, "resources.") || strings.HasPrefix(key, "cluster.workers.")
}

func shown(value string) string {
	if value == "" {
		return "left out"
	}
	return value
}

func listed(changed []string) string {
	const most = 3
	text := ""
	for i, c := range changed {
		if i == most {
			return fmt.Sprintf("%s and %d more", text, len(changed)-most)
		}
		if i > 0 {
			text += ", "
		}
		text += c
	}
	return text
}

// leaves maps the keys of a JSON object, with points, to their values.
func leaves(into map[string]string, prefix string, raw []byte) {
	var section map[string]json.RawMessage
	if json.Unmarshal(raw, &section) != nil {
		into[prefix] = string(raw)
		return
	}
	for key, value := range section {
		if prefix != "" {
			key = prefix + "." + key
		}
		leaves(into, key, value)
	}
}

// interrupted lets the workers publish where they are, and says where that is.
func (f *fleet) interrupted(ctx context.Context, id string) error {
	err := f.crew.stop(settle)
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	got, asked := f.client.Get(late, id)
	if asked != nil {
		return errors.Join(&Interrupted{Store: f.store, Err: ctx.Err()}, err)
	}
	job := got.GetJob()
	if job.GetPhase() == skeinv1.Phase_PHASE_DONE {
		return err
	}
	return errors.Join(&Interrupted{job.GetPublished().GetStep(), job.GetSteps(), client.Store(got), ctx.Err()}, err)
}

// logFile opens a file for what a process has to say; the one before is kept.
func logFile(path string) (*os.File, error) {
	err := os.Rename(path, path+".1")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
}
