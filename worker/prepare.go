package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/checkpoint/depot"
	"github.com/skein-ml/skein/data"
	"github.com/skein-ml/skein/data/stream"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/model/config"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/shard"
)

// PrepareConfig is an order to prepare a job.
type PrepareConfig struct {
	Job  string // id
	Spec []byte // jobspec.Job as JSON, paths absolute
}

// Preparation is what the log needs to know of a prepared job.
type Preparation struct {
	Resolved    []byte // the resolved spec, canonical
	Step0       *skeinv1.Checkpoint
	NonceObject string // in the job's folder, for other workers to read
	Nonce       string
	DataHash    string
	Memory      int64 // bytes that the fullest worker needs at the job's minimum of workers
}

// JobFolder is where a job keeps its checkpoints, data set and lineage.
func JobFolder(store, job string) string { return filepath.Join(store, job) }

// Prepare imports the model, prepares the data, and publishes step 0 in the job's
// folder, with everything that another worker needs to go on from there. It may be
// tried again, by anyone, after it was interrupted. A [BrokenError] says that another
// worker, or this one later, may fare better.
func Prepare(ctx context.Context, env Env, p PrepareConfig) (Preparation, error) {
	out, err := prepare(ctx, env, p)
	if err != nil && ctx.Err() == nil && passing(err) {
		err = &BrokenError{Reason: err.Error()}
	}
	return out, err
}

func prepare(ctx context.Context, env Env, p PrepareConfig) (Preparation, error) {
	var job jobspec.Job
	if err := json.Unmarshal(p.Spec, &job); err != nil {
		return Preparation{}, fmt.Errorf("the job cannot be read: %w", err)
	}
	job.EnsureDefaults()
	if err := job.Validate(); err != nil {
		return Preparation{}, err
	}
	r := &run{Env: env, export: job.Path(job.Output.Export), dir: JobFolder(job.Path(job.Checkpoint.Store), p.Job)}
	if err := r.checkFolders(); err != nil {
		return Preparation{}, err
	}
	if there, err := vfs.Exists(r.FS, job.Path(job.Model.Base)); err == nil && !there {
		return Preparation{}, fmt.Errorf("model.base: %w: %s is not there on this worker; check the path, submit with --upload where the files are, or put them where all workers see them",
			errUnreachable, job.Path(job.Model.Base))
	}
	done, err := r.open(job.Train.Kernels())
	if err != nil {
		return Preparation{}, fmt.Errorf("%w: %w", errUnreachable, err)
	}
	defer func() { _ = done() }()
	if r.Admitted, err = Admit(ctx, r.Env, &job); r.Admitted != nil {
		defer r.Admitted.Close()
	}
	if err != nil {
		return Preparation{}, err
	}
	return r.prepared(ctx)
}

// open opens the device of a job where none is given.
func (r *run) open(class string) (done func() error, err error) {
	if r.OpenDevice == nil {
		return func() error { return nil }, nil
	}
	if class == jobspec.Auto {
		class = ""
	}
	if r.Device, err = r.OpenDevice(class); err != nil {
		return nil, err
	}
	return r.Device.Close, nil
}

// prepared writes what was prepared into the job's folder.
func (r *run) prepared(ctx context.Context) (Preparation, error) {
	var err error
	if r.store, err = newStore(r.Env, r.Admitted, r.Table.Fingerprint(), r.dir); err != nil {
		return Preparation{}, err
	}
	if err := r.FS.MkdirAll(r.dir); err != nil {
		return Preparation{}, fmt.Errorf("checkpoint.store: %w", err)
	}
	if err := r.store.describeModel(); err != nil {
		return Preparation{}, err
	}
	if err := r.keepData(ctx); err != nil {
		return Preparation{}, adviseOnSpace(err)
	}
	out := Preparation{Resolved: r.Spec.Canonical(), DataHash: r.Spec.DataHash, Memory: r.Memory.Total()}
	if out.Step0, err = r.publishImport(ctx); err != nil {
		return Preparation{}, err
	}
	out.NonceObject, out.Nonce, err = depot.PutNonce(r.FS, r.dir)
	return out, err
}

// settledName is a file of a job's folder that says what was prepared beside what the
// resolved spec says.
const settledName = "prepared.json"

// settled is that file.
type settled struct {
	Train      string `json:"train"`                // the data set's folder, from the job's
	Validation string `json:"validation,omitempty"` // the held-out one's; empty: there is none
}

func readSettled(fsys vfs.FS, dir string) (settled, error) {
	path := filepath.Join(dir, settledName)
	file, err := vfs.ReadFile(fsys, path, sideBytesMax)
	if err != nil {
		return settled{}, err
	}
	var s settled
	if err := json.Unmarshal(file, &s); err != nil {
		return settled{}, fmt.Errorf("%s: %w", path, err)
	}
	for _, p := range []string{s.Train, s.Validation} {
		if p != "" && !filepath.IsLocal(p) {
			return settled{}, fmt.Errorf("%s: %q leads out of the job's folder", path, p)
		}
	}
	return s, nil
}

// keepData copies the data sets into the job's folder.
func (r *run) keepData(ctx context.Context) error {
	var s settled
	for _, set := range []struct {
		from string
		to   *string
	}{{r.Data.Train, &s.Train}, {r.Data.Validation, &s.Validation}} {
		if set.from == "" {
			continue
		}
		path, err := depot.PutDataset(ctx, r.FS, r.dir, set.from)
		if err != nil {
			return err
		}
		if *set.to, err = filepath.Rel(r.dir, path); err != nil {
			return err
		}
	}
	file, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return vfs.ReplaceFile(r.FS, filepath.Join(r.dir, settledName), file)
}

// publishImport writes the checkpoint of step 0: the imported weights, no moments.
func (r *run) publishImport(ctx context.Context) (*skeinv1.Checkpoint, error) {
	var ranks []shard.Rank
	for i := range r.Config.WorldSize {
		ranks = append(ranks, shard.Rank(i))
	}
	began := time.Now()
	part, err := checkpoint.SavePart(ctx, r.FS, r.dir, r.Table, 0, 0, ranks, imported{r.Table, r.Base}, nil)
	if err != nil {
		return nil, err
	}
	m, name, bytes, err := checkpoint.WriteManifest(ctx, r.FS, r.dir, r.Table, r.store.state, 0, []checkpoint.Part{part})
	if err != nil {
		return nil, err
	}
	// The manifest becomes the folder's when the log has chosen it: a preparer of another
	// numeric class, whose settings differ, may come first.
	ck := &skeinv1.Checkpoint{Manifest: name, Weights: m.Weights.String(), Bytes: bytes}
	r.emit(console.Published{Bytes: bytes, Seconds: time.Since(began).Seconds(), WeightsHash: ck.Weights, Path: r.dir})
	return ck, nil
}

// imported is a model as the state of step 0: its weights, and moments of zero.
type imported struct {
	table shard.Table
	base  config.Weights
}

// ReadState implements [checkpoint.Source].
func (s imported) ReadState(kind checkpoint.Kind, bucket int, lo int64, le []byte) error {
	clear(le)
	if kind != checkpoint.Master {
		return nil
	}
	values := make([]float32, len(le)/4)
	for _, x := range s.table.SpansOf(bucket, lo, lo+int64(len(values))) {
		if err := s.base.ReadRange(x.Tensor, x.Lo, values[x.Bucket.Lo-lo:x.Bucket.Hi-lo]); err != nil {
			return fmt.Errorf("reading %s: %w", x.Tensor, err)
		}
	}
	copy(le, device.HostBytes(values))
	return nil
}

// serve makes a stream server serve the data set in a folder. It returns the set if it was
// not served before; the caller then owns it.
func serve(fsys vfs.FS, streams *stream.Server, folder, hash string) (*data.Dataset, error) {
	if slices.Contains(streams.Hashes(), hash) {
		return nil, nil
	}
	set, err := data.OpenUnread(fsys, folder)
	if err != nil {
		return nil, err
	}
	if got := set.Manifest().ContentHash; got != hash {
		return nil, errors.Join(fmt.Errorf("%s holds data set %s, the job's is %s", folder, got, hash), set.Close())
	}
	if err := streams.Add(set); err != nil {
		return nil, errors.Join(err, set.Close())
	}
	return set, nil
}
