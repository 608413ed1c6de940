package operator

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"sigs.k8s.io/controller-runtime/pkg/client"

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
	var errs []error
	for i := range s.workers {
		if p := &s.workers[i]; p.DeletionTimestamp == nil && policy.Gated(p, policy.GateCertificate) {
			errs = append(errs, r.workerCertificate(ctx, c, p))
		}
	}
	now := time.Now()
	plan := policy.Pools(c, r.fleet(s, now))
	c.Status.WantedWorkers, h.Pools = int32(plan.Wanted), plan.Reason
	for i := range c.Spec.WorkerPools {
		pool := &c.Spec.WorkerPools[i]
		for range plan.Create[pool.Name] {
			if err := r.newWorker(ctx, c, pool, now); err != nil {
				return errors.Join(append(errs, err)...)
			}
		}
	}
	for _, name := range plan.Delete {
		pod := &corev1.Pod{}
		pod.Namespace, pod.Name = c.Namespace, name
		if err := r.Delete(ctx, pod); client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("pod %s: %w", name, err))
			continue
		}
		r.tell(c, false, v1alpha1.ReasonPoolsFollow, "RemoveWorker", plan.Reason)
	}
	return errors.Join(append(errs, r.label(ctx, c, s))...)
}

func (r *clusters) newWorker(ctx context.Context, c *v1alpha1.SkeinCluster, pool *v1alpha1.WorkerPool, now time.Time) error {
	const letters = 5
	pod := policy.WorkerPod(c, pool, fmt.Sprintf("%s-%s-%s", c.Name, pool.Name, rand.String(letters)))
	pod.Annotations = map[string]string{policy.AnnotationEnds: now.Add(policy.CertificateValidity).UTC().Format(time.RFC3339)}
	if err := r.Create(ctx, pod, owner); err != nil {
		return fmt.Errorf("a worker of pool %s: %w", pool.Name, err)
	}
	return r.workerCertificate(ctx, c, pod)
}

// fleet is what the pools are decided from.
func (r *clusters) fleet(s *sight, now time.Time) policy.Fleet {
	f := policy.Fleet{Now: now, Known: s.known}
	for _, j := range s.jobs {
		f.Demands = append(f.Demands, policy.DemandOf(j))
	}
	nodes := map[string]*skeinv1.WorkerNode{}
	for _, n := range s.nodes.GetWorkers() {
		nodes[n.GetWorker()] = n
	}
	for i := range s.workers {
		p := policy.PodOf(&s.workers[i], now)
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
func (r *clusters) label(ctx context.Context, c *v1alpha1.SkeinCluster, s *sight) error {
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
	for i := range s.workers {
		pod := &s.workers[i]
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
