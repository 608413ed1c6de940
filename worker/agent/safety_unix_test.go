//go:build unix

package agent

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skein-ml/skein/internal/gossip"
	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/jobspec"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

func TestACompleteJobRunsUnderMutualTLS(t *testing.T) {
	r := newSecureRig(t, 1, newCA(t))
	r.worker("w1", r.withNonce)
	r.worker("w2", r.withNonce)
	r.joined(2)
	id := r.submit(func(j *jobspec.Job) { j.Cluster.Workers.Min, j.Cluster.Workers.Max = 2, 2 })
	r.eventually(id, "it is done", inPhase(skeinv1.Phase_PHASE_DONE))
}

func TestWithoutACertificateOfTheClusterAWorkerGetsNothing(t *testing.T) {
	r := newSecureRig(t, 1, newCA(t))
	err := r.worker("w1", func(c *Config, _ *fake) { c.TLS, c.openWait = r.issue(newCA(t), pki.Worker, "w1"), time.Second }).wait()
	if err == nil || !strings.Contains(err.Error(), "`skein certs`") {
		t.Errorf("with another authority: it ended with %v", err)
	}
	monitor := freeAddress(t)
	p := r.worker("w1", func(c *Config, _ *fake) { c.TLS, c.MonitorListen, c.openWait = nil, monitor, time.Second })
	var code int
	var body string
	r.until("it has tried in plain text", func() bool {
		code, body = fetch(t, "http://"+monitor+"/readyz")
		return code == http.StatusServiceUnavailable && !strings.Contains(body, "no coordinator has been reached yet")
	}, func() any { return body })
	p.drain()
	if err := p.wait(); err != nil {
		t.Errorf("in plain text: %v", err)
	}
	out, err := r.ops.Nodes(r.ctx(), &skeinv1.NodesRequest{})
	if err != nil || len(out.GetWorkers()) > 0 {
		t.Errorf("the cluster has the workers %v, %v", out.GetWorkers(), err)
	}
}

func TestWhatIsNotSafeOrNotPossibleIsRefusedWithAdvice(t *testing.T) {
	ca := newCA(t)
	r := &rig{T: t, dir: t.TempDir()}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file := filepath.Join(r.dir, "file")
	if err := vfs.WriteFile(vfs.OS, file, []byte("x")); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"ring: 10.1.2.3:7500 can be reached from other machines, so it needs TLS; make certificates with `skein certs`": func(c *Config) { c.RingListen = "10.1.2.3:7500" },
		"stream: 0.0.0.0:7600 can be reached":                       func(c *Config) { c.StreamListen = "0.0.0.0:7600" },
		"coordinator: c1.example:7401 is another machine":           func(c *Config) { c.Coordinators = []string{"c1.example:7401"} },
		"add --ring-advertise":                                      func(c *Config) { c.RingListen, c.Insecure = "0.0.0.0:0", true },
		"others cannot reach 0.0.0.0:7500":                          func(c *Config) { c.RingListen, c.RingAdvertise, c.Insecure = ":0", "0.0.0.0:7500", true },
		"\"7500\" is no host:port to listen on":                     func(c *Config) { c.RingListen = "7500" },
		"\"c1\" is no host:port":                                    func(c *Config) { c.Coordinators = []string{"c1"} },
		"use --coordinator host:port":                               func(c *Config) { c.Coordinators = nil },
		"give --name":                                               func(c *Config) { c.Name = "" },
		"give --dir":                                                func(c *Config) { c.Dir = "" },
		"at least one numeric class":                                func(c *Config) { c.Classes = nil },
		"something that works":                                      func(c *Config) { c.Tasks = nil },
		"choose one":                                                func(c *Config) { c.TLS, c.Insecure = r.issue(ca, pki.Worker, "w1"), true },
		"the certificate is that of worker w2 of cluster test":      func(c *Config) { c.TLS = r.issue(ca, pki.Worker, "w2") },
		"the certificate is that of coordinator w1 of cluster test": func(c *Config) { c.TLS = r.issue(ca, pki.Coordinator, "w1") },
		"choose a port with --ring-listen":                          func(c *Config) { c.RingListen = taken.Addr().String() },
		"choose a port with --stream-listen":                        func(c *Config) { c.StreamListen = taken.Addr().String() },
		"monitor: listen tcp " + taken.Addr().String():              func(c *Config) { c.MonitorListen = taken.Addr().String() },
		"gossip:": func(c *Config) { c.GossipListen = "0.0.0.0:0" },
		"dir: the folder for caches cannot be made": func(c *Config) { c.Dir = filepath.Join(file, "cache") },
		"injected fault; choose another with --dir": func(c *Config) { c.FS = vfs.NewFault(vfs.OS, vfs.Rule{Ops: vfs.OpCreate, Nth: 1}) },
	} {
		c := Config{
			Cluster: "test", Name: "w1", Coordinators: []string{"127.0.0.1:1"}, Dir: filepath.Join(r.dir, "cache"), Classes: []string{"generic r1"}, Tasks: &fake{},
		}
		change(&c)
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // what is not refused leaves at once
		if err := Run(ctx, c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want it refused with %q", err, want)
		}
	}
}

func TestALowLimitOfOpenFilesIsRaisedOrRefused(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	low := before
	low.Cur = 512
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Skip("this machine does not let its limits be changed: ", err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
			t.Error(err)
		}
	}()
	var c Config
	c.EnsureDefaults()
	if err := ensureFiles(c.Logger); err != nil {
		t.Errorf("a limit that could be raised was refused: %v", err)
	}
	var after unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &after); err != nil || after.Cur < filesMin {
		t.Errorf("the limit is %d, %v", after.Cur, err)
	}
	if err := enoughFiles(&unix.Rlimit{Cur: 512, Max: 512}); err == nil || !strings.Contains(err.Error(), "ulimit -n") {
		t.Errorf("a limit that cannot be raised: %v", err)
	}
}

func TestGossipFindsACoordinatorThatNobodyNamed(t *testing.T) {
	r := newRig(t, 1)
	spread, err := gossip.Start(gossip.Config{Cluster: "test", Role: gossip.Coordinator, Name: "c1", Address: r.members[0].Address, Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := spread.Close(); err != nil {
			t.Error(err)
		}
	})
	r.worker("w1", func(c *Config, _ *fake) {
		c.Coordinators, c.GossipListen, c.GossipJoin = []string{freeAddress(t)}, "127.0.0.1:0", []string{spread.Address()}
	})
	r.joined(1)
}
