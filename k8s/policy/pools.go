package policy

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
)

// Demand is what an active job would use.
type Demand struct {
	Job    string // id
	Paused bool
	Max    int // most workers
}

// PoolPod is a pod of a pool, and what is known of its worker.
type PoolPod struct {
	Name     string
	Pool     string
	Template string
	Ready    bool
	Leaving  bool      // is being deleted
	Ended    bool      // failed, or ended by itself: it will not come back
	Job      string    // that its worker prepares or hosts ranks of
	Expiring bool      // its certificate has to be replaced
	Born     time.Time // of the pod
	FreeFrom time.Time // since when its worker has no job; zero: it has one, or nobody knows
}

// Fleet is what the pools are decided from.
type Fleet struct {
	Now     time.Time
	Known   bool // whether the leader has answered; without it Demands says nothing
	Demands []Demand
	Pods    []PoolPod
}

// PoolPlan is what is to be done.
type PoolPlan struct {
	Create map[string]int // pool → how many pods
	Delete []string       // names of pods; each leaves politely
	Wanted int            // workers that the jobs would use, whatever the pools allow
	Reason string         // of the most important part; empty: nothing is to be done
}

// Pools decides how many workers each pool has. Jobs together want as many as their
// maxima; pools give them in the order of the spec, each between its min and max. A
// worker that is too many goes when it has been free for a while; one that has ranks goes
// only if it is of an earlier spec, one at a time, and then it drains. While the leader does
// not answer nothing shrinks.
func Pools(c *v1alpha1.SkeinCluster, f Fleet) PoolPlan {
	plan := PoolPlan{Create: map[string]int{}}
	for _, d := range f.Demands {
		if !d.Paused {
			plan.Wanted += d.Max
		}
	}
	rest := plan.Wanted
	for i := range c.Spec.WorkerPools {
		pool := &c.Spec.WorkerPools[i]
		target := min(max(rest, int(pool.Min)), int(pool.Max))
		rest = max(0, rest-target)
		decidePool(c, pool, f, target, &plan)
	}
	for _, p := range f.Pods {
		gone := !slices.ContainsFunc(c.Spec.WorkerPools, func(w v1alpha1.WorkerPool) bool { return w.Name == p.Pool })
		if gone && !p.Leaving {
			plan.remove(p.Name, fmt.Sprintf("pool %s is gone from the spec", p.Pool))
		}
	}
	return plan
}

func (p *PoolPlan) remove(name, reason string) {
	p.Delete = append(p.Delete, name)
	if p.Reason == "" {
		p.Reason = fmt.Sprintf("%s leaves: %s", name, reason)
	}
}

func decidePool(c *v1alpha1.SkeinCluster, pool *v1alpha1.WorkerPool, f Fleet, target int, plan *PoolPlan) {
	var here []PoolPod
	for _, p := range f.Pods {
		if p.Pool != pool.Name || p.Leaving {
			continue
		}
		if p.Ended {
			plan.remove(p.Name, "it has ended")
			continue
		}
		here = append(here, p)
	}
	if missing := target - len(here); missing > 0 {
		plan.Create[pool.Name] = missing
		plan.Reason = fmt.Sprintf("pool %s grows from %d to %d workers: jobs want %d", pool.Name, len(here), target, plan.Wanted)
		return
	}
	if !f.Known {
		return
	}
	surplus := len(here) - target
	idle := time.Minute
	if pool.IdleSeconds != nil {
		idle = time.Duration(*pool.IdleSeconds) * time.Second
	}
	for _, p := range expendable(here) {
		if surplus > 0 && f.Now.Sub(p.FreeFrom) >= idle {
			plan.remove(p.Name, fmt.Sprintf("it is free, and pool %s needs %d workers", pool.Name, target))
			surplus--
		}
	}
	if surplus <= 0 {
		refresh(c, pool, f, here, plan)
	}
}

// expendable are the pods whose workers have no job, those of an earlier spec first, then
// the youngest: the older ones have more in their caches.
func expendable(pods []PoolPod) []PoolPod {
	free := slices.DeleteFunc(slices.Clone(pods), func(p PoolPod) bool { return p.FreeFrom.IsZero() })
	slices.SortStableFunc(free, func(a, b PoolPod) int { return cmp.Or(b.Born.Compare(a.Born), cmp.Compare(a.Name, b.Name)) })
	return free
}

// refresh replaces the pods of an earlier spec, and those whose certificates end, one at a
// time and only while all others of the pool are ready.
func refresh(c *v1alpha1.SkeinCluster, pool *v1alpha1.WorkerPool, f Fleet, here []PoolPod, plan *PoolPlan) {
	template := Template(c, pool)
	var old []PoolPod
	for _, p := range here {
		switch {
		case p.Template != template || p.Expiring:
			old = append(old, p)
		case !p.Ready:
			return // it comes first
		}
	}
	leaving := slices.ContainsFunc(f.Pods, func(p PoolPod) bool { return p.Pool == pool.Name && p.Leaving })
	if len(old) == 0 || leaving || slices.Contains(plan.Delete, old[0].Name) {
		return
	}
	slices.SortStableFunc(old, func(a, b PoolPod) int {
		return cmp.Or(-cmp.Compare(unready(a), unready(b)), a.Born.Compare(b.Born), cmp.Compare(a.Name, b.Name))
	})
	plan.remove(old[0].Name, "its pod is of an earlier spec, or its certificate ends; it drains, and another one takes its place")
}

func unready(p PoolPod) int {
	if p.Ready {
		return 0
	}
	return 1
}
