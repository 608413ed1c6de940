// Package coordinator is the control plane: it admits jobs, gives them workers, and
// sees to it that they go on when workers are lost. Three of them agree on a log of
// decisions; the one that leads runs a loop of three steps, state → decide → propose.
//
//	sessions, reports ──► hearing ──┐
//	                                ├─► membership, recovery, scheduler ──► log ──► State
//	State ──────────────────────────┘                                               │
//	  ▲─────────────────────────────────────────────────────────────────────────────┘
//	  └─► orders to workers, answers to clients
//
// What workers say is kept in the leader's memory alone, and is lost with it: a new
// leader hears it again. What is decided is in the log before anybody is told.
// A coordinator that does not lead refuses and names the leader.
package coordinator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/skein-ml/skein/coordinator/membership"
	"github.com/skein-ml/skein/coordinator/raftlog"
	"github.com/skein-ml/skein/coordinator/recovery"
	"github.com/skein-ml/skein/coordinator/scheduler"
	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/internal/reach"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// Config is what a coordinator needs. Zero values mean the defaults.
type Config struct {
	Cluster string // name of the cluster; "skein"
	ID      string // unique in the cluster, for good
	Dir     string // folder of its own for the log
	Build   string // version of this program

	// Listen is the host:port for everything: workers, clients and other coordinators.
	// Advertise is where the others reach it; the address it listens on, if empty.
	Listen    string
	Advertise string

	// Members are the first coordinators of a new cluster, the same list on each of
	// them. Alone makes a new cluster of this one. With neither, an empty coordinator
	// waits to be added.
	Members []raftlog.Server
	Alone   bool

	// TLS is used on both ends of every connection; each end must show a certificate of
	// the cluster, and may do what its role allows. Without it the address must be a
	// loopback one, or Insecure be set; then everybody may do everything.
	TLS      *pki.Files
	Insecure bool

	// Registry gets the coordinator's metrics; nil: none are kept.
	Registry *prometheus.Registry

	Tick            time.Duration // between two looks, if nothing happens; 100 ms
	Heartbeat       time.Duration // that workers are asked for; 500 ms
	StorePatience   time.Duration // for a worker's answer to a store probe; 10 s
	ElectionTimeout time.Duration // see raftlog.Config
	Membership      membership.Config
	Recovery        recovery.Config
	Scheduler       scheduler.Config

	Logger *slog.Logger // nil: nobody listens
}

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	if c.Cluster == "" {
		c.Cluster = "skein"
	}
	if c.Tick == 0 {
		c.Tick = 100 * time.Millisecond
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = 500 * time.Millisecond
	}
	if c.StorePatience == 0 {
		c.StorePatience = 10 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Membership.EnsureDefaults()
	c.Recovery.EnsureDefaults()
	c.Scheduler.EnsureDefaults()
}

// Validate names every conflict.
func (c *Config) Validate() error {
	var errs []error
	if c.ID == "" {
		errs = append(errs, errors.New("id: a coordinator needs one, unique in its cluster"))
	}
	if c.Listen == "" {
		errs = append(errs, errors.New("listen: a host:port is needed"))
	} else {
		errs = append(errs, checkAddress("listen", c.Listen))
	}
	if host, _, err := net.SplitHostPort(c.Listen); err == nil && c.Advertise == "" && reach.Everywhere(host) {
		errs = append(errs, fmt.Errorf("advertise: %s means every address of this machine; say at which host:port the others reach it", c.Listen))
	}
	if c.Alone && len(c.Members) > 0 {
		errs = append(errs, errors.New("members: a coordinator that begins alone has no others; give one or the other"))
	}
	if c.Advertise != "" {
		errs = append(errs, c.mayDial("advertise", c.Advertise))
	}
	for _, m := range c.Members {
		errs = append(errs, c.mayDial("members", m.Address))
	}
	if c.TLS != nil {
		errs = append(errs, checkFiles(c.TLS, c.Cluster, c.ID))
	}
	if c.Membership.Lease < 3*c.Heartbeat {
		errs = append(errs, fmt.Errorf("lease: %s is less than three heartbeats of %s, so a late one would cost a worker", c.Membership.Lease, c.Heartbeat))
	}
	return errors.Join(errs...)
}

// checkAddress refuses what is not a host:port.
func checkAddress(what, address string) error {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return fmt.Errorf("%s: %q is not a host:port, such as 127.0.0.1:7401", what, address)
	}
	return nil
}

// mayDial refuses the address of another machine if the log would go there as plain
// text.
func (c *Config) mayDial(what, address string) error {
	if err := checkAddress(what, address); err != nil {
		return err
	}
	if c.TLS != nil || c.Insecure || reach.HereOnly(address) {
		return nil
	}
	return fmt.Errorf("%s: %s is another machine, so it needs TLS; make certificates with `skein certs` (or, for benchmarks, say --insecure)", what, address)
}

// Coordinator is a running coordinator. Stop it.
type Coordinator struct {
	config  Config
	address string
	port    *port
	node    *raftlog.Node
	server  *grpc.Server
	metrics *metrics

	ctx  context.Context // ends when the coordinator is to stop
	end  context.CancelFunc
	done sync.WaitGroup // the loop and the server

	mu     sync.Mutex
	reign  *reign          // while it leads
	builds map[string]bool // other builds that were remarked on
}

// Start opens the folder and the port, and takes part. It does not wait for a leader.
func Start(c Config) (*Coordinator, error) {
	c.EnsureDefaults()
	if err := c.Validate(); err != nil {
		return nil, err
	}
	p, err := openPort(c)
	if err != nil {
		return nil, err
	}
	if c.Advertise == "" {
		c.Advertise = p.listener.Addr().String()
	}
	members := c.Members
	if c.Alone {
		members = []raftlog.Server{{ID: c.ID, Address: c.Advertise}}
	}
	node, err := raftlog.Open(raftlog.Config{
		Cluster: c.Cluster, ID: c.ID, Dir: c.Dir, Address: c.Advertise, Listener: p.raft, Dial: p.dial, Caller: caller,
		Bootstrap: members, ElectionTimeout: c.ElectionTimeout, Logger: c.Logger,
	})
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	co := &Coordinator{config: c, address: c.Advertise, port: p, node: node, builds: map[string]bool{}}
	co.metrics = newMetrics(co)
	if err := co.metrics.register(c.Registry); err != nil {
		return nil, errors.Join(err, node.Close(), p.Close())
	}
	if known, err := node.Members(); err == nil && len(known) == 0 {
		c.Logger.Info(fmt.Sprintf("this coordinator is in no cluster yet; where one runs, say: skein coordinator add %s %s", c.ID, c.Advertise))
	}
	co.ctx, co.end = context.WithCancel(context.Background())
	co.server = grpc.NewServer(
		grpc.Creds(arrived{}),
		grpc.UnaryInterceptor(co.unary), grpc.StreamInterceptor(co.stream),
		grpc.MaxRecvMsgSize(messageBytesMax), grpc.MaxConcurrentStreams(1024),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 2 * time.Second, PermitWithoutStream: true}),
	)
	skeinv1.RegisterJobsServer(co.server, jobs{Coordinator: co})
	skeinv1.RegisterWorkersServer(co.server, workers{Coordinator: co})
	skeinv1.RegisterClusterServer(co.server, cluster{Coordinator: co})
	co.done.Go(co.loop)
	co.done.Go(func() {
		if err := co.server.Serve(p.grpc); err != nil && co.ctx.Err() == nil {
			c.Logger.Error("the port failed", "err", err)
			co.end()
		}
	})
	return co, nil
}

// messageBytesMax bounds what a coordinator reads in one message: a spec is a
// megabyte at most.
const messageBytesMax = 8 << 20

// Address is where others reach the coordinator.
func (c *Coordinator) Address() string { return c.address }

// Done is closed when the coordinator is to stop: by Stop, or because it cannot go on.
// Then Err says why.
func (c *Coordinator) Done() <-chan struct{} { return c.ctx.Done() }

// Err is why the coordinator cannot go on; nil while it can.
func (c *Coordinator) Err() error { return c.node.Err() }

// Ready tells whether the coordinator knows a leader, and if not, what it waits for.
func (c *Coordinator) Ready() error {
	if err := c.node.Err(); err != nil {
		return err
	}
	if c.node.Removed() {
		return errRemoved
	}
	if c.node.Leader().ID != "" {
		return nil
	}
	members, err := c.node.Members()
	if err != nil {
		return err
	}
	if len(members) == 0 {
		return errors.New("this coordinator is in no cluster yet; add it with `skein coordinator add`")
	}
	return fmt.Errorf("no leader: a majority of %d coordinators must be reachable", len(members))
}

// Stop hands over leadership, ends all sessions, and closes log and port. Clients and
// workers find another coordinator.
func (c *Coordinator) Stop() error {
	if members, err := c.node.Members(); err == nil && len(members) > 1 {
		if _, leads := c.node.Leads(); leads {
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			if err := c.node.Transfer(ctx, ""); err != nil {
				c.config.Logger.Warn("leadership was not handed over", "err", err)
			}
			cancel()
		}
	}
	c.end()
	c.server.Stop()
	c.done.Wait()
	c.metrics.unregister(c.config.Registry)
	return errors.Join(c.node.Close(), c.port.Close())
}
