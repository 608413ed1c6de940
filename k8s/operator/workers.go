package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	"github.com/skein-ml/skein/k8s/policy"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// idle remembers since when workers have no job. It is the operator's own memory: after
// a restart they get their time again.
type idle struct {
	mu    sync.Mutex
	since map[types.UID]time.Time
}

// letters tell the names of pods and gangs of a kind apart.
const letters = 5

func newIdle() *idle { return &idle{since: map[types.UID]time.Time{}} }

// from is since when a worker is free; zero if it is not.
func (i *idle) from(pod types.UID, free bool, now time.Time) time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !free {
		delete(i.since, pod)
		return time.Time{}
	}
	if since, known := i.since[pod]; known {
		return since
	}
	i.since[pod] = now
	return now
}

// workers makes the pools follow the jobs.
func (r *clusters) workers(ctx context.Context, c *v1alpha1.SkeinCluster, s *sight, h *policy.Health) error {
	now := time.Now()
	fleet := r.fleet(s, now)
	plan := policy.Pools(c, fleet)
	c.Status.WantedWorkers, h.Pools = int32(plan.Wanted), plan.Reason
	var errs []error
	for _, name := range plan.Delete {
		pod := &corev1.Pod{}
		pod.Namespace, pod.Name = c.Namespace, name
		if err := r.Delete(ctx, pod); client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("pod %s: %w", name, err))
			continue
		}
		r.tell(c, false, v1alpha1.ReasonPoolsFollow, "RemoveWorker", plan.Reason)
	}
	leaves := func(name string) bool { return slices.Contains(plan.Delete, name) }
	stay := slices.DeleteFunc(slices.Clone(s.workers), func(p corev1.Pod) bool { return leaves(p.Name) })
	fleet.Pods = slices.DeleteFunc(fleet.Pods, func(p policy.PoolPod) bool { return leaves(p.Name) })
	errs = append(errs, r.label(ctx, c, s, stay), r.certify(ctx, c, s.files.ca, stay), r.open(ctx, stay, fleet, h))
	return errors.Join(append(errs, r.grow(ctx, c, s.files.ca, plan, now))...)
}

// grow makes the pods of a plan.
func (r *clusters) grow(ctx context.Context, c *v1alpha1.SkeinCluster, ca *pki.CA, plan policy.PoolPlan, now time.Time) error {
	if err := r.refused.recent(c.UID, now, r.config.PollIdle); err != nil {
		return err // and would be so again
	}
	err := func() error {
		for _, g := range plan.Gangs { // first: others take no quota that a whole gang needs
			if err := r.newGang(ctx, c, ca, g, now); err != nil {
				return err
			}
		}
		for i := range c.Spec.WorkerPools {
			pool := &c.Spec.WorkerPools[i]
			for range plan.Create[pool.Name] {
				pod, err := r.newWorker(ctx, c, pool, now, nil)
				if err == nil {
					err = r.workerCertificate(ctx, c, ca, pod)
				}
				if err != nil {
					return err
				}
			}
		}
		return nil
	}()
	if blocking(err) != nil {
		r.refused.remember(c.UID, now, err)
	}
	return err
}

// newWorker makes a pod of a pool; change, if there is one, completes it.
func (r *clusters) newWorker(ctx context.Context, c *v1alpha1.SkeinCluster, pool *v1alpha1.WorkerPool, now time.Time, change func(*corev1.Pod)) (*corev1.Pod, error) {
	pod := policy.WorkerPod(c, pool, fmt.Sprintf("%s-%s-%s", c.Name, pool.Name, rand.String(letters)))
	pod.Annotations = map[string]string{policy.AnnotationEnds: now.Add(policy.CertificateValidity).UTC().Format(time.RFC3339)}
	if change != nil {
		change(pod)
	}
	if err := r.Create(ctx, pod, owner); err != nil {
		return nil, fmt.Errorf("a worker of pool %s: %w", pool.Name, err)
	}
	return pod, nil
}

// fleet is what the pools are decided from.
func (r *clusters) fleet(s *sight, now time.Time) policy.Fleet {
	f := policy.Fleet{Now: now, Known: s.known, Grouped: r.grouped}
	for _, j := range s.jobs {
		f.Demands = append(f.Demands, policy.DemandOf(j))
	}
	nodes := map[string]*skeinv1.WorkerNode{}
	for _, n := range s.nodes.GetWorkers() {
		nodes[n.GetWorker()] = n
	}
	for i := range s.workers {
		p := policy.PodOf(&s.workers[i], now, s.files.trust)
		if n := nodes[p.Name]; n != nil {
			p.Job = n.GetJob()
			p.FreeFrom = r.idle.from(s.workers[i].UID, p.Job == "", now)
		} else {
			p.FreeFrom = p.Born // it has never taken part
		}
		f.Pods = append(f.Pods, p)
	}
	return f
}

// label says on each pod which job its worker has, by which the scale subresource and
// `kubectl get pods -l` find them.
func (r *clusters) label(ctx context.Context, c *v1alpha1.SkeinCluster, s *sight, workers []corev1.Pod) error {
	if !s.known {
		return nil
	}
	var list v1alpha1.FineTuneJobList
	if err := r.List(ctx, &list, client.InNamespace(c.Namespace)); err != nil {
		return err
	}
	names := map[string]string{}
	for i := range list.Items {
		if j := &list.Items[i]; j.Status.Cluster == c.Name && j.Status.Job != "" {
			names[j.Status.Job] = j.Name
		}
	}
	job := map[string]string{}
	for _, n := range s.nodes.GetWorkers() {
		job[n.GetWorker()] = names[n.GetJob()]
	}
	for i := range workers {
		pod := &workers[i]
		if pod.DeletionTimestamp != nil || pod.Labels[v1alpha1.LabelJob] == job[pod.Name] {
			continue
		}
		was := pod.DeepCopy()
		pod.Labels[v1alpha1.LabelJob] = job[pod.Name]
		if job[pod.Name] == "" {
			delete(pod.Labels, v1alpha1.LabelJob)
		}
		if err := r.Patch(ctx, pod, client.MergeFrom(was), owner); client.IgnoreNotFound(err) != nil {
			return err
		}
	}
	return nil
}
