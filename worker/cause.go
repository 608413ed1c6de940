package worker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/checkpoint"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/worker/trainer"
)

// cause sorts an error by what it means for the job.
func (h *hosting) cause(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
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
	if errors.Is(err, ErrFenced) {
		return &BrokenError{Reason: err.Error(), Fenced: true}
	}
	if link, ok := errors.AsType[*allreduce.LinkError](err); ok {
		return &BrokenError{Reason: err.Error(), Accused: h.nameOf(link.Accused)}
	}
	if peer, ok := errors.AsType[*trainer.PeerError](err); ok {
		return &BrokenError{Reason: err.Error(), Accused: h.nameOf(peer.Worker)}
	}
	if d, ok := errors.AsType[*trainer.DivergedError](err); ok {
		owner, mirror, bucket := h.nameOf(d.Owner), h.nameOf(d.Mirror), d.Layer
		if d.Kind != checkpoint.Master {
			bucket = fmt.Sprintf("%s, AdamW's %v", d.Layer, d.Kind)
		}
		return &BrokenError{
			Reason:   fmt.Sprintf("%v; these are %s and %s, and one of the two computes wrongly: look at their memory and processors", err, owner, mirror),
			Diverged: &skeinv1.Divergence{Rank: int32(d.Rank), Bucket: bucket, Step: d.Step, Owner: owner, Mirror: mirror},
		}
	}
	if passing(err) {
		return &BrokenError{Reason: err.Error()}
	}
	return err
}

// nameOf is the name of a worker of the generation, "" if there is none.
func (h *hosting) nameOf(worker int) string {
	members := h.Order.GetMembers()
	if worker < 0 || worker >= len(members) {
		return ""
	}
	return members[worker].GetWorker()
}

// errUnreachable marks what another worker, or this one later, may well be able to do.
var errUnreachable = errors.New("out of reach")

// passing tells whether another worker, or this one later, may well get past an error: it is
// about the machine, its disks and its links, and not about the job.
func passing(err error) bool {
	if errors.Is(err, checkpoint.ErrDiverged) || errors.Is(err, checkpoint.ErrForeign) {
		return false
	}
	if errors.Is(err, errUnreachable) || errors.Is(err, checkpoint.ErrDamaged) || IsTooBig(err) {
		return true
	}
	return ofFiles(err)
}

// ofFiles tells whether the file system said this, in the forms in which package os wraps it.
func ofFiles(err error) bool {
	_, errno := errors.AsType[syscall.Errno](err)
	_, path := errors.AsType[*fs.PathError](err)
	_, link := errors.AsType[*os.LinkError](err)
	return errno || path || link
}
