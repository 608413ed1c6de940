package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/skein-ml/skein/internal/vfs"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// changePatience is how long a change of the coordinators may take: a new one has to
// catch up first.
const changePatience = time.Minute

// AddCoordinator makes a started, empty coordinator a member.
func (c *Client) AddCoordinator(ctx context.Context, id, address string) error {
	return c.callFor(ctx, changePatience, func(ctx context.Context) error {
		_, err := c.ops.AddCoordinator(ctx, &skeinv1.AddCoordinatorRequest{Id: id, Address: address})
		return err
	})
}

// RemoveCoordinator takes a member out; by force, even if too few of the others answer.
func (c *Client) RemoveCoordinator(ctx context.Context, id string, force bool) error {
	return c.callFor(ctx, changePatience, func(ctx context.Context) error {
		_, err := c.ops.RemoveCoordinator(ctx, &skeinv1.RemoveCoordinatorRequest{Id: id, Force: force})
		return err
	})
}

// TransferLeadership makes another member the leader; any, if id is empty. That who is
// named leads already is success: it may be because an answer got lost on the way.
func (c *Client) TransferLeadership(ctx context.Context, id string) error {
	err := c.callFor(ctx, changePatience, func(ctx context.Context) error {
		_, err := c.ops.TransferLeadership(ctx, &skeinv1.TransferLeadershipRequest{Id: id})
		return err
	})
	if _, answered := errors.AsType[*AnsweredError](err); err == nil || !answered || id == "" {
		return err
	}
	nodes, asked := c.Nodes(ctx)
	if asked == nil && slices.ContainsFunc(nodes.GetCoordinators(), func(n *skeinv1.Coordinator) bool { return n.GetLeader() && n.GetId() == id }) {
		return nil
	}
	return err
}

// Backup writes the state of the coordinators, as of now, and returns its size.
func (c *Client) Backup(ctx context.Context, to io.Writer) (size int64, err error) {
	err = c.callFor(ctx, changePatience, func(ctx context.Context) error {
		stream, err := c.ops.Backup(ctx, &skeinv1.BackupRequest{})
		if err != nil {
			return err
		}
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			n, err := to.Write(m.GetChunk())
			size += int64(n)
			if err != nil {
				return err
			}
		}
	})
	return size, err
}

// BackupTo is Backup into a file that must not be there; it appears whole or not at all.
func (c *Client) BackupTo(ctx context.Context, file string) (size int64, err error) {
	if there, err := vfs.Exists(vfs.OS, file); err != nil || there {
		return 0, errors.Join(err, fmt.Errorf("%s exists already; choose another name", file))
	}
	temp := file + ".tmp"
	f, err := vfs.OS.Create(temp)
	if err != nil {
		return 0, err
	}
	size, err = c.Backup(ctx, f)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = vfs.OS.RenameNew(temp, file)
	}
	if err != nil {
		return 0, errors.Join(err, vfs.OS.Remove(temp))
	}
	return size, vfs.OS.SyncDir(filepath.Dir(file))
}

// Status is what each coordinator that was given says of itself.
type Status struct {
	Address string `json:"address"`
	ID      string `json:"id,omitempty"`
	Cluster string `json:"cluster,omitempty"`
	Build   string `json:"build,omitempty"`
	State   string `json:"state,omitempty"` // leader, follower, candidate, stopped
	Leader  string `json:"leader,omitempty"`
	Term    uint64 `json:"term,omitempty"`
	Applied uint64 `json:"applied,omitempty"`
	Last    uint64 `json:"last,omitempty"`
	Fault   string `json:"fault,omitempty"` // why it does not answer
}

// Statuses asks every given coordinator, leader or not.
func (c *Client) Statuses(ctx context.Context) []Status {
	var list []Status
	for _, t := range c.look(ctx) {
		s := Status{Address: t.Address, Fault: t.Fault}
		if a := t.answer; a != nil {
			s = Status{t.Address, a.GetId(), a.GetCluster(), a.GetBuild(), a.GetState(), a.GetLeaderId(), a.GetTerm(), a.GetAppliedIndex(), a.GetLastIndex(), ""}
		}
		list = append(list, s)
	}
	return list
}
