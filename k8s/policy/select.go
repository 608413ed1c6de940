package policy

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
)

// Refusal is why a job cannot go on: a reason for programs and a message for people.
type Refusal struct{ Reason, Message string }

// Cluster chooses the cluster of a job: the one that has it, the one that it names, or the
// only one of the namespace.
func Cluster(j *v1alpha1.FineTuneJob, clusters []v1alpha1.SkeinCluster) (*v1alpha1.SkeinCluster, *Refusal) {
	names := make([]string, len(clusters))
	for i := range clusters {
		names[i] = clusters[i].Name
	}
	slices.Sort(names)
	wanted := j.Status.Cluster
	if j.Spec.ClusterRef != nil && wanted == "" {
		wanted = j.Spec.ClusterRef.Name
	}
	if wanted != "" {
		i := slices.IndexFunc(clusters, func(c v1alpha1.SkeinCluster) bool { return c.Name == wanted })
		if i < 0 {
			return nil, &Refusal{v1alpha1.ReasonNoCluster, fmt.Sprintf("there is no SkeinCluster %s in namespace %s; make it, or name another in spec.clusterRef of a new job (here: %s)", wanted, j.Namespace, listed(names))}
		}
		return &clusters[i], nil
	}
	switch len(clusters) {
	case 0:
		return nil, &Refusal{v1alpha1.ReasonNoCluster, fmt.Sprintf("namespace %s has no SkeinCluster; make one, and this job goes to it", j.Namespace)}
	case 1:
		return &clusters[0], nil
	}
	return nil, &Refusal{v1alpha1.ReasonSeveralClusters, fmt.Sprintf("namespace %s has several SkeinClusters (%s); make the job again with spec.clusterRef.name", j.Namespace, strings.Join(names, ", "))}
}

func listed(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// Held tells whether a job may not run now, and why.
func Held(j *v1alpha1.FineTuneJob) (held bool, reason, message string) {
	switch {
	case j.Spec.Suspend != nil && *j.Spec.Suspend:
		return true, v1alpha1.ReasonSuspended, "spec.suspend is true; set it to false, and the job goes on from its last step"
	case j.Spec.Suspend == nil && j.Labels[v1alpha1.LabelQueue] != "":
		return true, v1alpha1.ReasonWaitsForQueue, fmt.Sprintf("it waits for queue %s to admit it; without a queue remove the label %s", j.Labels[v1alpha1.LabelQueue], v1alpha1.LabelQueue)
	}
	return false, v1alpha1.ReasonNotSuspended, ""
}

// Ours tells whether this operator looks after the job.
func Ours(j *v1alpha1.FineTuneJob) bool {
	return j.Spec.ManagedBy == nil || *j.Spec.ManagedBy == "" || *j.Spec.ManagedBy == v1alpha1.Controller
}

// RequestID makes of a job's UID what the coordinators tell submissions by: however often
// it is submitted, it is one job.
func RequestID(j *v1alpha1.FineTuneJob) string { return "k8s-" + strings.ToLower(string(j.UID)) }

// Resumes tells whether a paused job goes on now: if it was this operator that paused it.
// Whoever paused it by the command line resumes it there.
func Resumes(j *v1alpha1.FineTuneJob) bool {
	held, _, _ := Held(j)
	c := meta.FindStatusCondition(j.Status.Conditions, v1alpha1.ConditionSuspended)
	return !held && c != nil && slices.Contains([]string{v1alpha1.ReasonSuspended, v1alpha1.ReasonSuspending, v1alpha1.ReasonWaitsForQueue}, c.Reason)
}
