package raftlog

import (
	"net"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// newPatientGroup is a group that waits for a silent leader for longer than any test does.
func newPatientGroup(t *testing.T, size int) *group {
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
		g.servers = append(g.servers, Server{"c" + string(rune('1'+i)), l.Addr().String()})
	}
	for i, s := range g.servers {
		c := g.config(s, listeners[i], g.servers)
		c.ElectionTimeout = 10 * time.Minute
		n, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		g.nodes[s.ID] = n
	}
	return g
}

func TestADeadLeaderIsFollowedWithoutWaitingForTheElectionTimeout(t *testing.T) {
	g := newPatientGroup(t, 3)
	g.nodes["c2"].stand()
	id, dead := g.submit("one"), g.leader().config.ID
	g.eventually("all know the leader", func() bool {
		for _, n := range g.nodes {
			if n.Leader().ID != dead {
				return false
			}
		}
		return true
	})
	g.close(dead)
	if next := g.leader(); next.State().Jobs[id] == nil {
		t.Errorf("%s leads and does not know %s", next.config.ID, id)
	}
}

func TestALeaderThatOnlyEndsItsConnectionsStaysTheLeader(t *testing.T) {
	g := newPatientGroup(t, 3)
	g.nodes["c1"].stand()
	if l := g.leader().config.ID; l != "c1" {
		t.Fatalf("%s leads", l)
	}
	term, _ := g.nodes["c1"].Leads()
	for _, id := range []string{"c2", "c3"} {
		n := g.nodes[id]
		g.eventually("all know the leader", func() bool { return n.Leader().ID == "c1" })
		n.succeedTo("c1")
		if n.raft.State() != raft.Follower {
			t.Errorf("%s stands for election, and the leader lives", id)
		}
	}
	if now, leads := g.leader().Leads(); !leads || now != term {
		t.Errorf("term %d after %d", now, term)
	}
}
