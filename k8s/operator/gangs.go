package operator

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	schedulingv1beta1 "k8s.io/api/scheduling/v1beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	"github.com/skein-ml/skein/k8s/policy"
)

// How gangs are kept together: as Config.Gangs has it.
const (
	GangsAuto   = "auto"      // by PodGroups where the API server has them, otherwise by gates
	GangsGroups = "podgroups" // by PodGroups of scheduling.k8s.io/v1beta1, which the scheduler knows
	GangsGates  = "gates"     // by scheduling gates, which the operator lifts
)

// grouped tells whether there are PodGroups to keep gangs together by.
func grouped(how string, kinds meta.RESTMapper) (bool, error) {
	if how != GangsAuto {
		return how == GangsGroups, nil
	}
	_, err := kinds.RESTMapping(schedulingv1beta1.SchemeGroupVersion.WithKind("PodGroup").GroupKind(), schedulingv1beta1.SchemeGroupVersion.Version)
	if meta.IsNoMatchError(err) {
		return false, nil
	}
	return err == nil, err
}

// newGang makes the pods of a gang, and then what keeps them together. All of them wait
// behind a gate until both are done. Where a pod is refused, those that are there go again:
// the next plan sees that the gang is not whole.
func (r *clusters) newGang(ctx context.Context, c *v1alpha1.SkeinCluster, ca *pki.CA, g policy.Gang, now time.Time) error {
	name := c.Name + "-" + rand.String(letters)
	var pods []corev1.Pod
	for i := range c.Spec.WorkerPools {
		pool := &c.Spec.WorkerPools[i]
		for range g.Pods[pool.Name] {
			pod, err := r.newWorker(ctx, c, pool, now, func(p *corev1.Pod) { g.Join(p, name, r.grouped) })
			if err != nil {
				return err
			}
			pods = append(pods, *pod)
		}
	}
	return r.certify(ctx, c, ca, pods)
}

// certify gives pods that have no certificate theirs, and gangs their PodGroup before it: a
// pod without its certificate has no node, so no gang is ever placed without its group.
func (r *clusters) certify(ctx context.Context, c *v1alpha1.SkeinCluster, ca *pki.CA, pods []corev1.Pod) error {
	var errs []error
	gangs, made := policy.Gangs(pods), map[string]error{}
	for i := range pods {
		p := &pods[i]
		if p.DeletionTimestamp != nil || !policy.Gated(p, policy.GateCertificate) {
			continue
		}
		gang := p.Labels[policy.LabelGang]
		if _, done := made[gang]; gang != "" && p.Spec.SchedulingGroup != nil && !done {
			err := r.Create(ctx, policy.PodGroup(c, gang, gangs[gang]), owner)
			if apierrors.IsAlreadyExists(err) {
				err = nil
			}
			if made[gang] = err; err != nil {
				errs = append(errs, fmt.Errorf("PodGroup %s: %w", gang, err))
			}
		}
		if made[gang] == nil {
			errs = append(errs, r.workerCertificate(ctx, c, ca, p))
		}
	}
	return errors.Join(errs...)
}

// open lifts the gate of a gang that the nodes have room for, or says that they have none.
func (r *clusters) open(ctx context.Context, workers []corev1.Pod, f policy.Fleet, h *policy.Health) error {
	name := policy.Opens(f.Pods)
	if name == "" {
		return nil
	}
	gang := policy.Gangs(workers)[name]
	var nodes corev1.NodeList
	var pods corev1.PodList
	err := r.live.List(ctx, &nodes)
	if err == nil {
		err = r.live.List(ctx, &pods)
	}
	switch {
	case apierrors.IsForbidden(err): // an operator of some namespaces sees no nodes; what finds none is taken back
	case err != nil:
		return err
	case !policy.Fits(gang, nodes.Items, pods.Items):
		h.Trouble = policy.Crowded(gang)
		return nil
	}
	for i := range gang {
		was := gang[i].DeepCopy()
		policy.Ungate(&gang[i], policy.GateGang)
		if err := r.Patch(ctx, &gang[i], client.MergeFrom(was), owner); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("pod %s: %w", gang[i].Name, err)
		}
	}
	return nil
}

// refusals remembers what the API server has refused to a cluster, so that it is not asked
// again at once: each try makes pods, and each pod a reason to look again.
type refusals struct {
	mu   sync.Mutex
	last map[types.UID]refusal
}

type refusal struct {
	at  time.Time
	err error
}

func (r *refusals) remember(cluster types.UID, now time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		r.last = map[types.UID]refusal{}
	}
	r.last[cluster] = refusal{now, err}
}

// recent is the error of a refusal that is younger than a while.
func (r *refusals) recent(cluster types.UID, now time.Time, while time.Duration) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if last, ok := r.last[cluster]; ok && now.Sub(last.at) < while {
		return last.err
	}
	delete(r.last, cluster)
	return nil
}
