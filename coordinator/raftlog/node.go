// Package raftlog keeps the log of decisions on a majority of coordinators: what
// Propose has acknowledged is not lost while a majority of the disks lives, and
// what Read returns includes all of it. It runs hashicorp/raft over connections
// that it is given, with log and snapshots in one folder.
//
// A folder belongs to one coordinator of one cluster and to one process at a time.
// What lies in it is checked when it is opened; damage is an error with a name and
// never a guess.
package raftlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/skein-ml/skein/coordinator/fsm"
)

// What callers branch on.
var (
	// ErrNotLeader: nothing was proposed or read; the leader would.
	ErrNotLeader = errors.New("not the leader")
	// ErrUncertain: the entry may or may not be in the log. Propose it again; every
	// decision may be proposed twice.
	ErrUncertain = errors.New("leadership was lost while the entry was on its way")
	// ErrInUse: another process has the folder open.
	ErrInUse = errors.New("in use by another process")
	// ErrForeign: the folder belongs to another coordinator or cluster.
	ErrForeign = errors.New("belongs to another coordinator")
	// ErrCorrupt: what is on disk is not what was written.
	ErrCorrupt = errors.New("damaged")
)

// Server is one coordinator of the group.
type Server struct {
	ID      string
	Address string // host:port that the others reach it at
}

// Config is what a node needs. Zero values of the numbers mean their defaults.
type Config struct {
	Cluster string // name; nodes of different names refuse each other
	ID      string // unique in the cluster, for good
	Dir     string // folder of its own
	Address string // host:port that the others reach it at

	// Listener brings the connections of other nodes, authenticated. Dial makes one.
	// Close closes the listener.
	Listener net.Listener
	Dial     func(ctx context.Context, address string) (net.Conn, error)
	// Caller is the id that a connection of the listener has proved to be of; empty if
	// it proves none. Nil: none does.
	Caller func(net.Conn) string

	// Bootstrap are the first members of a new cluster, this node among them; the
	// same list on each of them. It counts only while the folder is empty. Without
	// it an empty node waits until the leader adds it.
	Bootstrap []Server

	// ElectionTimeout is how long a silent leader is waited for; 1 s. Less elects
	// needlessly on a busy machine. One whose process is dead is not waited for.
	ElectionTimeout time.Duration
	// SnapshotEntries is how many entries are behind a snapshot before the next; 4096.
	SnapshotEntries uint64
	// SnapshotBytes is how many bytes of entries are behind a snapshot, at the most;
	// 64 MiB. The log keeps few entries behind a snapshot that is made for this reason.
	SnapshotBytes int64
	// Logger gets what raft has to say; nil: nobody.
	Logger *slog.Logger
}

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	if c.ElectionTimeout == 0 {
		c.ElectionTimeout = time.Second
	}
	if c.SnapshotEntries == 0 {
		c.SnapshotEntries = 4096
	}
	if c.SnapshotBytes == 0 {
		c.SnapshotBytes = 64 << 20
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

// Validate names every conflict.
func (c *Config) Validate() error {
	var errs []error
	if c.Cluster == "" || len(c.Cluster) > nameBytesMax {
		errs = append(errs, fmt.Errorf("cluster: %q: a name of 1 to %d characters is needed", c.Cluster, nameBytesMax))
	}
	if c.ID == "" || len(c.ID) > nameBytesMax {
		errs = append(errs, fmt.Errorf("id: %q: a name of 1 to %d characters is needed", c.ID, nameBytesMax))
	}
	if c.Dir == "" {
		errs = append(errs, errors.New("dir: a folder for the log is needed"))
	}
	if c.Listener == nil || c.Dial == nil || c.Address == "" {
		errs = append(errs, errors.New("address: a listener, a dialer and an address to be reached at are needed"))
	}
	if c.ElectionTimeout < 50*time.Millisecond {
		errs = append(errs, fmt.Errorf("electionTimeout: %s: less than 50ms would elect all the time", c.ElectionTimeout))
	}
	if len(c.Bootstrap) > 0 {
		errs = append(errs, c.checkBootstrap())
	}
	return errors.Join(errs...)
}

func (c *Config) checkBootstrap() error {
	ids, addresses := map[string]bool{}, map[string]bool{}
	for _, s := range c.Bootstrap {
		if s.ID == "" || s.Address == "" || ids[s.ID] || addresses[s.Address] {
			return fmt.Errorf("bootstrap: %q at %q is incomplete or listed twice", s.ID, s.Address)
		}
		ids[s.ID], addresses[s.Address] = true, true
		if s.ID == c.ID && s.Address != c.Address {
			return fmt.Errorf("bootstrap: lists %s at %s, but it is reached at %s", s.ID, s.Address, c.Address)
		}
	}
	if !ids[c.ID] {
		return fmt.Errorf("bootstrap: %s is not among the first members", c.ID)
	}
	return nil
}

// Node is one coordinator's part of the log. It is safe for concurrent use.
type Node struct {
	config    Config
	raft      *raft.Raft
	machine   *machine
	disk      *disk
	transport *transport
	layer     *layer
	reads     reads
	calls     *calls
	removed   atomic.Bool    // see Removed
	outside   outside        // behind it
	partings  chan string    // ids of those who ended a connection that they had made
	done      sync.WaitGroup // of compact, wonder, forward and succeed
	end       chan struct{}  // closed when the node closes
}

// outside is who does not let a node in because it is no member.
type outside struct {
	sync.Mutex
	refused map[string]bool // by address
}

// Open opens or makes the folder and takes part in the group.
func Open(c Config) (node *Node, err error) {
	c.EnsureDefaults()
	if err := c.Validate(); err != nil {
		return nil, err
	}
	n := &Node{config: c, machine: newMachine(c.SnapshotBytes), calls: newCalls(), end: make(chan struct{}), partings: make(chan string, 16), outside: outside{refused: map[string]bool{}}}
	defer func() {
		if err != nil {
			_ = n.release() // the first error counts
		}
	}()
	logger := hcLogger(c.Logger, n.Removed)
	if n.disk, err = openDisk(c, logger); err != nil {
		return nil, err
	}
	n.layer = newLayer(c)
	n.transport = &transport{raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: n.layer, MaxPool: 3, Timeout: 10 * time.Second, Logger: logger,
	}), make(chan raft.RPC)}
	if n.raft, err = n.start(logger); err != nil {
		return nil, err
	}
	n.layer.start(n)
	n.done.Go(n.compact)
	n.done.Go(n.wonder)
	n.done.Go(n.forward)
	n.done.Go(n.succeed)
	return n, nil
}

// start hands everything to raft.
func (n *Node) start(logger hclog.Logger) (*raft.Raft, error) {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(n.config.ID)
	c.HeartbeatTimeout, c.ElectionTimeout = n.config.ElectionTimeout, n.config.ElectionTimeout
	// No read relies on the lease, so it may be as long as the timeout: a short one makes
	// a leader on a busy machine step down for nothing.
	c.LeaderLeaseTimeout = n.config.ElectionTimeout
	c.SnapshotThreshold, c.TrailingLogs = n.config.SnapshotEntries, n.config.SnapshotEntries
	c.SnapshotInterval = 10 * time.Second
	c.ShutdownOnRemove = false // the coordinator says that it was removed, and stays to be asked
	c.NoLegacyTelemetry = true
	c.Logger = logger
	if !n.disk.used && len(n.config.Bootstrap) > 0 {
		var servers []raft.Server
		for _, s := range n.config.Bootstrap {
			servers = append(servers, raft.Server{ID: raft.ServerID(s.ID), Address: raft.ServerAddress(s.Address)})
		}
		err := raft.BootstrapCluster(c, n.disk.logs, n.disk.stable, n.disk.snapshots, n.transport, raft.Configuration{Servers: servers})
		if err != nil {
			return nil, fmt.Errorf("bootstrap: %w", err)
		}
	}
	r, err := raft.NewRaft(c, n.machine, n.disk.logs, n.disk.stable, n.disk.snapshots, n.transport)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", n.config.Dir, err)
	}
	return r, nil
}

// trailingFew is how many entries stay in the log behind a snapshot that was made
// because they are large. Who is further behind gets the snapshot.
const trailingFew = 64

// compact makes a snapshot whenever the entries since the last one are large. Raft
// itself counts entries and not their bytes.
func (n *Node) compact() {
	for {
		select {
		case <-n.machine.large:
		case <-n.end:
			return
		}
		usual := n.raft.ReloadableConfig()
		few := usual
		few.TrailingLogs = min(usual.TrailingLogs, trailingFew)
		err := n.raft.ReloadConfig(few)
		if err == nil {
			err = errors.Join(n.Snapshot(), n.raft.ReloadConfig(usual))
		}
		if err != nil && !errors.Is(err, raft.ErrRaftShutdown) {
			n.config.Logger.Warn("the log is large, and no snapshot could be made", "err", err)
		}
	}
}

// Close leaves the group for now: the node stays a member and may come back. What
// was acknowledged is on disk.
func (n *Node) Close() error {
	n.calls.settle()
	stopped := n.raft.Shutdown()
	// Raft waits for its calls to others, which end with their connections.
	err := errors.Join(n.transport.Close(), n.layer.Close(), stopped.Error())
	n.calls.abandon()
	n.reads.close()
	close(n.end)
	n.done.Wait()
	return errors.Join(err, n.disk.Close())
}

// release lets go of everything but raft itself.
func (n *Node) release() error {
	var errs []error
	if n.transport != nil {
		errs = append(errs, n.transport.Close())
	}
	if n.layer != nil {
		errs = append(errs, n.layer.Close())
	} else if n.config.Listener != nil {
		errs = append(errs, n.config.Listener.Close())
	}
	if n.disk != nil {
		errs = append(errs, n.disk.Close())
	}
	return errors.Join(errs...)
}

// Failed is closed when the node cannot go on: an entry of a newer version, or a
// damaged one. Err says what it was; the process should stop.
func (n *Node) Failed() <-chan struct{} { return n.machine.failed }

// Err is why the node cannot go on; nil while it can.
func (n *Node) Err() error { return n.machine.failure() }

// Propose puts an entry into the log and returns what became of it, once a majority
// has it on disk and this node has applied it.
func (n *Node) Propose(ctx context.Context, e fsm.Entry) (fsm.Result, error) {
	raw, err := e.Encode()
	if err != nil {
		return fsm.Result{}, err
	}
	timeout := 30 * time.Second
	if deadline, ok := ctx.Deadline(); ok {
		timeout = time.Until(deadline)
	}
	var future raft.ApplyFuture
	if err := n.calls.wait(ctx, func() raft.Future {
		future = n.raft.Apply(raw, max(timeout, time.Millisecond))
		return future
	}); err != nil {
		return fsm.Result{}, translate(err)
	}
	outcome, ok := future.Response().(fsm.Result)
	if !ok {
		return fsm.Result{}, fmt.Errorf("%w: %v", ErrCorrupt, future.Response())
	}
	return outcome, nil
}

// State is what this node has applied. It may lag behind the leader's.
func (n *Node) State() *fsm.State { return n.machine.view() }

// Changed is closed when State changes next.
func (n *Node) Changed() <-chan struct{} { return n.machine.changed() }

// Leads tells whether this node believes that it leads, and in which term. Only Read
// makes sure.
func (n *Node) Leads() (term uint64, ok bool) {
	return n.raft.CurrentTerm(), n.raft.State() == raft.Leader
}

// Leader is the server that this node believes to lead; zero if it knows none.
func (n *Node) Leader() Server {
	address, id := n.raft.LeaderWithID()
	return Server{ID: string(id), Address: string(address)}
}

// Stats is the node's view of itself.
type Stats struct {
	State       string // leader, follower, candidate, shutdown
	Term        uint64
	LastIndex   uint64
	Commit      uint64
	Applied     uint64
	LastContact time.Time // with the leader; zero on the leader, and if there was none
}

// Stats tells how the node is.
func (n *Node) Stats() Stats {
	names := map[raft.RaftState]string{raft.Leader: "leader", raft.Follower: "follower", raft.Candidate: "candidate", raft.Shutdown: "shutdown"}
	s := Stats{
		State: names[n.raft.State()], Term: n.raft.CurrentTerm(), LastIndex: n.raft.LastIndex(), Commit: n.raft.CommitIndex(),
		Applied: n.raft.AppliedIndex(), LastContact: n.raft.LastContact(),
	}
	if s.State == "leader" {
		s.LastContact = time.Time{}
	}
	return s
}

// Sizes tells how many bytes the file of the log has, which does not shrink, and the
// newest snapshot; 0 for what is not there.
func (n *Node) Sizes() (log, snapshot int64) { return n.disk.sizes() }

// Snapshot writes a snapshot now. Raft does so by itself from time to time.
func (n *Node) Snapshot() error {
	err := n.raft.Snapshot().Error()
	if errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil
	}
	return err
}

// translate says raft's errors in this package's words.
func translate(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrRaftShutdown):
		return fmt.Errorf("%w: %w", ErrNotLeader, err)
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrAbortedByRestore), errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("%w: %w", ErrUncertain, err)
	}
	return err
}
