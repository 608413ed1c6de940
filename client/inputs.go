package client

import (
	"fmt"
	"strings"

	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/jobspec"
)

// Check looks, on this machine, for what the job reads and for what must not be there
// yet. Everything that is wrong is a problem of one [jobspec.Invalid].
func (s *Submission) Check(fsys vfs.FS) error {
	found := missing(fsys, s.Job)
	export := s.Job.Output.Export
	if there, err := vfs.Exists(fsys, export); export != "" && !s.Again && (there || err != nil) { // an earlier try may have written it
		text := fmt.Sprintf("%s exists already; choose another folder or remove it", export)
		if err != nil {
			text = err.Error()
		}
		found = append(found, jobspec.Problem{Path: "output.export", Message: text})
	}
	if len(found) > 0 {
		return &jobspec.Invalid{Problems: found}
	}
	return nil
}

// Missing tells whether a job names a model or data that are not on this machine.
func Missing(fsys vfs.FS, job *jobspec.Job) bool {
	s, err := NewSubmission(job)
	return err == nil && len(missing(fsys, s.Job)) > 0
}

// missing lists what a job with absolute paths reads and nobody has.
func missing(fsys vfs.FS, j *jobspec.Job) (found []jobspec.Problem) {
	say := func(path, format string, args ...any) {
		found = append(found, jobspec.Problem{Path: path, Message: fmt.Sprintf(format, args...)})
	}
	if base := j.Model.Base; base != "" && !strings.Contains(base, "://") {
		if there, err := vfs.Exists(fsys, base); err != nil {
			say("model.base", "%v", err)
		} else if !there {
			say("model.base", "%s: no such folder or file; check the path", base)
		}
	}
	up := upload{fsys: fsys}
	files := func(path string, patterns []string) {
		for _, p := range patterns {
			names, err := up.expand(p)
			if err != nil {
				say(path, "%v; check the path", err)
			}
			for _, name := range names {
				if strings.Contains(name, "://") {
					continue
				}
				if there, err := vfs.Exists(fsys, name); err != nil {
					say(path, "%v", err)
				} else if !there {
					say(path, "%s: no such file; check the path", name)
				}
			}
		}
	}
	files("data.train", j.Data.Train)
	files("data.validation", j.Data.Validation.Paths)
	return found
}
