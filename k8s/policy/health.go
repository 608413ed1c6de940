package policy

import (
	"fmt"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
)

// Health is what a cluster's conditions are made from.
type Health struct {
	Known    bool     // whether the leader has answered
	Silence  string   // why it has not
	Members  []Member // of the log
	Ready    int      // pods of coordinators that are ready
	Joining  string   // what Members said about the next change; empty: nothing
	Pools    string   // what Pools said; empty: nothing
	Trouble  *Refusal // of pods
	Blocking *Refusal // that keeps the operator from making what the spec asks for
}

// Conditions writes the conditions of a cluster.
func Conditions(c *v1alpha1.SkeinCluster, h Health) {
	want := Replicas(c)
	condition := func(kind string, is bool, reason, message string) {
		set(&c.Status.Conditions, c.Generation, kind, is, reason, message)
	}
	switch {
	case h.Blocking != nil:
		condition(v1alpha1.ConditionReady, h.Known, h.Blocking.Reason, h.Blocking.Message)
	case h.Known:
		condition(v1alpha1.ConditionReady, true, v1alpha1.ReasonQuorum, fmt.Sprintf("%d coordinators agree; jobs can be submitted", len(h.Members)))
	case h.Trouble != nil:
		condition(v1alpha1.ConditionReady, false, h.Trouble.Reason, h.Trouble.Message)
	case c.Status.Leader == "":
		condition(v1alpha1.ConditionReady, false, v1alpha1.ReasonStarting, fmt.Sprintf("%d of %d coordinators are ready; %s", h.Ready, want, h.Silence))
	default:
		condition(v1alpha1.ConditionReady, false, v1alpha1.ReasonNoQuorum, "the coordinators do not answer: "+h.Silence)
	}
	switch {
	case h.Joining != "":
		condition(v1alpha1.ConditionProgressing, true, v1alpha1.ReasonMemberChange, h.Joining)
	case h.Pools != "":
		condition(v1alpha1.ConditionProgressing, true, v1alpha1.ReasonPoolsFollow, h.Pools)
	default:
		condition(v1alpha1.ConditionProgressing, false, v1alpha1.ReasonAllReady, "")
	}
	switch {
	case h.Blocking != nil:
		condition(v1alpha1.ConditionDegraded, true, h.Blocking.Reason, h.Blocking.Message)
	case h.Trouble != nil:
		condition(v1alpha1.ConditionDegraded, true, h.Trouble.Reason, h.Trouble.Message)
	case want == 1:
		condition(v1alpha1.ConditionDegraded, true, v1alpha1.ReasonNoRedundancy, "one coordinator alone: while it is away, no job is taken, and none recovers; set spec.coordinators.replicas to 3")
	case h.Ready < want:
		condition(v1alpha1.ConditionDegraded, true, v1alpha1.ReasonCoordinatorDown, fmt.Sprintf("%d of %d coordinators are ready", h.Ready, want))
	default:
		condition(v1alpha1.ConditionDegraded, false, v1alpha1.ReasonAllReady, "")
	}
}
