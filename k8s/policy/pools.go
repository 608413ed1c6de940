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
	Queued bool // it is prepared, and has to have Min workers to begin
	Have   int  // workers that host its ranks
	Min    int  // least workers
	Max    int  // most workers
}

// PoolPod is a pod of a pool, and what is known of its worker.
type PoolPod struct {
	Name     string
	Pool     string
	Template string
	Ready    bool
	Placed   bool      // it has a node
	Leaving  bool      // is being deleted
	Ended    bool      // failed, or ended by itself: it will not come back
	Job      string    // that its worker prepares or hosts ranks of
	Expiring bool      // its certificate has to be replaced
	Born     time.Time // of the pod
	FreeFrom time.Time // since when its worker has no job; zero: it has one, or nobody knows

	Gang     string    // that it starts with; empty: alone
	GangJob  string    // id
	GangSize int       // pods that the gang was made of
	Gated    bool      // the gang waits behind its gate
	Stuck    time.Time // since when the scheduler finds no node for it; zero: it has not said so
}

// Fleet is what the pools are decided from.
type Fleet struct {
	Now     time.Time
	Known   bool // whether the leader has answered; without it Demands says nothing
	Grouped bool // whether the API server has PodGroups
	Demands []Demand
	Pods    []PoolPod
}

// PoolPlan is what is to be done.
type PoolPlan struct {
	Create  map[string]int // pool → how many pods, each by itself
	Gangs   []Gang         // pods that start together
	Delete  []string       // names of pods; each leaves politely
	Wanted  int            // workers that the jobs would use, whatever the pools allow
	Waiting []string       // what jobs wait for, in words
	Reason  string         // of the most important part; empty: nothing is to be done
}

// Pools decides how many workers each pool has. Jobs together want as many as their
// maxima; pools give them in the order of the spec, each between its min and max. A job that
// waits to begin gets its least as a gang. A worker that is too many goes when it has been
// free for a while; one that has ranks goes only if it is of an earlier spec, one at a time,
// and then it drains. While the leader does not answer nothing shrinks.
func Pools(c *v1alpha1.SkeinCluster, f Fleet) PoolPlan {
	plan := PoolPlan{Create: map[string]int{}}
	for _, d := range f.Demands {
		if !d.Paused {
			plan.Wanted += d.Max
		}
	}
	f = dissolve(f, &plan)
	f, want, gangs := together(c, f, &plan)
	for i, target := range targets(c, want) {
		decidePool(c, &c.Spec.WorkerPools[i], f, target, &plan)
	}
	form(c, gangs, &plan)
	for _, p := range f.Pods {
		gone := !slices.ContainsFunc(c.Spec.WorkerPools, func(w v1alpha1.WorkerPool) bool { return w.Name == p.Pool })
		if gone && !p.Leaving {
			plan.remove(p.Name, fmt.Sprintf("pool %s is gone from the spec", p.Pool))
		}
	}
	if plan.Reason == "" && len(plan.Waiting) > 0 {
		plan.Reason = plan.Waiting[0]
	}
	return plan
}

// targets are how many workers each pool is to have when jobs may have so many.
func targets(c *v1alpha1.SkeinCluster, want int) []int {
	list := make([]int, len(c.Spec.WorkerPools))
	for i := range c.Spec.WorkerPools {
		pool := &c.Spec.WorkerPools[i]
		list[i] = min(max(want, int(pool.Min)), int(pool.Max))
		want = max(0, want-list[i])
	}
	return list
}

// staying are the pods of a pool that neither leave nor have ended.
func staying(f Fleet, pool string) []PoolPod {
	return slices.DeleteFunc(slices.Clone(f.Pods), func(p PoolPod) bool { return p.Pool != pool || p.Leaving || p.Ended })
}

func (p *PoolPlan) remove(name, reason string) {
	p.Delete = append(p.Delete, name)
	if p.Reason == "" {
		p.Reason = fmt.Sprintf("%s leaves: %s", name, reason)
	}
}

func decidePool(c *v1alpha1.SkeinCluster, pool *v1alpha1.WorkerPool, f Fleet, target int, plan *PoolPlan) {
	for _, p := range f.Pods {
		if p.Pool == pool.Name && p.Ended && !p.Leaving {
			plan.remove(p.Name, "it has ended")
		}
	}
	here := staying(f, pool.Name)
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
	free := slices.DeleteFunc(slices.Clone(pods), func(p PoolPod) bool {
		return p.FreeFrom.IsZero() || p.Gang != "" && !p.Placed // gangs that wait go as a whole, or not
	})
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
		case !p.Ready && (p.Placed || p.Gang == ""):
			return // it comes first; a gang that waits for room replaces nobody
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
