package coordinator

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/jobspec"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

const (
	specBytesMax   = 1 << 20   // of a resolved job, and of a result
	submitBytesMax = 128 << 10 // of a job as it is submitted
	pathBytesMax   = 4 << 10
)

// parseSpec reads a submitted job, strictly.
func parseSpec(raw []byte) (*jobspec.Job, error) {
	if len(raw) > specBytesMax {
		return nil, status.Errorf(codes.InvalidArgument, "the job is %d bytes, where %d is the most; that is no job", len(raw), specBytesMax)
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	var j jobspec.Job
	if err := d.Decode(&j); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "the job cannot be read: %v; are client and coordinator of the same version?", err)
	}
	if d.More() {
		return nil, status.Error(codes.InvalidArgument, "the job cannot be read: something follows its end")
	}
	j.EnsureDefaults()
	if err := j.Validate(); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &j, checkPaths(&j)
}

// checkPaths refuses paths that mean something else on each machine.
func checkPaths(j *jobspec.Job) error {
	paths := map[string][]string{
		"model.base": {j.Model.Base}, "data.train": j.Data.Train, "data.validation": j.Data.Validation.Paths,
		"checkpoint.store": {j.Checkpoint.Store}, "output.export": {j.Output.Export},
	}
	for _, key := range []string{"model.base", "data.train", "data.validation", "checkpoint.store", "output.export"} {
		for _, p := range paths[key] {
			if len(p) > pathBytesMax {
				return status.Errorf(codes.InvalidArgument, "%s: a path of %d bytes; %d is the most", key, len(p), pathBytesMax)
			}
			if p != "" && !filepath.IsAbs(p) && !strings.Contains(p, "://") {
				return status.Errorf(codes.InvalidArgument, "%s: %q is a relative path, which a worker cannot follow; submit an absolute one", key, p)
			}
		}
	}
	return nil
}

// submission is the decision to admit a job.
func submission(request string, raw []byte) (*fsm.Submit, error) {
	if err := checkRequest(request); err != nil {
		return nil, err
	}
	if len(raw) > submitBytesMax {
		return nil, status.Errorf(codes.InvalidArgument, "the job is %d bytes, where %d is the most; name a folder or a pattern instead of many files", len(raw), submitBytesMax)
	}
	j, err := parseSpec(raw)
	if err != nil {
		return nil, err
	}
	return &fsm.Submit{
		Request: request, Name: j.Name, Spec: raw, WorldSize: j.Cluster.WorldSize, WorkersMin: j.Cluster.Workers.Min,
		WorkersMax: j.Cluster.Workers.Max, Class: j.Train.Kernels(), Store: j.Checkpoint.Store, Priority: j.Cluster.Priority,
		// At stage 0 every worker holds all ranks anyway.
		Mirror: j.Cluster.Protect == jobspec.ProtectMirror && *j.Cluster.Zero > 0,
	}, nil
}

func checkRequest(id string) error {
	ok := len(id) >= 16 && len(id) <= 64
	for _, r := range id {
		ok = ok && (r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r == '-')
	}
	if !ok {
		return status.Errorf(codes.InvalidArgument, "request id %q: 16 to 64 characters of 0-9, a-z and - are needed", id)
	}
	return nil
}

// resolution is the decision that ends a preparation. Every "auto" is resolved here
// again, from the facts that the worker found, and must come out as the worker had it:
// what fixes the bits is the coordinator's word.
func resolution(j *fsm.Job, w *fsm.Worker, r *skeinv1.PreparedRequest) (*fsm.Resolve, error) {
	if len(r.GetResolved()) > specBytesMax {
		return nil, status.Errorf(codes.InvalidArgument, "a resolved job of %d bytes; %d is the most", len(r.GetResolved()), specBytesMax)
	}
	theirs, err := jobspec.ParseResolved(r.GetResolved())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	job, err := parseSpec(j.Spec)
	if err != nil {
		return nil, err
	}
	t := theirs.Job.Train
	ours, err := job.Resolve(jobspec.Facts{
		ModelHash: theirs.ModelHash, DataHash: theirs.DataHash, Sequences: theirs.Sequences,
		NumericClass: t.NumericClass, MicroBatch: int(t.MicroBatch),
	})
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if !bytes.Equal(ours.Canonical(), r.GetResolved()) {
		return nil, status.Errorf(codes.InvalidArgument, "worker %s (build %q) resolves the job to other settings than this coordinator; install the same version on both", w.Name, w.Build)
	}
	if !w.Has(t.NumericClass) || !w.Has(job.Train.NumericClass) {
		return nil, status.Errorf(codes.InvalidArgument, "worker %s resolved the numeric class to %q, which it does not offer", w.Name, t.NumericClass)
	}
	step0 := r.GetStep0()
	if err := checkCheckpoint(step0); err != nil {
		return nil, err
	}
	if step0.GetStep() != 0 {
		return nil, status.Errorf(codes.InvalidArgument, "step %d is published where step 0 must be", step0.GetStep())
	}
	if tooLong(r.GetNonceObject(), r.GetNonce()) || r.GetMemoryBytes() < 0 {
		return nil, status.Errorf(codes.InvalidArgument, "a nonce of %d bytes, and %d bytes of memory", len(r.GetNonce()), r.GetMemoryBytes())
	}
	return &fsm.Resolve{
		Job: j.ID, Number: r.GetNumber(), Resolved: r.GetResolved(), SpecHash: ours.Hash(), DataHash: ours.DataHash,
		Class: t.NumericClass, Steps: int64(ours.Job.Train.Steps), Nonce: fsm.Nonce{Object: r.GetNonceObject(), Value: r.GetNonce()},
		Step0:  fsm.Checkpoint{Manifest: step0.GetManifest(), Weights: step0.GetWeights(), Bytes: step0.GetBytes(), At: time.Now().UnixMilli()},
		Memory: r.GetMemoryBytes(),
	}, nil
}

// checkCheckpoint refuses what cannot be a published checkpoint.
func checkCheckpoint(c *skeinv1.Checkpoint) error {
	if c.GetManifest() == "" || c.GetWeights() == "" || tooLong(c.GetManifest(), c.GetWeights()) || c.GetBytes() < 0 {
		return status.Errorf(codes.InvalidArgument, "a checkpoint is published with its manifest and the hash of its weights, not as %.100q with %.100q", c.GetManifest(), c.GetWeights())
	}
	return nil
}

// resolvedLine is the event of a job that is resolved.
func resolvedLine(d *fsm.Resolve) string {
	return fmt.Sprintf("resolved to %d steps, bits: %s, spec %.12s, data %.12s; step 0 is published", d.Steps, d.Class, d.SpecHash, d.DataHash)
}
