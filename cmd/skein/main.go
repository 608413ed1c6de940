// Command skein fine-tunes language models: one binary that trains, plans,
// evaluates, generates, imports and exports, and is coordinator, worker and client of
// a cluster. Each subcommand has a file of its
// own that turns flags into a Config and runs it; the work is done elsewhere.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/k8s/access"
	"github.com/skein-ml/skein/worker"
)

// version is stamped by the Makefile.
var version = "devel"

// The exit statuses. The help of the root command lists them.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2   // a wrong command line or job file; nothing was started
	exitCannotFit   = 3   // the job needs more than the machine has; nothing was started
	exitNotFound    = 4   // no such job
	exitUnreachable = 5   // no coordinator
	exitTimeout     = 6   // of what was waited for
	exitCanceled    = 7   // the job, by somebody
	exitInterrupted = 130 // by a signal, as shells count
)

// streams are the process's own, or a test's.
type streams struct {
	in       io.Reader
	out, err io.Writer
	plain    bool // a line for each event, on a terminal too
}

func main() {
	// A run outlives whoever reads its output: a closed pipe is an error to drop, not an end.
	signal.Ignore(syscall.SIGPIPE)
	// The first signal ends the run in good order, the second one at once. A terminal
	// that goes away is such a signal.
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup has it
		ends = append(ends, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], streams{in: os.Stdin, out: os.Stdout, err: os.Stderr}, newEngine()))
}

// run executes a command line and returns the exit status.
func run(ctx context.Context, args []string, std streams, eng engine) int {
	root := newRoot(std, eng)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	status := exitStatus(ctx, err)
	if err == nil {
		return status
	}
	if invalid, ok := errors.AsType[*jobspec.Invalid](err); ok {
		fmt.Fprintln(std.err, invalid) // each line already begins with file and line
		return status
	}
	fmt.Fprintf(std.err, "skein: %v\n", err)
	return status
}

// usageError is a command line that cannot mean anything.
type usageError struct{ error }

func exitStatus(ctx context.Context, err error) int {
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return exitInterrupted
	}
	if status, ok := clusterStatus(err); ok {
		return status
	}
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[*jobspec.Invalid](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[*worker.DoesNotFitError](err); ok {
		return exitCannotFit
	}
	return exitFailure
}

// clusterStatus is the exit status of what can go wrong with a cluster.
func clusterStatus(err error) (status int, ok bool) {
	if _, ok := errors.AsType[*client.NotFoundError](err); ok {
		return exitNotFound, true
	}
	if _, ok := errors.AsType[*client.AmbiguousError](err); ok {
		return exitNotFound, true
	}
	if _, ok := errors.AsType[*client.UnreachableError](err); ok {
		return exitUnreachable, true
	}
	if _, ok := errors.AsType[*access.UnreachableError](err); ok {
		return exitUnreachable, true
	}
	if _, ok := errors.AsType[*access.ChoiceError](err); ok {
		return exitUsage, true
	}
	if _, ok := errors.AsType[*client.RejectedError](err); ok {
		return exitUsage, true
	}
	if _, ok := errors.AsType[timeoutError](err); ok {
		return exitTimeout, true
	}
	if ended, ok := errors.AsType[*client.EndedError](err); ok {
		switch {
		case ended.Canceled():
			return exitCanceled, true
		case ended.TooBig():
			return exitCannotFit, true
		}
		return exitFailure, true
	}
	return 0, false
}

// printer returns the writer of a run's events: redrawn on a terminal, plain
// lines elsewhere, objects where the user asked for them.
func (s streams) printer(output string) *console.Printer {
	file, ok := s.out.(*os.File)
	switch {
	case output == outputJSON:
		return console.NewPrinter(s.out, console.JSON, nil)
	case ok && !s.plain && term.IsTerminal(int(file.Fd())) && os.Getenv("TERM") != "dumb":
		return console.NewPrinter(s.out, console.Terminal, func() int {
			columns, _, err := term.GetSize(int(file.Fd()))
			if err != nil {
				return 80
			}
			return columns
		})
	}
	return console.NewPrinter(s.out, console.Plain, nil)
}
