package v1alpha1

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// deepCopier is a type of Kubernetes.
type deepCopier[T any] interface {
	*T
	DeepCopyInto(*T)
}

func copies[T any, P deepCopier[T]](from []T) []T {
	if from == nil {
		return nil
	}
	out := make([]T, len(from))
	for i := range from {
		P(&from[i]).DeepCopyInto(&out[i])
	}
	return out
}

// copied is for pointers to what holds no pointers.
func copied[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}

// DeepCopyInto copies j, sharing nothing.
func (j *FineTuneJob) DeepCopyInto(out *FineTuneJob) {
	*out = *j
	j.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	s := &out.Spec
	s.ClusterRef, s.Suspend, s.ManagedBy, s.Job = copied(s.ClusterRef), copied(s.Suspend), copied(s.ManagedBy), slices.Clone(s.Job)
	out.Status.Conditions = copies(j.Status.Conditions)
	out.Status.StartTime, out.Status.CompletionTime = j.Status.StartTime.DeepCopy(), j.Status.CompletionTime.DeepCopy()
}

// DeepCopy returns a copy that shares nothing.
func (j *FineTuneJob) DeepCopy() *FineTuneJob {
	if j == nil {
		return nil
	}
	out := &FineTuneJob{}
	j.DeepCopyInto(out)
	return out
}

// DeepCopyObject implements runtime.Object.
func (j *FineTuneJob) DeepCopyObject() runtime.Object { return j.DeepCopy() }

// DeepCopyObject implements runtime.Object.
func (l *FineTuneJobList) DeepCopyObject() runtime.Object {
	out := *l
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	out.Items = copies(l.Items)
	return &out
}

// DeepCopyInto copies c, sharing nothing.
func (c *SkeinCluster) DeepCopyInto(out *SkeinCluster) {
	*out = *c
	c.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Spec.ImagePullSecrets = slices.Clone(c.Spec.ImagePullSecrets)
	co := &out.Spec.Coordinators
	co.Replicas = copied(co.Replicas)
	c.Spec.Coordinators.Resources.DeepCopyInto(&co.Resources)
	if size := co.Volume.Size; size != nil {
		q := size.DeepCopy()
		co.Volume.Size = &q
	}
	co.Volume.StorageClassName = copied(co.Volume.StorageClassName)
	co.NodeSelector, co.Tolerations = maps.Clone(co.NodeSelector), copies[corev1.Toleration](co.Tolerations)
	out.Spec.WorkerPools = copies(c.Spec.WorkerPools)
	out.Status.Conditions = copies(c.Status.Conditions)
	out.Status.Members = slices.Clone(c.Status.Members)
}

// DeepCopyInto copies p, sharing nothing.
func (p *WorkerPool) DeepCopyInto(out *WorkerPool) {
	*out = *p
	p.Resources.DeepCopyInto(&out.Resources)
	out.ResourceClaims, out.Tolerations = copies(p.ResourceClaims), copies(p.Tolerations)
	out.NodeSelector, out.IdleSeconds = maps.Clone(p.NodeSelector), copied(p.IdleSeconds)
}

// DeepCopy returns a copy that shares nothing.
func (c *SkeinCluster) DeepCopy() *SkeinCluster {
	if c == nil {
		return nil
	}
	out := &SkeinCluster{}
	c.DeepCopyInto(out)
	return out
}

// DeepCopyObject implements runtime.Object.
func (c *SkeinCluster) DeepCopyObject() runtime.Object { return c.DeepCopy() }

// DeepCopyObject implements runtime.Object.
func (l *SkeinClusterList) DeepCopyObject() runtime.Object {
	out := *l
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	out.Items = copies(l.Items)
	return &out
}
