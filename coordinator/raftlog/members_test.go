package raftlog

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"
)

// lose closes a member that does not lead, and returns its id.
func (g *group) lose() string {
	g.Helper()
	leader := g.leader().config.ID
	for id := range g.nodes {
		if id != leader {
			g.close(id)
			return id
		}
	}
	g.Fatal("there is nobody but the leader")
	return ""
}

func TestAddingNobodyOrSomebodyElseLeavesTheGroupAsItIs(t *testing.T) {
	g := newGroup(t, 3)
	g.submit("one")
	lost := g.lose()
	l := listen(t, "127.0.0.1:0")
	fourth := Server{"c4", l.Addr().String()}
	g.open(fourth, l, nil)
	other := listen(t, "127.0.0.1:0")
	c := g.config(Server{"x1", other.Addr().String()}, other, nil)
	c.Cluster = "other"
	foreign, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	for _, bad := range []struct {
		s    Server
		want string
	}{
		{Server{"c4", "127.0.0.1:1"}, "does not answer"},
		{Server{"c5", fourth.Address}, "answers c4"},
		{Server{"c4", other.Addr().String()}, "belongs to cluster"},
	} {
		if err := g.leader().Add(t.Context(), bad.s); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%v was added: %v", bad.s, err)
		}
	}
	g.submit("two") // two of three still decide
	if members, err := g.leader().Members(); err != nil || len(members) != 3 {
		t.Fatalf("the group is %v, %v", members, err)
	}
	if err := g.leader().Remove(t.Context(), lost, false); err != nil {
		t.Fatal(err)
	}
	if err := g.leader().Add(t.Context(), fourth); err != nil {
		t.Fatal(err)
	}
	members, err := g.leader().Members()
	if err != nil || len(members) != 3 || members[2].ID != "c4" || !members[2].Voter {
		t.Fatalf("the group is %v, %v", members, err)
	}
}

func TestAMemberStaysIfTheOthersCouldDecideNothingWithoutIt(t *testing.T) {
	g := newGroup(t, 3)
	g.submit("one")
	silent := g.lose()
	leader := g.leader()
	follower := ""
	for id := range g.nodes {
		if id != leader.config.ID {
			follower = id
		}
	}
	if err := leader.Remove(t.Context(), follower, false); err == nil || !strings.Contains(err.Error(), silent+" would not") {
		t.Fatalf("%s was removed while %s is silent: %v", follower, silent, err)
	}
	g.submit("two")
	if err := g.leader().Remove(t.Context(), silent, false); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := g.leader().Remove(ctx, follower, true); err != nil {
		t.Errorf("the other of two, by force: %v", err)
	}
}

func TestWhoWasRemovedIsNotLetInWhileThereIsALeader(t *testing.T) {
	g := newGroup(t, 3)
	g.submit("one")
	leader := g.leader()
	var removed *Node
	for id, n := range g.nodes {
		if id != leader.config.ID {
			removed = n
		}
	}
	if err := leader.Remove(t.Context(), removed.config.ID, false); err != nil {
		t.Fatal(err)
	}
	g.submit("two")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := removed.layer.ask(ctx, leader.config.Address); err == nil || !strings.Contains(err.Error(), "is not a member") {
		t.Errorf("%s was removed, and let in: %v", removed.config.ID, err)
	}
}

func TestWhoWasRemovedWhileAwayLearnsIt(t *testing.T) {
	g := newGroup(t, 3)
	g.submit("one")
	away := g.lose()
	if err := g.leader().Remove(t.Context(), away, false); err != nil {
		t.Fatal(err)
	}
	g.submit("two")
	var s Server
	for _, s = range g.servers {
		if s.ID == away {
			break
		}
	}
	n := g.open(s, listen(t, s.Address), nil)
	g.eventually(away+" learns that it was removed", n.Removed)
	for id, other := range g.nodes {
		if id != away && other.Removed() {
			t.Errorf("%s takes itself for removed", id)
		}
	}
}

func TestACallerIsWhomItsConnectionProvesItToBe(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	g := &group{T: t, dir: t.TempDir(), nodes: map[string]*Node{}}
	c := g.config(Server{"c1", l.Addr().String()}, l, nil)
	c.Caller = func(net.Conn) string { return "c2" }
	n, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	for id, want := range map[string]bool{"c2": true, "c3": false} {
		conn, err := net.Dial("tcp", c.Address)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if err := writeHello(conn, hello{"test", id, false}); err != nil {
			t.Fatal(err)
		}
		if _, err := readAnswer(conn, false); (err == nil) != want {
			t.Errorf("c2 calls itself %s: %v", id, err)
		}
		conn.Close()
	}
}
