// Command scalebench measures what many workers cost a group of coordinators: real
// coordinator processes, and in this process real workers but for what they compute, each
// with a connection, a session, heartbeats and a lease of its own. docs/SCALE.md says what
// its lines mean and what they have been.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"time"

	"github.com/skein-ml/skein/proto/leader"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/shard"
)

type options struct {
	skein        string // the program
	workers      int
	coordinators int
	seconds      time.Duration // of a steady state that is measured
	generations  int           // of one job, each begun because a link breaks
	keep         bool          // the coordinators' logs
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	o, err := parse(os.Args[1:])
	if err == nil {
		err = run(ctx, o, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "scalebench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("scalebench", flag.ContinueOnError)
	f.StringVar(&o.skein, "skein", "bin/skein", "the `program` whose coordinators are measured")
	f.IntVar(&o.workers, "workers", 1000, "`number` of workers")
	f.IntVar(&o.coordinators, "coordinators", 3, "`number` of coordinators")
	f.DurationVar(&o.seconds, "steady", 20*time.Second, "`time` of each steady state that is measured")
	f.IntVar(&o.generations, "generations", 11, "`number` of generations of the one job")
	f.BoolVar(&o.keep, "keep", false, "keep what the coordinators have logged, and say where")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if o.workers < shard.WorldSizeMax || o.coordinators < 3 || o.generations < 1 {
		return o, fmt.Errorf("%d workers of %d coordinators: a job takes %d workers, and one coordinator of at least three is killed", o.workers, o.coordinators, shard.WorldSizeMax)
	}
	return o, nil
}

// bench is one run.
type bench struct {
	options
	out     io.Writer
	dir     string
	group   *group
	crowd   *crowd
	jobs    skeinv1.JobsClient
	cluster skeinv1.ClusterClient
}

func run(ctx context.Context, o options, out io.Writer) (err error) {
	b := &bench{options: o, out: out}
	if b.dir, err = os.MkdirTemp("", "scalebench-"); err != nil {
		return err
	}
	defer func() {
		if o.keep {
			fmt.Fprintln(out, "# logs are in", b.dir)
		} else {
			err = errors.Join(err, os.RemoveAll(b.dir))
		}
	}()
	if b.group, err = startGroup(b.dir, o.skein, o.coordinators); err != nil {
		return err
	}
	defer b.group.end()
	conn, err := leader.New(leader.Config{Addresses: b.group.addresses(), Build: "scalebench"})
	if err != nil {
		return err
	}
	defer conn.Close()
	b.jobs, b.cluster = skeinv1.NewJobsClient(conn), skeinv1.NewClusterClient(conn)
	b.crowd = newCrowd(ctx, b.dir, b.group.addresses())
	defer b.crowd.end()
	for _, part := range []func(context.Context) error{b.connect, b.idle, b.oneJob, b.manyJobs, b.busy, b.failover} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	b.say("done workers=%d jobs=%d", o.workers, b.jobsFit())
	return nil
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.out, "bench scale-"+format+"\n", args...)
}

// jobsFit is how many jobs of the most ranks have a worker for each rank.
func (b *bench) jobsFit() int { return b.workers / shard.WorldSizeMax }

// connect starts all workers at once, as after a power cut.
func (b *bench) connect(ctx context.Context) error {
	leads, err := b.group.leads(ctx, b.cluster)
	if err != nil {
		return err
	}
	before, began := leads.cpu(), time.Now()
	for n := range b.workers {
		b.crowd.start(n + 1)
	}
	if err := b.connected(ctx); err != nil {
		return err
	}
	took := time.Since(began)
	b.say("connect ours=%.2f unit=s cpu=%.2fs", took.Seconds(), (leads.cpu() - before).Seconds())
	return nil
}

// connected waits until every worker has a session.
func (b *bench) connected(ctx context.Context) error {
	return until(ctx, fmt.Sprintf("%d workers are connected", b.workers), func() bool {
		one, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		n, err := b.cluster.Nodes(one, &skeinv1.NodesRequest{})
		if err != nil {
			return false
		}
		list := n.GetWorkers()
		return len(list) == b.workers && !slices.ContainsFunc(list, func(w *skeinv1.WorkerNode) bool { return !w.GetConnected() })
	})
}

// steady measures the coordinators while nothing changes.
func (b *bench) steady(ctx context.Context, name string) error {
	leads, err := b.group.leads(ctx, b.cluster)
	if err != nil {
		return err
	}
	before, others, began := leads.cpu(), b.group.cpu(leads), time.Now()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(b.seconds):
	}
	took := time.Since(began)
	core := (leads.cpu() - before).Seconds() / took.Seconds()
	b.say("%s-leader ours=%.1f unit=%%core per-worker=%.0fµs/s followers=%.1f%% rss=%dMiB peak=%dMiB", name,
		100*core, 1e6*core/float64(b.workers), 100*(b.group.cpu(leads)-others).Seconds()/took.Seconds()/float64(b.coordinators-1),
		leads.memory("VmRSS"), leads.memory("VmHWM"))
	return nil
}

func (b *bench) idle(ctx context.Context) error { return b.steady(ctx, "idle") }
func (b *bench) busy(ctx context.Context) error { return b.steady(ctx, "busy") }

// oneJob places one job among all the workers, and breaks one of its links again and
// again.
func (b *bench) oneJob(ctx context.Context) error {
	began := time.Now()
	id, err := b.submit(ctx, 0)
	if err != nil {
		return err
	}
	submitted := time.Since(began)
	if err := b.crowd.hosted(ctx, id, 1); err != nil {
		return err
	}
	b.say("place ours=%.2f unit=s submit=%.0fms", time.Since(began).Seconds(), 1e3*submitted.Seconds())
	var took []time.Duration
	for n := range b.generations {
		began := time.Now()
		b.crowd.breakLink(id)
		if err := b.crowd.hosted(ctx, id, uint64(n+2)); err != nil {
			return err
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.say("generation ours=%.0f unit=ms best=%.0fms worst=%.0fms", 1e3*took[len(took)/2].Seconds(), 1e3*took[0].Seconds(), 1e3*took[len(took)-1].Seconds())
	return nil
}

// manyJobs submits as many jobs as there are workers for, and breaks a link of each at
// the same time.
func (b *bench) manyJobs(ctx context.Context) error {
	leads, err := b.group.leads(ctx, b.cluster)
	if err != nil {
		return err
	}
	before, began := leads.cpu(), time.Now()
	var ids []string
	for n := 1; n < b.jobsFit(); n++ {
		id, err := b.submit(ctx, n)
		if err != nil {
			return err
		}
		ids = append(ids, id)
	}
	for _, id := range ids {
		if err := b.crowd.hosted(ctx, id, 1); err != nil {
			return err
		}
	}
	b.say("place-all ours=%.2f unit=s jobs=%d cpu=%.2fs", time.Since(began).Seconds(), len(ids), (leads.cpu() - before).Seconds())
	before, began = leads.cpu(), time.Now()
	for _, id := range ids {
		b.crowd.breakLink(id)
	}
	for _, id := range ids {
		if err := b.crowd.hosted(ctx, id, 2); err != nil {
			return err
		}
	}
	b.say("generation-all ours=%.0f unit=ms jobs=%d cpu=%.2fs", 1e3*time.Since(began).Seconds(), len(ids), (leads.cpu() - before).Seconds())
	return nil
}

// failover kills the leader and waits until every worker has a session with the next.
func (b *bench) failover(ctx context.Context) error {
	old, err := b.group.leads(ctx, b.cluster)
	if err != nil {
		return err
	}
	generations, err := b.generationsOf(ctx)
	if err != nil {
		return err
	}
	others := b.group.cpu(old)
	b.group.kill(old)
	began := time.Now()
	leads, err := b.group.leads(ctx, b.cluster)
	if err != nil {
		return err
	}
	answered := time.Since(began)
	if err := b.connected(ctx); err != nil {
		return err
	}
	back := time.Since(began)
	b.say("failover ours=%.2f unit=s answers-after=%.2fs cpu=%.2fs", back.Seconds(), answered.Seconds(), (b.group.cpu(old) - others).Seconds())
	if err := b.steady(ctx, "after"); err != nil {
		return err
	}
	after, err := b.generationsOf(ctx)
	if err != nil {
		return err
	}
	changed := 0
	for id, g := range generations {
		if after[id] != g {
			changed++
		}
	}
	b.say("failover-harm ours=%d unit=generations peak=%dMiB", changed, leads.memory("VmHWM"))
	return nil
}

func (b *bench) generationsOf(ctx context.Context) (map[string]uint64, error) {
	l, err := b.jobs.List(ctx, &skeinv1.ListRequest{})
	if err != nil {
		return nil, err
	}
	all := map[string]uint64{}
	for _, j := range l.GetJobs() {
		all[j.GetId()] = j.GetGeneration()
	}
	return all, nil
}

// endless is when a condition is given up.
const endless = 5 * time.Minute

// until looks every few milliseconds whether something is so.
func until(ctx context.Context, what string, ok func() bool) error {
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	late := time.After(endless)
	for !ok() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-late:
			return fmt.Errorf("it never came to this: %s", what)
		case <-look.C:
		}
	}
	return nil
}
