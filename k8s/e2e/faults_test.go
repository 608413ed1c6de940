package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	"github.com/skein-ml/skein/k8s/policy"
)

func (l *lab) elapsed() float64 { return time.Since(l.began).Seconds() }

// awayFrom holds when no worker of the job is on a node, and it has as many as before.
func (l *lab) awayFrom(node string, workers int32) func(*v1alpha1.FineTuneJob) error {
	return func(j *v1alpha1.FineTuneJob) error {
		pods, err := l.pods(policy.RoleWorker)
		if err != nil {
			return err
		}
		for i := range pods {
			if pods[i].Spec.NodeName == node {
				return fmt.Errorf("%s is on %s", pods[i].Name, node)
			}
		}
		if j.Status.Workers != workers {
			return fmt.Errorf("it has %d workers", j.Status.Workers)
		}
		return nil
	}
}

// crash cuts the power of a node that has workers of a job, and gives it back.
func (l *lab) crash(name string) {
	l.Helper()
	j, err := l.running(name)
	if err != nil {
		l.Fatal(err)
	}
	node, before := l.hosts(name)[0], l.told(name)
	l.nodes("crash", node)
	l.say("%s crashed at step %d", node, j.Status.Step)
	l.goesOn(name+" goes on elsewhere, with as many workers", name, l.awayFrom(node, j.Status.Workers))
	l.cost("the crash", name, before)
	l.nodes("start", node)
	l.eventually(node+" is back, and all coordinators with it", l.threeCoordinators)
}

// drain empties a node that has workers of a job, as before its repair.
func (l *lab) drain(name string) {
	l.Helper()
	j, err := l.running(name)
	if err != nil {
		l.Fatal(err)
	}
	node, before := l.hosts(name)[0], l.told(name)
	l.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout="+patience.String())
	l.say("%s is drained, from step %d", node, j.Status.Step)
	l.goesOn(name+" goes on elsewhere, with as many workers", name, l.awayFrom(node, j.Status.Workers))
	if l.cost("the drain", name, before).Rework > 0 {
		l.fail("steps were lost by a drain")
	}
	l.kubectl("uncordon", node)
	l.eventually(node+" is back, and all coordinators with it", l.threeCoordinators)
}

// evictLeader evicts the coordinator that leads.
func (l *lab) evictLeader(name string) {
	l.Helper()
	c, err := l.cluster()
	if err != nil {
		l.Fatal(err)
	}
	was := c.Status.Leader
	eviction, err := json.Marshal(map[string]any{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": map[string]any{"name": was, "namespace": "default"}})
	if err != nil {
		l.Fatal(err)
	}
	file := filepath.Join(l.TempDir(), "eviction.json")
	if err := os.WriteFile(file, eviction, 0o600); err != nil {
		l.Fatal(err)
	}
	l.kubectl("create", "--raw", "/api/v1/namespaces/default/pods/"+was+"/eviction", "-f", file)
	l.goesOn(name+" goes on while its leader, "+was+", is evicted", name, func(*v1alpha1.FineTuneJob) error {
		c, err := l.cluster()
		if err == nil && (c.Status.Leader == was || c.Status.Leader == "") {
			err = fmt.Errorf("%q leads", c.Status.Leader)
		}
		return err
	})
	l.eventually(was+" is back", l.threeCoordinators)
}

// roll gives the cluster another image: coordinators and workers are replaced one by one, while
// the job trains.
func (l *lab) roll(name string) {
	l.Helper()
	j, err := l.running(name)
	if err != nil {
		l.Fatal(err)
	}
	before := l.told(name)
	l.kubectl("patch", "skeincluster", "lab", "--type", "merge", "-p", fmt.Sprintf(`{"spec":{"image":%q}}`, l.next))
	l.goesOn("all coordinators and workers have the next image, and "+name+" as many workers", name, func(j2 *v1alpha1.FineTuneJob) error {
		for _, role := range []string{policy.RoleCoordinator, policy.RoleWorker} {
			pods, err := l.pods(role)
			if err != nil {
				return err
			}
			for i := range pods {
				if image := pods[i].Spec.Containers[0].Image; image != l.next {
					return fmt.Errorf("%s has image %s", pods[i].Name, image)
				}
			}
		}
		if j2.Status.Workers != j.Status.Workers {
			return fmt.Errorf("it has %d workers, and had %d", j2.Status.Workers, j.Status.Workers)
		}
		return l.threeCoordinators()
	})
	if l.cost("the roll", name, before).Rework > 0 {
		l.fail("steps were lost by a change of the image")
	}
}

// told is a job as the coordinators tell it.
func (l *lab) told(name string) (j client.Job) {
	l.Helper()
	skein, err := filepath.Abs(root + "/bin/skein")
	if err != nil {
		l.Fatal(err)
	}
	out := l.nodes("run", skein, "describe", name, "--kube", "--namespace", "default", "-o", "json")
	if err := json.Unmarshal([]byte(out), &j); err != nil || j.Goodput == nil {
		l.fail("skein describe: %v: %s", err, out)
	}
	return j
}

// cost says what something cost a job since then, by its ledger.
func (l *lab) cost(what, name string, before client.Job) client.Goodput {
	l.Helper()
	now := l.told(name)
	g, was := *now.Goodput, *before.Goodput
	g.Wall, g.Productive, g.Recovery, g.Rework = g.Wall-was.Wall, g.Productive-was.Productive, g.Recovery-was.Recovery, g.Rework-was.Rework
	l.say("%s: %d generations, %.2f s without training, %.2f s of steps run again, in %.0f s and %d steps", what, now.Generation-before.Generation, g.Recovery, g.Rework, g.Wall, now.Step-before.Step)
	return g
}

// begun says how long after its first workers were ready a job has begun on them. The API
// server tells moments in whole seconds.
func (l *lab) begun(name string, least int) {
	l.Helper()
	pods, err := l.pods(policy.RoleWorker)
	if err != nil {
		l.Fatal(err)
	}
	var ready []time.Time
	grouped := 0
	for i := range pods {
		if g := pods[i].Spec.SchedulingGroup; g != nil {
			grouped++
		}
		for _, c := range pods[i].Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				ready = append(ready, c.LastTransitionTime.Time)
			}
		}
	}
	slices.SortFunc(ready, time.Time.Compare)
	if grouped < least-1 || len(ready) < least { // one of them has prepared the job alone
		l.fail("%d workers of %s are of a PodGroup, %d are ready, want at least %d and %d", grouped, name, len(ready), least-1, least)
	}
	for _, e := range l.told(name).Events {
		if e.Kind == "generation" {
			l.say("%s began %.1f s after its %d workers were ready, give or take a second; %d of them came as a PodGroup", name, e.At.Sub(ready[least-1]).Seconds(), least, grouped)
			return
		}
	}
	l.fail("%s has no generation", name)
}

// suspend stops a job for a while.
func (l *lab) suspend(name string) {
	l.Helper()
	l.kubectl("patch", "finetunejob", name, "--type", "merge", "-p", `{"spec":{"suspend":true}}`)
	at := int64(0)
	l.eventually(name+" is suspended, its last step in a checkpoint", func() error {
		j, err := l.running(name)
		if err != nil {
			return err
		}
		if at = j.Status.Step; !meta.IsStatusConditionTrue(j.Status.Conditions, v1alpha1.ConditionSuspended) || j.Status.Published != at || j.Status.Workers != 0 {
			return fmt.Errorf("%s, step %d, published %d, %d workers", j.Status.Phase, at, j.Status.Published, j.Status.Workers)
		}
		return nil
	})
	l.kubectl("patch", "finetunejob", name, "--type", "merge", "-p", `{"spec":{"suspend":false}}`)
	l.goesOn(fmt.Sprintf("%s goes on from step %d", name, at), name, func(j *v1alpha1.FineTuneJob) error {
		if j.Status.Step < at {
			return fmt.Errorf("it is at step %d, and was suspended at %d", j.Status.Step, at)
		}
		return nil
	})
}

// remove deletes all of it, in the order that a user would.
func (l *lab) remove() {
	l.Helper()
	l.kubectl("delete", "finetunejobs", "--all", "--timeout="+patience.String())
	l.kubectl("delete", "skeincluster", "lab", "--timeout="+patience.String())
	l.eventually("jobs, cluster and all that belonged to them are gone", func() error {
		var left struct {
			Items []struct {
				Kind     string
				Metadata struct{ Name string }
			}
		}
		const kinds = "pods,statefulsets,services,configmaps,secrets,poddisruptionbudgets,skeinclusters,finetunejobs"
		if err := l.get(&left, kinds, "-l", v1alpha1.LabelCluster); err != nil {
			return err
		}
		if len(left.Items) > 0 {
			return fmt.Errorf("%v are left", left.Items)
		}
		return nil
	})
	var claims corev1.PersistentVolumeClaimList
	if err := l.get(&claims, "pvc"); err != nil {
		l.Fatal(err)
	}
	if len(claims.Items) != 4 {
		l.fail("%d claims are left, where the shared one and those of three coordinators stay", len(claims.Items))
	}
	l.kubectl("delete", "--wait", "--timeout="+patience.String(), "-k", filepath.Join(l.home, "install"))
	for _, kind := range []string{"namespaces", "crds", "clusterroles", "clusterrolebindings"} {
		if out := l.kubectl("get", kind, "-o", "name"); strings.Contains(out, "skein") {
			l.fail("%s: %s is left", kind, out)
		}
	}
	l.say("the operator and its definitions are gone")
}
