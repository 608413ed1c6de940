// Package agent is one worker's life: it takes up a session with the leading
// coordinator, does what it is ordered to, reports how that ended, and leaves
// politely.
//
//	coordinator ──orders──► session ──events──► State ──actions──► task, reports, store reads
//	     ▲                     │                  ▲                   │
//	     └──heartbeats, lines──┘                  └──────ended────────┘
//
// State decides and does no I/O; the rest of the package moves what goes in and out
// of it. Losing the leader stops nothing: the task goes on while another one is found.
//
// The metrics that it counts all begin with skein_worker_; docs/METRICS.md lists them.
package agent

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/data/stream"
	"github.com/skein-ml/skein/internal/gossip"
	"github.com/skein-ml/skein/internal/monitor"
	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/proto/leader"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// Run is a worker process. It returns nil when it was released after ctx has ended, or
// when waiting for that took longer than DrainWait; an error says why it could not
// take part, or that its task hangs: then something of it runs still, and the process
// must end.
func Run(ctx context.Context, c Config) error {
	c.EnsureDefaults()
	if err := c.Validate(); err != nil {
		return err
	}
	if err := checkMachine(c); err != nil {
		return err
	}
	a := &agent{
		config: c, log: c.Logger, incarnation: rand.Text(), events: make(chan Event), turned: make(chan struct{}, 1), fatal: make(chan error, 1), // room for one: it is the last
		lines: newLines(c.Name), outbox: newOutbox(), prober: prober{reading: map[string]bool{}}, telling: map[Report]bool{}, metrics: newMetrics(c),
	}
	a.session.lost = errors.New("no coordinator has been reached yet")
	a.ctx, a.end = context.WithCancel(context.WithoutCancel(ctx))
	err := a.open()
	if err == nil {
		err = a.live(ctx)
	}
	a.end()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		a.close()
		a.done.Wait()
		c.Tasks.Drop()
	}()
	var late <-chan time.Time // nil: it is waited for
	if errors.Is(err, errStuck) {
		late = time.After(closeWait)
	}
	select {
	case <-closed:
	case <-late:
	}
	return err
}

// errStuck is the error of a worker that leaves although its task has not stopped.
var errStuck = errors.New("its task does not stop")

const (
	sealWait  = 8 * time.Second // for a task to say what it keeps, before it is stopped without
	stopWait  = 5 * time.Second // for a task to stop once the process must leave
	closeWait = time.Second     // for everything else, if the task hangs
)

// certificateWarn is how long before its certificate expires a worker says so.
const certificateWarn = 14 * 24 * time.Hour

// agent is a running worker.
type agent struct {
	config      Config
	log         *slog.Logger
	incarnation string // drawn for this process

	ring          *allreduce.Listener
	streams       *stream.Server
	ringAddress   string // as others dial them
	streamAddress string
	conn          *leader.Conn
	api           skeinv1.WorkersClient
	cluster       skeinv1.ClusterClient
	gossip        *gossip.Gossip
	monitor       *monitor.Server

	ctx    context.Context // ends with the process
	end    context.CancelFunc
	done   sync.WaitGroup // everything but reads of a store that hangs
	events chan Event     // unbuffered: live is always about to take the next
	turned chan struct{}  // one token: another task runs, or none does any more
	fatal  chan error     // why the process cannot take part

	// live's own.
	state   State
	task    *task              // that runs
	warming context.CancelFunc // stops making ready
	telling map[Report]bool    // reports under way

	lines   *lines
	outbox  *outbox
	prober  prober
	metrics *metrics

	mu      sync.Mutex
	session struct {
		open bool
		lost error // why there is none
	}
	runs        Task   // what State says, for heartbeats
	warm, keeps string // the same
}

// open opens the ports and whatever others reach this worker by.
func (a *agent) open() error {
	c := a.config
	if c.TLS == nil && c.Insecure {
		a.log.Warn("INSECURE: this worker speaks plain text and lets anybody in; nothing that it sends or receives is secret or certain")
	}
	ring, err := listen("ring", c.RingListen)
	if err != nil {
		return err
	}
	secure := allreduce.ListenerConfig{Log: a.log}
	if c.TLS != nil {
		secure.TLS, secure.PeerName = c.TLS.Config(), workerName
		if left := time.Until(c.TLS.Expires); left < certificateWarn {
			a.log.Warn("the certificate expires soon; make a new one with `skein certs` and start this worker again", "at", c.TLS.Expires)
		}
	}
	a.ringAddress = advertised(c.RingAdvertise, ring.Addr())
	a.ring = allreduce.Listen(ring, secure)

	served, err := listen("stream", c.StreamListen)
	if err != nil {
		return err
	}
	a.streamAddress = advertised(c.StreamAdvertise, served.Addr())
	if a.streams, err = stream.NewServer(stream.ServerConfig{Security: a.security()}); err != nil {
		return errors.Join(err, served.Close())
	}
	a.done.Go(func() {
		if err := a.streams.Serve(served); err != nil && a.ctx.Err() == nil {
			a.stop(fmt.Errorf("stream server: %w", err))
		}
	})
	return a.openControl()
}

// workerName is the name in a worker's certificate.
func workerName(state tls.ConnectionState) (string, error) {
	if err := pki.RequireRole(pki.Worker)(state); err != nil {
		return "", err
	}
	_, name, err := pki.PeerRole(state)
	return name, err
}

func (a *agent) security() stream.Security {
	if a.config.TLS == nil {
		return stream.Security{PlainText: true}
	}
	return stream.Security{TLS: a.config.TLS.Expect(pki.Worker)}
}

// openControl opens what leads to the coordinators, and what shows the worker to
// those who watch it.
func (a *agent) openControl() (err error) {
	c := a.config
	l := leader.Config{Addresses: c.Coordinators, Build: c.Build, OtherBuild: func(address, build string) {
		a.log.Warn("a coordinator is of another build", "address", address, "build", build, "own", c.Build)
	}}
	if c.TLS != nil {
		l.TLS = c.TLS.Expect(pki.Coordinator)
	}
	if a.conn, err = leader.New(l); err != nil {
		return err
	}
	a.api, a.cluster = skeinv1.NewWorkersClient(a.conn), skeinv1.NewClusterClient(a.conn)
	if c.GossipListen != "" {
		a.gossip, err = gossip.Start(gossip.Config{
			Cluster: c.Cluster, Name: c.Name, Role: gossip.Worker, Address: a.ringAddress, Listen: c.GossipListen, Advertise: c.GossipAdvertise,
			Join: c.GossipJoin, Key: c.GossipKey, Logger: a.log, Changed: a.heard,
		})
		if err != nil {
			return err
		}
	}
	if c.MonitorListen != "" {
		if a.monitor, err = monitor.Serve(c.MonitorListen, a.metrics.registry, a.ready, a.log); err != nil {
			return err
		}
	}
	return nil
}

// heard passes on the coordinators that gossip has found.
func (a *agent) heard(m gossip.Member, up bool) {
	if m.Role == gossip.Coordinator && up {
		a.conn.Learn([]string{m.Address})
	}
}

// close closes what open has opened, whatever that is.
func (a *agent) close() {
	var errs []error
	if a.monitor != nil {
		errs = append(errs, a.monitor.Close())
	}
	if a.gossip != nil {
		errs = append(errs, a.gossip.Close())
	}
	if a.conn != nil {
		errs = append(errs, a.conn.Close())
	}
	if a.streams != nil {
		a.streams.Close()
	}
	if a.ring != nil {
		errs = append(errs, a.ring.Close())
	}
	if err := errors.Join(errs...); err != nil && !errors.Is(err, net.ErrClosed) {
		a.log.Warn("something did not close well", "err", err)
	}
}

// live lets events into the state and does what it says, until it says exit.
func (a *agent) live(ctx context.Context) (err error) {
	a.log.Info("worker started", "worker", a.config.Name, "incarnation", a.incarnation, "ring", a.ringAddress, "stream", a.streamAddress, "coordinators", a.config.Coordinators)
	a.done.Go(a.sessions)
	var expired, orphaned, stuck <-chan time.Time
	asked := ctx.Done()
	for {
		var e Event
		select {
		case e = <-a.events:
		case err = <-a.fatal:
			e = Quit{}
		case <-asked:
			asked, expired = nil, time.After(a.config.DrainWait)
			a.log.Info("asked to leave", "wait", a.config.DrainWait)
			e = Drain{}
		case <-expired:
			a.log.Warn("leaves without being released", "waited", a.config.DrainWait, "task", a.state.Running())
			e = Quit{}
		case <-orphaned:
			e = Orphaned{}
		case <-stuck:
			a.log.Error("leaves although its task has not stopped", "waited", a.config.stopWait, "task", a.state.Running())
			return errors.Join(err, fmt.Errorf("%w: %s has not ended %s after it was told to; look at its disks and mounts", errStuck, a.state.Running(), a.config.stopWait))
		}
		switch e := e.(type) {
		case Opened:
			orphaned = nil
		case Lost:
			orphaned = time.After(a.config.OrphanTTL)
		case Ended:
			a.task = nil
		case Answered:
			delete(a.telling, e.Report)
		case Quit:
			if stuck == nil {
				stuck = time.After(a.config.stopWait)
			}
		}
		for _, action := range a.state.Step(e) {
			if _, exit := action.(Exit); exit {
				a.leave()
				return err
			}
			a.do(action)
		}
		a.note(a.state.Running(), a.state.Ready(), a.state.Keeps())
	}
}

// note keeps what runs, which job this worker is ready for and which it keeps something of,
// and has the leader told of it if it is news.
func (a *agent) note(t Task, warm, keeps string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.runs != t || a.warm != warm || a.keeps != keeps {
		a.runs, a.warm, a.keeps = t, warm, keeps
		signal(a.turned)
	}
}

// running is the task that runs, the zero Task if none does, the job that this worker is
// ready for, and the one that it keeps something of.
func (a *agent) running() (t Task, warm, keeps string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.runs, a.warm, a.keeps
}

// do begins an action. It never blocks.
func (a *agent) do(action Action) {
	switch action := action.(type) {
	case Prepare:
		a.prepare(action.Order)
	case Host:
		a.host(action.Order)
	case Stop:
		a.log.Info("told to stop", "job", action.Task.Job, "task", action.Task)
		a.task.cancel()
	case Checkpoint:
		select {
		case a.task.checkpoint <- struct{}{}:
		default: // one is asked for already
		}
	case Yield:
		signal(a.task.yield)
	case Seal:
		a.log.Info("told to seal", "job", action.Task.Job, "task", action.Task)
		a.task.sealNow(a.config.sealWait)
	case Warm:
		a.makeReady(action.Order)
	case Cool:
		a.warming()
	case Drop:
		a.config.Tasks.Drop()
	case ReadStore:
		a.read(action.Probe)
	case Tell:
		a.tell(action.Report)
	case TellDrain:
		a.tellDrain()
	}
}

// leave gives the last lines a moment to get away.
func (a *agent) leave() {
	if a.ready() == nil {
		a.lines.flush(a.ctx, flushWait)
	}
	a.log.Info("worker leaves", "worker", a.config.Name)
}

// post gives the state an event. It is not called by live.
func (a *agent) post(e Event) {
	select {
	case a.events <- e:
	case <-a.ctx.Done():
	}
}

// stop ends the process because it cannot take part.
func (a *agent) stop(err error) {
	select {
	case a.fatal <- err:
	default: // it ends already
	}
}

// ready tells whether the session stands, and if not, why.
func (a *agent) ready() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.session.open {
		return nil
	}
	return fmt.Errorf("no session with a coordinator: %w", a.session.lost)
}

func (a *agent) sender() *skeinv1.Sender {
	return &skeinv1.Sender{Worker: a.config.Name, Incarnation: a.incarnation}
}
