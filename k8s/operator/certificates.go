package operator

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	"github.com/skein-ml/skein/k8s/policy"
)

// issued names the certificates of a cluster.
type issued struct {
	ca    *pki.CA
	trust string // authorities
	start string // that coordinators start with; another one, and they have to start again
}

// certificates makes what is missing and replaces what ends soon.
func (r *clusters) certificates(ctx context.Context, c *v1alpha1.SkeinCluster) (issued, error) {
	ca, err := r.contacts.authority(ctx, c)
	if errors.Is(err, errNoAuthority) {
		if ca, err = r.newAuthority(ctx, c); err == nil {
			r.tell(c, false, "AuthorityMade", "MakeCertificates", "the cluster's certificate authority is in secret "+policy.AuthoritySecret(c)+"; back it up")
		}
	}
	if err != nil {
		return issued{}, err
	}
	name, err := r.coordinatorCertificates(ctx, c, ca)
	if err != nil {
		return issued{}, err
	}
	return issued{ca, policy.Trust(ca.Certificate()), name}, r.clientCertificate(ctx, c, ca)
}

// rotate takes the authority one stage on, when it is time. What is issued follows at the
// next look.
func (r *clusters) rotate(ctx context.Context, c *v1alpha1.SkeinCluster, s *sight, is issued) error {
	var secret corev1.Secret
	if err := r.live.Get(ctx, client.ObjectKey{Namespace: c.Namespace, Name: policy.AuthoritySecret(c)}, &secret); err != nil {
		return err
	}
	now, parts := time.Now(), pki.Parts(secret.Data)
	ca, err := pki.ParseCA(parts, now)
	if err != nil {
		return err
	}
	state := policy.Rotation{
		Now: now, Stage: parts.Stage(), Ends: ca.Ends(), Done: secret.Annotations[policy.AnnotationRotate],
		Trust: is.trust, Started: is.start, Set: s.set, Workers: s.workers,
	}
	if is.trust != policy.Trust(ca.Certificate()) || !policy.Rotate(c, state) {
		return nil
	}
	next, err := parts.Advance(now)
	if err != nil {
		return err
	}
	o := policy.Secret(c, policy.AuthoritySecret(c), next)
	o.ResourceVersion = secret.ResourceVersion // nobody else has changed it
	o.Annotations = map[string]string{policy.AnnotationRotate: state.Done}
	if state.Stage == pki.Settled {
		o.Annotations[policy.AnnotationRotate] = c.Annotations[policy.AnnotationRotate]
	}
	if err := r.apply(ctx, o); err != nil {
		return err
	}
	r.tell(c, false, "AuthorityRotates", "RotateAuthority", map[pki.Stage]string{
		pki.Settled:    "a new certificate authority is in secret " + o.Name + "; back it up. All processes learn to trust it, one after the other",
		pki.Introduced: "the new certificate authority signs from now on; all processes get new certificates, one after the other",
		pki.Replaced:   "the old certificate authority is trusted no more; copies of certificates that were taken from secret " + policy.ClientSecret(c) + " have to be taken again",
	}[state.Stage])
	return nil
}

// newAuthority makes the authority of a cluster, once: it is created, and written over only
// by rotate.
func (r *clusters) newAuthority(ctx context.Context, c *v1alpha1.SkeinCluster) (*pki.CA, error) {
	ca, err := pki.NewCA(policy.ClusterName(c))
	if err != nil {
		return nil, err
	}
	parts, err := ca.Parts()
	if err != nil {
		return nil, err
	}
	secret := policy.Secret(c, policy.AuthoritySecret(c), parts)
	if err := r.Create(ctx, secret, owner); apierrors.IsAlreadyExists(err) {
		return r.contacts.authority(ctx, c)
	} else if err != nil {
		return nil, err
	}
	return ca, nil
}

// coordinatorCertificates sees to the certificates of all coordinators that there can be.
func (r *clusters) coordinatorCertificates(ctx context.Context, c *v1alpha1.SkeinCluster, ca *pki.CA) (string, error) {
	parts, err := r.secret(ctx, c, policy.CoordinatorSecret(c))
	if err != nil {
		return "", err
	}
	first := policy.CoordinatorID(c, 0) + ".crt"
	if stale(parts, first, ca) {
		parts = pki.Parts{}
		for i := range policy.CoordinatorsMax {
			id := policy.CoordinatorID(c, i)
			own, err := ca.IssueParts(pki.Coordinator, id, policy.CoordinatorHosts(c, id), policy.CertificateValidity)
			if err != nil {
				return "", err
			}
			parts[policy.FileAuthority], parts[policy.FileGossip] = own[policy.FileAuthority], own[policy.FileGossip]
			parts[id+".crt"], parts[id+".key"] = own[policy.FileCertificate], own[policy.FileKey]
		}
		if err := r.apply(ctx, policy.Secret(c, policy.CoordinatorSecret(c), parts)); err != nil {
			return "", err
		}
	}
	sum := sha256.Sum256(parts[first])
	return hex.EncodeToString(sum[:8]), nil
}

// clientCertificate is for users: kubectl get secret, and skein --tls.
func (r *clusters) clientCertificate(ctx context.Context, c *v1alpha1.SkeinCluster, ca *pki.CA) error {
	parts, err := r.secret(ctx, c, policy.ClientSecret(c))
	if err != nil || !stale(parts, policy.FileCertificate, ca) {
		return err
	}
	if parts, err = ca.IssueParts(pki.Client, "client", nil, policy.CertificateValidity); err != nil {
		return err
	}
	return r.apply(ctx, policy.Secret(c, policy.ClientSecret(c), parts))
}

// stale tells whether a Secret has to be made again: it is not there, ends soon, or is of
// another authority.
func stale(parts pki.Parts, certificate string, ca *pki.CA) bool {
	ends, err := pki.Ends(parts[certificate])
	return err != nil || policy.Due(time.Now(), ends) || string(parts[policy.FileAuthority]) != string(ca.Certificate())
}

func (r *clusters) secret(ctx context.Context, c *v1alpha1.SkeinCluster, name string) (pki.Parts, error) {
	var s corev1.Secret
	err := r.live.Get(ctx, client.ObjectKey{Namespace: c.Namespace, Name: name}, &s)
	return s.Data, client.IgnoreNotFound(err)
}

// workerCertificate gives a worker's pod the certificate that it waits for. The Secret
// goes with the pod.
func (r *clusters) workerCertificate(ctx context.Context, c *v1alpha1.SkeinCluster, ca *pki.CA, pod *corev1.Pod) error {
	parts, err := ca.IssueParts(pki.Worker, pod.Name, policy.WorkerHosts(c, pod.Name), policy.CertificateValidity)
	if err != nil {
		return err
	}
	secret := policy.Secret(c, policy.WorkerSecret(pod.Name), parts)
	secret.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}}
	if err := r.apply(ctx, secret); err != nil {
		return err
	}
	was := pod.DeepCopy()
	policy.Certified(pod, policy.Trust(ca.Certificate()))
	if err := r.Patch(ctx, pod, client.MergeFrom(was), owner); err != nil {
		return fmt.Errorf("pod %s: %w", pod.Name, err)
	}
	return nil
}
