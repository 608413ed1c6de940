package policy

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// AnnotationEnds on a worker's pod says when its certificate ends.
const AnnotationEnds = "skein.dev/certificate-ends"

// Gated tells whether a pod is kept off the nodes by a gate.
func Gated(p *corev1.Pod, gate string) bool {
	return slices.ContainsFunc(p.Spec.SchedulingGates, func(g corev1.PodSchedulingGate) bool { return g.Name == gate })
}

// Ungate takes a gate off a pod.
func Ungate(p *corev1.Pod, gate string) {
	p.Spec.SchedulingGates = slices.DeleteFunc(p.Spec.SchedulingGates, func(g corev1.PodSchedulingGate) bool { return g.Name == gate })
}

// PodOf is what the pools are decided from of one pod. Trust names the authorities that are;
// empty: they are not known.
func PodOf(p *corev1.Pod, now time.Time, trust string) PoolPod {
	out := PoolPod{
		Name: p.Name, Pool: p.Labels[v1alpha1.LabelPool], Template: p.Labels[LabelTemplate], Leaving: p.DeletionTimestamp != nil,
		Ended: p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded, Born: p.CreationTimestamp.Time,
	}
	out.Ready = slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
	if ends, err := time.Parse(time.RFC3339, p.Annotations[AnnotationEnds]); err == nil {
		out.Expiring = Due(now, ends)
	}
	out.Expiring = out.Expiring || trust != "" && Outdated(p, trust)
	gangOf(p, &out)
	return out
}

// DemandOf is what an active job would use. While it is prepared that is one worker: it
// is not known yet that there will be more to do.
func DemandOf(j *skeinv1.Job) Demand {
	d := Demand{
		Job: j.GetId(), Paused: j.GetPaused(), Queued: j.GetPhase() == skeinv1.Phase_PHASE_QUEUED,
		Have: len(j.GetMembers()), Min: max(1, int(j.GetWorkersMin())), Max: int(j.GetWorkersMax()),
	}
	if j.GetPhase() == skeinv1.Phase_PHASE_PREPARING {
		d.Min, d.Max = 1, 1
	}
	return d
}
