package coordinator

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skein-ml/skein/coordinator/membership"
	"github.com/skein-ml/skein/coordinator/raftlog"
	"github.com/skein-ml/skein/coordinator/recovery"
	"github.com/skein-ml/skein/coordinator/scheduler"
	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/proto/leader"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// patience is generous: the machine may be busy with other things.
const patience = 60 * time.Second

// rig is a cluster in this process, over loopback.
type rig struct {
	*testing.T
	dir     string
	tls     *tls.Config
	members []raftlog.Server
	running map[string]*Coordinator
	conn    *leader.Conn
	jobs    skeinv1.JobsClient
	ops     skeinv1.ClusterClient
}

func newRig(t *testing.T, size int, secure *tls.Config) *rig {
	r := &rig{T: t, dir: t.TempDir(), tls: secure, running: map[string]*Coordinator{}}
	var addresses []string
	for i := range size {
		a := freeAddress(t)
		addresses = append(addresses, a)
		r.members = append(r.members, raftlog.Server{ID: fmt.Sprint("c", i+1), Address: a})
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
	conn, err := leader.New(leader.Config{Addresses: addresses, TLS: secure, Build: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r.conn, r.jobs, r.ops = conn, skeinv1.NewJobsClient(conn), skeinv1.NewClusterClient(conn)
	return r
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (r *rig) config(m raftlog.Server) Config {
	return Config{
		Cluster: "test", ID: m.ID, Dir: filepath.Join(r.dir, m.ID), Build: "test", Listen: m.Address, Members: r.members, TLS: r.tls,
		ElectionTimeout: 300 * time.Millisecond, Tick: 20 * time.Millisecond, Heartbeat: 100 * time.Millisecond,
		Membership: membership.Config{Lease: 3 * time.Second, Reconnect: 300 * time.Millisecond},
		Recovery:   recovery.Config{Grace: 300 * time.Millisecond},
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

func inPhase(p skeinv1.Phase) func(*skeinv1.Job) bool {
	return func(j *skeinv1.Job) bool { return j.GetPhase() == p }
}
