package coordinator

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/hearing"
	"github.com/skein-ml/skein/coordinator/raftlog"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// cluster is the service of operators.
type cluster struct {
	skeinv1.UnimplementedClusterServer
	*Coordinator
}

// Status implements skeinv1.ClusterServer.
func (s cluster) Status(context.Context, *skeinv1.StatusRequest) (*skeinv1.StatusResponse, error) {
	st, l := s.node.Stats(), s.node.Leader()
	return &skeinv1.StatusResponse{
		Id: s.config.ID, Cluster: s.config.Cluster, Build: s.config.Build, State: st.State, LeaderId: l.ID, LeaderAddress: l.Address,
		Term: st.Term, LastIndex: st.LastIndex, AppliedIndex: st.Applied,
	}, nil
}

// Nodes implements skeinv1.ClusterServer.
func (s cluster) Nodes(ctx context.Context, _ *skeinv1.NodesRequest) (*skeinv1.NodesResponse, error) {
	state, err := s.node.Read(ctx)
	if err != nil {
		return nil, err
	}
	reign := s.leading()
	if reign == nil {
		return nil, s.notLeader()
	}
	servers, err := s.node.Members()
	if err != nil {
		return nil, err
	}
	out := &skeinv1.NodesResponse{}
	for _, m := range servers {
		out.Coordinators = append(out.Coordinators, &skeinv1.Coordinator{Id: m.ID, Address: m.Address, Leader: m.ID == s.config.ID, Voter: m.Voter})
	}
	busy := state.Busy()
	now := time.Now()
	seen := reign.forMembership()
	for _, w := range state.ByName() {
		n := &skeinv1.WorkerNode{
			Worker: w.Name, Incarnation: w.Incarnation, Node: w.Node, Zone: w.Zone, Build: w.Build, NumericClasses: w.Classes, MemoryBytes: w.Memory,
			Threads: int32(w.Threads), RingAddress: w.Ring, StreamAddress: w.Stream, Draining: w.Draining, SilentMs: -1, Job: busy[w.Name],
		}
		if c, ok := seen.Contacts[w.Name]; ok && c.Incarnation == w.Incarnation {
			n.Connected, n.SilentMs = c.Connected, now.Sub(c.Heard).Milliseconds()
		}
		if j := state.Jobs[n.Job]; j != nil && j.Phase == fsm.Running {
			n.Ranks = hearing.Ranks(j.Place(w.Name).Ranks)
		}
		out.Workers = append(out.Workers, n)
	}
	return out, nil
}

// AddCoordinator implements skeinv1.ClusterServer.
func (s cluster) AddCoordinator(ctx context.Context, r *skeinv1.AddCoordinatorRequest) (*skeinv1.AddCoordinatorResponse, error) {
	if !name(r.GetId()) || r.GetAddress() == "" {
		return nil, status.Errorf(codes.InvalidArgument, "coordinator %q at %q: an id and an address are needed", r.GetId(), r.GetAddress())
	}
	if err := s.config.mayDial("address", r.GetAddress()); err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	if err := s.node.Add(ctx, raftlog.Server{ID: r.GetId(), Address: r.GetAddress()}); err != nil {
		return nil, s.change(err)
	}
	return &skeinv1.AddCoordinatorResponse{}, nil
}

// RemoveCoordinator implements skeinv1.ClusterServer.
func (s cluster) RemoveCoordinator(ctx context.Context, r *skeinv1.RemoveCoordinatorRequest) (*skeinv1.RemoveCoordinatorResponse, error) {
	if _, leads := s.node.Leads(); !leads {
		return nil, s.notLeader()
	}
	if err := s.node.Remove(ctx, r.GetId(), r.GetForce()); err != nil {
		return nil, s.change(err)
	}
	return &skeinv1.RemoveCoordinatorResponse{}, nil
}

// TransferLeadership implements skeinv1.ClusterServer.
func (s cluster) TransferLeadership(ctx context.Context, r *skeinv1.TransferLeadershipRequest) (*skeinv1.TransferLeadershipResponse, error) {
	if _, leads := s.node.Leads(); !leads {
		return nil, s.notLeader()
	}
	if err := s.node.Transfer(ctx, r.GetId()); err != nil {
		return nil, s.change(err)
	}
	return &skeinv1.TransferLeadershipResponse{}, nil
}

// change says why the group was not changed.
func (s cluster) change(err error) error {
	said := s.refusal(err)
	if status.Code(said) == codes.Internal { // the log's own rules
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	return said
}
