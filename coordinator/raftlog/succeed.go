package raftlog

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// A leader whose process is dead is told from one that is slow: its connections end, and
// its port refuses new ones. Then nobody has to wait for the election timeout, which is
// long so that a busy machine elects nobody in vain. A machine that is gone, or a frozen
// process, refuses nothing: that is what the timeout is for.
//
// A rule between two machines refuses too, in the name of a leader that is well and that
// the others hear. So who finds a leader dead asks them first, and stands only if most of
// the voters have no connection of the leader any more, and none has that answers.

const (
	// standApart is how long the next in line waits for the one before, which may be
	// behind, or dead too.
	standApart = 200 * time.Millisecond
	// refusedTimes is how often in a row a port must refuse. A process that ends closes its
	// listener a moment after its connections, so it is tried again, after longer each time.
	refusedTimes                   = 2
	refusedApart, refusedApartMost = 5 * time.Millisecond, 50 * time.Millisecond
	// askPatience is how long the others' answers are waited for, and askApart how long
	// until they are asked again: they may see the leader's connections end a moment later.
	askPatience = 200 * time.Millisecond
	askApart    = 20 * time.Millisecond
)

// transport lets a node tell its own raft something. What others send passes through.
type transport struct {
	*raft.NetworkTransport
	calls chan raft.RPC
}

// Consumer implements raft.Transport.
func (t *transport) Consumer() <-chan raft.RPC { return t.calls }

// forward passes on what others send, until the node closes.
func (n *Node) forward() {
	for {
		select {
		case call := <-n.transport.NetworkTransport.Consumer():
			select {
			case n.transport.calls <- call:
			case <-n.end:
				return
			}
		case <-n.end:
			return
		}
	}
}

// parted implements insider.
func (n *Node) parted(id string) {
	select {
	case n.partings <- id:
	default: // some are being looked at; the election timeout looks after all
	}
}

// succeed stands for election as soon as the leader is known to be dead.
func (n *Node) succeed() {
	for {
		select {
		case id := <-n.partings:
			n.succeedTo(id)
		case <-n.end:
			return
		}
	}
}

// succeedTo stands for election in this node's turn, if the leader of that id is dead.
func (n *Node) succeedTo(id string) {
	leader := n.Leader()
	turn := n.turn(id)
	if leader.ID != id || turn < 0 || !n.dead(leader) {
		return
	}
	if turn > 0 && !n.pause(time.Duration(turn)*standApart) {
		return
	}
	// Who has been asked for its vote knows no leader until one is elected.
	if now := n.Leader().ID; now == "" && !n.pause(standApart) || now != "" && now != id {
		return
	}
	if !n.orphaned(id) {
		return
	}
	n.config.Logger.Info("the leader is dead; this coordinator stands for election", "leader", id)
	n.stand()
}

// orphaned asks the others until they agree that nobody hears the leader of that id, which
// this node has found dead. It gives up once another one leads, or when the election
// timeout is over: raft asks for votes by itself then, and disturbs no leader.
func (n *Node) orphaned(id string) bool {
	for began := time.Now(); time.Since(began) < n.config.ElectionTimeout; {
		if now := n.Leader().ID; now != "" && now != id || n.raft.State() != raft.Follower {
			return false
		}
		if n.agreed(id) {
			return true
		}
		if !n.pause(askApart) {
			return false
		}
	}
	return false
}

// agreed asks every other voter once whether it hears a leader. All that answer must say no,
// and they must be a majority of the voters together with this node.
func (n *Node) agreed(leader string) bool {
	members, err := n.Members()
	if err != nil || n.hears() != "" {
		return false
	}
	var asked sync.WaitGroup
	var without, with atomic.Int32
	voters := 0
	for _, m := range members {
		if !m.Voter {
			continue
		}
		if voters++; m.ID == leader || m.ID == n.config.ID {
			continue
		}
		asked.Go(func() {
			heard, err := n.layer.leaderOf(m.Address, askPatience)
			switch {
			case err != nil: // it has no say
			case heard == "":
				without.Add(1)
			default:
				with.Add(1)
			}
		})
	}
	asked.Wait()
	return with.Load() == 0 && int(without.Load())+1 > voters/2
}

// hears implements insider. A leader is heard while a connection stands that it has made.
func (n *Node) hears() string {
	if id := n.Leader().ID; id == n.config.ID || n.layer.has(id) {
		return id
	}
	return ""
}

// stand has this node stand for election, as if the leader had asked for it.
func (n *Node) stand() {
	answer := make(chan raft.RPCResponse, 1) // room for the answer, which nobody waits for
	call := raft.RPC{Command: &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}}, RespChan: answer}
	select {
	case n.transport.calls <- call:
	case <-n.end:
	}
}

// pause waits; it tells whether the node is still open.
func (n *Node) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-n.end:
		return false
	}
}

// turn is this node's place in the line of those who may follow a leader; −1: it has none.
func (n *Node) turn(leader string) int {
	members, err := n.Members()
	if err != nil {
		return -1
	}
	var line []string
	for _, m := range members {
		if m.Voter && m.ID != leader {
			line = append(line, m.ID)
		}
	}
	slices.Sort(line)
	return slices.Index(line, n.config.ID)
}

// dead waits until nothing listens any more where the leader did. It gives up when the leader
// is heard again, another one is known, or the election timeout is over.
func (n *Node) dead(leader Server) bool {
	refused, apart := 0, refusedApart
	for began := time.Now(); time.Since(began) < n.config.ElectionTimeout; {
		if now := n.Leader().ID; now != "" && now != leader.ID || n.layer.has(leader.ID) {
			return false
		}
		ctx, cancel := context.WithTimeout(n.layer.ctx, askTimeout)
		conn, err := n.config.Dial(ctx, leader.Address)
		cancel()
		if err == nil {
			_ = conn.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			refused, apart = 0, min(2*apart, refusedApartMost)
		} else if refused++; refused == refusedTimes {
			return true
		} else {
			apart = refusedApart
		}
		if !n.pause(apart) {
			return false
		}
	}
	return false
}
