package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skein-ml/skein/client"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// TestBenchReaction is `make bench-reaction`: how soon a fault is noticed and the next step taken,
// what a change of the workers costs, and how soon a new leader answers. Real processes, each on a
// host of its own. SKEIN_REACTION is how many of each kind.
func TestBenchReaction(t *testing.T) {
	if os.Getenv("SKEIN_REACTION") == "" {
		t.Skip("a benchmark of some minutes; run `make bench-reaction`")
	}
	inside, why := ownNamespaces(t)
	if !inside {
		if why != "" {
			t.Skip("SKIPPED: " + why)
		}
		return
	}
	j := clusterJob(t)
	b := &reactionBench{rig: newNetRig(t, j, faultCoordinators, faultWorkers)}
	b.api = b.client()
	b.id = b.submit("train.steps=1000000", "checkpoint.every=1000 steps", "eval.every=1000000 steps", "eval.exactMatch=0",
		"cluster.protect=mirror", fmt.Sprint("cluster.workers.max=", faultWorkers-1))
	watched, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = b.api.Watch(watched, b.id, client.Watching{Lines: true}, b.record) // ends when it is stopped
	}()
	n := int(number(t, "SKEIN_REACTION", 10))
	for _, k := range reactions {
		b.bench(k, n)
	}
	b.leaders(n)
	b.moves(n)
	stop()
	<-ended
	b.must("cancel", b.id)
}

// reactionBench watches a job of one cluster.
type reactionBench struct {
	*rig
	api *client.Client
	id  string

	mu          sync.Mutex
	steps       []moment // as their worker saw them
	generations []moment // as the leader decided them
}

type moment struct {
	at     time.Time
	number int64 // of the step or the generation
}

// generationNumber finds the number of a generation in what is told of it.
var generationNumber = regexp.MustCompile(`generation (\d+) `)

func (b *reactionBench) record(m *skeinv1.WatchResponse) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := m.GetEvent(); e.GetKind() == "generation" {
		if found := generationNumber.FindStringSubmatch(e.GetText()); found != nil {
			n, _ := strconv.ParseInt(found[1], 10, 64)
			b.generations = append(b.generations, moment{time.UnixMilli(e.GetAtUnixMs()), n})
		}
	}
	if l := m.GetLine(); l.GetName() == "step" {
		var s struct{ Step int64 }
		if json.Unmarshal(l.GetJson(), &s) == nil {
			b.steps = append(b.steps, moment{time.UnixMilli(l.GetAtUnixMs()), s.Step})
		}
	}
}

// first is the earliest of some moments at or after another; zero if there is none.
func (b *reactionBench) first(of *[]moment, after time.Time) (earliest time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range *of {
		if !m.at.Before(after.Truncate(time.Millisecond)) && (earliest.IsZero() || m.at.Before(earliest)) {
			earliest = m.at
		}
	}
	return earliest
}

// pause is the longest time without a step between two moments.
func (b *reactionBench) pause(from, to time.Time) (longest time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var at []time.Time
	for _, m := range b.steps {
		if m.at.After(from.Add(-time.Second)) && m.at.Before(to.Add(time.Second)) {
			at = append(at, m.at)
		}
	}
	slices.SortFunc(at, time.Time.Compare)
	for i := range max(0, len(at)-1) {
		longest = max(longest, at[i+1].Sub(at[i]))
	}
	return longest
}

// reaction is a kind of fault that a worker suffers until the others have gone on without it.
type reaction struct {
	kind       string
	begin, end func(b *reactionBench, victim string) error
}

var reactions = []reaction{
	{"kill", func(b *reactionBench, v string) error { b.kill(v); return nil }, func(b *reactionBench, v string) error { b.worker(v); return nil }},
	{"stop", (*reactionBench).freeze, (*reactionBench).thaw},
	{"partition", cutting((*network).cut, from, to), cutting((*network).mend, from, to)},
	{"deaf", cutting((*network).cut, to), cutting((*network).mend, to)},
	{"mute", cutting((*network).cut, from), cutting((*network).mend, from)},
	{"unplugged", func(b *reactionBench, v string) error { return b.net.plug(v, false) }, func(b *reactionBench, v string) error { return b.net.plug(v, true) }},
}

func (b *reactionBench) freeze(v string) error {
	return b.processes[v].cmd.Process.Signal(syscall.SIGSTOP)
}

func (b *reactionBench) thaw(v string) error {
	return b.processes[v].cmd.Process.Signal(syscall.SIGCONT)
}

func cutting(do func(n *network, name, direction string) error, directions ...string) func(*reactionBench, string) error {
	return func(b *reactionBench, v string) error {
		for _, d := range directions {
			if err := do(b.net, v, d); err != nil {
				return err
			}
		}
		return nil
	}
}

// settled waits until all workers are there and every rank is held twice, and returns the job.
func (b *reactionBench) settled(workers int) (v client.Job) {
	b.Helper()
	b.joined(faultWorkers)
	b.eventually("the job trains, protected", func() bool {
		got, err := b.api.Get(b.Context(), b.id)
		if err != nil {
			return false
		}
		v = client.View(got.GetJob())
		return v.Phase == "running" && len(v.Workers) == workers && v.Progress != nil && v.Progress.Protected
	})
	time.Sleep(time.Second)
	return v
}

// bench strikes n times and prints how long it took.
func (b *reactionBench) bench(k reaction, n int) {
	b.Helper()
	var noticed, decided, next []time.Duration
	for i := range n {
		before := b.settled(faultWorkers - 1)
		victim := before.Workers[i%len(before.Workers)].Worker
		told := b.accusations(victim)
		began := time.Now()
		if err := k.begin(b, victim); err != nil {
			b.Fatal(err)
		}
		var generation, step time.Time
		b.eventually("a generation without it takes a step", func() bool {
			generation = b.first(&b.generations, began)
			if generation.IsZero() {
				return false
			}
			step = b.first(&b.steps, generation)
			return !step.IsZero()
		})
		if err := k.end(b, victim); err != nil {
			b.Fatal(err)
		}
		if said := b.accusations(victim); len(said) > len(told) {
			noticed = append(noticed, said[len(told)].Sub(began))
		}
		decided, next = append(decided, generation.Sub(began)), append(next, step.Sub(began))
	}
	say("bench reaction-%s n=%d noticed %s; next generation %s; next step %s", k.kind, n, spread(noticed), spread(decided), spread(next))
}

// accused finds when a worker told whom it accuses.
var accused = regexp.MustCompile(`(?m)^time=(\S+) .*msg="task ended".* accused=[^" ]`)

// accusations are the moments at which workers but one accused others, in order.
func (b *reactionBench) accusations(but string) (at []time.Time) {
	b.Helper()
	for name, p := range b.processes {
		if name == but || !strings.HasPrefix(name, "w") {
			continue
		}
		for _, m := range accused.FindAllStringSubmatch(p.err.String(), -1) {
			when, err := time.Parse(time.RFC3339Nano, m[1])
			if err != nil {
				b.Fatal(err)
			}
			at = append(at, when)
		}
	}
	slices.SortFunc(at, time.Time.Compare)
	return at
}

// leaders kills the leader n times.
func (b *reactionBench) leaders(n int) {
	b.Helper()
	s := &storm{T: b.T, rig: b.rig}
	var answers, pauses []time.Duration
	for range n {
		b.settled(faultWorkers - 1)
		b.eventually("all coordinators answer", func() bool { return len(s.nodes().Coordinators) == faultCoordinators })
		leader := s.leader()
		if leader == "" {
			b.Fatal("nobody leads")
		}
		api := b.client()
		began := time.Now()
		b.kill(leader)
		for {
			ctx, cancel := context.WithTimeout(b.Context(), 50*time.Millisecond)
			_, err := api.Get(ctx, b.id)
			cancel()
			if err == nil {
				break
			}
		}
		answered := time.Now()
		api.Close()
		time.Sleep(2 * time.Second)
		answers, pauses = append(answers, answered.Sub(began)), append(pauses, b.pause(began, began.Add(time.Second)))
		n, _ := strconv.Atoi(strings.TrimPrefix(leader, "c"))
		b.coordinator(n)
	}
	say("bench reaction-leader n=%d a new leader answers after %s; longest pause between two steps %s", n, spread(answers), spread(pauses))
}

// moves scales the job down and up n times: planned moves, and joins.
func (b *reactionBench) moves(n int) {
	b.Helper()
	pauses := map[int][]time.Duration{}
	for i := range 2 * n {
		to := []int{2, faultWorkers - 1}[i%2]
		b.settled([]int{faultWorkers - 1, 2}[i%2])
		began := time.Now()
		b.must("scale", b.id, "--workers", fmt.Sprint(to))
		b.settled(to)
		pauses[to] = append(pauses[to], b.pause(began, time.Now()))
	}
	say("bench reaction-scale n=%d longest pause between two steps: from %d to 2 workers %s; from 2 to %[2]d %s", n, faultWorkers-1, spread(pauses[2]), spread(pauses[faultWorkers-1]))
}

// spread is the median, the 95th percentile and the largest of some times.
func spread(of []time.Duration) string {
	if len(of) == 0 {
		return "never"
	}
	slices.Sort(of)
	at := func(share float64) float64 { return of[min(len(of)-1, int(share*float64(len(of))))].Seconds() }
	return fmt.Sprintf("%.2f s in the median, p95 %.2f, max %.2f", at(.5), at(.95), of[len(of)-1].Seconds())
}
