package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-ml/skein/client"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// Sizes of a run of faults. Five workers are one more than the job can use, so that a
// lost one can be replaced; the job is short enough that a few of them fit into a long run.
const (
	faultWorkers      = 5
	faultCoordinators = 3
	faultsShort       = 9
	stepsShort        = 900
	stepsLong         = 3000
	smallStore        = "24m" // room for a job's checkpoints
	seedShort         = 4     // what the short form draws is always the same, so that it takes as long
)

// TestFaultsOfEveryKindStrikeARunningJobAndItEndsOnTheSameBits strikes single processes of
// a cluster while a mirrored job trains: one after the other, of every kind, at moments and
// on victims drawn from a seed, as are the jobs' ZeRO stages. No step that a survivor knew decided is told twice unless the
// job fell back to a checkpoint. SKEIN_FAULTS is how many (make chaos), SKEIN_CHAOS_SEED repeats a run as far
// as the clock does.
func TestFaultsOfEveryKindStrikeARunningJobAndItEndsOnTheSameBits(t *testing.T) {
	inside, why := ownNamespaces(t)
	if !inside && why == "" {
		return
	}
	if why != "" {
		t.Cleanup(func() { t.Logf("SKIPPED: partitions, slow links and a full store: %s", why) })
	}
	s := &storm{T: t, want: number(t, "SKEIN_FAULTS", faultsShort), struck: map[string]int{}}
	seed := uint64(seedShort)
	s.steps, s.gap = stepsShort, 300*time.Millisecond
	if s.want > faultsShort {
		seed, s.steps, s.gap = uint64(time.Now().UnixNano()), stepsLong, time.Second
	}
	seed = number(t, "SKEIN_CHAOS_SEED", seed)
	s.rng, s.dealer = rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(seed, 2))
	s.settings = []string{fmt.Sprint("train.steps=", s.steps), "checkpoint.every=50 steps", "cluster.protect=mirror", "eval.every=1000 steps"}

	j := clusterJob(t)
	s.kinds = ofProcesses
	if inside {
		s.kinds = slices.Concat(ofProcesses, ofLinks)
		s.settings = append(s.settings, "checkpoint.store=./small")
		if err := os.Mkdir(j.Path("small"), 0o755); err != nil {
			t.Fatal(err)
		}
		mountSmall(t, j.Path("small"), smallStore)
	}
	if s.want <= faultsShort { // the same few each time, of all sorts
		s.kinds = slices.DeleteFunc(slices.Clone(s.kinds), func(f fault) bool { return !f.short })
	}
	s.hash, s.export = alone(t, j, s.settings...)
	s.say("seed %d; %d faults on %d coordinators and %d workers; in one process the job ends on weights %.12s", seed, s.want, faultCoordinators, faultWorkers, s.hash)
	s.say("%5s  %-15s  %-22s  %8s  %5s  %-8s  %s", "fault", "kind", "victim", "moment", "step", "state", "goes on after")
	began := time.Now()
	if inside {
		s.rig = newNetRig(t, j, faultCoordinators, faultWorkers)
	} else {
		s.rig = newRig(t, j, faultCoordinators, faultWorkers)
	}
	s.api = s.client()
	for s.done < s.want {
		s.life()
	}
	for _, f := range s.kinds {
		if least := s.want / 20; s.struck[f.kind] < int(least) {
			t.Errorf("%s: %d of %d faults, want at least %d", f.kind, s.struck[f.kind], s.want, least)
		}
	}
	s.say("%s; generations that went on live %d, fell back to a checkpoint %d, resumed %d; steps told again after a fall back %d, told by nobody %d; jobs %d, %d s", s.table(), s.live, s.back, s.resumed, s.again, s.silent, s.jobs, int(time.Since(began).Seconds()))
	if t.Failed() {
		return
	}
	s.say("chaos ok: faults=%d generations=%d hash=%s", s.done, s.live+s.back+s.resumed+s.jobs, s.hash)
}

// number is what a variable of the environment says.
func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n < 1 {
		t.Fatalf("%s is %q, want a number", name, text)
	}
	return n
}

// storm is a run of faults on one cluster.
type storm struct {
	*testing.T
	*rig
	rng      *rand.Rand
	api      *client.Client
	settings []string
	steps    int64
	gap      time.Duration // the longest between two faults

	want, done uint64 // faults
	struck     map[string]int
	kinds      []fault
	deck       []fault // what is to come next, each kind as often
	later      []fault // what could not be done when its turn came
	dealer     *rand.Rand
	zero       []int // ZeRO stages of the next jobs, each as often
	jobs       int
	// Generations after a job's first: from memory, back to a checkpoint, and from the
	// checkpoint that a pause has sealed.
	live, back, resumed int
	again, silent       int // steps told again, and not at all: the last lines of a killed worker
	single              []span
	most                int32 // workers that the job may use now

	hash   string
	export map[string]string
}

// span are the generations that began while a single fault struck a job whose every state
// was held twice: none of them may begin from a checkpoint.
type span struct {
	after, to uint64
	what      string
}

// fault is one kind of trouble. Strike does it to a running job, undoes it and returns who
// was hit; "" if there was nobody to hit.
type fault struct {
	kind   string
	strike func(*storm, client.Job) (victim string)
	short  bool // a run of a few faults has it
	wide   bool // it may hit both who has a rank's state: the job may fall back to a checkpoint
}

// ofProcesses are the faults that need nothing but processes, ofLinks those of a network and
// of a file system of the test's own.
var (
	ofProcesses = []fault{
		{"kill", (*storm).killWorker, true, false},
		{"stop", (*storm).stopWorker, true, false},
		{"kill in kill", (*storm).killAgain, false, true},
		{"with leader", (*storm).killWithLeader, true, false},
		{"coordinator", (*storm).killCoordinator, false, false},
		{"leader stops", (*storm).stopLeader, false, false},
		{"scale down", (*storm).scaleDown, true, false},
		{"scale up", (*storm).scaleUp, false, false},
		{"pause", (*storm).pauseJob, false, true},
	}
	ofLinks = []fault{
		{"partition", (*storm).cutWorker, true, false},
		{"deaf", (*storm).deafWorker, false, false},
		{"mute", (*storm).muteWorker, true, false},
		{"pair apart", (*storm).partPair, false, false},
		{"flapping link", (*storm).flapLink, true, false},
		{"slow link", (*storm).slowLink, false, false},
		{"leader cut off", (*storm).cutLeader, true, false},
		{"no quorum", (*storm).cutQuorum, false, false},
		{"full store", (*storm).fillStore, true, false},
	}
)

func (s *storm) say(format string, args ...any) { say(format, args...) }

// say prints a line at once: a long run is watched.
func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

func (s *storm) table() string {
	var text []string
	for kind, n := range s.struck {
		text = append(text, fmt.Sprintf("%s %d", kind, n))
	}
	slices.Sort(text)
	return strings.Join(text, ", ")
}

// upTo draws a time.
func (s *storm) upTo(d time.Duration) time.Duration { return time.Duration(s.rng.Int64N(int64(d))) }

// life is one job from its submission to its end.
func (s *storm) life() {
	s.jobs++
	s.most = 4
	if s.jobs%2 == 0 {
		s.most = 2 // its first scaling is up
	}
	if len(s.zero) == 0 {
		s.zero = s.dealer.Perm(stages)
	}
	s.say("       job %d: ZeRO stage %d", s.jobs, s.zero[0])
	out := fmt.Sprint("trained-", s.jobs)
	id := s.submit(append(s.settings, "output.export=./"+out, fmt.Sprint("cluster.workers.max=", s.most), fmt.Sprint("cluster.zero=", s.zero[0]))...)
	s.zero = s.zero[1:]
	watcher := start(s.T, s.job, append([]string{"watch", id, "--lines", "-1", "-o", "json", "--coordinator", strings.Join(s.addresses, ",")}, s.tls("me")...)...)
	began := time.Now()
	s.single = nil
	for s.done < s.want {
		time.Sleep(s.upTo(s.gap))
		before := s.goesOn(id, 0, 0)
		if before.Phase == "done" {
			break
		}
		if len(s.deck) == 0 {
			s.deck = slices.Clone(s.kinds)
			s.rng.Shuffle(len(s.deck), func(a, b int) { s.deck[a], s.deck[b] = s.deck[b], s.deck[a] })
			s.deck, s.later = append(s.deck, s.later...), nil
		}
		f := s.deck[0]
		s.deck = s.deck[1:]
		moment, struck := time.Since(began), time.Now()
		victim := f.strike(s, before)
		if victim == "" {
			s.later = append(s.later, f)
			continue
		}
		after := s.goesOn(id, before.Generation, before.Step)
		if after.Phase == "done" && after.Generation == before.Generation {
			s.later = append(s.later, f) // the job may have ended before it was hit: it does not count
			s.whole()
			continue
		}
		s.done++
		s.struck[f.kind]++
		state := "exposed"
		if before.Progress.Protected {
			state = "mirrored"
			if !f.wide {
				s.single = append(s.single, span{before.Generation, after.Generation, f.kind + " of " + victim})
			}
		}
		s.say("%5d  %-15s  %-22s  %7.2fs  %5d  %-8s  %.1f s, generation %d → %d", s.done, f.kind, victim, moment.Seconds(), before.Step, state, time.Since(struck).Seconds(), before.Generation, after.Generation)
		s.whole()
	}
	s.must("wait", id, "--timeout", "5m")
	if status := watcher.wait(s.T); status != exitOK {
		s.Fatalf("the watcher of job %d: status %d, %s\n%s", s.jobs, status, watcher.err.String(), s.logs())
	}
	if got := s.rig.hash(id); got != s.hash {
		s.Errorf("job %d ends on %s, undisturbed on %s", s.jobs, got, s.hash)
	}
	if diff := cmp.Diff(s.export, sums(s.T, s.job.Path(out))); diff != "" {
		s.Errorf("job %d exports other files:\n%s", s.jobs, diff)
	}
	s.read(watcher.out.String())
	if s.net != nil { // room for the next one
		if err := os.RemoveAll(s.job.Path("small/" + id)); err != nil {
			s.Fatal(err)
		}
	}
}

// now is the job as the leader tells it; the phase is "unknown" if none does.
func (s *storm) now(id string) client.Job {
	ctx, cancel := context.WithTimeout(s.Context(), time.Second)
	defer cancel()
	got, err := s.api.Get(ctx, id)
	if err != nil {
		return client.Job{Phase: "unknown"}
	}
	v := client.View(got.GetJob())
	if p := got.GetJob().GetProgress(); p.GetGeneration() != v.Generation {
		v.Progress = nil
	}
	if client.Over(got.GetJob().GetPhase()) {
		v.Phase = client.Word(skeinv1.Phase_PHASE_DONE)
		if got.GetJob().GetPhase() != skeinv1.Phase_PHASE_DONE {
			s.Fatalf("the job is %s: %s\n%s", client.Word(got.GetJob().GetPhase()), v.Reason, s.logs())
		}
	}
	return v
}

// goesOn waits until the job takes steps, one that is newer than those of before in the
// generation of before, or is done.
func (s *storm) goesOn(id string, generation uint64, step int64) client.Job {
	s.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		v := s.now(id)
		if v.Phase == "done" || v.Phase == "running" && v.Progress != nil && (v.Generation > generation || v.Step > step) {
			return v
		}
		if time.Now().After(deadline) {
			s.Fatalf("fault %d: the job does not go on: %+v\n%s\n%s", s.done, v, s.must("describe", id), s.logs())
		}
	}
}

// whole waits until every process is back.
func (s *storm) whole() {
	s.Helper()
	began := time.Now()
	s.joined(faultWorkers)
	s.eventually("all coordinators answer", func() bool { return len(s.nodes().Coordinators) == faultCoordinators })
	if took := time.Since(began); took > 2*time.Second {
		s.say("       all processes are back %.1f s later", took.Seconds())
	}
}

// nodes are the processes, coordinators that answer only.
func (s *storm) nodes() client.Nodes {
	s.Helper()
	var nodes client.Nodes
	if err := json.Unmarshal([]byte(s.must("nodes", "-o", "json")), &nodes); err != nil {
		s.Fatal(err)
	}
	nodes.Coordinators = slices.DeleteFunc(nodes.Coordinators, func(c client.Coordinator) bool { return c.Fault != "" })
	return nodes
}

// leader is the coordinator that leads; "" if that cannot be said now.
func (s *storm) leader() string {
	s.Helper()
	for _, c := range s.nodes().Coordinators {
		if c.Leader {
			return c.ID
		}
	}
	return ""
}

// member draws one of the workers that train.
func (s *storm) member(j client.Job) string {
	return j.Workers[s.rng.IntN(len(j.Workers))].Worker
}

// restart starts killed processes again.
func (s *storm) restart(names ...string) {
	s.Helper()
	for _, name := range names {
		if n, isCoordinator := strings.CutPrefix(name, "c"); isCoordinator {
			i, _ := strconv.Atoi(n)
			s.coordinator(i)
		} else {
			s.worker(name)
		}
	}
}

func (s *storm) killWorker(j client.Job) string {
	victim := s.member(j)
	s.kill(victim)
	time.Sleep(s.upTo(1500 * time.Millisecond))
	s.restart(victim)
	return victim
}

// killAgain kills a second worker while the job recovers from the loss of the first.
func (s *storm) killAgain(j client.Job) string {
	if len(j.Workers) < 2 {
		return ""
	}
	s.rng.Shuffle(len(j.Workers), func(a, b int) { j.Workers[a], j.Workers[b] = j.Workers[b], j.Workers[a] })
	first, second := j.Workers[0].Worker, j.Workers[1].Worker
	between := s.upTo(1500 * time.Millisecond)
	s.kill(first)
	time.Sleep(between)
	s.kill(second)
	time.Sleep(s.upTo(time.Second))
	s.restart(first, second)
	return fmt.Sprintf("%s, %s %.1f s later", first, second, between.Seconds())
}

func (s *storm) signal(name string, what syscall.Signal) {
	s.Helper()
	if err := s.processes[name].cmd.Process.Signal(what); err != nil {
		s.Fatal(err)
	}
}

// stopped stops a process for a time.
func (s *storm) stopped(name string, most time.Duration) string {
	s.Helper()
	asleep := s.upTo(most)
	s.signal(name, syscall.SIGSTOP)
	time.Sleep(asleep)
	s.signal(name, syscall.SIGCONT)
	return fmt.Sprintf("%s for %.1f s", name, asleep.Seconds())
}

// stopWorker stops one for a moment or for long enough that it is given up.
func (s *storm) stopWorker(j client.Job) string { return s.stopped(s.member(j), 4*time.Second) }

func (s *storm) stopLeader(client.Job) string {
	leader := s.leader()
	if leader == "" {
		return ""
	}
	return s.stopped(leader, 2*time.Second)
}

func (s *storm) killCoordinator(client.Job) string {
	victim := fmt.Sprint("c", 1+s.rng.IntN(faultCoordinators))
	s.kill(victim)
	time.Sleep(s.upTo(time.Second))
	s.restart(victim)
	return victim
}

func (s *storm) killWithLeader(j client.Job) string {
	leader, victim := s.leader(), s.member(j)
	if leader == "" {
		return ""
	}
	s.kill(victim, leader)
	time.Sleep(s.upTo(time.Second))
	s.restart(leader, victim)
	return victim + ", " + leader
}

// sizes of a job of four ranks: three workers would take as long for a step as two.
var sizes = []int32{1, 2, 4}

func (s *storm) scaleDown(j client.Job) string {
	return s.scaleTo(j, slices.DeleteFunc(slices.Clone(sizes), func(n int32) bool { return n >= s.most }))
}

// scaleUp scales down first where it has to; that does not count.
func (s *storm) scaleUp(j client.Job) string {
	if s.most == sizes[len(sizes)-1] {
		if s.scaleDown(j) == "" {
			return ""
		}
		j = s.goesOn(j.ID, j.Generation, j.Step)
	}
	return s.scaleTo(j, slices.DeleteFunc(slices.Clone(sizes), func(n int32) bool { return n <= s.most }))
}

func (s *storm) scaleTo(j client.Job, among []int32) string {
	if len(among) == 0 {
		return ""
	}
	return s.scaleJob(j, among[s.rng.IntN(len(among))])
}

// scaleJob lets the job use another number of workers, and waits until it does.
func (s *storm) scaleJob(j client.Job, to int32) string {
	if status, _, errs := s.run("scale", j.ID, "--workers", fmt.Sprint(to)); status != exitOK {
		if s.now(j.ID).Phase == "done" {
			return ""
		}
		s.Fatalf("scale: %s", errs)
	}
	was := s.most
	s.most = to
	s.eventually(fmt.Sprint("the job trains on so many workers: ", to), func() bool {
		v := s.now(j.ID)
		return v.Phase == "done" || v.Phase == "running" && len(v.Workers) == int(to)
	})
	if v := s.now(j.ID); v.Phase == "done" {
		s.say("       scaled from %d to %d workers at step %d, the job ended on %d of them", was, to, j.Step, len(v.Workers))
		return ""
	}
	return fmt.Sprintf("from %d to %d workers", was, to)
}

// pauseJob pauses the job at a step boundary and lets it go on.
func (s *storm) pauseJob(j client.Job) string {
	if status, _, errs := s.run("pause", j.ID); status != exitOK {
		if s.now(j.ID).Phase == "done" {
			return ""
		}
		s.Fatalf("pause: %s", errs)
	}
	s.eventually("the job is paused", func() bool {
		v := s.now(j.ID)
		return v.Phase == "done" || v.Phase != "unknown" && v.Phase != "running"
	})
	if s.now(j.ID).Phase == "done" {
		return ""
	}
	time.Sleep(s.upTo(500 * time.Millisecond))
	s.must("resume", j.ID)
	return "job"
}

// begun finds the number of a generation that began from a checkpoint, and its step.
var begun = regexp.MustCompile(`generation (\d+) from (?:the checkpoint of )?step (\d+)`)

// placedNames finds the workers of a generation, with the first of their ranks.
var placedNames = regexp.MustCompile(`\bw\d+:`)

// read counts a job's generations in what its watcher saw, and checks that no step was told
// again but after a fall back to a checkpoint before it, and but for the step after the one
// that a generation went on from without some worker: that one may have heard the decision
// alone, and have told of it once it was back on the network.
func (s *storm) read(out string) {
	s.Helper()
	told := map[int64]int{}
	var backTo []int64
	alone := map[int64]int{} // steps that a worker may have known and told alone when it was lost
	var members []string
	for line := range strings.Lines(out) {
		var e struct {
			Event, Kind, Text string
			Step              int64
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			s.Fatalf("%v: %s", err, line)
		}
		if e.Event == "step" {
			told[e.Step]++
		}
		if e.Event != "coordinator" || e.Kind != "generation" {
			continue
		}
		m := begun.FindStringSubmatch(e.Text)
		if m == nil {
			s.Fatalf("a generation of a kind that is not known here: %s", e.Text)
		}
		before := members
		members = placedNames.FindAllString(e.Text, -1)
		if strings.Contains(e.Text, "live") {
			s.live++
			step, _ := strconv.ParseInt(m[2], 10, 64)
			if slices.ContainsFunc(before, func(w string) bool { return !slices.Contains(members, w) }) {
				alone[step+1]++
			}
			continue
		}
		if m[1] == "1" {
			continue
		}
		generation, _ := strconv.ParseUint(m[1], 10, 64)
		step, _ := strconv.ParseInt(m[2], 10, 64)
		backTo = append(backTo, step)
		if !strings.Contains(e.Text, "checkpoint") {
			s.resumed++
			continue
		}
		s.back++
		s.say("       job %d: %s", s.jobs, e.Text)
		for _, f := range s.single {
			if generation > f.after && generation <= f.to {
				s.Errorf("job %d fell back to a checkpoint after the %s, though all was held twice: %s", s.jobs, f.what, e.Text)
			}
		}
	}
	for step := int64(1); step <= s.steps; step++ {
		may := 1 + alone[step]
		for _, b := range backTo {
			if step > b {
				may++
			}
		}
		if told[step] > may {
			s.Errorf("job %d: step %d was told %d times, want at most %d", s.jobs, step, told[step], may)
		}
		if told[step] > 1 {
			s.again += told[step] - 1
		}
		if told[step] == 0 {
			s.silent++
		}
	}
}
