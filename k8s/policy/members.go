package policy

import (
	"fmt"
	"slices"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
)

// Member is a coordinator as the log knows it.
type Member struct {
	ID     string
	Leader bool
	Voter  bool
}

// Membership is what there is of coordinators.
type Membership struct {
	Known   bool            // whether the leader has answered; without it Members says nothing
	Members []Member        // of the log
	Running map[string]bool // pods that run, ready or not, by name
	Pods    int             // replicas that the StatefulSet has now; 0: there is none yet
}

// MemberChange is one change of the log's members. At most one of the fields is set.
type MemberChange struct {
	Add      string // id
	Transfer string // to whom leadership goes, because who leads is the next to be removed
	Remove   string // id
}

// Members decides on the next change of members, and how many pods there have to be
// meanwhile. A coordinator is added once its pod runs, since it has to catch up before it
// counts; it is removed before its pod goes, so that no majority is ever lost to a
// coordinator that was meant to go. The one with ordinal 0 stays.
func Members(c *v1alpha1.SkeinCluster, m Membership) (change MemberChange, pods int, reason string) {
	want := Replicas(c)
	if !m.Known {
		return MemberChange{}, max(want, m.Pods), "the coordinators do not answer; none is added or removed before they do"
	}
	pods = want
	for _, member := range m.Members {
		pods = max(pods, Ordinal(c, member.ID)+1)
	}
	if pods > want {
		return leaving(c, m, pods-1), pods, fmt.Sprintf("%s is to be removed before its pod goes", CoordinatorID(c, pods-1))
	}
	for i := range want {
		id := CoordinatorID(c, i)
		if slices.ContainsFunc(m.Members, func(m Member) bool { return m.ID == id && m.Voter }) {
			continue
		}
		if m.Running[id] {
			return MemberChange{Add: id}, pods, id + " runs and is to become a member"
		}
		reason = id + " is to become a member once its pod runs"
	}
	return MemberChange{}, pods, reason
}

// leaving removes the member with an ordinal; if it leads, leadership goes first.
func leaving(c *v1alpha1.SkeinCluster, m Membership, ordinal int) MemberChange {
	id := CoordinatorID(c, ordinal)
	for _, member := range m.Members {
		if member.ID == id && member.Leader {
			return MemberChange{Transfer: CoordinatorID(c, 0)}
		}
	}
	return MemberChange{Remove: id}
}
