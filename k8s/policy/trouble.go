package policy

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
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

func firstLine(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	line, _, _ := strings.Cut(text, "\n")
	return line
}
