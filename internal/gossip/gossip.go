// Package gossip spreads who belongs to a cluster and where: every process tells some
// others, and soon all know all. It is memberlist underneath, encrypted with the key of
// the cluster.
//
// What is heard is a hint. It finds coordinators that nobody named, and it makes a line
// in the log; no decision reads it.
package gossip

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/skein-ml/skein/internal/reach"
)

// Role is what a member is.
type Role string

// The roles.
const (
	Coordinator Role = "coordinator"
	Worker      Role = "worker"
)

// Member is a process that takes part.
type Member struct {
	Role    Role   `json:"role"`
	Name    string `json:"name"`
	Address string `json:"address"` // of its gRPC service or its ring, host:port
}

// Config is what gossip needs.
type Config struct {
	Cluster string // those of another cluster are not heard
	Role    Role
	Name    string // unique among those of the role
	Address string // to be spread

	Listen    string   // host:port, UDP and TCP
	Advertise string   // where others reach it; the address it listens on if empty
	Join      []string // addresses of members to begin with
	Key       []byte   // 32 bytes; without it only loopback is spoken on

	// Changed is called when a member comes or goes, from one goroutine at a time. It
	// must not block, and may be called before Start has returned. It may be nil.
	Changed func(m Member, up bool)

	Logger *slog.Logger // nil: nobody listens
}

const (
	keyBytes  = 32
	joinAgain = 5 * time.Second // while nobody else is known
	joinFirst = 250 * time.Millisecond
	leaveWait = 500 * time.Millisecond
)

// Validate refuses what is not safe or not possible.
func (c *Config) Validate() error {
	host, _, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return fmt.Errorf("gossip: %q is no host:port to listen on", c.Listen)
	}
	switch {
	case c.Key != nil && len(c.Key) != keyBytes:
		return fmt.Errorf("gossip: the key has %d bytes, and %d are needed; make one with `skein certs`", len(c.Key), keyBytes)
	case c.Key == nil && !reach.Loopback(host):
		return fmt.Errorf("gossip: %s can be reached from other machines, so it needs the cluster's key; give --tls DIR (`skein certs` makes the folder)", c.Listen)
	case c.Advertise == "" && reach.Everywhere(host):
		return fmt.Errorf("gossip: %s stands for every address of this machine, and others need one; add --gossip-advertise with the one that they reach", c.Listen)
	case c.Name == "" || c.Role == "":
		return errors.New("gossip: a member needs a role and a name")
	}
	return nil
}

// Gossip is a running member. Close it.
type Gossip struct {
	config Config
	list   *memberlist.Memberlist
	end    context.CancelFunc
	done   sync.WaitGroup

	mu      sync.Mutex
	members map[string]Member // by the name that memberlist knows
}

// Start takes part. It does not wait for anybody to answer.
func Start(c Config) (*Gossip, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	g := &Gossip{config: c, members: map[string]Member{}}
	m, err := g.settings()
	if err != nil {
		return nil, err
	}
	if g.list, err = memberlist.Create(m); err != nil {
		return nil, fmt.Errorf("gossip: %w; is another process using %s?", err, c.Listen)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.end = cancel
	if len(c.Join) > 0 {
		g.done.Go(func() { g.join(ctx) })
	}
	return g, nil
}

// settings are memberlist's.
func (g *Gossip) settings() (*memberlist.Config, error) {
	c := g.config
	m := memberlist.DefaultLANConfig()
	m.Name = string(c.Role) + "/" + c.Name
	m.Label = c.Cluster
	m.SecretKey = c.Key
	m.Delegate, m.Events, m.Alive = meta{g}, events{g}, events{g}
	m.LogOutput = logWriter{c.Logger}
	m.DeadNodeReclaimTime = 5 * time.Second // a process that was started again may have another address
	var err error
	if m.BindAddr, m.BindPort, err = split(c.Listen); err != nil {
		return nil, err
	}
	if m.BindAddr == "localhost" {
		m.BindAddr = "127.0.0.1"
	}
	m.AdvertisePort = m.BindPort
	if c.Advertise != "" {
		if m.AdvertiseAddr, m.AdvertisePort, err = split(c.Advertise); err != nil {
			return nil, err
		}
		ip, err := net.ResolveIPAddr("ip", m.AdvertiseAddr)
		if err != nil {
			return nil, fmt.Errorf("gossip: %s cannot be advertised: %w", c.Advertise, err)
		}
		m.AdvertiseAddr = ip.String()
	}
	return m, nil
}

func split(address string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(address)
	if err == nil {
		port, err = strconv.Atoi(text)
	}
	if err != nil {
		return "", 0, fmt.Errorf("gossip: %q is no host:port with a number", address)
	}
	return host, port, nil
}

// join asks the first members until one answers, and again whenever this one is alone.
func (g *Gossip) join(ctx context.Context) {
	for wait := joinFirst; ; wait = min(2*wait, joinAgain) {
		if g.list.NumMembers() <= 1 {
			if _, err := g.list.Join(g.config.Join); err != nil {
				g.config.Logger.Debug("gossip: nobody answers yet", "join", g.config.Join, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// Address is where this member is reached by others.
func (g *Gossip) Address() string { return g.list.LocalNode().Address() }

// Members lists who is heard, this one too, by role and name.
func (g *Gossip) Members() []Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	var list []Member
	for _, m := range g.members {
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b Member) int {
		return strings.Compare(string(a.Role)+"/"+a.Name, string(b.Role)+"/"+b.Name)
	})
	return list
}

// Coordinators lists the addresses of the coordinators that are heard.
func (g *Gossip) Coordinators() []string {
	var list []string
	for _, m := range g.Members() {
		if m.Role == Coordinator {
			list = append(list, m.Address)
		}
	}
	return list
}

// Close says goodbye and stops.
func (g *Gossip) Close() error {
	g.end()
	g.done.Wait()
	if g.list.NumMembers() > 1 {
		if err := g.list.Leave(leaveWait); err != nil {
			g.config.Logger.Debug("gossip: the goodbye was not heard", "err", err)
		}
	}
	return g.list.Shutdown()
}

// change notes that a member came, changed or went.
func (g *Gossip) change(n *memberlist.Node, up bool) {
	m, err := parse(n.Meta)
	if err != nil {
		g.config.Logger.Warn("gossip: a member says nothing that can be read", "member", n.Name, "err", err)
		return
	}
	g.mu.Lock()
	if up {
		g.members[n.Name] = m
	} else {
		delete(g.members, n.Name)
	}
	g.mu.Unlock()
	if m.Role == g.config.Role && m.Name == g.config.Name {
		return
	}
	g.config.Logger.Info("gossip", "member", n.Name, "address", m.Address, "up", up)
	if g.config.Changed != nil {
		g.config.Changed(m, up)
	}
}

// parse reads what a member says of itself.
func parse(b []byte) (Member, error) {
	var m Member
	if err := json.Unmarshal(b, &m); err != nil {
		return Member{}, err
	}
	if _, _, err := net.SplitHostPort(m.Address); err != nil {
		return Member{}, err
	}
	if m.Role != Coordinator && m.Role != Worker || m.Name == "" {
		return Member{}, fmt.Errorf("role %q, name %q", m.Role, m.Name)
	}
	return m, nil
}

// events hears from memberlist who comes and goes.
type events struct{ *Gossip }

// NotifyJoin implements memberlist.EventDelegate.
func (e events) NotifyJoin(n *memberlist.Node) { e.change(n, true) }

// NotifyUpdate implements memberlist.EventDelegate.
func (e events) NotifyUpdate(n *memberlist.Node) { e.change(n, true) }

// NotifyLeave implements memberlist.EventDelegate.
func (e events) NotifyLeave(n *memberlist.Node) { e.change(n, false) }

// NotifyAlive implements memberlist.AliveDelegate: who says nothing of itself that can
// be read does not come in.
func (e events) NotifyAlive(n *memberlist.Node) error {
	_, err := parse(n.Meta)
	return err
}

// meta tells memberlist what to say of this process. There are no other messages.
type meta struct{ *Gossip }

// NodeMeta implements memberlist.Delegate.
func (m meta) NodeMeta(limit int) []byte {
	b, err := json.Marshal(Member{m.config.Role, m.config.Name, m.config.Address})
	if err != nil || len(b) > limit {
		return nil // nobody lets in a member without it
	}
	return b
}

// NotifyMsg implements memberlist.Delegate.
func (meta) NotifyMsg([]byte) {}

// GetBroadcasts implements memberlist.Delegate.
func (meta) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState implements memberlist.Delegate.
func (meta) LocalState(bool) []byte { return nil }

// MergeRemoteState implements memberlist.Delegate.
func (meta) MergeRemoteState([]byte, bool) {}

// logWriter hands memberlist's lines to slog.
type logWriter struct{ to *slog.Logger }

var _ io.Writer = logWriter{}

// Write implements io.Writer. Lines look like "2026/11/23 14:00:00 [WARN] memberlist: …".
func (w logWriter) Write(b []byte) (int, error) {
	level, text := slog.LevelDebug, strings.TrimSpace(string(b))
	if _, rest, ok := strings.Cut(text, "[ERR] "); ok {
		level, text = slog.LevelWarn, rest
	} else if _, rest, ok := strings.Cut(text, "] "); ok {
		text = rest
	}
	w.to.Log(context.Background(), level, text)
	return len(b), nil
}
