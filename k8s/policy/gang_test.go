package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// queued is a job that waits to begin.
func queued(name string, least, most int) Demand {
	return Demand{Job: name, Queued: true, Min: least, Max: most}
}

// gang are the pods of a gang of pool cpu; change, if given, changes each.
func gang(c *v1alpha1.SkeinCluster, name, job string, size int, change ...func(int, *PoolPod)) []PoolPod {
	var list []PoolPod
	for i := range size {
		p := worker(c, fmt.Sprintf("%s-%d", name, i), 10*time.Second)
		p.Ready, p.Gang, p.GangJob, p.GangSize = false, name, job, size
		for _, f := range change {
			f(i, &p)
		}
		list = append(list, p)
	}
	return list
}

func placed(_ int, p *PoolPod) { p.Placed = true }

func stuck(since time.Duration) func(int, *PoolPod) {
	return func(_ int, p *PoolPod) { p.Stuck = noon.Add(-since) }
}

func TestAJobBeginsWithAllItsLeastWorkersOrWithNone(t *testing.T) {
	c := lab(pool("cpu", 0, 6), pool("big", 0, 2))
	free := worker(c, "free", 10*time.Second)
	free.Placed = true
	busy := worker(c, "busy", 0)
	busy.Placed = true
	alone, placedAlone := worker(c, "alone", 10*time.Second), free
	running := Demand{Job: "r", Have: 1, Min: 1, Max: 1}
	for what, f := range map[string]struct {
		demands []Demand
		pods    []PoolPod
		gangs   string // job and pods by pool
		create  string
		remove  []string
	}{
		"all at once":                    {[]Demand{queued("a", 4, 4)}, nil, "[{a map[cpu:4]}]", "map[]", nil},
		"over two pools":                 {[]Demand{queued("a", 8, 8)}, nil, "[{a map[big:2 cpu:6]}]", "map[]", nil},
		"others join it":                 {[]Demand{queued("a", 3, 5)}, nil, "[{a map[cpu:3]}]", "map[cpu:2]", nil},
		"one alone is no gang":           {[]Demand{queued("a", 1, 2)}, nil, "[]", "map[cpu:2]", nil},
		"more than there ever can be":    {[]Demand{queued("a", 9, 9)}, nil, "[]", "map[]", nil},
		"the next one fits":              {[]Demand{queued("a", 9, 9), queued("b", 2, 2)}, nil, "[{b map[cpu:2]}]", "map[]", nil},
		"two fit":                        {[]Demand{queued("a", 4, 4), queued("b", 4, 4)}, nil, "[{a map[cpu:4]} {b map[big:2 cpu:2]}]", "map[]", nil},
		"the third does not":             {[]Demand{queued("a", 4, 4), queued("b", 3, 3), queued("d", 2, 2)}, nil, "[{a map[cpu:4]} {b map[big:1 cpu:2]}]", "map[]", nil},
		"who is free counts":             {[]Demand{queued("a", 4, 4)}, []PoolPod{free}, "[{a map[cpu:3]}]", "map[]", nil},
		"who trains does not":            {[]Demand{running, queued("a", 4, 4)}, []PoolPod{busy}, "[{a map[cpu:4]}]", "map[]", nil},
		"it is made once":                {[]Demand{queued("a", 4, 4)}, gang(c, "g", "a", 4), "[]", "map[]", nil},
		"another job's does not count":   {[]Demand{queued("a", 2, 2), queued("b", 2, 2)}, gang(c, "g", "a", 2), "[{b map[cpu:2]}]", "map[]", nil},
		"nobody grows while it waits":    {[]Demand{{Job: "r", Have: 1, Min: 1, Max: 4}, queued("a", 4, 6)}, append(gang(c, "g", "a", 4), busy), "[]", "map[]", nil},
		"and all do when it is there":    {[]Demand{{Job: "r", Have: 1, Min: 1, Max: 2}, queued("a", 4, 5)}, append(gang(c, "g", "a", 4, placed), busy), "[]", "map[big:1 cpu:1]", nil},
		"who waits alone is in its way":  {[]Demand{queued("a", 7, 7)}, []PoolPod{alone, placedAlone}, "[{a map[big:1 cpu:5]}]", "map[]", []string{"alone"}},
		"unless it prepares a job":       {[]Demand{{Job: "p", Min: 1, Max: 1}, queued("a", 8, 8)}, []PoolPod{alone}, "[]", "map[]", nil},
		"or is all that it needs":        {[]Demand{queued("a", 2, 2)}, []PoolPod{alone, placedAlone}, "[]", "map[]", nil},
		"a paused job has none":          {[]Demand{{Job: "a", Queued: true, Paused: true, Min: 2, Max: 2}}, gang(c, "g", "a", 2), "[]", "map[]", []string{"g-0", "g-1"}},
		"it began without it":            {[]Demand{{Job: "a", Have: 2, Min: 2, Max: 2}}, append(gang(c, "g", "a", 2), busy, free), "[]", "map[]", []string{"g-0", "g-1"}},
		"it was not made whole":          {[]Demand{queued("a", 3, 3)}, gang(c, "g", "a", 3)[:2], "[{a map[cpu:3]}]", "map[]", []string{"g-0", "g-1"}},
		"no room for any is no part":     {[]Demand{queued("a", 2, 2)}, gang(c, "g", "a", 2, stuck(time.Hour)), "[]", "map[]", nil},
		"a part of it waits for a while": {[]Demand{queued("a", 2, 2)}, append(gang(c, "g", "a", 2, placed)[:1], gang(c, "g", "a", 2, stuck(time.Second))[1:]...), "[]", "map[]", nil},
		"a part of it is no use":         {[]Demand{queued("a", 2, 2)}, append(gang(c, "g", "a", 2, placed)[:1], gang(c, "g", "a", 2, stuck(time.Minute))[1:]...), "[{a map[cpu:2]}]", "map[]", []string{"g-0", "g-1"}},
	} {
		plan := Pools(c, Fleet{Now: noon, Known: true, Grouped: true, Demands: f.demands, Pods: f.pods})
		gangs := "["
		for i, g := range plan.Gangs {
			gangs += strings.Repeat(" ", min(i, 1)) + fmt.Sprintf("{%s %v}", g.Job, g.Pods)
		}
		if gangs+"]" != f.gangs || fmt.Sprint(plan.Create) != f.create || !slices.Equal(plan.Delete, f.remove) {
			t.Errorf("%s: gangs %s], alone %v, deleted %q because %q; want %s, %s, %q", what, gangs, plan.Create, plan.Delete, plan.Reason, f.gangs, f.create, f.remove)
		}
	}
	plan := Pools(c, Fleet{Now: noon, Known: true, Demands: []Demand{queued("a", 2, 2)}, Pods: gang(c, "g", "a", 2, stuck(time.Minute))})
	if len(plan.Delete) != 2 {
		t.Errorf("without PodGroups a gang that found no node keeps the others waiting: %+v", plan)
	}
	plan = Pools(c, Fleet{Now: noon, Known: true, Demands: []Demand{queued("a", 9, 9)}})
	if !strings.Contains(plan.Reason, "job a waits for 9 workers at once") {
		t.Errorf("nothing says why job a has no workers: %q", plan.Reason)
	}
}

// TestAQueueOfGangsOnFewNodesAlwaysEnds plays fifty jobs on seven nodes, some of which need
// all of them: every job gets its turn, no gang is ever left without some of its pods, and
// the pool is never overfilled.
func TestAQueueOfGangsOnFewNodesAlwaysEnds(t *testing.T) {
	c := lab(pool("cpu", 0, 12))
	const nodes = 7
	var jobs []Demand
	for i := range 50 {
		jobs = append(jobs, queued(fmt.Sprint("j", i), 1+i%nodes, 1+i%nodes+i%3))
	}
	var pods []PoolPod
	now, made, left := noon, 0, map[string]int{}
	for range 2000 {
		now = now.Add(2 * time.Second)
		plan := Pools(c, Fleet{Now: now, Known: true, Grouped: true, Demands: jobs, Pods: pods})
		pods = slices.DeleteFunc(pods, func(p PoolPod) bool { return slices.Contains(plan.Delete, p.Name) })
		birth := func(gang Gang, name string) {
			made++
			p := PoolPod{Name: fmt.Sprint("w", made), Pool: "cpu", Template: Template(c, &c.Spec.WorkerPools[0]), Born: now, FreeFrom: now}
			if name != "" {
				p.Gang, p.GangJob, p.GangSize = name, gang.Job, gang.Size()
			}
			pods = append(pods, p)
		}
		for range plan.Create["cpu"] {
			birth(Gang{}, "")
		}
		for i, g := range plan.Gangs {
			for range g.Size() {
				birth(g, fmt.Sprint("g", now.Unix(), "-", i))
			}
		}
		waiting, sizes := map[string]int{}, map[string]int{}
		for _, p := range pods {
			if p.Gang != "" && !p.Placed {
				waiting[p.Gang]++
				sizes[p.Gang] = p.GangSize
			}
		}
		if len(pods) > 12 || !maps.Equal(waiting, sizes) {
			t.Fatalf("of gangs of %v wait %v, among %d pods", sizes, waiting, len(pods))
		}
		schedule(pods, nodes)
		for i := range jobs {
			begin(&jobs[i], pods, left)
		}
		jobs = finish(jobs, pods, now, left)
		if len(jobs) == 0 {
			return
		}
	}
	t.Fatalf("%d jobs never ended, the first is %+v; there are %d pods", len(jobs), jobs[0], len(pods))
}

// schedule gives nodes as the scheduler does: to a gang as a whole, to others one by one.
func schedule(pods []PoolPod, nodes int) {
	for i := range pods {
		if pods[i].Placed {
			nodes--
		}
	}
	for i := range pods {
		need := max(1, pods[i].GangSize)
		if pods[i].Placed || need > nodes {
			continue
		}
		for k := range pods {
			if k == i || pods[i].Gang != "" && pods[k].Gang == pods[i].Gang {
				pods[k].Placed, pods[k].Ready = true, true
				nodes--
			}
		}
	}
}

// begin gives a queued job the free workers that it needs, as the coordinators do.
func begin(j *Demand, pods []PoolPod, left map[string]int) {
	var free []int
	for i := range pods {
		if pods[i].Ready && pods[i].Job == "" {
			free = append(free, i)
		}
	}
	if !j.Queued || len(free) < j.Min {
		return
	}
	j.Queued, j.Have, left[j.Job] = false, min(j.Max, len(free)), 5
	for _, i := range free[:j.Have] {
		pods[i].Job, pods[i].FreeFrom = j.Job, time.Time{}
	}
}

// finish ends jobs that have run for a while, and frees their workers.
func finish(jobs []Demand, pods []PoolPod, now time.Time, left map[string]int) []Demand {
	return slices.DeleteFunc(jobs, func(j Demand) bool {
		if j.Queued {
			return false
		}
		if left[j.Job]--; left[j.Job] > 0 {
			return false
		}
		for i := range pods {
			if pods[i].Job == j.Job {
				pods[i].Job, pods[i].FreeFrom = "", now
			}
		}
		return true
	})
}

func TestAGangsPodsSayWhatTheyBelongTo(t *testing.T) {
	c := lab(pool("cpu", 0, 4))
	g := Gang{Job: "a-1", Pods: map[string]int{"cpu": 2}}
	var pods []corev1.Pod
	for i := range 2 {
		p := WorkerPod(c, &c.Spec.WorkerPools[0], fmt.Sprint("w", i))
		g.Join(p, "lab-x", true)
		p.UID = types.UID(p.Name)
		pods = append(pods, *p)
	}
	seen := PodOf(&pods[1], noon, "")
	if seen.Gang != "lab-x" || seen.GangJob != "a-1" || seen.GangSize != 2 || seen.Gated || *pods[1].Spec.SchedulingGroup.PodGroupName != "lab-x" {
		t.Errorf("a pod of it is seen as %+v", seen)
	}
	group := PodGroup(c, "lab-x", pods)
	if group.Spec.SchedulingPolicy.Gang.MinCount != 2 || len(group.OwnerReferences) != 2 || group.OwnerReferences[1].UID != "w1" {
		t.Errorf("its group is %+v", group)
	}
	gated := WorkerPod(c, &c.Spec.WorkerPools[0], "w")
	g.Join(gated, "lab-y", false)
	if !PodOf(gated, noon, "").Gated || gated.Spec.SchedulingGroup != nil || gated.Labels[LabelTemplate] != pods[0].Labels[LabelTemplate] {
		t.Errorf("behind a gate it is %+v", gated.Spec)
	}
}

func TestGatesOpenForOneWholeGangAtATime(t *testing.T) {
	c := lab(pool("cpu", 0, 9))
	shut := func(_ int, p *PoolPod) { p.Gated = true }
	later := func(_ int, p *PoolPod) { p.Born = noon }
	for what, s := range map[string]struct {
		pods []PoolPod
		want string
	}{
		"none":                   {nil, ""},
		"the oldest":             {slices.Concat(gang(c, "a", "a", 2, shut, later), gang(c, "b", "b", 3, shut)), "b"},
		"one that is whole":      {slices.Concat(gang(c, "a", "a", 2, shut, later), gang(c, "b", "b", 3, shut)[:2]), "a"},
		"none while one is open": {slices.Concat(gang(c, "a", "a", 2, shut), gang(c, "b", "b", 3)), ""},
		"when that is placed":    {slices.Concat(gang(c, "a", "a", 2, shut), gang(c, "b", "b", 3, placed)), "a"},
	} {
		if got := Opens(s.pods); got != s.want {
			t.Errorf("%s: %q opens, want %q", what, got, s.want)
		}
	}
}

func TestAGangFitsWhereEachOfItsPodsHasANode(t *testing.T) {
	asks := func(cpu string) corev1.ResourceRequirements {
		return corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}}
	}
	pod := func(cpu string) corev1.Pod {
		return corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Resources: asks(cpu)}}}}
	}
	nodes := func() []corev1.Node {
		var list []corev1.Node
		for i := range 2 {
			n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i), Labels: map[string]string{"disk": fmt.Sprint(i)}}}
			n.Status.Allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourcePods: resource.MustParse("3")}
			n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
			list = append(list, n)
		}
		return list
	}
	on := func(cpu, node string) corev1.Pod {
		p := pod(cpu)
		p.Spec.NodeName = node
		return p
	}
	chosen := pod("1")
	chosen.Spec.NodeSelector = map[string]string{"disk": "1"}
	taint := func(n []corev1.Node) {
		n[0].Spec.Taints = []corev1.Taint{{Key: "gpu", Effect: corev1.TaintEffectNoSchedule}}
	}
	tolerant := pod("3")
	tolerant.Spec.Tolerations = []corev1.Toleration{{Key: "gpu", Operator: corev1.TolerationOpExists}}
	over := on("4", "n0")
	over.Status.Phase = corev1.PodSucceeded
	for what, s := range map[string]struct {
		gang   []corev1.Pod
		there  []corev1.Pod
		change func([]corev1.Node)
		want   bool
	}{
		"one on each":                {[]corev1.Pod{pod("3"), pod("3")}, nil, nil, true},
		"two and no third":           {[]corev1.Pod{pod("3"), pod("3"), pod("3")}, nil, nil, false},
		"beside others":              {[]corev1.Pod{pod("3"), pod("3")}, []corev1.Pod{on("2", "n0")}, nil, false},
		"where one was that is over": {[]corev1.Pod{pod("3"), pod("3")}, []corev1.Pod{over}, nil, true},
		"so many pods":               {[]corev1.Pod{pod("0"), pod("0"), pod("0"), pod("0"), pod("0"), pod("0")}, nil, nil, true},
		"and no more":                {[]corev1.Pod{pod("0"), pod("0"), pod("0"), pod("0"), pod("0"), pod("0"), pod("0")}, nil, nil, false},
		"on chosen nodes":            {[]corev1.Pod{chosen, chosen, chosen}, nil, nil, true},
		"of which there is one":      {[]corev1.Pod{chosen, chosen, chosen, chosen}, nil, nil, false},
		"not on a tainted one":       {[]corev1.Pod{pod("3"), pod("3")}, nil, taint, false},
		"unless it is tolerated":     {[]corev1.Pod{tolerant, pod("3")}, nil, taint, true},
		"not on a drained one":       {[]corev1.Pod{pod("3"), pod("3")}, nil, func(n []corev1.Node) { n[1].Spec.Unschedulable = true }, false},
		"not on one that is away":    {[]corev1.Pod{pod("3"), pod("3")}, nil, func(n []corev1.Node) { n[1].Status.Conditions = nil }, false},
	} {
		list := nodes()
		if s.change != nil {
			s.change(list)
		}
		if got := Fits(s.gang, list, s.there); got != s.want {
			t.Errorf("%s: %v", what, got)
		}
	}
}

func TestAJobSaysWhatKeepsItsWorkersAway(t *testing.T) {
	c := lab(pool("cpu", 0, 4), pool("big", 0, 1))
	waits := &skeinv1.Job{Id: "a-1", Phase: skeinv1.Phase_PHASE_QUEUED, WorkersMin: 5, WorkersMax: 8}
	if h := Hindrance(c, waits); h != nil {
		t.Errorf("it waits for its turn, and says %+v", h)
	}
	waits.WorkersMin = 6
	if h := Hindrance(c, waits); h == nil || h.Reason != "NoRoom" || !strings.Contains(h.Message, "have at most 5 together; raise max of a pool") {
		t.Errorf("no pool will ever do: %+v", h)
	}
	waits.WorkersMin = 2
	Conditions(c, Health{Known: true, Ready: 3, Members: ids(0, 1, 2), Blocking: &Refusal{"QuotaExceeded", "exceeded quota; raise it"}})
	if h := Hindrance(c, waits); h == nil || h.Reason != "QuotaExceeded" || h.Message != "SkeinCluster lab: exceeded quota; raise it" {
		t.Errorf("the quota is exceeded: %+v", h)
	}
	waits.Phase = skeinv1.Phase_PHASE_RUNNING
	if h := Hindrance(c, waits); h != nil {
		t.Errorf("it trains, and says %+v", h)
	}
	Conditions(c, Health{Known: true, Ready: 2, Members: ids(0, 1, 2)})
	if a := Ailment(c); a != nil {
		t.Errorf("a coordinator that is replaced is for nobody to mend: %+v", a)
	}
}
