package raftlog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
)

// patience is generous: the machine may be busy with other things.
const patience = 60 * time.Second

// group is a few nodes in this process, over loopback.
type group struct {
	*testing.T
	dir     string
	servers []Server
	nodes   map[string]*Node
}

func newGroup(t *testing.T, size int) *group {
	g := &group{T: t, dir: t.TempDir(), nodes: map[string]*Node{}}
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
	}
	for i, s := range g.servers {
		g.open(s, listeners[i], g.servers)
	}
	return g
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		l, err := net.Listen("tcp", address)
		if err == nil {
			return l
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (g *group) config(s Server, l net.Listener, bootstrap []Server) Config {
	return Config{Cluster: "test", ID: s.ID, Dir: filepath.Join(g.dir, s.ID), Address: s.Address, Listener: l, Dial: dialTCP, Bootstrap: bootstrap, ElectionTimeout: 300 * time.Millisecond}
}

func (g *group) open(s Server, l net.Listener, bootstrap []Server) *Node {
	g.Helper()
	n, err := Open(g.config(s, l, bootstrap))
	if err != nil {
		g.Fatal(err)
	}
	g.nodes[s.ID] = n
	return n
}

func (g *group) close(id string) {
	g.Helper()
	if err := g.nodes[id].Close(); err != nil {
		g.Fatal(err)
	}
	delete(g.nodes, id)
}

// leader waits until a node leads, and proves it by a read.
func (g *group) leader() *Node {
	g.Helper()
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		for _, n := range g.nodes {
			if _, leads := n.Leads(); !leads {
				continue
			}
			ctx, cancel := context.WithTimeout(g.Context(), 5*time.Second)
			_, err := n.Read(ctx)
			cancel()
			if err == nil {
				return n
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	g.Fatal("no leader")
	return nil
}

// submit proposes until a leader takes it, as a client would.
func (g *group) submit(request string) string {
	g.Helper()
	for range 10 {
		r, err := g.leader().Propose(g.Context(), fsm.Entry{Reason: "test", Decision: submission(request)})
		if err == nil && r.Err == nil {
			return r.Job
		}
		if !errors.Is(err, ErrNotLeader) && !errors.Is(err, ErrUncertain) {
			g.Fatal(err, r.Err)
		}
	}
	g.Fatal("nobody takes the job")
	return ""
}

func (g *group) eventually(what string, ok func() bool) {
	g.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			g.Fatal("never happened: " + what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestThreeNodesAgree(t *testing.T) {
	g := newGroup(t, 3)
	id := g.submit("one")
	if again := g.submit("one"); again != id {
		t.Errorf("the retry of %s made %s", id, again)
	}
	for name, n := range g.nodes {
		g.eventually(name+" applies the entry", func() bool { return n.State().Jobs[id] != nil })
		if l := n.Leader(); g.nodes[l.ID] == nil {
			t.Errorf("%s believes that %q leads", name, l.ID)
		}
	}
	for name, n := range g.nodes {
		if n == g.leader() {
			continue
		}
		if _, err := n.Propose(t.Context(), fsm.Entry{Decision: &fsm.Cancel{Job: id}}); !errors.Is(err, ErrNotLeader) {
			t.Errorf("the follower %s proposed: %v", name, err)
		}
		if _, err := n.Read(t.Context()); !errors.Is(err, ErrNotLeader) {
			t.Errorf("the follower %s read: %v", name, err)
		}
		if n.Stats().State != "follower" {
			t.Errorf("%s is a %s", name, n.Stats().State)
		}
	}
	r, err := g.leader().Propose(t.Context(), fsm.Entry{Decision: &fsm.Cancel{Job: "nobody"}})
	if err != nil || !errors.Is(r.Err, fsm.ErrUnknown) {
		t.Errorf("a refused entry came back as %v, %v", r, err)
	}
}

func TestALeaderWithoutAMajorityNeitherReadsNorWrites(t *testing.T) {
	g := newGroup(t, 3)
	leader := g.leader()
	for name, n := range g.nodes {
		if n != leader {
			g.close(name)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := leader.Read(ctx); err == nil {
		t.Error("it read alone")
	}
	if r, err := leader.Propose(ctx, fsm.Entry{Decision: submission("alone")}); err == nil {
		t.Errorf("it acknowledged alone: %v", r)
	}
}

func TestAllNodesComeBackWithEverythingAcknowledged(t *testing.T) {
	g := newGroup(t, 3)
	var ids []string
	for i := range 5 {
		ids = append(ids, g.submit(fmt.Sprint("before-", i)))
	}
	if err := g.leader().Snapshot(); err != nil {
		t.Fatal(err)
	}
	ids = append(ids, g.submit("after"))
	for _, s := range g.servers {
		g.close(s.ID)
	}
	for _, s := range g.servers {
		g.open(s, listen(t, s.Address), g.servers)
	}
	s, err := g.leader().Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if s.Jobs[id] == nil {
			t.Errorf("%s was acknowledged and is lost", id)
		}
	}
}

func TestMembersAreAddedReplacedAndRemoved(t *testing.T) {
	g := newGroup(t, 1)
	id := g.submit("one")
	for _, name := range []string{"c2", "c3"} {
		l := listen(t, "127.0.0.1:0")
		s := Server{name, l.Addr().String()}
		g.open(s, l, nil)
		if err := g.leader().Add(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	g.eventually("the new members have the state", func() bool {
		return g.nodes["c2"].State().Jobs[id] != nil && g.nodes["c3"].State().Jobs[id] != nil
	})
	members, err := g.nodes["c3"].Members()
	if err != nil || len(members) != 3 {
		t.Fatalf("members %v, %v", members, err)
	}
	if err := g.leader().Add(t.Context(), Server{"c4", members[0].Address}); err == nil || !strings.Contains(err.Error(), "c1") {
		t.Errorf("two members with one address: %v", err)
	}
	if err := g.leader().Remove(t.Context(), "c9", false); err == nil {
		t.Error("a stranger was removed")
	}
	if err := g.leader().Transfer(t.Context(), "c2"); err != nil {
		t.Fatal(err)
	}
	g.eventually("c2 leads", func() bool { _, ok := g.nodes["c2"].Leads(); return ok })
	if err := g.leader().Remove(t.Context(), "c1", false); err != nil {
		t.Fatal(err)
	}
	g.close("c1")
	second := g.submit("two")
	g.eventually("c3 follows without c1", func() bool { return g.nodes["c3"].State().Jobs[second] != nil })
}

func TestTheLastMemberStays(t *testing.T) {
	g := newGroup(t, 1)
	if err := g.leader().Remove(t.Context(), "c1", false); err == nil {
		t.Fatal("it was removed")
	}
}

func TestALateMemberIsBroughtUpBySnapshot(t *testing.T) {
	g := &group{T: t, dir: t.TempDir(), nodes: map[string]*Node{}}
	l := listen(t, "127.0.0.1:0")
	first := Server{"c1", l.Addr().String()}
	c := g.config(first, l, []Server{first})
	c.SnapshotEntries = 1
	n, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	g.nodes["c1"] = n
	var last string
	for i := range 8 {
		last = g.submit(fmt.Sprint(i))
	}
	if err := n.Snapshot(); err != nil {
		t.Fatal(err)
	}
	l2 := listen(t, "127.0.0.1:0")
	second := Server{"c2", l2.Addr().String()}
	late := g.open(second, l2, nil)
	defer g.close("c2")
	if err := n.Add(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	g.eventually("c2 has the state", func() bool { return late.State().Jobs[last] != nil })
	if late.disk.snapshots == nil {
		t.Fatal("no snapshot store")
	}
	if metas, err := late.disk.snapshots.List(); err != nil || len(metas) == 0 {
		t.Fatalf("c2 was brought up without a snapshot: %v, %v", metas, err)
	}
}

func TestFewLargeEntriesMakeASnapshotToo(t *testing.T) {
	g := &group{T: t, dir: t.TempDir(), nodes: map[string]*Node{}}
	l := listen(t, "127.0.0.1:0")
	first := Server{"c1", l.Addr().String()}
	c := g.config(first, l, []Server{first})
	c.SnapshotBytes = 1 << 20
	n, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	g.nodes["c1"] = n
	g.leader()
	usual := n.raft.ReloadableConfig()
	for i := range 2 * trailingFew {
		d := submission(fmt.Sprint(i))
		d.Spec = make([]byte, 16<<10)
		if _, err := n.Propose(t.Context(), fsm.Entry{Reason: "test", Decision: d}); err != nil {
			t.Fatal(err)
		}
	}
	g.eventually("the entries are cut off behind a snapshot", func() bool {
		at, err := n.disk.logs.FirstIndex()
		return err == nil && at > 1
	})
	g.eventually("the usual settings hold again", func() bool { return n.raft.ReloadableConfig() == usual })
	if _, snapshot := n.Sizes(); snapshot == 0 {
		t.Error("there is no snapshot")
	}
}

func TestNodesOfOtherClustersAreRefused(t *testing.T) {
	g := newGroup(t, 1)
	g.leader()
	l := listen(t, "127.0.0.1:0")
	c := g.config(Server{"x1", l.Addr().String()}, l, nil)
	c.Cluster = "other"
	stranger, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	conn, err := stranger.layer.Dial("127.0.0.1:1", time.Second)
	if err == nil {
		conn.Close()
		t.Error("somebody listens on port 1")
	}
	if _, err = stranger.layer.Dial(raftAddress(g.servers[0]), patience); err == nil || !strings.Contains(err.Error(), `belongs to cluster "test"`) {
		t.Errorf("a stranger was let in: %v", err)
	}
	// A connection that never says hello holds up nobody.
	silent, err := net.Dial("tcp", g.servers[0].Address)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	garbage, err := net.Dial("tcp", g.servers[0].Address)
	if err != nil {
		t.Fatal(err)
	}
	defer garbage.Close()
	if _, err := garbage.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	g.submit("unimpressed")
}

func TestAnEntryOfANewerProgramStopsTheNode(t *testing.T) {
	g := newGroup(t, 1)
	n := g.leader()
	raw, err := fsm.Entry{Decision: submission("x")}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	raw[4]++ // its version; the checksum no longer fits either
	if err := n.raft.Apply(raw, patience).Error(); err != nil {
		t.Fatal(err)
	}
	<-n.Failed()
	if n.Err() == nil || !strings.Contains(n.Err().Error(), "entry") {
		t.Errorf("it failed with %v", n.Err())
	}
	if _, err := n.Read(t.Context()); err == nil {
		t.Error("it reads on")
	}
	if _, err := n.Propose(t.Context(), fsm.Entry{Decision: submission("y")}); err == nil {
		t.Error("it acknowledges on")
	}
}
