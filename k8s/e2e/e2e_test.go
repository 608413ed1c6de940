package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/yaml"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	"github.com/skein-ml/skein/k8s/policy"
	"github.com/skein-ml/skein/worker/workertest"
)

func TestSkeinOnRealNodes(t *testing.T) {
	l := newLab(t)
	l.install()
	l.storage()
	l.apply(l.exampleCluster())
	l.eventually("SkeinCluster lab is ready, with three coordinators on three nodes", l.threeCoordinators)

	job := l.example("pronounce", 24, 4, 4, 4)
	want := l.train(job)
	l.say("a local run of pronounce ends on %.12s", want)
	l.apply(job)
	l.completes("pronounce", want)
	l.begun("pronounce", 4)
	done := "a job of 24 steps"
	if n := steps(t); n > 0 {
		l.survives(n)
		done += fmt.Sprintf(" and one of %d through 2→4→3 workers, a crash, a drain, an eviction, another image and a suspension", n)
	}
	l.remove()
	l.down()
	fmt.Printf("e2e ok: installed, trained %s to the hashes of local runs, and deleted; %.0f s\n", done, l.elapsed())
}

// survives trains a job that all there is happens to meanwhile.
func (l *lab) survives(steps int) {
	l.Helper()
	job := l.example("spelling", steps, 12, 2, 2)
	want := l.train(job)
	l.say("a local run of spelling ends on %.12s", want)
	l.apply(job)
	l.runsOn("spelling", 2)
	for _, n := range []int{4, 3} {
		l.kubectl("scale", "finetunejob", "spelling", "--replicas", strconv.Itoa(n))
		l.runsOn("spelling", n)
	}
	l.crash("spelling")
	l.drain("spelling")
	l.evictLeader("spelling")
	l.roll("spelling")
	l.suspend("spelling")
	l.completes("spelling", want)
}

// steps are of the long job, which has to outlast all that is done to it; 0: there is none.
func steps(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(os.Getenv("SKEIN_E2E_STEPS"))
	if err != nil {
		t.Fatalf("SKEIN_E2E_STEPS: %v", err)
	}
	return n
}

// install does what the page says, with the operator's name where the page says to put it.
func (l *lab) install() {
	l.Helper()
	folder := l.folder("install")
	config, err := filepath.Abs("../config")
	if err != nil {
		l.Fatal(err)
	}
	if config, err = filepath.Rel(folder, config); err != nil {
		l.Fatal(err)
	}
	name, tag, _ := strings.Cut(l.operator, ":")
	overlay := fmt.Sprintf("resources: [%s]\nimages: [{name: localhost/skein-operator, newName: %s, newTag: %q}]\n", config, name, tag)
	if err := os.WriteFile(filepath.Join(folder, "kustomization.yaml"), []byte(overlay), 0o644); err != nil {
		l.Fatal(err)
	}
	l.kubectl("apply", "--server-side", "-k", folder)
	l.kubectl("-n", "skein-system", "rollout", "status", "deployment/skein-operator", "--timeout="+patience.String())
	l.say("the operator is installed and ready")
}

// storage makes what a cluster's storage class would: a shared volume, and one for each
// coordinator.
func (l *lab) storage() {
	l.Helper()
	volume := func(name, size, mode string, claim any) any {
		spec := map[string]any{
			"capacity": map[string]any{"storage": size}, "accessModes": []string{mode}, "persistentVolumeReclaimPolicy": "Retain",
			"hostPath": map[string]any{"path": l.folder(name)},
		}
		if claim != nil {
			spec["claimRef"] = claim
		}
		return map[string]any{"apiVersion": "v1", "kind": "PersistentVolume", "metadata": map[string]any{"name": name}, "spec": spec}
	}
	list := []any{
		volume("shared", "10Gi", "ReadWriteMany", map[string]any{"namespace": "default", "name": "shared"}),
		map[string]any{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": map[string]any{"name": "shared"}, "spec": map[string]any{
			"accessModes": []string{"ReadWriteMany"}, "storageClassName": "", "volumeName": "shared",
			"resources": map[string]any{"requests": map[string]any{"storage": "10Gi"}},
		}},
	}
	for i := range 3 {
		list = append(list, volume(fmt.Sprint("coordinator-", i), "1Gi", "ReadWriteOnce", nil))
	}
	l.apply(list...)
	workertest.CopyFolder(l, workertest.New(l.T).Dir, filepath.Join(l.home, "shared"))
}

// exampleCluster is the example with the image of this build, and with workers of which
// the machine can run four.
func (l *lab) exampleCluster() any {
	l.Helper()
	c := l.read("cluster.yaml")
	set(c, "spec.image", l.image)
	pool := at(c, "spec")["workerPools"].([]any)[0].(map[string]any)
	set(pool, "resources", map[string]any{"requests": map[string]any{"cpu": "100m", "memory": "128Mi"}, "limits": map[string]any{"cpu": "1", "memory": "1Gi"}})
	return c
}

// example is the job of the examples on a model and data that the test makes.
func (l *lab) example(name string, steps, ranks, least, workers int) map[string]any {
	l.Helper()
	j := l.read("job.yaml")
	for path, value := range map[string]any{
		"metadata.name": name, "spec.model.base": "model", "spec.data.train": []string{"train.jsonl"}, "spec.data.validation": "heldout.jsonl",
		"spec.data.sequenceLength": 48, "spec.train.steps": steps, "spec.train.globalBatch": ranks, "spec.cluster.worldSize": ranks,
		"spec.cluster.workers.min": least, "spec.cluster.workers.max": workers, "spec.checkpoint.store": "checkpoints-" + name, "spec.output.export": "trained-" + name,
	} {
		set(j, path, value)
	}
	if steps > 1000 {
		set(j, "spec.checkpoint.every", "200 steps")
	}
	return j
}

// train runs the same job on this machine, and returns the hash of its weights.
func (l *lab) train(job map[string]any) string {
	l.Helper()
	file := map[string]any{"kind": "FineTune", "name": at(job, "metadata")["name"]}
	for key, value := range at(job, "spec") {
		if key != "clusterRef" {
			file[key] = value
		}
	}
	b, err := json.Marshal(file)
	if err != nil {
		l.Fatal(err)
	}
	j := workertest.New(l.T)
	j.Write(l, "job.json", string(b))
	hash := ""
	for line := range strings.Lines(l.command([]string{"XDG_CACHE_HOME=" + j.Path("cache")}, root+"/bin/skein", "train", "-f", j.Path("job.json"), "-o", "json")) {
		var event struct{ WeightsHash string }
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			l.Fatalf("%q: %v", line, err)
		}
		if event.WeightsHash != "" {
			hash = event.WeightsHash
		}
	}
	if hash == "" {
		l.Fatal("skein train says no hash of the weights")
	}
	return hash
}

func (l *lab) read(example string) map[string]any {
	l.Helper()
	b, err := os.ReadFile(filepath.Join(root, "examples/kubernetes", example))
	if err != nil {
		l.Fatal(err)
	}
	var m map[string]any
	if err := yaml.Unmarshal(b, &m); err != nil {
		l.Fatal(err)
	}
	return m
}

// at is the object at a path of keys.
func at(m map[string]any, path string) map[string]any {
	for key := range strings.SplitSeq(path, ".") {
		m = m[key].(map[string]any)
	}
	return m
}

// set sets what is at a path of keys.
func set(m map[string]any, path string, value any) {
	if i := strings.LastIndexByte(path, '.'); i >= 0 {
		m, path = at(m, path[:i]), path[i+1:]
	}
	m[path] = value
}

// threeCoordinators tells what is missing to three that agree, each on a node of its own.
func (l *lab) threeCoordinators() error {
	c, err := l.cluster()
	if err != nil {
		return err
	}
	pods, err := l.pods(policy.RoleCoordinator)
	if err != nil {
		return err
	}
	on := map[string]bool{}
	for i := range pods {
		on[pods[i].Spec.NodeName] = true
	}
	if !meta.IsStatusConditionTrue(c.Status.Conditions, v1alpha1.ConditionReady) || len(c.Status.Members) != 3 || c.Status.ReadyCoordinators != 3 || len(on) != 3 {
		return fmt.Errorf("%d members, %d ready, on %d nodes; %+v", len(c.Status.Members), c.Status.ReadyCoordinators, len(on), c.Status.Conditions)
	}
	return nil
}

// completes waits for the end of a job; its weights have to be these.
func (l *lab) completes(name, hash string) {
	l.Helper()
	l.eventually(name+" is complete", func() error {
		j, err := l.job(name)
		if err == nil && meta.IsStatusConditionTrue(j.Status.Conditions, v1alpha1.ConditionFailed) {
			l.fail("%s failed: %s", name, j.Status.Message)
		}
		if err == nil && !meta.IsStatusConditionTrue(j.Status.Conditions, v1alpha1.ConditionComplete) {
			err = fmt.Errorf("step %d of %d on %d workers, %s: %s", j.Status.Step, j.Status.Steps, j.Status.Workers, j.Status.Phase, j.Status.Message)
		}
		if err == nil && j.Status.Result != hash {
			l.fail("%s ended on weights %s, a local run on %s", name, j.Status.Result, hash)
		}
		return err
	})
	l.say("%s has the weights of the local run", name)
}

// running reads a job that has to be under way still.
func (l *lab) running(name string) (*v1alpha1.FineTuneJob, error) {
	l.Helper()
	j, err := l.job(name)
	if err == nil && meta.IsStatusConditionTrue(j.Status.Conditions, v1alpha1.ConditionComplete) {
		l.fail("%s was over after %d steps before all was done to it; give STEPS=%d", name, j.Status.Steps, 2*j.Status.Steps)
	}
	return j, err
}

// runsOn waits until a job has so many workers, and takes steps with them.
func (l *lab) runsOn(name string, workers int) {
	l.Helper()
	l.goesOn(fmt.Sprintf("%s trains on %d workers", name, workers), name, func(j *v1alpha1.FineTuneJob) error {
		if int(j.Status.Workers) != workers {
			return fmt.Errorf("it has %d workers, and wants %d: %s", j.Status.Workers, j.Status.Wanted, j.Status.Message)
		}
		return nil
	})
}

// goesOn waits until something holds of a running job, and then for its next steps.
func (l *lab) goesOn(what, name string, holds func(*v1alpha1.FineTuneJob) error) {
	l.Helper()
	from := int64(-1)
	l.eventually(what, func() error {
		j, err := l.running(name)
		if err != nil {
			return err
		}
		if err := holds(j); err != nil {
			from = -1
			return err
		}
		if j.Status.Phase != "running" {
			return fmt.Errorf("it is %s: %s", j.Status.Phase, j.Status.Message)
		}
		if from < 0 {
			from = j.Status.Step
		}
		if j.Status.Step < from+2 {
			return fmt.Errorf("step %d, from %d", j.Status.Step, from)
		}
		return nil
	})
}

// hosts lists the nodes that have workers of a job, with those that also have the
// coordinators' leader last.
func (l *lab) hosts(job string) []string {
	l.Helper()
	c, err := l.cluster()
	if err != nil {
		l.Fatal(err)
	}
	var all corev1.PodList
	if err := l.get(&all, "pods", "-l", v1alpha1.LabelCluster+"=lab"); err != nil {
		l.Fatal(err)
	}
	leader, on := "", map[string]bool{}
	for i := range all.Items {
		p := &all.Items[i]
		if p.Name == c.Status.Leader {
			leader = p.Spec.NodeName
		}
		if p.Labels[v1alpha1.LabelJob] == job && p.DeletionTimestamp == nil {
			on[p.Spec.NodeName] = true
		}
	}
	var nodes []string
	for node := range on {
		nodes = append(nodes, node)
	}
	slices.SortFunc(nodes, func(a, b string) int {
		if (a == leader) != (b == leader) {
			return map[bool]int{true: 1, false: -1}[a == leader]
		}
		return strings.Compare(a, b)
	})
	if len(nodes) == 0 {
		l.fail("no node has a worker of %s", job)
	}
	return nodes
}
