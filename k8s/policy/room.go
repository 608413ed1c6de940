package policy

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
)

// Fits tells whether all pods of a gang would find a node now, beside the pods that are
// there: by what they ask for, the labels and the taints of the nodes. The scheduler knows
// more; what it refuses all the same is taken back.
func Fits(gang []corev1.Pod, nodes []corev1.Node, there []corev1.Pod) bool {
	free := map[string]corev1.ResourceList{}
	for i := range nodes {
		free[nodes[i].Name] = nodes[i].Status.Allocatable.DeepCopy()
	}
	for i := range there {
		p := &there[i]
		if p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed && free[p.Spec.NodeName] != nil {
			take(free[p.Spec.NodeName], requests(p))
		}
	}
	for i := range gang {
		asks := requests(&gang[i])
		at := slices.IndexFunc(nodes, func(n corev1.Node) bool { return takes(&n, &gang[i]) && enough(free[n.Name], asks) })
		if at < 0 {
			return false
		}
		take(free[nodes[at].Name], asks)
	}
	return true
}

// Crowded is what to say of a gang that does not fit.
func Crowded(gang []corev1.Pod) *Refusal {
	return &Refusal{v1alpha1.ReasonUnschedulable, fmt.Sprintf("the nodes have no room for the %d workers that job %s needs at once; they wait together: add nodes, or ask for less",
		len(gang), gang[0].Annotations[annotationGangJob])}
}

// requests are what a pod asks of its node.
func requests(p *corev1.Pod) corev1.ResourceList {
	sum := corev1.ResourceList{corev1.ResourcePods: resource.MustParse("1")}
	for i := range p.Spec.Containers {
		add(sum, p.Spec.Containers[i].Resources.Requests)
	}
	for i := range p.Spec.InitContainers {
		for name, q := range p.Spec.InitContainers[i].Resources.Requests {
			if has := sum[name]; q.Cmp(has) > 0 {
				sum[name] = q.DeepCopy()
			}
		}
	}
	add(sum, p.Spec.Overhead)
	return sum
}

func add(sum, more corev1.ResourceList) {
	for name, q := range more {
		has := sum[name]
		has.Add(q)
		sum[name] = has
	}
}

func take(free, asks corev1.ResourceList) {
	for name, q := range asks {
		has := free[name]
		has.Sub(q)
		free[name] = has
	}
}

func enough(free, asks corev1.ResourceList) bool {
	for name, q := range asks {
		if has := free[name]; has.Cmp(q) < 0 {
			return false
		}
	}
	return true
}

// takes tells whether a node lets a pod in, room or not.
func takes(n *corev1.Node, p *corev1.Pod) bool {
	ready := slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
	if n.Spec.Unschedulable || !ready {
		return false
	}
	for key, value := range p.Spec.NodeSelector {
		if is, ok := n.Labels[key]; !ok || is != value {
			return false
		}
	}
	for i := range n.Spec.Taints {
		if t := &n.Spec.Taints[i]; t.Effect != corev1.TaintEffectPreferNoSchedule && !tolerated(t, p.Spec.Tolerations) {
			return false
		}
	}
	return true
}

func tolerated(t *corev1.Taint, list []corev1.Toleration) bool {
	return slices.ContainsFunc(list, func(o corev1.Toleration) bool {
		return (o.Effect == "" || o.Effect == t.Effect) && (o.Key == t.Key || o.Key == "" && o.Operator == corev1.TolerationOpExists) &&
			(o.Operator == corev1.TolerationOpExists || o.Value == t.Value)
	})
}
