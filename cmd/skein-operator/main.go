// Command skein-operator makes Skein clusters and jobs out of SkeinClusters and
// FineTuneJobs, in Kubernetes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/skein-ml/skein/k8s/operator"
)

// version is stamped by the Makefile.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

const (
	exitFailure = 1
	exitUsage   = 2
)

// run executes a command line and returns the exit status.
func run(ctx context.Context, args []string, out, errs io.Writer) int {
	f := flag.NewFlagSet("skein-operator", flag.ContinueOnError)
	f.SetOutput(errs)
	var c operator.Config
	namespaces := f.String("namespaces", "", "to look at, with commas between them; all if left out")
	kubeconfig := f.String("kubeconfig", "", "file that says how to reach the API server; in a pod it is known")
	f.StringVar(&c.Metrics, "metrics", "", "host:port for /metrics; none if left out")
	f.StringVar(&c.Health, "health", "", "host:port for /healthz and /readyz; none if left out")
	f.BoolVar(&c.Leader, "leader-elect", false, "of several operators let one alone act")
	f.StringVar(&c.LeaderIn, "leader-namespace", "", "of the lock; that of the pod if left out")
	f.DurationVar(&c.Poll, "poll", 0, "how often clusters with jobs are asked; 2s if left out")
	f.StringVar(&c.Gangs, "gangs", operator.GangsAuto, "how workers that start together are kept together: podgroups, gates, or what the API server has")
	show := f.Bool("version", false, "print the version and end")
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return exitUsage
	case f.NArg() > 0:
		fmt.Fprintf(errs, "skein-operator: %q is no flag; see --help\n", f.Arg(0))
		return exitUsage
	case *show:
		fmt.Fprintf(out, "skein-operator %s\n", version)
		return 0
	}
	c.Build, c.Logger = version, slog.New(slog.NewJSONHandler(errs, nil))
	c.Namespaces = strings.FieldsFunc(*namespaces, func(r rune) bool { return r == ',' || r == ' ' })
	if err := operator.Start(ctx, *kubeconfig, c); err != nil && ctx.Err() == nil {
		fmt.Fprintf(errs, "skein-operator: %v\n", err)
		return exitFailure
	}
	return 0
}
