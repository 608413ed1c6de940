package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/skein-ml/skein/checkpoint/depot"
	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/jobspec"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// Submission is one job on its way in. Its request id is drawn once, so that however
// often it is sent, it is one job.
type Submission struct {
	Job     *jobspec.Job // paths absolute
	Request string
	Again   bool // it may have been sent before
}

// NewSubmission makes the paths of a valid job absolute, which relative ones are not
// for a worker, and draws the request id.
func NewSubmission(job *jobspec.Job) (*Submission, error) {
	j := *job
	j.Data.Train = slices.Clone(j.Data.Train)
	j.Data.Validation.Paths = slices.Clone(j.Data.Validation.Paths)
	var errs []error
	for _, p := range paths(&j) {
		*p = j.Path(*p)
		if *p == "" || strings.Contains(*p, "://") {
			continue
		}
		absolute, err := filepath.Abs(*p)
		*p, errs = absolute, append(errs, err)
	}
	var id [16]byte
	rand.Read(id[:]) // documented never to fail
	return &Submission{Job: &j, Request: hex.EncodeToString(id[:])}, errors.Join(errs...)
}

// paths are the places of a job that name files.
func paths(j *jobspec.Job) []*string {
	list := []*string{&j.Model.Base, &j.Checkpoint.Store, &j.Output.Export}
	for i := range j.Data.Train {
		list = append(list, &j.Data.Train[i])
	}
	for i := range j.Data.Validation.Paths {
		list = append(list, &j.Data.Validation.Paths[i])
	}
	return list
}

// Upload copies what the job reads from this machine into its store, by content, so
// that workers on other machines find it there. What lies in the store already stays
// where it is. Say is told what is copied.
func (s *Submission) Upload(ctx context.Context, fsys vfs.FS, say func(text string)) error {
	j := s.Job
	up := upload{ctx: ctx, fsys: fsys, store: j.Checkpoint.Store, say: say}
	var err error
	if j.Model.Base, err = up.model(j.Model.Base); err != nil {
		return fmt.Errorf("model.base: %w", err)
	}
	if j.Data.Train, err = up.files(j.Data.Train); err != nil {
		return fmt.Errorf("data.train: %w", err)
	}
	if j.Data.Validation.Paths, err = up.files(j.Data.Validation.Paths); err != nil {
		return fmt.Errorf("data.validation: %w", err)
	}
	return nil
}

type upload struct {
	ctx   context.Context
	fsys  vfs.FS
	store string
	say   func(string)
}

// stays tells whether a path needs no copy.
func (u upload) stays(path string) bool {
	inside, err := filepath.Rel(u.store, path)
	return path == "" || strings.Contains(path, "://") || err == nil && filepath.IsLocal(inside)
}

// modelFile tells whether a file of a Hugging Face folder belongs to the model: not
// what tools have left there, nor the same weights for other programs.
func modelFile(name string) bool {
	switch filepath.Ext(name) {
	case ".json", ".safetensors", ".jinja", ".txt", ".model":
		return !strings.Contains(name, "/") && !strings.HasPrefix(name, ".")
	}
	return false
}

func (u upload) model(path string) (string, error) {
	if u.stays(path) {
		return path, nil
	}
	info, err := u.fsys.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s: no such folder or file; check the path", path)
	}
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		return u.file(path)
	}
	names, err := u.fsys.ReadDir(path)
	if err != nil {
		return "", err
	}
	var size int64
	count := 0
	for _, name := range names {
		if info, err := u.fsys.Stat(filepath.Join(path, name)); err == nil && modelFile(name) && !info.IsDir() {
			size, count = size+info.Size(), count+1
		}
	}
	u.say(fmt.Sprintf("%s: %d files, %s", path, count, console.Bytes(size)))
	return depot.PutFolder(u.ctx, u.fsys, u.store, path, modelFile)
}

func (u upload) files(patterns []string) ([]string, error) {
	var found []string
	for _, p := range patterns {
		names, err := u.expand(p)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if !u.stays(name) {
				if name, err = u.file(name); err != nil {
					return nil, err
				}
			}
			found = append(found, name)
		}
	}
	return found, nil
}

// expand finds the files of a path or glob as a worker would: by name.
func (u upload) expand(pattern string) ([]string, error) {
	if strings.Contains(pattern, "://") || !strings.ContainsAny(pattern, "*?[") {
		return []string{pattern}, nil
	}
	if there, _ := vfs.Exists(u.fsys, pattern); there { // a file may have such a name
		return []string{pattern}, nil
	}
	names, err := filepath.Glob(pattern)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", pattern, err)
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		info, err := os.Stat(name)
		return err != nil || info.IsDir()
	})
	if len(names) == 0 {
		return nil, fmt.Errorf("no file matches %s", pattern)
	}
	return names, nil
}

func (u upload) file(path string) (string, error) {
	info, err := u.fsys.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s: no such file; check the path", path)
	}
	if err != nil {
		return "", err
	}
	if info.IsDir() {
		return "", fmt.Errorf("%s is a folder; name its files, such as %s", path, filepath.Join(path, "*.jsonl"))
	}
	u.say(fmt.Sprintf("%s: %s", path, console.Bytes(info.Size())))
	return depot.PutFile(u.ctx, u.fsys, u.store, path)
}

// Submit sends a job until a majority of coordinators has it, and returns its id and
// the coordinator that took it. A job that would write what an active one writes is a
// [RejectedError]; where nobody knows whether the job was taken, it is an
// [UncertainError].
func (c *Client) Submit(ctx context.Context, s *Submission) (id, leader string, err error) {
	spec, err := json.Marshal(s.Job)
	if err != nil {
		return "", "", fmt.Errorf("job %s: %w", s.Job.Name, err)
	}
	if err := c.exportFree(ctx, s, spec); err != nil {
		return "", "", err
	}
	var got *skeinv1.SubmitResponse
	err = c.call(ctx, func(ctx context.Context) error {
		got, err = c.jobs.Submit(ctx, &skeinv1.SubmitRequest{RequestId: s.Request, Spec: spec})
		return err
	})
	_, answered := errors.AsType[*AnsweredError](err)
	_, rejected := errors.AsType[*RejectedError](err)
	if err != nil && !answered && !rejected {
		err = &UncertainError{s.Request, err}
	}
	return got.GetJob(), got.GetLeader(), err
}

// exportFree refuses a job whose output.export is that of a job that is not over: the
// one that ends later would find its folder taken.
func (c *Client) exportFree(ctx context.Context, s *Submission, spec []byte) error {
	if s.Job.Output.Export == "" {
		return nil
	}
	jobs, err := c.List(ctx, true)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		got, err := c.Get(ctx, j.GetId())
		if answered, ok := errors.AsType[*AnsweredError](err); ok && answered.Code == codes.NotFound {
			continue
		}
		if err != nil {
			return err
		}
		var theirs jobspec.Job
		if json.Unmarshal(got.GetSpec(), &theirs) != nil || theirs.Output.Export == "" {
			continue
		}
		again := s.Again && bytes.Equal(got.GetSpec(), spec) // it may be the very job
		if filepath.Clean(theirs.Output.Export) == filepath.Clean(s.Job.Output.Export) && !again && !Over(got.GetJob().GetPhase()) {
			return &RejectedError{fmt.Sprintf("output.export: %s is what job %s will write; choose another folder, or `skein cancel %s` first",
				s.Job.Output.Export, j.GetId(), j.GetId())}
		}
	}
	return nil
}

// Repeat makes it the submission of an earlier one's request id, which 16 to 64 of
// a-z, 0-9 and - are: if that was taken, no second job comes of it.
func (s *Submission) Repeat(request string) error {
	if len(request) < 16 || len(request) > 64 || strings.Trim(request, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return fmt.Errorf("%q is no request id, which 16 to 64 of a-z, 0-9 and - are; copy the one that was printed", request)
	}
	s.Request, s.Again = request, true
	return nil
}
