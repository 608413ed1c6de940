package stream

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// fault is what a server did wrong; it decides for how long the server is left alone.
type fault int

const (
	gone    fault = iota // did not answer, broke off, stalled, was busy: soon again
	refused              // answered that it will not: a wrong data set, certificate, version
	lied                 // sent something that is not what it should be
)

// pause is how long a server is left alone after its n-th failure in a row, n from 1.
func (f fault) pause(n int) time.Duration {
	base, most := 200*time.Millisecond, 5*time.Second
	switch f {
	case refused:
		base, most = time.Second, 30*time.Second
	case lied:
		base, most = 5*time.Second, 5*time.Minute
	}
	for ; n > 1 && base < most; n-- {
		base *= 2
	}
	return min(base, most)
}

var (
	errStalled = errors.New("it sent nothing for too long")
	errClosed  = errors.New("data stream is closed")
)

// lieError is an answer that proves the server wrong.
type lieError struct{ error }

func (e lieError) Unwrap() error { return e.error }

func lie(format string, args ...any) error { return lieError{fmt.Errorf(format, args...)} }

// classify says what kind of failure an error is.
func classify(err error) fault {
	if _, ok := errors.AsType[lieError](err); ok {
		return lied
	}
	if errors.Is(err, errStalled) {
		return gone
	}
	switch status.Code(err) {
	case codes.NotFound, codes.InvalidArgument, codes.OutOfRange, codes.Unimplemented, codes.PermissionDenied, codes.Unauthenticated, codes.DataLoss:
		return refused
	}
	if text := err.Error(); strings.Contains(text, "authentication handshake failed") || strings.Contains(text, "remote error: tls: ") {
		return refused // a certificate will not be another one in a moment
	}
	return gone
}

// patienceMax is the longest that a server may send nothing. What matters is that it has an end.
const patienceMax = 30 * time.Second

// health is what a client remembers of a server. Its methods are pure but for the receiver; time is passed in.
type health struct {
	broken   bool          // it failed, and has not shown since that it works
	failures int           // in a row
	until    time.Time     // nothing is asked of it before
	reason   error         // of the last failure, nil when it works
	streams  int           // under way now
	patience time.Duration // how long it may send nothing
}

// succeeded notes a stream that was answered in full; slowest is the longest that the client waited for one message of it.
func (h *health) succeeded(slowest, base time.Duration) {
	h.broken, h.failures, h.until, h.reason = false, 0, time.Time{}, nil
	h.patience = min(max(base, 3*slowest, h.patience*3/4), patienceMax)
}

// answered notes a probe that was answered. It may be asked again, but its failures count until it has done real work: a
// server that lies answers probes.
func (h *health) answered() { h.broken, h.until, h.reason = false, time.Time{}, nil }

// failed notes a stream or a probe that was not answered as it should be.
func (h *health) failed(now time.Time, err error) {
	h.broken = true
	h.failures++
	h.reason = err
	h.until = now.Add(classify(err).pause(h.failures))
	if errors.Is(err, errStalled) {
		h.patience = min(2*h.patience, patienceMax) // perhaps it is only slow
	}
}

func (h health) works() bool { return !h.broken }

// elsewhere reports whether a server other than i works.
func elsewhere(servers []health, i int) bool {
	for k := range servers {
		if k != i && servers[k].works() {
			return true
		}
	}
	return false
}

// patient is how long server i may send nothing. One that stalled before gets longer, but only where there is nobody else:
// to fail over is cheaper than to wait.
func patient(servers []health, i int, base time.Duration) time.Duration {
	if elsewhere(servers, i) {
		return base
	}
	return servers[i].patience
}

// pick chooses the server to ask: of those that work, or where none does of those whose pause is over, the one with the
// fewest streams under way, the first from start on among equals, so that load spreads. If nobody may be asked yet it gives
// -1 and how long to wait.
func pick(now time.Time, servers []health, start int) (server int, wait time.Duration) {
	works := slices.ContainsFunc(servers, health.works)
	server = -1
	for k := range servers {
		i := (start + k) % len(servers)
		h := &servers[i]
		if works && h.broken {
			continue
		}
		if left := h.until.Sub(now); left > 0 {
			if wait == 0 || left < wait {
				wait = left
			}
			continue
		}
		if server < 0 || h.streams < servers[server].streams {
			server = i
		}
	}
	if server >= 0 {
		wait = 0
	}
	return server, wait
}

// pickProbe chooses the server to probe: a broken one whose pause is over, while another works (where none does, the work
// itself is the probe). Otherwise it gives -1 and how long to wait, 0 if there is nothing to wait for.
func pickProbe(now time.Time, servers []health) (server int, wait time.Duration) {
	for i, h := range servers {
		if h.works() || !elsewhere(servers, i) {
			continue
		}
		left := h.until.Sub(now)
		if left <= 0 {
			return i, 0
		}
		if wait == 0 || left < wait {
			wait = left
		}
	}
	return -1, wait
}
