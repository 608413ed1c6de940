package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/k8s/api/v1alpha1"
)

const (
	// AnnotationRotate on a SkeinCluster asks for another authority, once for each value.
	AnnotationRotate = "skein.dev/rotate-authority"

	// annotationAuthority on a worker's pod says which authorities it was told to trust.
	annotationAuthority = "skein.dev/authority"

	// authorityYear is how long before its end an authority is replaced.
	authorityYear = 365 * 24 * time.Hour
)

// Trust names a set of authorities.
func Trust(certificates []byte) string {
	sum := sha256.Sum256(certificates)
	return hex.EncodeToString(sum[:8])
}

// Certified marks a pod that has its certificate now.
func Certified(p *corev1.Pod, trust string) {
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	p.Annotations[annotationAuthority] = trust
	Ungate(p, GateCertificate)
}

// Outdated tells whether a worker's pod trusts other authorities than those that are.
func Outdated(p *corev1.Pod, trust string) bool {
	return !Gated(p, GateCertificate) && p.Annotations[annotationAuthority] != trust
}

// Rotation is what decides whether an authority goes one stage on.
type Rotation struct {
	Now     time.Time
	Stage   pki.Stage
	Ends    time.Time // of the authority that signs
	Done    string    // the value of the annotation that was followed last
	Trust   string    // of what is issued now
	Started string    // certificates that coordinators are to start with
	Set     *appsv1.StatefulSet
	Workers []corev1.Pod
}

// Rotate tells whether the authority of a cluster goes one stage on. It begins a year before
// its end, or when it is asked for; from then on each stage waits until every process has
// the files of the one before, because those that are two stages apart do not trust each
// other.
func Rotate(c *v1alpha1.SkeinCluster, r Rotation) bool {
	if r.Stage == pki.Settled {
		asked := c.Annotations[AnnotationRotate]
		return r.Now.After(r.Ends.Add(-authorityYear)) || asked != "" && asked != r.Done
	}
	s := r.Set
	rolled := s.Spec.Replicas != nil && s.Spec.Template.Annotations[annotationCertificates] == r.Started && s.Status.ObservedGeneration >= s.Generation &&
		s.Status.UpdatedReplicas == *s.Spec.Replicas && s.Status.ReadyReplicas == *s.Spec.Replicas && s.Status.Replicas == *s.Spec.Replicas
	if !rolled {
		return false
	}
	for i := range r.Workers {
		if Outdated(&r.Workers[i], r.Trust) {
			return false
		}
	}
	return true
}
