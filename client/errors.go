package client

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// NotFoundError says that there is no such job.
type NotFoundError struct{ Job string }

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("there is no job %q; `skein jobs` lists them", e.Job)
}

// AmbiguousError says that several jobs could be meant.
type AmbiguousError struct {
	Word string
	Jobs []string // ids
}

func (e *AmbiguousError) Error() string {
	const shown = 5
	ids, more := e.Jobs, ""
	if len(ids) > shown {
		ids, more = ids[len(ids)-shown:], fmt.Sprintf(" and %d more", len(e.Jobs)-shown)
	}
	return fmt.Sprintf("%q may be %s%s; give more of the id", e.Word, strings.Join(ids, ", "), more)
}

// RejectedError says that a request means nothing to the cluster, such as a job file
// that it does not understand. Nothing was done.
type RejectedError struct{ Reason string }

func (e *RejectedError) Error() string { return e.Reason }

// UnreachableError says that nobody answered who could.
type UnreachableError struct{ Tries []Try }

func (e *UnreachableError) Error() string {
	var said []string
	advice, same := "", true
	for i, t := range e.Tries {
		said = append(said, fmt.Sprintf("%s: %s", t.Address, t.Fault))
		same = same && (i == 0 || t.Fault == e.Tries[0].Fault)
		if advice == "" {
			advice = t.Advice
		}
	}
	if same && len(said) > 1 {
		addresses := make([]string, len(e.Tries))
		for i, t := range e.Tries {
			addresses[i] = t.Address
		}
		said = []string{strings.Join(addresses, ", ") + ": " + e.Tries[0].Fault}
	}
	return "no coordinator answers: " + strings.Join(said, "; ") + "; " + advice
}

// UncertainError says that a submission was sent, and that its answer did not come.
type UncertainError struct {
	Request string // id that repeats it
	Err     error
}

func (e *UncertainError) Error() string {
	text := e.Err.Error()
	if errors.Is(e.Err, context.Canceled) {
		text = "interrupted before the answer came"
	}
	return text + "; the job may have been taken"
}

// Unwrap gives what kept the answer.
func (e *UncertainError) Unwrap() error { return e.Err }

// explain turns the error of a call into what a user can act on. Tries is what was seen
// of the coordinators while the call waited; nil: it is looked at now if need be.
func (c *Client) explain(ctx context.Context, err error, tries []Try) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s := status.Convert(err)
	switch s.Code() {
	case codes.Unauthenticated: // the connection's ends do not trust each other
		if tries := c.look(ctx); hopeless(tries) {
			return &UnreachableError{tries}
		}
		return &AnsweredError{s.Code(), s.Message()}
	case codes.NotFound, codes.FailedPrecondition, codes.ResourceExhausted, codes.PermissionDenied, codes.Aborted:
		return &AnsweredError{s.Code(), s.Message()}
	case codes.InvalidArgument:
		return &RejectedError{s.Message()}
	case codes.Unimplemented:
		return &AnsweredError{s.Code(), fmt.Sprintf("coordinator %s does not know this call (%s); install the same version on both", c.Leader(), s.Message())}
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		if tries == nil {
			looking, cancel := context.WithTimeout(ctx, c.config.Patience)
			defer cancel()
			tries = c.look(looking)
		}
		return &UnreachableError{tries}
	}
	return fmt.Errorf("coordinator %s: %s", c.Leader(), s.Message())
}

// AnsweredError is a coordinator's no.
type AnsweredError struct {
	Code   codes.Code
	Reason string
}

func (e *AnsweredError) Error() string { return e.Reason }

// Over tells whether a phase is final.
func Over(p skeinv1.Phase) bool {
	return p == skeinv1.Phase_PHASE_DONE || p == skeinv1.Phase_PHASE_FAILED || p == skeinv1.Phase_PHASE_CANCELED
}

// Word is a phase as users read and write it.
func Word(p skeinv1.Phase) string {
	return strings.ToLower(strings.TrimPrefix(p.String(), "PHASE_"))
}
