package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/skein-ml/skein/coordinator"
	"github.com/skein-ml/skein/coordinator/membership"
	"github.com/skein-ml/skein/coordinator/raftlog"
	"github.com/skein-ml/skein/coordinator/recovery"
	"github.com/skein-ml/skein/coordinator/scheduler"
	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/proto/leader"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/worker"
)

// TestMain looks for goroutines that nobody has ended, with more patience than goleak
// has by itself: a busy machine takes its time to end what was told to.
func TestMain(m *testing.M) {
	code := m.Run()
	err := goleak.Find()
	for tries := 0; err != nil && tries < 20; tries++ {
		err = goleak.Find()
	}
	if code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// patience is generous: the machine may be busy with other things.
const patience = 60 * time.Second

// rig is a cluster in this process, over loopback: real coordinators, real workers but
// for what they compute.
type rig struct {
	*testing.T
	dir     string
	store   string  // of its jobs
	ca      *pki.CA // nil: plain text
	members []raftlog.Server
	running map[string]*coordinator.Coordinator
	jobs    skeinv1.JobsClient
	ops     skeinv1.ClusterClient
	board   *board
}

func newRig(t *testing.T, size int) *rig { return newSecureRig(t, size, nil) }

func newSecureRig(t *testing.T, size int, ca *pki.CA) *rig {
	r := &rig{T: t, ca: ca, dir: t.TempDir(), running: map[string]*coordinator.Coordinator{}, board: newBoard()}
	r.store = filepath.Join(r.dir, "store")
	var addresses []string
	for i := range size {
		a := freeAddress(t)
		addresses = append(addresses, a)
		r.members = append(r.members, raftlog.Server{ID: fmt.Sprint("c", i+1), Address: a})
	}
	for _, m := range r.members {
		r.start(m)
	}
	t.Cleanup(func() {
		for id := range r.running {
			r.stop(id)
		}
	})
	c := leader.Config{Addresses: addresses, Build: "test"}
	if ca != nil {
		c.TLS = r.issue(ca, pki.Client, "somebody").Expect(pki.Coordinator)
	}
	conn, err := leader.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r.jobs, r.ops = skeinv1.NewJobsClient(conn), skeinv1.NewClusterClient(conn)
	return r
}

// start starts a coordinator, for the first time or again.
func (r *rig) start(m raftlog.Server) {
	r.Helper()
	c, err := coordinator.Start(coordinator.Config{
		Cluster: "test", ID: m.ID, Dir: filepath.Join(r.dir, m.ID), Build: "test", Listen: m.Address, Members: r.members,
		TLS:             r.issue(r.ca, pki.Coordinator, m.ID),
		ElectionTimeout: 300 * time.Millisecond, Tick: 20 * time.Millisecond, Heartbeat: 50 * time.Millisecond,
		Membership: membership.Config{Lease: 3 * time.Second, Reconnect: 300 * time.Millisecond},
		Recovery:   recovery.Config{LostStateWait: 300 * time.Millisecond, Settle: 300 * time.Millisecond},
		Scheduler:  scheduler.Config{Settle: 300 * time.Millisecond},
	})
	if err != nil {
		r.Fatal(err)
	}
	r.running[m.ID] = c
}

// issue makes the files of somebody on loopback; nil without an authority.
func (r *rig) issue(ca *pki.CA, role pki.Role, name string) *pki.Files {
	r.Helper()
	if ca == nil {
		return nil
	}
	dir := filepath.Join(r.TempDir(), name)
	if err := ca.IssueTo(dir, role, name, []string{"127.0.0.1"}, time.Hour); err != nil {
		r.Fatal(err)
	}
	f, err := pki.Load(dir)
	if err != nil {
		r.Fatal(err)
	}
	return f
}

func newCA(t *testing.T) *pki.CA {
	t.Helper()
	ca, err := pki.NewCA("test")
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// stop ends a coordinator.
func (r *rig) stop(id string) {
	r.Helper()
	c := r.running[id]
	delete(r.running, id)
	if err := c.Stop(); err != nil {
		r.Error(err)
	}
}

// lastPort is the last one that freeAddress gave. They lie below those that systems give to
// connections by themselves, so that none is taken before somebody listens, and above those
// of the coordinator's own tests.
var lastPort = func() *atomic.Uint32 {
	var p atomic.Uint32
	p.Store(28_500 + uint32(os.Getpid())%900*4)
	return &p
}()

// freeAddress is one of loopback that nobody listens on, and no other test gets.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 1000 {
		address := fmt.Sprint("127.0.0.1:", lastPort.Add(1))
		if l, err := net.Listen("tcp", address); err == nil {
			l.Close()
			return address
		}
	}
	t.Fatal("no port is free")
	return ""
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	r.Cleanup(cancel)
	return ctx
}

// submit submits a job of 24 steps and 4 ranks.
func (r *rig) submit(change func(*jobspec.Job)) string {
	r.Helper()
	j, err := jobspec.Read("job.yaml", strings.NewReader(`
kind: FineTune
name: pronounce
model: {base: /models/tiny}
data: {train: /data/train.jsonl, sequenceLength: 64}
train: {steps: 24, globalBatch: 4, optimizer: {learningRate: 3e-4}}
cluster: {worldSize: 4, workers: {min: 1, max: 4}}
checkpoint: {every: 8 steps, store: /store}
output: {export: /out}
`))
	if err != nil {
		r.Fatal(err)
	}
	j.Checkpoint.Store = r.store
	if change != nil {
		change(j)
	}
	raw, err := json.Marshal(j)
	if err != nil {
		r.Fatal(err)
	}
	out, err := r.jobs.Submit(r.ctx(), &skeinv1.SubmitRequest{RequestId: fmt.Sprintf("request-%d", time.Now().UnixNano()), Spec: raw})
	if err != nil {
		r.Fatal(err)
	}
	return out.GetJob()
}

func (r *rig) get(id string) *skeinv1.Job {
	r.Helper()
	out, err := r.jobs.Get(r.ctx(), &skeinv1.GetRequest{Job: id})
	if err != nil {
		r.Fatal(err)
	}
	return out.GetJob()
}

// eventually waits until a job is as wanted.
func (r *rig) eventually(id, what string, ok func(*skeinv1.Job) bool) *skeinv1.Job {
	r.Helper()
	var j *skeinv1.Job
	r.until(what, func() bool {
		j = r.get(id)
		return ok(j)
	}, func() any { return j })
	return j
}

// until waits for a condition.
func (r *rig) until(what string, ok func() bool, state func() any) {
	r.Helper()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	late := time.After(patience)
	for !ok() {
		select {
		case <-look.C:
		case <-late:
			r.Fatalf("never: %s; it is %v", what, state())
		}
	}
}

func inPhase(p skeinv1.Phase) func(*skeinv1.Job) bool {
	return func(j *skeinv1.Job) bool { return j.GetPhase() == p }
}

// joined waits until so many workers are connected.
func (r *rig) joined(n int) {
	r.Helper()
	var list []*skeinv1.WorkerNode
	r.until(fmt.Sprintf("%d workers", n), func() bool {
		out, err := r.ops.Nodes(r.ctx(), &skeinv1.NodesRequest{})
		if err != nil {
			r.Fatal(err)
		}
		list = slices.DeleteFunc(out.GetWorkers(), func(w *skeinv1.WorkerNode) bool { return !w.GetConnected() })
		return len(list) == n
	}, func() any { return list })
}

// process is a worker that runs.
type process struct {
	*rig
	name  string
	tasks *fake
	drain context.CancelFunc // what SIGTERM does
	done  chan struct{}
	err   error // once done is closed
}

// worker starts a worker. change may alter its configuration and what it computes.
func (r *rig) worker(name string, change func(*Config, *fake)) *process {
	r.Helper()
	tasks := &fake{name: name, board: r.board}
	c := Config{
		Cluster: "test", Name: name, Node: "node-" + name, Build: "test", Dir: filepath.Join(r.dir, "cache-"+name), Classes: []string{"generic r1"}, Memory: 1 << 30,
		DrainWait: patience, NameWait: 300 * time.Millisecond, Tasks: tasks, TLS: r.issue(r.ca, pki.Worker, name),
	}
	for _, m := range r.members {
		c.Coordinators = append(c.Coordinators, m.Address)
	}
	if change != nil {
		change(&c, tasks)
	}
	ctx, cancel := context.WithCancel(r.Context())
	p := &process{rig: r, name: name, tasks: tasks, drain: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = Run(ctx, c)
	}()
	r.Cleanup(func() {
		cancel()
		_ = p.wait() // tests that want to know have asked
	})
	return p
}

// wait waits for the end of a worker, and says how it ended.
func (p *process) wait() error {
	p.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.Fatalf("worker %s never ends", p.name)
	}
	return p.err
}

const (
	modelHash = "aa"
	dataHash  = "dd"
)

// resolved is what a worker makes of a job.
func resolved(raw []byte) ([]byte, error) {
	var j jobspec.Job
	if err := json.Unmarshal(raw, &j); err != nil {
		return nil, err
	}
	r, err := j.Resolve(jobspec.Facts{ModelHash: modelHash, DataHash: dataHash, Sequences: 1000, NumericClass: "generic r1", MicroBatch: 1})
	if err != nil {
		return nil, err
	}
	return r.Canonical(), nil
}

// board is what the workers of a generation know of each other without a ring.
type board struct {
	mu    sync.Mutex
	over  map[string]chan struct{} // by job and generation: rank 0 is done
	hosts []string                 // every start, such as w1:1
	ends  []string                 // every end, such as w1:1 context canceled
}

func newBoard() *board { return &board{over: map[string]chan struct{}{}} }

func (b *board) of(a *skeinv1.Assignment) chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := fmt.Sprint(a.GetJob(), a.GetGeneration())
	if b.over[key] == nil {
		b.over[key] = make(chan struct{})
	}
	return b.over[key]
}

func (b *board) note(list *[]string, format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	*list = append(*list, fmt.Sprintf(format, args...))
}

func (b *board) has(list *[]string, what string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.ContainsFunc(*list, func(s string) bool { return strings.HasPrefix(s, what) })
}

// fake prepares at once and takes a step each few milliseconds, unless it is told to do
// something else.
type fake struct {
	name  string
	board *board
	once  func(context.Context, worker.PrepareConfig) (worker.Preparation, error)     // instead of preparing
	host  func(context.Context, func(console.Event), worker.HostConfig) (bool, error) // before hosting; true: that was all
	nonce func(worker.PrepareConfig) (object, nonce string, err error)
}

func (f *fake) Prepare(ctx context.Context, emit func(console.Event), p worker.PrepareConfig) (worker.Preparation, error) {
	emit(console.Note{Text: f.name + " prepares"})
	if f.once != nil {
		return f.once(ctx, p)
	}
	spec, err := resolved(p.Spec)
	if err != nil {
		return worker.Preparation{}, err
	}
	out := worker.Preparation{Resolved: spec, Memory: 1000, Step0: &skeinv1.Checkpoint{Manifest: "manifest-0", Weights: weights(0)}, DataHash: dataHash}
	if f.nonce != nil {
		out.NonceObject, out.Nonce, err = f.nonce(p)
	}
	return out, err
}

func (f *fake) Warm(context.Context, func(console.Event), worker.WarmConfig) error { return nil }

func (f *fake) Drop() {}

func weights(step int64) string { return fmt.Sprintf("%064x", step) }

func (f *fake) Host(ctx context.Context, emit func(console.Event), h worker.HostConfig) (err error) {
	a := h.Order
	f.board.note(&f.board.hosts, "%s:%d", f.name, a.GetGeneration())
	defer func() { f.board.note(&f.board.ends, "%s:%d %v", f.name, a.GetGeneration(), err) }()
	if f.host != nil {
		if all, err := f.host(ctx, emit, h); all || err != nil {
			return err
		}
	}
	over := f.board.of(a)
	if a.GetRanks()[0] != 0 {
		select {
		case <-over:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return f.train(ctx, emit, h, over)
}

// train is what rank 0 does.
func (f *fake) train(ctx context.Context, emit func(console.Event), h worker.HostConfig, over chan struct{}) error {
	a := h.Order
	for step := a.GetResume().GetStep() + 1; step <= 24; step++ {
		asked := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-h.Checkpoint:
			asked = true
		case <-time.After(2 * time.Millisecond): // the work
		}
		emit(console.Step{Step: step, Steps: 24, Loss: 1.5})
		phases := worker.Phases{RingBytes: 1000 * (step - a.GetResume().GetStep())}
		phases.Data, phases.Compute = time.Millisecond, 2*time.Millisecond
		h.Report(&skeinv1.Progress{Generation: a.GetGeneration(), Step: step, Steps: 24, Loss: 1.5, TokensPerSecond: 900}, phases)
		if step%8 != 0 && !asked {
			continue
		}
		err := h.Publish(ctx, &skeinv1.Checkpoint{
			Generation: a.GetGeneration(), Step: step, Manifest: fmt.Sprintf("manifest-%d-%d", a.GetGeneration(), step), Weights: weights(step),
		})
		if err != nil {
			return err
		}
		emit(console.Published{Step: step, Bytes: 5, Seconds: .1})
	}
	emit(console.Note{Text: "all done"})
	if err := h.Complete(ctx, []byte(`{"loss":1.6}`), nil); err != nil {
		return err
	}
	close(over)
	return nil
}

// untilStopped is a host that takes no step.
func untilStopped(ctx context.Context, _ func(console.Event), _ worker.HostConfig) (bool, error) {
	<-ctx.Done()
	return true, ctx.Err()
}
