package raftlog

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// A leader whose process is dead is told from one that is slow: its connections end, and
// its port refuses new ones. Then nobody has to wait for the election timeout, which is
// long so that a busy machine elects nobody in vain. A machine that is gone, or a frozen
// process, refuses nothing: that is what the timeout is for.

const (
	// standApart is how long the next in line waits for the one before, which may be
	// behind, or dead too.
	standApart = 200 * time.Millisecond
	// refusedTimes is how often in a row a port must refuse, of so many tries: a process
	// that is killed closes its listener a moment after its connections.
	refusedTimes, refusedTries = 2, 4
	refusedApart               = 5 * time.Millisecond
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
	if now := n.Leader().ID; now != "" && now != id || n.raft.State() != raft.Follower {
		return
	}
	n.config.Logger.Info("the leader is dead; this coordinator stands for election", "leader", id)
	n.stand()
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

// dead tells whether nothing listens any more where a server did.
func (n *Node) dead(s Server) bool {
	refused := 0
	for range refusedTries {
		ctx, cancel := context.WithTimeout(n.layer.ctx, askTimeout)
		conn, err := n.config.Dial(ctx, s.Address)
		cancel()
		if err == nil {
			_ = conn.Close()
		}
		if refused++; !errors.Is(err, syscall.ECONNREFUSED) {
			refused = 0
		}
		if refused == refusedTimes {
			return true
		}
		if !n.pause(refusedApart) {
			return false
		}
	}
	return false
}
