package raftlog

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// wires are the connections between the nodes of a group, which can be cut.
type wires struct {
	mu      sync.Mutex
	names   map[string]string // address → id
	refused map[[2]string]bool
	hangs   map[string]bool // ids that nobody gets an answer of any more
	dials   map[[2]string]int
	said    bytes.Buffer // what the nodes log
}

// Write implements io.Writer.
func (w *wires) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.said.Write(line)
}

// stood tells whether a node has stood for election because it found the leader dead.
func (w *wires) stood() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Contains(w.said.String(), "stands for election")
}

// dial is how one node reaches the others.
func (w *wires) dial(from string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) {
		w.mu.Lock()
		link := [2]string{from, w.names[address]}
		w.dials[link]++
		refused, hangs := w.refused[link], w.hangs[link[1]]
		w.mu.Unlock()
		switch {
		case hangs:
			<-ctx.Done()
			return nil, ctx.Err()
		case refused:
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
		}
		return dialTCP(ctx, address)
	}
}

// dialled is how often one node has dialled another.
func (w *wires) dialled(from, to string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dials[[2]string{from, to}]
}

// cut refuses connections between two nodes and ends those that there are, as a rule of a
// firewall between their machines does.
func (w *wires) cut(g *group, a, b string) {
	w.mu.Lock()
	w.refused[[2]string{a, b}], w.refused[[2]string{b, a}] = true, true
	w.mu.Unlock()
	g.end(a, b)
}

// end ends the connections between two nodes.
func (g *group) end(a, b string) {
	for _, ends := range [][2]string{{a, b}, {b, a}} {
		l := g.nodes[ends[1]].layer
		l.mu.Lock()
		var made []*tracked
		for t := range l.conns {
			if t.from == ends[0] {
				made = append(made, t)
			}
		}
		l.mu.Unlock()
		for _, t := range made {
			t.Close()
		}
	}
}

// newPatientGroup is a group that waits for a silent leader for so long. The first one leads.
func newPatientGroup(t *testing.T, size int, timeout time.Duration) (*group, *wires) {
	g := &group{T: t, dir: t.TempDir(), nodes: map[string]*Node{}}
	w := &wires{names: map[string]string{}, refused: map[[2]string]bool{}, hangs: map[string]bool{}, dials: map[[2]string]int{}}
	t.Cleanup(func() {
		for _, n := range g.nodes {
			n.Close()
		}
	})
	var listeners []net.Listener
	for i := range size {
		l := listen(t, "127.0.0.1:0")
		listeners = append(listeners, l)
		g.servers = append(g.servers, Server{fmt.Sprint("c", i+1), l.Addr().String()})
		w.names[l.Addr().String()] = g.servers[i].ID
	}
	for i, s := range g.servers {
		c := g.config(s, listeners[i], g.servers)
		c.ElectionTimeout, c.Dial, c.Logger = timeout, w.dial(s.ID), slog.New(slog.NewTextHandler(w, nil))
		n, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		g.nodes[s.ID] = n
	}
	g.nodes["c1"].stand()
	if l := g.leader().config.ID; l != "c1" {
		t.Fatalf("%s leads", l)
	}
	g.eventually("all hear the leader", func() bool {
		for _, n := range g.nodes {
			if n.hears() != "c1" {
				return false
			}
		}
		return true
	})
	return g, w
}

// Votes may be split where all are slow: then raft tries again after its timeout, and that
// somebody stood before is seen in the log.
const splitTimeout = 10 * time.Second

// never is longer than any test lasts.
const never = 10 * time.Minute

func TestADeadLeaderIsFollowedWithoutWaitingForTheElectionTimeout(t *testing.T) {
	g, w := newPatientGroup(t, 3, splitTimeout)
	id := g.submit("one")
	g.close("c1")
	next := g.leader()
	if next.State().Jobs[id] == nil {
		t.Errorf("%s leads and does not know %s", next.config.ID, id)
	}
	if !w.stood() {
		t.Error("nobody found the leader dead")
	}
}

func TestADeadLeaderIsFollowedThoughAnotherOneHangs(t *testing.T) {
	g, w := newPatientGroup(t, 5, splitTimeout)
	w.mu.Lock()
	w.hangs["c2"] = true
	w.mu.Unlock()
	for _, s := range g.servers[2:] {
		w.cut(g, "c2", s.ID)
	}
	g.close("c1")
	g.eventually("one of the others leads", func() bool {
		for _, id := range []string{"c3", "c4", "c5"} {
			if _, leads := g.nodes[id].Leads(); leads {
				return true
			}
		}
		return false
	})
	if !w.stood() {
		t.Error("nobody found the leader dead")
	}
}

func TestALeaderThatOnlyEndsItsConnectionsStaysTheLeader(t *testing.T) {
	g, _ := newPatientGroup(t, 3, never)
	term, _ := g.nodes["c1"].Leads()
	for _, id := range []string{"c2", "c3"} {
		n := g.nodes[id]
		g.end("c1", id)
		n.succeedTo("c1") // returns once the leader is heard again
		if n.hears() != "c1" || n.raft.State() != raft.Follower {
			t.Errorf("%s hears %q as a %s, and the leader lives", id, n.hears(), n.raft.State())
		}
	}
	if now, leads := g.leader().Leads(); !leads || now != term {
		t.Errorf("term %d after %d", now, term)
	}
}

func TestALeaderThatRefusesOneFollowerAloneStaysTheLeader(t *testing.T) {
	g, w := newPatientGroup(t, 3, never)
	term, _ := g.nodes["c1"].Leads()
	w.cut(g, "c1", "c2")
	g.asksInVain(w, "c2", "c3", term)
	if id := g.submit("one"); g.nodes["c1"].State().Jobs[id] == nil {
		t.Errorf("%s is not known to the first leader", id)
	}
}

func TestWhoReachesNobodyDoesNotStandForElection(t *testing.T) {
	g, w := newPatientGroup(t, 3, never)
	term, _ := g.nodes["c1"].Leads()
	w.cut(g, "c2", "c3")
	w.cut(g, "c1", "c2")
	g.asksInVain(w, "c2", "c3", term)
}

// asksInVain waits until a node has asked another one a few times whether it hears the
// leader, the first one, and looks that nobody was disturbed in its term.
func (g *group) asksInVain(w *wires, from, to string, term uint64) {
	g.Helper()
	before := w.dialled(from, to)
	disturbed := func() bool {
		now, leads := g.nodes["c1"].Leads()
		return !leads || now != term || g.nodes[from].raft.State() != raft.Follower
	}
	g.eventually("it asks", func() bool { return disturbed() || w.dialled(from, to) > before+3 })
	if disturbed() {
		g.Errorf("%s stands for election, and the leader is well", from)
	}
}
