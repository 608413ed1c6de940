package policy

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// Trouble is the first thing that keeps a pod from starting which somebody has to do
// something about; nil if there is none.
func Trouble(pods []corev1.Pod) *Refusal {
	for i := range pods {
		p := &pods[i]
		if p.DeletionTimestamp != nil {
			continue
		}
		if r := imageTrouble(p); r != nil {
			return r
		}
		if r := placeTrouble(p); r != nil {
			return r
		}
	}
	return nil
}

func imageTrouble(p *corev1.Pod) *Refusal {
	for _, s := range p.Status.ContainerStatuses {
		w := s.State.Waiting
		if w == nil {
			continue
		}
		switch w.Reason {
		case "ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName":
			return &Refusal{v1alpha1.ReasonImageUnavailable, fmt.Sprintf("pod %s: image %s: %s; correct spec.image or spec.imagePullSecrets", p.Name, s.Image, firstLine(w.Message, w.Reason))}
		}
	}
	return nil
}

func placeTrouble(p *corev1.Pod) *Refusal {
	for _, c := range p.Status.Conditions {
		if c.Type != corev1.PodScheduled || c.Status != corev1.ConditionFalse || c.Reason != corev1.PodReasonUnschedulable {
			continue
		}
		text := firstLine(c.Message, c.Reason)
		if strings.Contains(text, "persistentvolumeclaim") || strings.Contains(text, "PersistentVolumeClaim") {
			return &Refusal{v1alpha1.ReasonVolumePending, fmt.Sprintf("pod %s waits for its volume: %s; see `kubectl get pvc`, the storage class, and spec.storage.claimName", p.Name, text)}
		}
		return &Refusal{v1alpha1.ReasonUnschedulable, fmt.Sprintf("pod %s has no node: %s; add nodes, or ask for less", p.Name, text)}
	}
	return nil
}

// Hindrance is what keeps a job from its workers where somebody has to do something about
// it: what is wrong with its cluster, or that no pool is large enough. Nil: nothing is
// known, and the job waits for its turn.
func Hindrance(c *v1alpha1.SkeinCluster, job *skeinv1.Job) *Refusal {
	if p := job.GetPhase(); p != skeinv1.Phase_PHASE_QUEUED && p != skeinv1.Phase_PHASE_PREPARING {
		return nil
	}
	most := 0
	for i := range c.Spec.WorkerPools {
		most += int(c.Spec.WorkerPools[i].Max)
	}
	if least := int(job.GetWorkersMin()); least > most {
		return &Refusal{v1alpha1.ReasonNoRoom, fmt.Sprintf("it needs %d workers to begin, and the pools of SkeinCluster %s have at most %d together; raise max of a pool, or make the job again with a smaller cluster.workers.min", least, c.Name, most)}
	}
	return Ailment(c)
}

// Ailment is what the conditions of a cluster say that a user has to do something about;
// nil if it is well, or on its way.
func Ailment(c *v1alpha1.SkeinCluster) *Refusal {
	d := meta.FindStatusCondition(c.Status.Conditions, v1alpha1.ConditionDegraded)
	if d == nil || d.Status != metav1.ConditionTrue {
		return nil
	}
	switch d.Reason {
	case v1alpha1.ReasonImageUnavailable, v1alpha1.ReasonVolumePending, v1alpha1.ReasonUnschedulable, v1alpha1.ReasonQuotaExceeded, v1alpha1.ReasonRefused:
		return &Refusal{d.Reason, fmt.Sprintf("SkeinCluster %s: %s", c.Name, d.Message)}
	}
	return nil
}

func firstLine(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	line, _, _ := strings.Cut(text, "\n")
	return line
}
