package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	schedulingv1beta1 "k8s.io/api/scheduling/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
)

// The workers without which a job cannot begin are a gang: all of them get a node, or none
// does. A part of them would hold room that others could train in, and do nothing. Workers
// that come on top, while the job trains, are no gang: each of them is of use alone.

const (
	// LabelGang on a worker's pod names the gang that it starts with.
	LabelGang = "skein.dev/gang"

	// GateGang keeps a gang off the nodes until there is room for all of it, where the API
	// server has no PodGroups.
	GateGang = "skein.dev/gang"

	annotationGangJob  = "skein.dev/gang-job"
	annotationGangSize = "skein.dev/gang-size"
)

// gangPatience is how long a gang that was let go may have pods without a node, before it is
// taken back.
const gangPatience = 30 * time.Second

// Gang is what is to start together.
type Gang struct {
	Job  string         // id
	Pods map[string]int // pool → how many
}

// Size is how many workers it has.
func (g Gang) Size() int {
	n := 0
	for _, count := range g.Pods {
		n += count
	}
	return n
}

// Join makes a pod one of a gang: of its PodGroup, or behind its gate.
func (g Gang) Join(p *corev1.Pod, name string, grouped bool) {
	p.Labels[LabelGang] = name
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	p.Annotations[annotationGangJob], p.Annotations[annotationGangSize] = g.Job, strconv.Itoa(g.Size())
	if grouped {
		p.Spec.SchedulingGroup = &corev1.PodSchedulingGroup{PodGroupName: new(name)}
		return
	}
	p.Spec.SchedulingGates = append(p.Spec.SchedulingGates, corev1.PodSchedulingGate{Name: GateGang})
}

// PodGroup is what the scheduler knows a gang by. It goes with the last of its pods.
func PodGroup(c *v1alpha1.SkeinCluster, name string, pods []corev1.Pod) *schedulingv1beta1.PodGroup {
	size, _ := strconv.Atoi(pods[0].Annotations[annotationGangSize])
	g := &schedulingv1beta1.PodGroup{
		TypeMeta:   metav1.TypeMeta{APIVersion: "scheduling.k8s.io/v1beta1", Kind: "PodGroup"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: c.Namespace, Labels: labels(c, RoleWorker)},
		Spec: schedulingv1beta1.PodGroupSpec{SchedulingPolicy: schedulingv1beta1.PodGroupSchedulingPolicy{
			Gang: &schedulingv1beta1.GangSchedulingPolicy{MinCount: int32(max(size, 1))},
		}},
	}
	for i := range pods {
		g.OwnerReferences = append(g.OwnerReferences, metav1.OwnerReference{APIVersion: "v1", Kind: "Pod", Name: pods[i].Name, UID: pods[i].UID})
	}
	return g
}

// Gangs lists the pods of each gang that are not leaving.
func Gangs(pods []corev1.Pod) map[string][]corev1.Pod {
	all := map[string][]corev1.Pod{}
	for i := range pods {
		if name := pods[i].Labels[LabelGang]; name != "" && pods[i].DeletionTimestamp == nil {
			all[name] = append(all[name], pods[i])
		}
	}
	return all
}

// gangOf is what a pod's labels and annotations say of its gang.
func gangOf(p *corev1.Pod, out *PoolPod) {
	out.Gang, out.GangJob = p.Labels[LabelGang], p.Annotations[annotationGangJob]
	out.GangSize, _ = strconv.Atoi(p.Annotations[annotationGangSize])
	out.Placed, out.Gated = p.Spec.NodeName != "", Gated(p, GateGang)
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable {
			out.Stuck = c.LastTransitionTime.Time
		}
	}
}

// dissolve takes back what will not start as a whole, and returns the fleet without it: a
// gang that was not made whole, one whose job has begun without it or is over, and one of
// which a part has found no node for a while.
func dissolve(f Fleet, plan *PoolPlan) Fleet {
	queued := map[string]bool{}
	for _, d := range f.Demands {
		queued[d.Job] = d.Queued && !d.Paused
	}
	gangs := map[string][]PoolPod{}
	for _, p := range f.Pods {
		if p.Gang != "" && !p.Leaving {
			gangs[p.Gang] = append(gangs[p.Gang], p)
		}
	}
	gone := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(gangs)) {
		pods := gangs[name]
		why := failing(pods, f, queued)
		for _, p := range pods {
			if why != "" && p.Job == "" && (!p.Placed || why == whyParted) {
				gone[p.Name] = true
				plan.remove(p.Name, why)
			}
		}
	}
	f.Pods = slices.DeleteFunc(slices.Clone(f.Pods), func(p PoolPod) bool { return gone[p.Name] })
	return f
}

const whyParted = "a part of its gang has found no node; all of it is made again, and waits for room"

// failing is why a gang is taken back; empty: it is not.
func failing(pods []PoolPod, f Fleet, queued map[string]bool) string {
	placed, stuck := 0, false
	for _, p := range pods {
		if p.Placed {
			placed++
		} else {
			stuck = stuck || !p.Stuck.IsZero() && f.Now.Sub(p.Stuck) >= gangPatience
		}
	}
	switch {
	case placed == len(pods):
		return ""
	case len(pods) < pods[0].GangSize:
		return "its gang is not whole"
	case f.Known && !queued[pods[0].GangJob]:
		return "its job needs no gang any more"
	case stuck && (placed > 0 || !f.Grouped):
		return whyParted
	}
	return ""
}

// wish is a gang that is to be made, wherever there is room.
type wish struct {
	job  string
	need int
}

// together adds up what the jobs may have now, and which gangs are missing for it. A job
// that cannot have all of its least has none of it. What stands in the way of a gang alone,
// without a node, is taken back: the fleet that is returned does not have it.
func together(c *v1alpha1.SkeinCluster, f Fleet, plan *PoolPlan) (without Fleet, want int, gangs []wish) {
	s := survey(f)
	extras, promised := 0, 0
	for _, d := range f.Demands {
		if !d.Paused && !d.Queued {
			least := d.Max
			if s.waiting { // who trains already takes no room from those who wait to begin
				least = min(d.Max, max(d.Have, 1))
			}
			want += least
		}
	}
	for _, d := range f.Demands {
		if d.Paused || !d.Queued {
			continue
		}
		taken := min(s.free, max(0, d.Min-s.mine[d.Job]))
		need := max(0, d.Min-s.mine[d.Job]-taken)
		if need == 1 && len(s.loose) > 0 {
			need, s.loose = 0, s.loose[1:]
		}
		if short := need - missing(c, f, want+d.Min) + promised; need > 0 && short > 0 {
			if short > len(s.loose) {
				plan.Waiting = append(plan.Waiting, fmt.Sprintf("job %s waits for %d workers at once, for which the pools have no room now", d.Job, d.Min))
				continue
			}
			f = withdraw(f, s.loose[:short], plan)
			s.loose = s.loose[short:]
		}
		s.free, promised = s.free-taken, promised+need
		want, extras = want+d.Min, extras+d.Max-d.Min
		if need > 1 {
			gangs = append(gangs, wish{d.Job, need})
		}
	}
	if !s.waiting {
		want += extras
	}
	return f, want, gangs
}

// survey counts the workers without a job.
func survey(f Fleet) (s struct {
	free    int            // that have a node
	waiting bool           // whether a gang waits for nodes
	mine    map[string]int // job → pods of its gang that wait
	loose   []string       // who wait alone, but for those that prepare a job
}) {
	s.mine = map[string]int{}
	for _, p := range f.Pods {
		switch {
		case p.Leaving || p.Ended || p.Job != "":
		case p.Placed:
			s.free++
		case p.Gang != "":
			s.waiting = true
			s.mine[p.GangJob]++
		default:
			s.loose = append(s.loose, p.Name)
		}
	}
	preparing := 0
	for _, d := range f.Demands {
		if !d.Queued && !d.Paused && d.Have == 0 {
			preparing++
		}
	}
	s.loose = s.loose[min(preparing, len(s.loose)):]
	return s
}

// withdraw takes pods back.
func withdraw(f Fleet, names []string, plan *PoolPlan) Fleet {
	for _, name := range names {
		plan.remove(name, "it waits alone for a node, and a gang needs its place")
	}
	f.Pods = slices.DeleteFunc(slices.Clone(f.Pods), func(p PoolPod) bool { return slices.Contains(names, p.Name) })
	return f
}

// missing is how many pods the pools lack if jobs want so many.
func missing(c *v1alpha1.SkeinCluster, f Fleet, want int) int {
	sum := 0
	for i, target := range targets(c, want) {
		sum += max(0, target-len(staying(f, c.Spec.WorkerPools[i].Name)))
	}
	return sum
}

// form takes the pods of gangs out of those that are to be made.
func form(c *v1alpha1.SkeinCluster, gangs []wish, plan *PoolPlan) {
	for _, w := range gangs {
		g, need := Gang{Job: w.job, Pods: map[string]int{}}, w.need
		for i := range c.Spec.WorkerPools {
			name := c.Spec.WorkerPools[i].Name
			n := min(need, plan.Create[name])
			if n == 0 {
				continue
			}
			g.Pods[name], need = n, need-n
			if plan.Create[name] -= n; plan.Create[name] == 0 {
				delete(plan.Create, name)
			}
		}
		plan.Gangs = append(plan.Gangs, g)
	}
}

// Opens names the gang whose gate is looked at next: the oldest that is whole, while none
// that was let go has pods without a node. Empty: none.
func Opens(pods []PoolPod) string {
	type gang struct {
		name  string
		count int
		born  time.Time
	}
	var shut []gang
	for _, p := range pods {
		if p.Gang == "" || p.Leaving || p.Placed {
			continue
		}
		if !p.Gated {
			return ""
		}
		i := slices.IndexFunc(shut, func(g gang) bool { return g.name == p.Gang })
		if i < 0 {
			shut = append(shut, gang{p.Gang, 0, p.Born})
			i = len(shut) - 1
		}
		if shut[i].count++; p.Born.Before(shut[i].born) {
			shut[i].born = p.Born
		}
	}
	shut = slices.DeleteFunc(shut, func(g gang) bool {
		return slices.ContainsFunc(pods, func(p PoolPod) bool { return p.Gang == g.name && p.GangSize != g.count })
	})
	if len(shut) == 0 {
		return ""
	}
	return slices.MinFunc(shut, func(a, b gang) int { return cmp.Or(a.born.Compare(b.born), cmp.Compare(a.name, b.name)) }).name
}
