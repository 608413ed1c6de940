package worker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/data/stream"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/worker/trainer"
)

// HostConfig is an order to host ranks of a job for one generation, and the ways to
// tell the coordinator about it.
type HostConfig struct {
	Order   *skeinv1.Assignment
	Worker  string // own name
	Ring    *allreduce.Listener
	Streams *stream.Server

	// TLS is used to dial ring and streams; without it they are plain. PeerName says
	// which worker a certificate is of, or refuses it.
	TLS      *tls.Config
	PeerName func(tls.ConnectionState) (string, error)

	// Keep is what the process keeps between generations; nil: nothing.
	Keep *Keep

	// Checkpoint asks for a checkpoint at the next step boundary.
	Checkpoint <-chan struct{}
	// Yield asks the ring to stop after the next step. A checkpoint that is asked for with
	// it is at hand by the time this is, so this is looked at first.
	Yield <-chan struct{}
	// Seal is closed to have this worker stop at once and say what it keeps; it may be
	// from the start.
	Seal <-chan struct{}
	// Publish and Complete return when it is in the log. They fail with [ErrFenced] when
	// the generation is over.
	Publish  func(context.Context, *skeinv1.Checkpoint) error
	Complete func(context.Context, []byte, *skeinv1.Spent) error
	// StoreRetry is how long a store that could not be written to is left alone; 0: 5 s.
	StoreRetry time.Duration
	// Accuse is called at once when the link names the worker at whose end it broke: what
	// this one keeps takes a moment longer to say. It must not block; nil: nobody listens.
	Accuse func(worker, reason string)
	// Report is called after each step by the worker that hosts rank 0, and by the
	// others for their phases. It must not block.
	Report func(*skeinv1.Progress, Phases)
}

// Phases is where the time of a step went on one worker.
type Phases struct {
	trainer.Timing
	RingBytes int64 // sent to the next worker in this generation
	Again     bool  // the step has been reported before: only its progress says something new

	// Straggler is the rank that all others wait for, nil if there is none, and Straggles the
	// worker that hosts it; told where rank 0 is.
	Straggler *trainer.Straggler
	Straggles string
}

// ErrFenced is returned when a newer generation has taken over.
var ErrFenced = errors.New("a newer generation has taken over")

// BrokenError says that a generation can't go on, though the job can: on other
// workers, or when there is room again.
type BrokenError struct {
	Accused string // worker at the other end; empty if none
	Reason  string
	Sealed  *skeinv1.Sealed // what this worker keeps; nil: nothing

	// Fenced: the generation is over already, because a newer one has begun. The error is
	// then ErrFenced too.
	Fenced bool
	// Diverged, if set: two copies of a rank's state differ, and nobody knows which one is
	// right. What the workers of this generation hold is not to be gone on from.
	Diverged *skeinv1.Divergence
}

func (e *BrokenError) Error() string {
	if e.Accused == "" {
		return e.Reason
	}
	return fmt.Sprintf("%s: %s", e.Accused, e.Reason)
}

// Unwrap gives ErrFenced where it is that.
func (e *BrokenError) Unwrap() error {
	if e.Fenced {
		return ErrFenced
	}
	return nil
}
