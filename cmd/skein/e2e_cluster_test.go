package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/worker/workertest"
)

// clusterJob is the tiny job on four ranks.
func clusterJob(t *testing.T) workertest.Job {
	t.Helper()
	j := workertest.New(t)
	j.Edit(t, "job.yaml", "worldSize: 2", "worldSize: 4")
	j.Edit(t, "job.yaml", "steps: 30", "steps: 12")
	return j
}

// rig is a cluster of real processes, on loopback or each on a host of its own.
type rig struct {
	*testing.T
	job       workertest.Job // in whose folder all of them run
	addresses []string       // of the coordinators
	processes map[string]*process
	secure    bool     // with certificates in certs/NAME
	net       *network // nil: all on loopback
}

// patience is generous: the machine may be busy with other things.
const patience = 60 * time.Second

// newRig starts coordinators c1… and workers w1….
func newRig(t *testing.T, j workertest.Job, coordinators, workers int) *rig {
	t.Helper()
	r := &rig{T: t, job: j, processes: map[string]*process{}}
	r.addresses = freeAddresses(t, coordinators)
	r.startAll(workers)
	return r
}

func (r *rig) startAll(workers int) {
	r.Helper()
	for i := range r.addresses {
		r.coordinator(i + 1)
	}
	for i := range workers {
		r.worker(fmt.Sprint("w", i+1))
	}
	r.joined(workers)
}

// lastPort is the last one that freeAddresses gave. They lie below those that systems give to
// connections by themselves, so that none is taken while its process is down.
var lastPort = func() *atomic.Uint32 {
	var p atomic.Uint32
	p.Store(28_000 + uint32(os.Getpid())%1000*4)
	return &p
}()

// freeAddresses are some that nobody listens on, and no other test gets.
func freeAddresses(t *testing.T, n int) (addresses []string) {
	t.Helper()
	for range 1000 {
		if len(addresses) == n {
			return addresses
		}
		address := fmt.Sprint("127.0.0.1:", lastPort.Add(1))
		if l, err := net.Listen("tcp", address); err == nil {
			_ = l.Close() // nobody has connected
			addresses = append(addresses, address)
		}
	}
	t.Fatal("no ports are free")
	return nil
}

// tls are the flags of a process that has a certificate.
func (r *rig) tls(name string) []string {
	if !r.secure {
		return nil
	}
	return []string{"--tls", r.job.Path("certs/" + name)}
}

func (r *rig) coordinator(n int, more ...string) *process {
	r.Helper()
	name := fmt.Sprint("c", n)
	args := []string{"coordinator", "--id", name, "--listen", r.addresses[n-1], "--dir", r.job.Path(name)}
	if len(r.addresses) == 1 {
		args = append(args, "--alone")
	} else {
		var members []string
		for i, a := range r.addresses {
			members = append(members, fmt.Sprintf("c%d=%s", i+1, a))
		}
		args = append(args, "--members", strings.Join(members, ","))
	}
	return r.start(name, append(append(args, r.tls(name)...), more...)...)
}

// start starts a process of the cluster where it belongs.
func (r *rig) start(name string, args ...string) *process {
	r.Helper()
	var by []string
	if r.net != nil {
		by = r.net.on(name)
	}
	p := startBy(r.T, r.job, by, args...)
	r.processes[name] = p
	return p
}

func (r *rig) worker(name string, more ...string) *process {
	r.Helper()
	args := []string{"worker", "--name", name, "--coordinator", strings.Join(r.addresses, ","), "--threads", "1", "--memory", "2GiB", "--dir", r.job.Path("dir-" + name)}
	if r.net != nil {
		a := r.net.addresses[name]
		args = append(args, "--ring-listen", a+":7411", "--stream-listen", a+":7412", "--node", name)
	}
	return r.start(name, append(append(args, r.tls(name)...), more...)...)
}

// kill ends a process as a power cut would.
func (r *rig) kill(names ...string) {
	r.Helper()
	for _, name := range names {
		_ = r.processes[name].cmd.Process.Kill() // it has ended, if this fails
	}
	for _, name := range names {
		<-r.processes[name].done
	}
}

// everybody lists the processes of the cluster.
func (r *rig) everybody() (names []string) {
	for name := range r.processes {
		names = append(names, name)
	}
	return names
}

// run runs a client's command line to its end.
func (r *rig) run(args ...string) (status int, out, errs string) {
	r.Helper()
	return program(r.T, r.job, append(append(args, "--coordinator", strings.Join(r.addresses, ",")), r.tls("me")...)...)
}

// must is run for a command that has to succeed.
func (r *rig) must(args ...string) string {
	r.Helper()
	status, out, errs := r.run(args...)
	if status != exitOK {
		r.Fatalf("skein %s: status %d, printed %q, %q\n%s", strings.Join(args, " "), status, out, errs, r.logs())
	}
	return out
}

// logs are the last lines of all processes, for a test that has failed.
func (r *rig) logs() string {
	var b strings.Builder
	for name, p := range r.processes {
		lines := strings.Split(strings.TrimSpace(p.err.String()), "\n")
		fmt.Fprintf(&b, "--- %s\n%s\n", name, strings.Join(lines[max(0, len(lines)-15):], "\n"))
	}
	return b.String()
}

// client is a client in this process, for what has to be quick.
func (r *rig) client() *client.Client {
	r.Helper()
	config := client.Config{Coordinators: r.addresses, Build: version, Patience: patience}
	if r.secure {
		files, err := pki.Load(r.job.Path("certs/me"))
		if err != nil {
			r.Fatal(err)
		}
		config.TLS = expect(files, pki.Coordinator)
	}
	c, err := client.New(config)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { c.Close() })
	return c
}

// joined waits until so many workers have joined.
func (r *rig) joined(n int) {
	r.Helper()
	r.eventually("the workers have joined", func() bool {
		status, out, _ := r.run("nodes", "-o", "json", "--connect-timeout", "5s")
		var nodes client.Nodes
		if status != exitOK || json.Unmarshal([]byte(out), &nodes) != nil {
			return false
		}
		connected := 0
		for _, w := range nodes.Workers {
			if w.State == "free" || w.State == "busy" {
				connected++
			}
		}
		return connected == n
	})
}

func (r *rig) eventually(what string, ok func() bool) {
	r.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.Fatalf("it never came to this: %s\n%s\n%s", what, r.must("jobs", "-o", "wide"), r.logs())
		}
	}
}

// submit gives the job to the cluster and returns its id.
func (r *rig) submit(settings ...string) string {
	r.Helper()
	args := []string{"submit", "-f", "job.yaml", "-o", "name"}
	for _, s := range settings {
		args = append(args, "--set", s)
	}
	return strings.TrimSpace(r.must(args...))
}

// describe is a job as it is now.
func (r *rig) describe(id string) client.Job {
	r.Helper()
	var j client.Job
	if err := json.Unmarshal([]byte(r.must("describe", id, "-o", "json")), &j); err != nil {
		r.Fatal(err)
	}
	return j
}

// hash is that of a done job's final weights.
func (r *rig) hash(id string) string {
	r.Helper()
	j := r.describe(id)
	var result struct{ WeightsHash string }
	if err := json.Unmarshal(j.Result, &result); err != nil || j.Phase != "done" {
		r.Fatalf("%s is %s (%s), its result %s: %v\n%s", id, j.Phase, j.Reason, j.Result, err, r.logs())
	}
	return result.WeightsHash
}

// wait waits until a job is done and returns the hash of its weights.
func (r *rig) wait(id string) string {
	r.Helper()
	r.must("wait", id, "--timeout", patience.String())
	return r.hash(id)
}

// alone is what skein train makes of the job in one process: hash and exported files.
func alone(t *testing.T, j workertest.Job, settings ...string) (hash string, export map[string]string) {
	t.Helper()
	other := j.Copy(t)
	args := []string{"train", "-f", "job.yaml", "-o", "json"}
	for _, s := range settings {
		args = append(args, "--set", s)
	}
	done := last(events(t, mustRun(t, other, args...)), "done")
	return done.WeightsHash, sums(t, other.Path("trained"))
}

// placedOn finds the workers in the text of a generation.
var placedOn = regexp.MustCompile(`\bw\d+:\d`)

func TestAClusterComesToTheBitsOfOneProcess(t *testing.T) {
	j := clusterJob(t)
	want, export := alone(t, j)
	r := newRig(t, j, 3, 4)
	for workers := 1; workers <= 4; workers++ {
		for _, zero := range []int{workers % 2, 2 + workers%2} {
			out := fmt.Sprintf("trained-%d-%d", workers, zero)
			id := r.submit(fmt.Sprint("cluster.workers.min=", workers), fmt.Sprint("cluster.workers.max=", workers), fmt.Sprint("cluster.zero=", zero), "output.export=./"+out)
			if got := r.wait(id); got != want {
				t.Errorf("ZeRO %d on %d workers ends on %s, one process on %s", zero, workers, got, want)
			}
			if diff := cmp.Diff(export, sums(t, j.Path(out))); diff != "" {
				t.Errorf("ZeRO %d on %d workers exports other files:\n%s", zero, workers, diff)
			}
			for _, e := range r.describe(id).Events {
				if placed := placedOn.FindAllString(e.Text, -1); e.Kind == "generation" && len(placed) != workers {
					t.Errorf("ZeRO %d ran on %d workers, %d were asked for: %s", zero, len(placed), workers, e.Text)
				}
			}
		}
	}
}

func TestTrainOnWorkersPrintsAndEndsAsInOneProcess(t *testing.T) {
	j := clusterJob(t)
	want, export := alone(t, j)
	out := mustRun(t, j, "train", "-f", "job.yaml", "--workers", "2", "-o", "json")
	got := events(t, out)
	if last(got, "done").WeightsHash != want {
		t.Errorf("two workers end on %s, one process on %s", last(got, "done").WeightsHash, want)
	}
	if diff := cmp.Diff(export, sums(t, j.Path("trained"))); diff != "" {
		t.Errorf("other files are exported:\n%s", diff)
	}
	steps := 0
	for _, e := range got {
		if e.Event == "step" {
			steps++
		}
	}
	if steps != 12 {
		t.Errorf("%d steps were told of, want 12", steps)
	}
	status, _, errs := program(t, j, "train", "-f", "job.yaml", "--workers", "2")
	if status != exitFailure || !strings.Contains(errs, "exists already") {
		t.Errorf("again: status %d, %q", status, errs)
	}
}

func TestTrainOnWorkersGoesOnAfterItsProcessIsKilled(t *testing.T) {
	j := clusterJob(t)
	long := []string{"train.steps=800", "checkpoint.every=20 steps"} // seconds, where nothing else runs
	want, _ := alone(t, j, long...)
	args := []string{"train", "-f", "job.yaml", "--workers", "2", "-o", "json", "--set", long[0], "--set", long[1]}
	p := start(t, j, args...)
	p.out.waitFor(t, `"event":"step","step":25,`)
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.wait(t)
	gone := time.Now()
	for workersOf := func() bool { return childrenOf(t, j) > 0 }; workersOf(); time.Sleep(20 * time.Millisecond) {
		if time.Since(gone) > patience {
			t.Fatal("its workers live on without it")
		}
	}
	status, _, errs := program(t, j, "train", "-f", "job.yaml", "--workers", "2", "--set", long[0], "--set", long[1], "--set", "train.seed=8")
	if status != exitFailure || !strings.Contains(errs, "train.seed was 7 and is 8") {
		t.Errorf("other settings: status %d, %q", status, errs)
	}
	second := start(t, j, args...)
	second.out.waitFor(t, `"event":"step"`)
	if status, _, errs := program(t, j, args...); status != exitFailure || !strings.Contains(errs, "another run trains into") {
		t.Errorf("a third beside the second: status %d, %q", status, errs)
	}
	if err := second.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if status := second.wait(t); status != exitInterrupted || !strings.Contains(second.err.String(), "the same command goes on from there") {
		t.Errorf("Ctrl-C: status %d, %q", status, second.err.String())
	}
	if got := last(events(t, mustRun(t, j, args...)), "done").WeightsHash; got != want {
		t.Errorf("after a kill and an interruption it ends on %s, undisturbed on %s", got, want)
	}
}

// childrenOf counts the worker processes that run in a job's folder.
func childrenOf(t *testing.T, j workertest.Job) (n int) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(lines) == 0 {
		t.Skip("no /proc to look for processes in")
	}
	for _, file := range lines {
		if text, err := os.ReadFile(file); err == nil && strings.Contains(string(text), j.Dir) && strings.Contains(string(text), "worker") {
			n++
		}
	}
	return n
}

func TestAKilledWorkerSetsTheJobBackAndItGoesOnByItself(t *testing.T) {
	j := clusterJob(t)
	long := []string{"train.steps=400", "checkpoint.every=20 steps"}
	want, _ := alone(t, j, long...)
	r := newRig(t, j, 1, 3)
	c := r.client()
	id := r.submit(long...)
	step := func() (int64, uint64) {
		got, err := c.Get(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		v := client.View(got.GetJob())
		return v.Step, v.Generation
	}
	r.eventually("a checkpoint is published", func() bool { s, _ := step(); return s >= 30 })
	before, generation := step()
	r.kill("w2")
	lost := time.Now()
	r.eventually("a new generation has taken a step", func() bool {
		s, g := step()
		return g > generation && s > before-40 && s%20 != 0 || r.over(c, id)
	})
	t.Logf("back after %.1f s", time.Since(lost).Seconds())
	if got := r.wait(id); got != want {
		t.Errorf("after the loss of a worker it ends on %s, undisturbed on %s", got, want)
	}
	if events := fmt.Sprint(r.describe(id).Events); !strings.Contains(events, "w2") {
		t.Errorf("nobody says that w2 was lost: %s", events)
	}
}

// over tells whether a job is.
func (r *rig) over(c *client.Client, id string) bool {
	r.Helper()
	got, err := c.Get(context.WithoutCancel(r.Context()), id)
	return err == nil && client.Over(got.GetJob().GetPhase())
}

func TestTheLeaderDiesAndTheJobDoesNotNotice(t *testing.T) {
	j := clusterJob(t)
	long := []string{"train.steps=200", "checkpoint.every=20 steps"}
	want, _ := alone(t, j, long...)
	r := newRig(t, j, 3, 2)
	watcher := start(t, j, append([]string{"submit", "-f", "job.yaml", "--watch", "--set", long[0], "--set", long[1], "-o", "json"}, "--coordinator", strings.Join(r.addresses, ","))...)
	watcher.out.waitFor(t, `"event":"step","step":20,`)
	var nodes client.Nodes
	if err := json.Unmarshal([]byte(r.must("nodes", "-o", "json")), &nodes); err != nil {
		t.Fatal(err)
	}
	for _, c := range nodes.Coordinators {
		if c.Leader {
			r.kill(c.ID)
		}
	}
	if status := watcher.wait(t); status != exitOK {
		t.Fatalf("the watcher: status %d, %s\n%s", status, watcher.err.String(), r.logs())
	}
	if text := r.must("nodes"); strings.Count(text, "unreachable (connection refused)") != 1 {
		t.Errorf("the killed coordinator is not shown as unreachable:\n%s", text)
	}
	lines := events(t, watcher.out.String())
	if got := last(lines, "done").WeightsHash; got != want {
		t.Errorf("it ends on %s, undisturbed on %s", got, want)
	}
	seen := map[int64]int{}
	for _, e := range lines {
		if e.Event == "step" {
			seen[e.Step]++
		}
	}
	for s := int64(1); s <= 200; s++ {
		if seen[s] != 1 {
			t.Errorf("the watcher was told %d times of step %d", seen[s], s)
		}
	}
	id := strings.TrimSpace(strings.Split(r.must("jobs"), "\n")[1])
	if g := r.describe(strings.Fields(id)[0]).Generation; g != 1 {
		t.Errorf("the job has come to generation %d because of a coordinator", g)
	}
	r.accounted(strings.Fields(id)[0])
}

func TestAWorkerThatIsAskedToLeaveLosesNoStep(t *testing.T) {
	j := clusterJob(t)
	long := []string{"train.steps=400", "checkpoint.every=200 steps"}
	want, _ := alone(t, j, long...)
	r := newRig(t, j, 1, 2)
	id := r.submit(long...)
	r.eventually("it runs", func() bool { return r.describe(id).Step > 10 })
	if err := r.processes["w2"].cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if status := r.processes["w2"].wait(t); status != exitOK {
		t.Errorf("w2 leaves with status %d: %s", status, r.processes["w2"].err.String())
	}
	if got := r.wait(id); got != want {
		t.Errorf("it ends on %s, undisturbed on %s", got, want)
	}
	for _, e := range r.describe(id).Events {
		if e.Kind == "generation" && strings.Contains(e.Text, "generation 2 from step 0") {
			t.Errorf("the job was set back to its start: %s", e.Text)
		}
	}
}

func TestTwoJobsRunAtOnceAndAThirdWaitsItsTurn(t *testing.T) {
	j := clusterJob(t)
	want, _ := alone(t, j, "train.steps=200")
	r := newRig(t, j, 1, 2)
	var ids []string
	for i := range 3 {
		ids = append(ids, r.submit("train.steps=200", "cluster.workers.max=1", fmt.Sprintf("output.export=./out-%d", i), fmt.Sprintf("name=job%d", i)))
	}
	r.eventually("two run and one waits", func() bool {
		return r.describe(ids[0]).Phase == "running" && r.describe(ids[1]).Phase == "running"
	})
	if third := r.describe(ids[2]); third.Phase != "preparing" && third.Phase != "queued" || third.WaitingFor == "" {
		t.Errorf("the third is %s and waits for %q", third.Phase, third.WaitingFor)
	}
	again := []string{"submit", "-f", "job.yaml", "-o", "name", "--set", "output.export=./out-2"}
	if status, _, errs := r.run(again...); status != exitUsage || !strings.Contains(errs, ids[2]) || !strings.Contains(errs, "output.export") {
		t.Errorf("a fourth that writes what the third will: status %d, %q", status, errs)
	}
	if table := r.must("jobs"); !strings.Contains(table, "job2-") || strings.Count(table, "running") != 2 {
		t.Errorf("the list:\n%s", table)
	}
	for _, id := range ids {
		if got := r.wait(id); got != want {
			t.Errorf("%s ends on %s, alone on %s", id, got, want)
		}
	}
}

func TestAJobIsCanceledInEveryPhase(t *testing.T) {
	j := clusterJob(t)
	r := newRig(t, j, 1, 0)
	canceled := func(id string) {
		t.Helper()
		r.must("cancel", id, "--reason", "enough")
		if v := r.describe(id); v.Phase != "canceled" || v.Reason != "canceled: enough" {
			t.Errorf("%s is %s: %s", id, v.Phase, v.Reason)
		}
		if status, _, errs := r.run("wait", id); status != exitCanceled || !strings.Contains(errs, "enough") {
			t.Errorf("wait: status %d, %q", status, errs)
		}
	}
	preparing := r.submit()
	if v := r.describe(preparing); v.Phase != "preparing" || !strings.Contains(v.WaitingFor, "no workers") {
		t.Errorf("without workers it is %s and waits for %q", v.Phase, v.WaitingFor)
	}
	canceled(preparing)
	w1 := r.worker("w1")
	r.joined(1)
	said := func(what, id string) func() bool {
		return func() bool {
			for line := range strings.Lines(w1.err.String()) {
				if strings.Contains(line, what) && strings.Contains(line, "job="+id) {
					return true
				}
			}
			return false
		}
	}
	j.Write(t, "long.jsonl", strings.Repeat(j.Read(t, "train.jsonl"), 2000)) // prepared in many seconds
	prepared := r.submit("data.train=long.jsonl")
	r.eventually("w1 prepares", said("task starts", prepared))
	if v := r.describe(prepared); v.Phase != "preparing" || v.Preparer != "w1" {
		t.Errorf("it is %s by %q, want it to be prepared by w1", v.Phase, v.Preparer)
	}
	canceled(prepared)
	r.eventually("w1 ends its preparation", said("task ended", prepared))
	if !said("how=canceled", prepared)() {
		t.Errorf("the preparation came to its end all the same:\n%s", r.logs())
	}
	queued := r.submit("cluster.workers.min=2")
	r.eventually("it is prepared", func() bool { return r.describe(queued).Phase == "queued" })
	canceled(queued)
	running := r.submit("train.steps=100000")
	r.eventually("it runs", func() bool { return r.describe(running).Step > 2 })
	canceled(running)
	r.eventually("the worker is free again", func() bool {
		return said("task ended", running)() && strings.Contains(r.must("nodes"), "free")
	})
	status, _, errs := r.run("cancel", running)
	if status != exitOK {
		t.Errorf("canceled again: status %d, %q", status, errs)
	}
	done := r.submit("train.steps=5", "train.schedule.warmupSteps=0")
	r.wait(done)
	if status, _, errs := r.run("cancel", done); status != exitFailure || !strings.Contains(errs, "is over: it is done") {
		t.Errorf("canceled when it was done: status %d, %q", status, errs)
	}
}
