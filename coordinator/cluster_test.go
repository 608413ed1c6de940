package coordinator

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skein-ml/skein/coordinator/membership"
	"github.com/skein-ml/skein/coordinator/raftlog"
	"github.com/skein-ml/skein/coordinator/recovery"
	"github.com/skein-ml/skein/coordinator/scheduler"
	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/proto/leader"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// patience is generous: the machine may be busy with other things.
const patience = 60 * time.Second

// rig is a cluster in this process, over loopback.
type rig struct {
	*testing.T
	dir       string
	ca        *pki.CA // nil: plain text
	members   []raftlog.Server
	running   map[string]*Coordinator
	processes map[string]*process // where coordinators are processes
	conn      *leader.Conn
	jobs      skeinv1.JobsClient
	ops       skeinv1.ClusterClient
}

func newRig(t *testing.T, size int, ca *pki.CA) *rig {
	t.Parallel() // it waits most of the time
	r := &rig{T: t, dir: t.TempDir(), ca: ca, running: map[string]*Coordinator{}}
	for i := range size {
		r.members = append(r.members, raftlog.Server{ID: fmt.Sprint("c", i+1), Address: freeAddress(t)})
	}
	t.Cleanup(func() {
		for _, c := range r.running {
			if err := c.Stop(); err != nil {
				t.Error(err)
			}
		}
	})
	for _, m := range r.members {
		r.start(m)
	}
	r.connect()
	return r
}

// connect makes the clients of the rig itself, which may do everything.
func (r *rig) connect() {
	r.Helper()
	r.conn = r.dial(pki.Admin, "olga")
	r.jobs, r.ops = skeinv1.NewJobsClient(r.conn), skeinv1.NewClusterClient(r.conn)
}

// lastPort is the last one that freeAddress gave. They lie below those that systems give to
// connections by themselves, so that none is taken while its coordinator is down.
var lastPort = func() *atomic.Uint32 {
	var p atomic.Uint32
	p.Store(12_000 + uint32(os.Getpid())%4000*4)
	return &p
}()

// freeAddress is one that nobody listens on, and no other test gets.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 1000 {
		address := fmt.Sprint("127.0.0.1:", lastPort.Add(1))
		if listenable(address) {
			return address
		}
	}
	t.Fatal("no port is free")
	return ""
}

// files are what a process shows; nil in plain text.
func (r *rig) files(role pki.Role, name string) *pki.Files {
	if r.ca == nil {
		return nil
	}
	r.Helper()
	dir := filepath.Join(r.dir, "pki", string(role)+"-"+name)
	if _, err := os.Stat(dir); err != nil {
		if err := r.ca.IssueTo(dir, role, name, []string{"127.0.0.1"}, time.Hour); err != nil {
			r.Fatal(err)
		}
	}
	f, err := pki.Load(dir)
	if err != nil {
		r.Fatal(err)
	}
	return f
}

// dial connects to all coordinators as somebody.
func (r *rig) dial(role pki.Role, name string) *leader.Conn {
	r.Helper()
	c := leader.Config{Build: "test"}
	if f := r.files(role, name); f != nil {
		c.TLS = f.Expect(pki.Coordinator)
	}
	for _, m := range r.members {
		c.Addresses = append(c.Addresses, m.Address)
	}
	conn, err := leader.New(c)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { conn.Close() })
	return conn
}

func (r *rig) config(m raftlog.Server) Config {
	return Config{
		Cluster: "test", ID: m.ID, Dir: filepath.Join(r.dir, m.ID), Build: "test", Listen: m.Address, Members: r.members, TLS: r.files(pki.Coordinator, m.ID),
		ElectionTimeout: 300 * time.Millisecond, Tick: 20 * time.Millisecond, Heartbeat: 100 * time.Millisecond,
		Membership: membership.Config{Lease: 3 * time.Second, Reconnect: 300 * time.Millisecond},
		Recovery:   recovery.Config{LostStateWait: 300 * time.Millisecond, Settle: 300 * time.Millisecond},
		Scheduler:  scheduler.Config{Settle: 300 * time.Millisecond},
	}
}

func (r *rig) start(m raftlog.Server) *Coordinator {
	r.Helper()
	c, err := Start(r.config(m))
	if err != nil {
		r.Fatal(err)
	}
	r.running[m.ID] = c
	return c
}

func (r *rig) stop(id string) {
	r.Helper()
	if err := r.running[id].Stop(); err != nil {
		r.Fatal(err)
	}
	delete(r.running, id)
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	r.Cleanup(cancel)
	return ctx
}

// leader is the coordinator that leads.
func (r *rig) leader() string {
	r.Helper()
	n, err := r.ops.Nodes(r.ctx(), &skeinv1.NodesRequest{})
	if err != nil {
		r.Fatal(err)
	}
	for _, c := range n.GetCoordinators() {
		if c.GetLeader() {
			return c.GetId()
		}
	}
	r.Fatal("nobody leads")
	return ""
}

// joined waits until so many workers take part.
func (r *rig) joined(workers int) {
	r.Helper()
	deadline := time.Now().Add(patience)
	for {
		n, err := r.ops.Nodes(r.ctx(), &skeinv1.NodesRequest{})
		if err == nil && len(n.GetWorkers()) == workers {
			return
		}
		if time.Now().After(deadline) {
			r.Fatalf("never %d workers: %v, %v", workers, n, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// spec is a valid job.
func spec(t *testing.T, change func(*jobspec.Job)) []byte {
	t.Helper()
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
		t.Fatal(err)
	}
	if change != nil {
		change(j)
	}
	raw, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func (r *rig) submit(request string, change func(*jobspec.Job)) string {
	r.Helper()
	out, err := r.jobs.Submit(r.ctx(), &skeinv1.SubmitRequest{RequestId: "request-00000000-" + request, Spec: spec(r.T, change)})
	if err != nil {
		r.Fatal(err)
	}
	return out.GetJob()
}

func (r *rig) get(job string) *skeinv1.Job {
	r.Helper()
	out, err := r.jobs.Get(r.ctx(), &skeinv1.GetRequest{Job: job})
	if err != nil {
		r.Fatal(err)
	}
	return out.GetJob()
}

// eventually waits for a job to be as wanted.
func (r *rig) eventually(job, what string, ok func(*skeinv1.Job) bool) *skeinv1.Job {
	r.Helper()
	deadline := time.Now().Add(patience)
	for {
		j := r.get(job)
		if ok(j) {
			return j
		}
		if time.Now().After(deadline) {
			r.Fatalf("never happened: %s; the job is %v", what, j)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// until waits for something that no job shows.
func (r *rig) until(what string, ok func() bool) {
	r.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			r.Fatalf("never happened: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func inPhase(p skeinv1.Phase) func(*skeinv1.Job) bool {
	return func(j *skeinv1.Job) bool { return j.GetPhase() == p }
}
