package agent

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/skein-ml/skein/checkpoint/depot"
	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/jobspec"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/worker"
)

// stubborn is a file system whose files, where they are nonces, open late or never.
type stubborn struct {
	vfs.FS
	open func() error
}

func (s stubborn) Open(name string) (vfs.File, error) {
	if strings.HasSuffix(name, ".nonce") {
		if err := s.open(); err != nil {
			return nil, err
		}
	}
	return s.FS.Open(name)
}

// withNonce has a worker write a nonce when it prepares, as it does in real life.
func (r *rig) withNonce(c *Config, f *fake) {
	f.nonce = func(p worker.PrepareConfig) (string, string, error) {
		return depot.PutNonce(vfs.OS, worker.JobFolder(r.store, p.Job))
	}
}

func TestWorkersThatReadTheNonceGetRanks(t *testing.T) {
	r := newRig(t, 1)
	r.worker("w1", r.withNonce)
	r.worker("w2", r.withNonce)
	r.joined(2)
	id := r.submit(func(j *jobspec.Job) { j.Cluster.Workers.Min, j.Cluster.Workers.Max = 2, 2 })
	r.eventually(id, "it is done", inPhase(skeinv1.Phase_PHASE_DONE))
	if n := len(r.board.hosts); n != 2 {
		t.Errorf("%v hosted ranks", r.board.hosts)
	}
}

func TestAWorkerThatCannotReadTheStoreSaysWhyAndGetsNoRanks(t *testing.T) {
	r := newRig(t, 1)
	r.worker("w1", r.withNonce)
	r.joined(1)
	r.worker("w2", func(c *Config, f *fake) {
		r.withNonce(c, f)
		c.FS = stubborn{vfs.OS, func() error { return errors.New("permission denied") }}
	})
	r.joined(2)
	id := r.submit(func(j *jobspec.Job) { j.Cluster.Workers.Min, j.Cluster.Workers.Max = 2, 2 })
	j := r.eventually(id, "it waits for w2", func(j *skeinv1.Job) bool { return strings.Contains(j.GetWaitingFor(), "permission denied") })
	if !strings.Contains(j.GetWaitingFor(), "w2") || len(r.board.hosts) > 0 {
		t.Errorf("it waits for %q; hosts: %v", j.GetWaitingFor(), r.board.hosts)
	}
}

func TestAStoreThatHangsDelaysNoHeartbeat(t *testing.T) {
	r := newRig(t, 1)
	r.worker("w1", r.withNonce)
	r.joined(1)
	mended := make(chan struct{})
	ended := make(chan struct{})
	r.worker("w2", func(c *Config, f *fake) {
		r.withNonce(c, f)
		c.readWait = 50 * time.Millisecond
		c.FS = stubborn{vfs.OS, func() error { <-mended; defer close(ended); return nil }}
	})
	r.joined(2)
	id := r.submit(func(j *jobspec.Job) { j.Cluster.Workers.Min, j.Cluster.Workers.Max = 2, 2 })
	r.eventually(id, "it waits for a file system that hangs", func(j *skeinv1.Job) bool { return strings.Contains(j.GetWaitingFor(), "does its file system hang?") })
	out, err := r.ops.Nodes(r.ctx(), &skeinv1.NodesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range out.GetWorkers() {
		if !w.GetConnected() || w.GetSilentMs() > 2000 {
			t.Errorf("worker %s is connected: %v, silent for %d ms", w.GetWorker(), w.GetConnected(), w.GetSilentMs())
		}
	}
	close(mended) // the late answer counts
	r.eventually(id, "it is done", inPhase(skeinv1.Phase_PHASE_DONE))
	<-ended
}
