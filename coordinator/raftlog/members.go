package raftlog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// changeTimeout bounds how long a change of the members waits to be taken up.
const changeTimeout = 30 * time.Second

// learnPoll is how often one that is being added is asked how far it is.
const learnPoll = 50 * time.Millisecond

// Member is a server of the group. One that is being added has no vote until it has
// caught up.
type Member struct {
	Server
	Voter bool
}

// Members lists the group as this node knows it, in the order in which they joined.
func (n *Node) Members() ([]Member, error) {
	future := n.raft.GetConfiguration()
	if err := future.Error(); err != nil {
		return nil, translate(err)
	}
	var servers []Member
	for _, s := range future.Configuration().Servers {
		servers = append(servers, Member{Server{ID: string(s.ID), Address: string(s.Address)}, s.Suffrage == raft.Voter})
	}
	return servers, nil
}

// stranger implements insider. Who knows a leader lets nobody in but the members, so that
// one that was removed disturbs nobody. Who knows none may have missed that somebody
// joined, and could not learn it otherwise: raft itself decides whom it follows.
func (n *Node) stranger(id string) bool {
	if n.Leader().ID == "" {
		return false
	}
	members, err := n.Members()
	return err == nil && len(members) > 0 && !slices.ContainsFunc(members, func(m Member) bool { return m.ID == id })
}

// position implements insider.
func (n *Node) position() uint64 { return n.raft.AppliedIndex() }

// answered implements insider.
func (n *Node) answered(address string, letIn bool) {
	members, err := n.Members()
	if err != nil {
		return
	}
	n.outside.Lock()
	defer n.outside.Unlock()
	if letIn {
		delete(n.outside.refused, address)
	} else {
		n.outside.refused[address] = true
	}
	others, refused := 0, 0
	for _, m := range members {
		if m.ID == n.config.ID {
			continue
		}
		if others++; n.outside.refused[m.Address] {
			refused++
		}
	}
	n.removed.Store(refused > others/2)
}

// wonder asks the others from time to time while there is no leader. Raft's own calls do
// not tell: a connection from a moment without a leader is kept for long.
func (n *Node) wonder() {
	tick := time.NewTicker(4 * n.config.ElectionTimeout)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-n.end:
			return
		}
		if n.Leader().ID != "" {
			continue
		}
		members, err := n.Members()
		if err != nil {
			continue
		}
		for _, m := range members {
			if m.ID != n.config.ID {
				_, _ = n.layer.ask(n.layer.ctx, m.Address) // answered hears what counts
			}
		}
	}
}

// Removed tells whether this node was removed from the group while it was away: most of
// those whom it takes for the others have a leader and say so. A single one may be
// behind. One that has a leader again was added again.
func (n *Node) Removed() bool { return n.removed.Load() && n.Leader().ID == "" }

// Add makes a server a voter. The server must run, with an empty folder and no
// bootstrap list: it is asked who it is, and gets a vote once it has caught up, because
// from then on it counts for the majority. A member that is added again gets the new
// address.
func (n *Node) Add(ctx context.Context, s Server) error {
	if s.ID == "" || s.Address == "" || len(s.ID) > nameBytesMax {
		return fmt.Errorf("add coordinator: %q at %q: an id and an address are needed", s.ID, s.Address)
	}
	if _, leads := n.Leads(); !leads {
		return ErrNotLeader
	}
	members, err := n.Members()
	if err != nil {
		return err
	}
	voter := false
	for _, m := range members {
		if m.Address == s.Address && m.ID != s.ID {
			return fmt.Errorf("add coordinator: %s is the address of %s already; remove that one first", s.Address, m.ID)
		}
		voter = voter || m.ID == s.ID && m.Voter
	}
	if err := n.meet(ctx, s); err != nil {
		return err
	}
	if !voter {
		if err := n.teach(ctx, s); err != nil {
			return err
		}
	}
	return translate(n.calls.wait(ctx, func() raft.Future {
		return n.raft.AddVoter(raft.ServerID(s.ID), raft.ServerAddress(s.Address), 0, changeTimeout)
	}))
}

// meet makes sure that the server answers at its address.
func (n *Node) meet(ctx context.Context, s Server) error {
	if s.ID == n.config.ID {
		return nil
	}
	a, err := n.layer.ask(ctx, s.Address)
	if err != nil {
		return fmt.Errorf("add coordinator: %s does not answer at %s: %w; start it first, with an empty folder and no --members", s.ID, s.Address, err)
	}
	if a.id != s.ID {
		return fmt.Errorf("add coordinator: at %s answers %s, not %s; correct the id or the address", s.Address, a.id, s.ID)
	}
	return nil
}

// teach takes a server in without a vote and waits until it has all that was decided
// before. If it does not get there, it is out again.
func (n *Node) teach(ctx context.Context, s Server) error {
	var future raft.IndexFuture
	if err := n.calls.wait(ctx, func() raft.Future {
		future = n.raft.AddNonvoter(raft.ServerID(s.ID), raft.ServerAddress(s.Address), 0, changeTimeout)
		return future
	}); err != nil {
		return translate(err)
	}
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	for {
		a, err := n.layer.ask(ctx, s.Address)
		if err == nil && a.id == s.ID && a.applied >= future.Index() {
			return nil
		}
		select {
		case <-time.After(learnPoll):
			continue
		case <-ctx.Done():
		}
		out := n.raft.RemoveServer(raft.ServerID(s.ID), 0, changeTimeout).Error()
		return errors.Join(fmt.Errorf("add coordinator: %s at %s did not catch up: %w", s.ID, s.Address, errors.Join(ctx.Err(), err)), translate(out))
	}
}

// Remove takes a server out of the group. A leader that removes itself hands over
// first. It refuses if too few of the others answer to decide anything afterwards,
// unless force is set.
func (n *Node) Remove(ctx context.Context, id string, force bool) error {
	members, err := n.Members()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(members, func(m Member) bool { return m.ID == id })
	switch {
	case i < 0:
		return fmt.Errorf("remove coordinator: %q is not a member", id)
	case len(members) == 1:
		return errors.New("remove coordinator: it is the last one, and holds the state; add another first")
	}
	if members[i].Voter && !force {
		if err := n.checkRest(ctx, id, slices.Delete(members, i, i+1)); err != nil {
			return err
		}
	}
	return translate(n.calls.wait(ctx, func() raft.Future { return n.raft.RemoveServer(raft.ServerID(id), 0, changeTimeout) }))
}

// checkRest refuses a rest of the group of which no majority answers.
func (n *Node) checkRest(ctx context.Context, id string, rest []Member) error {
	rest = slices.DeleteFunc(rest, func(m Member) bool { return !m.Voter })
	var (
		asked  sync.WaitGroup
		mu     sync.Mutex
		silent []string
	)
	for _, m := range rest {
		if m.ID == n.config.ID {
			continue
		}
		asked.Go(func() {
			a, err := n.layer.ask(ctx, m.Address)
			if err == nil && a.id == m.ID {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			silent = append(silent, m.ID)
		})
	}
	asked.Wait()
	slices.Sort(silent)
	if here := len(rest) - len(silent); here <= len(rest)/2 {
		return fmt.Errorf("remove coordinator: without %s, only %d of %d would answer (%s would not), and nothing could be decided any more; "+
			"start or remove those first, or remove it with --force", id, here, len(rest), strings.Join(silent, ", "))
	}
	return nil
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
		err = translate(n.calls.wait(ctx, try))
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
