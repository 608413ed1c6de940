package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/internal/reach"
	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/worker"
)

// Tasks are the things that a worker can be ordered to do, one at a time. All end soon
// after ctx has, and nothing of them runs when they return. Emit may be called by several
// goroutines and never blocks.
type Tasks interface {
	// Prepare imports a model and prepares data. A [worker.BrokenError] lets another
	// worker try; any other error ends the job.
	Prepare(ctx context.Context, emit func(console.Event), p worker.PrepareConfig) (worker.Preparation, error)
	// Host hosts ranks for one generation. A [worker.BrokenError] ends the generation,
	// [worker.ErrFenced] says that somebody else has ended it; any other error ends the
	// job.
	Host(ctx context.Context, emit func(console.Event), h worker.HostConfig) error
	// Warm makes ready to host ranks of a job. An error costs time later and nothing else.
	Warm(ctx context.Context, emit func(console.Event), c worker.WarmConfig) error
	// Drop forgets what Host and Warm have kept in memory.
	Drop()
}

// Config is what a worker process needs. Zero values mean the defaults.
type Config struct {
	Cluster string // name of the cluster; "skein"
	Name    string // unique in the cluster
	Node    string // machine, the failure domain; the host's name
	Zone    string // of the machine: the failure domain around it; empty: not known
	Build   string // version of this program

	Coordinators []string // addresses of some of them, host:port

	// Listen is host:port of this machine; a free port of loopback if empty. Advertise
	// is where others reach it: host:port, or a host alone for the port that it listens
	// on; the address that it listens on if empty.
	RingListen, RingAdvertise     string // other workers, gradients and weights
	StreamListen, StreamAdvertise string // other workers, batches

	MonitorListen string // metrics and health over plain HTTP; nobody if empty

	// Gossip finds coordinators that were not named. Nobody gossips if Listen is empty.
	GossipListen, GossipAdvertise string
	GossipJoin                    []string
	GossipKey                     []byte // 32 bytes, the cluster's; that of TLS if empty

	// TLS is used on both ends of every connection. Without it every address must be a
	// loopback one, or Insecure be set.
	TLS      *pki.Files
	Insecure bool

	Dir     string   // folder of its own, for caches
	FS      vfs.FS   // the machine's files; tests have others
	Memory  int64    // bytes that jobs may use
	Threads int      // that compute
	Classes []string // numeric classes, the preferred first

	DrainWait time.Duration // for being released, once the process is asked to leave; 50 s
	NameWait  time.Duration // for another process of the same name to be given up; 15 s
	OrphanTTL time.Duration // for which a task goes on without any coordinator; 15 min

	Logger *slog.Logger // nil: nobody listens
	Tasks  Tasks

	// Why says of coordinators that do not answer what keeps them; nil: nobody looks.
	Why func(context.Context) error

	readWait, openWait, stopWait, sealWait, quietWait time.Duration // tests are impatient
}

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	if c.Cluster == "" {
		c.Cluster = "skein"
	}
	if c.Node == "" {
		c.Node, _ = os.Hostname() // without a name the worker stands for its machine
	}
	if c.Node == "" {
		c.Node = c.Name
	}
	for _, address := range []*string{&c.RingListen, &c.StreamListen} {
		if *address == "" {
			*address = "127.0.0.1:0"
		}
	}
	for _, d := range []struct {
		p   *time.Duration
		def time.Duration
	}{{&c.DrainWait, 50 * time.Second}, {&c.NameWait, 15 * time.Second}, {&c.OrphanTTL, 15 * time.Minute}, {&c.readWait, readWait}, {&c.openWait, openWait}, {&c.quietWait, quietWait}, {&c.stopWait, stopWait}, {&c.sealWait, sealWait}} {
		if *d.p == 0 {
			*d.p = d.def
		}
	}
	if c.GossipKey == nil && c.TLS != nil {
		c.GossipKey = c.TLS.GossipKey
	}
	if c.FS == nil {
		c.FS = vfs.OS
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

// Validate names every conflict.
func (c *Config) Validate() error {
	var errs []error
	say := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Name == "" {
		say("name: a worker needs one, unique in its cluster; give --name")
	}
	if len(c.Coordinators) == 0 {
		say("coordinator: no address is given; use --coordinator host:port")
	}
	if len(c.Classes) == 0 {
		say("classes: a worker offers at least one numeric class")
	}
	if c.Dir == "" {
		say("dir: a folder for the caches is needed; give --dir")
	}
	if c.Tasks == nil {
		say("tasks: a worker needs something that works")
	}
	switch t := c.TLS; {
	case t == nil:
	case c.Insecure:
		say("insecure: certificates are given too; choose one")
	case t.Role != pki.Worker || t.Name != c.Name || t.Cluster != c.Cluster:
		say("tls: the certificate is that of %s, and this is worker %s of cluster %s; make one for it with `skein certs`", t.Identity, c.Name, c.Cluster)
	}
	errs = append(errs, c.checkAddress("ring", c.RingListen, c.RingAdvertise), c.checkAddress("stream", c.StreamListen, c.StreamAdvertise))
	for _, address := range c.Coordinators {
		if _, _, err := net.SplitHostPort(address); err != nil {
			say("coordinator: %q is no host:port", address)
		} else if !c.safe(address) {
			say("coordinator: %s is another machine, so it needs TLS; make certificates with `skein certs` (or, for benchmarks, say --insecure)", address)
		}
	}
	return errors.Join(errs...)
}

// safe tells whether this configuration may speak on an address.
func (c *Config) safe(address string) bool {
	return c.TLS != nil || c.Insecure || reach.HereOnly(address)
}

func (c *Config) checkAddress(what, listen, advertise string) error {
	host, _, err := net.SplitHostPort(listen)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %q is no host:port to listen on", what, listen)
	case !c.safe(listen):
		return fmt.Errorf("%s: %s can be reached from other machines, so it needs TLS; make certificates with `skein certs` (or, for benchmarks, say --insecure)", what, listen)
	case advertise == "" && reach.Everywhere(host):
		return fmt.Errorf("%s: %s stands for every address of this machine, and others need one; add --%s-advertise with the one that they reach", what, listen, what)
	}
	if host, _, err := net.SplitHostPort(advertise); err == nil && reach.Everywhere(host) || reach.Everywhere(advertise) && advertise != "" {
		return fmt.Errorf("%s: others cannot reach %s; advertise one address of this machine", what, advertise)
	}
	return nil
}

// listen opens a port.
func listen(what, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; is another worker running here? choose a port with --%s-listen", what, err, what)
	}
	return l, nil
}

// advertised is the address that others dial.
func advertised(advertise string, own net.Addr) string {
	_, port, err := net.SplitHostPort(own.String())
	switch {
	case advertise == "" || err != nil:
		return own.String()
	case net.ParseIP(advertise) != nil:
		return net.JoinHostPort(advertise, port)
	}
	host, given, err := net.SplitHostPort(advertise)
	switch {
	case err != nil:
		return net.JoinHostPort(advertise, port)
	case given == "0" || given == "":
		return net.JoinHostPort(host, port)
	}
	return advertise
}

// filesMin is how many files a worker must be able to hold open: connections of ring
// and streams, shards of data sets and checkpoints.
const filesMin = 1024

// checkMachine refuses, before anybody is told of this worker, what would fail later.
func checkMachine(c Config) error {
	if err := ensureFiles(c.Logger); err != nil {
		return err
	}
	if err := c.FS.MkdirAll(c.Dir); err != nil {
		return fmt.Errorf("dir: the folder for caches cannot be made: %w; choose another with --dir", err)
	}
	probe := filepath.Join(c.Dir, ".writable-"+c.Name)
	f, err := c.FS.Create(probe)
	if err == nil {
		err = errors.Join(f.Close(), c.FS.Remove(probe))
	}
	if err != nil {
		return fmt.Errorf("dir: the folder for caches cannot be written: %w; choose another with --dir", err)
	}
	return nil
}
