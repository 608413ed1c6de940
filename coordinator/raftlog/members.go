package raftlog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// changeTimeout bounds how long a change of the members waits to be taken up.
const changeTimeout = 30 * time.Second

// Members lists the group as this node knows it, in the order in which they joined.
func (n *Node) Members() ([]Server, error) {
	future := n.raft.GetConfiguration()
	if err := future.Error(); err != nil {
		return nil, translate(err)
	}
	var servers []Server
	for _, s := range future.Configuration().Servers {
		servers = append(servers, Server{ID: string(s.ID), Address: string(s.Address)})
	}
	return servers, nil
}

// Add makes a server a voter. The server must run, with an empty folder and no
// bootstrap list. A member that is added again gets the new address.
func (n *Node) Add(ctx context.Context, s Server) error {
	if s.ID == "" || s.Address == "" || len(s.ID) > nameBytesMax {
		return fmt.Errorf("add coordinator: %q at %q: an id and an address are needed", s.ID, s.Address)
	}
	members, err := n.Members()
	if err != nil {
		return err
	}
	for _, m := range members {
		if m.Address == s.Address && m.ID != s.ID {
			return fmt.Errorf("add coordinator: %s is the address of %s already; remove that one first", s.Address, m.ID)
		}
	}
	return translate(wait(ctx, n.raft.AddVoter(raft.ServerID(s.ID), raft.ServerAddress(s.Address), 0, changeTimeout)))
}

// Remove takes a server out of the group. A leader that removes itself hands over
// first.
func (n *Node) Remove(ctx context.Context, id string) error {
	members, err := n.Members()
	if err != nil {
		return err
	}
	found := false
	for _, m := range members {
		found = found || m.ID == id
	}
	if !found {
		return fmt.Errorf("remove coordinator: %q is not a member", id)
	}
	if len(members) == 1 {
		return errors.New("remove coordinator: it is the last one, and holds the state; add another first")
	}
	return translate(wait(ctx, n.raft.RemoveServer(raft.ServerID(id), 0, changeTimeout)))
}

// Transfer makes another member the leader: the one with this id, or whoever is most
// up to date if id is empty.
func (n *Node) Transfer(ctx context.Context, id string) error {
	if id == "" {
		return n.transfer(ctx, n.raft.LeadershipTransfer)
	}
	members, err := n.Members()
	if err != nil {
		return err
	}
	for _, m := range members {
		if m.ID == id {
			return n.transfer(ctx, func() raft.Future {
				return n.raft.LeadershipTransferToServer(raft.ServerID(id), raft.ServerAddress(m.Address))
			})
		}
	}
	return fmt.Errorf("transfer leadership: %q is not a member", id)
}

// transfer tries a few times: raft gives the other one an election timeout to catch up,
// which is short for one that has just joined.
func (n *Node) transfer(ctx context.Context, try func() raft.Future) (err error) {
	for range 5 {
		err = translate(wait(ctx, try()))
		if err == nil || errors.Is(err, ErrNotLeader) || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(n.config.ElectionTimeout):
		case <-ctx.Done():
		}
	}
	return fmt.Errorf("transfer leadership: %w", err)
}
