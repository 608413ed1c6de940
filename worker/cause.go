package worker

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"syscall"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/worker/trainer"
)

// cause sorts an error by what it means for the job.
func (h *hosting) cause(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, ErrFenced) {
		return ErrFenced
	}
	if errors.Is(err, errSealed) || errors.Is(err, errYielded) {
		return &BrokenError{Reason: err.Error()}
	}
	if errors.Is(err, allreduce.ErrLinkClosed) && h.saving != nil { // by a checkpoint that failed
		<-h.saving.done
		if h.saving.err != nil {
			err = h.saving.err
		}
	}
	if link, ok := errors.AsType[*allreduce.LinkError](err); ok {
		broken := &BrokenError{Reason: err.Error()}
		if link.Accused >= 0 {
			broken.Accused = h.Order.Members[link.Accused].Worker
		}
		return broken
	}
	if passing(err) {
		return &BrokenError{Reason: err.Error()}
	}
	return err
}

// errUnreachable marks what another worker, or this one later, may well be able to do.
var errUnreachable = errors.New("out of reach")

// passing tells whether another worker, or this one later, may well get past an error: it is
// about the machine, its disks and its links, and not about the job.
func passing(err error) bool {
	if errors.Is(err, checkpoint.ErrDiverged) || errors.Is(err, checkpoint.ErrForeign) || errors.Is(err, trainer.ErrDiverged) {
		return false
	}
	if errors.Is(err, errUnreachable) || errors.Is(err, checkpoint.ErrDamaged) || IsTooBig(err) {
		return true
	}
	// What the file system answers, in the forms in which package os wraps it.
	_, errno := errors.AsType[syscall.Errno](err)
	_, path := errors.AsType[*fs.PathError](err)
	_, link := errors.AsType[*os.LinkError](err)
	return errno || path || link
}
