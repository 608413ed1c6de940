// Package e2e runs Skein on a real Kubernetes of several nodes, as its page in docs/ tells
// a user to; nodes.sh makes the nodes on this machine. `make e2e` runs it.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
)

const (
	root = "../.."
	home = root + "/.cache/kube/e2e" // of what a run leaves while it runs

	// patience is for one thing to come about. The machine is shared by all nodes, and
	// perhaps by others.
	patience = 5 * time.Minute
	poll     = 500 * time.Millisecond

	nobody = 65532 // whom the pods run as
)

// lab is a Kubernetes of three nodes.
type lab struct {
	*testing.T
	image    string // of coordinators and workers
	next     string // the same under another name
	operator string
	home     string // absolute
	began    time.Time
	before   string // of the machine
}

// newLab starts the nodes; they go with the test.
func newLab(t *testing.T) *lab {
	t.Helper()
	image := os.Getenv("SKEIN_E2E")
	if image == "" {
		t.Skip("SKIPPED: `make e2e` runs this, with the images that it has made")
	}
	where, err := filepath.Abs(home)
	if err != nil {
		t.Fatal(err)
	}
	repository, version, _ := strings.Cut(image, "skein:")
	l := &lab{T: t, image: image, next: image + "-next", operator: repository + "skein-operator:" + version, home: where, began: time.Now()}
	kube := strings.TrimSpace(l.command(nil, root+"/scripts/kube.sh", "nodes", "--where"))
	if reason := strings.TrimSpace(l.nodes("lacks", kube)); reason != "" {
		t.Skip("SKIPPED: " + reason)
	}
	l.nodes("down", l.state())
	if err := os.RemoveAll(l.home); err != nil {
		t.Fatal(err)
	}
	l.before = machine(t)
	t.Cleanup(func() { l.nodes("down", l.state()) })
	l.nodes("up", kube, l.state(), "3")
	l.say("3 nodes are up")
	l.nodes("load", root+"/bin/skein.tar", root+"/bin/skein-next.tar", root+"/bin/skein-operator.tar")
	return l
}

// down ends the nodes, of which nothing may be left.
func (l *lab) down() {
	l.Helper()
	l.nodes("down", l.state())
	if after := machine(l.T); after != l.before {
		l.Fatalf("the machine was changed.\nbefore:\n%s\nafter:\n%s", l.before, after)
	}
	l.say("the nodes are gone, and the machine is as it was")
}

func (l *lab) state() string { return filepath.Join(l.home, "state") }

// say prints a line of the run's story.
func (l *lab) say(format string, args ...any) {
	fmt.Printf("%6.1fs  %s\n", time.Since(l.began).Seconds(), fmt.Sprintf(format, args...))
}

// command runs a program to its end; it has to succeed.
func (l *lab) command(env []string, name string, args ...string) string {
	l.Helper()
	out, err := l.try(env, name, args...)
	if err != nil {
		l.fail("%s %s: %v", filepath.Base(name), strings.Join(args, " "), err)
	}
	return out
}

// try is command for a program that may fail.
func (l *lab) try(env []string, name string, args ...string) (string, error) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(l.Context()), patience)
	defer stop()
	c := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	c.Env, c.Stdout, c.Stderr, c.WaitDelay = append(os.Environ(), env...), &out, &errs, time.Second
	if err := c.Run(); err != nil {
		return out.String(), fmt.Errorf("%w: %s", err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// nodes calls the script that makes the nodes.
func (l *lab) nodes(args ...string) string {
	l.Helper()
	return l.command(l.env(), "./nodes.sh", args...)
}

func (l *lab) env() []string { return []string{"SKEIN_NODES=" + l.state()} }

// kubectl runs a command line as a user would.
func (l *lab) kubectl(args ...string) string {
	l.Helper()
	return l.nodes(append([]string{"kubectl"}, args...)...)
}

// get reads objects into a value.
func (l *lab) get(into any, args ...string) error {
	out, err := l.try(l.env(), "./nodes.sh", append(append([]string{"kubectl", "get"}, args...), "-o", "json")...)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(out), into)
}

// eventually waits until nothing is left to wait for; what there is, it is told.
func (l *lab) eventually(what string, pending func() error) {
	l.Helper()
	var last error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(poll) {
		if last = pending(); last == nil {
			l.say("%s", what)
			return
		}
	}
	l.fail("%s: not within %v: %v", what, patience, last)
}

// fail ends the test with what there is to see of the cluster.
func (l *lab) fail(format string, args ...any) {
	l.Helper()
	for _, look := range [][]string{
		{"get", "nodes,pods,pvc,skeinclusters,finetunejobs", "-A", "-o", "wide"}, {"describe", "skeinclusters,finetunejobs"},
		{"get", "events", "-A", "--sort-by=.metadata.creationTimestamp"}, {"-n", "skein-system", "logs", "deploy/skein-operator", "--tail=60"},
		{"logs", "-l", "skein.dev/cluster", "--tail=25", "--prefix"},
	} {
		out, err := l.try(l.env(), "./nodes.sh", append([]string{"kubectl"}, look...)...)
		fmt.Printf("--- kubectl %s %v\n%s\n", strings.Join(look, " "), err, out)
	}
	l.Fatalf(format, args...)
}

// job reads a FineTuneJob.
func (l *lab) job(name string) (*v1alpha1.FineTuneJob, error) {
	j := &v1alpha1.FineTuneJob{}
	return j, l.get(j, "finetunejob", name)
}

// cluster reads the SkeinCluster.
func (l *lab) cluster() (*v1alpha1.SkeinCluster, error) {
	c := &v1alpha1.SkeinCluster{}
	return c, l.get(c, "skeincluster", "lab")
}

// pods lists the cluster's pods of a role that are not leaving.
func (l *lab) pods(role string) ([]corev1.Pod, error) {
	var list corev1.PodList
	if err := l.get(&list, "pods", "-l", v1alpha1.LabelCluster+"=lab,"+v1alpha1.LabelRole+"="+role); err != nil {
		return nil, err
	}
	var here []corev1.Pod
	for i := range list.Items {
		if list.Items[i].DeletionTimestamp == nil {
			here = append(here, list.Items[i])
		}
	}
	return here, nil
}

// apply gives manifests to the API server.
func (l *lab) apply(manifests ...any) {
	l.Helper()
	items, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "List", "items": manifests})
	if err != nil {
		l.Fatal(err)
	}
	file := filepath.Join(l.TempDir(), "manifests.json")
	if err := os.WriteFile(file, items, 0o600); err != nil {
		l.Fatal(err)
	}
	l.kubectl("apply", "-f", file)
}

// folder makes a folder below home that the pods may write to.
func (l *lab) folder(name string) string {
	l.Helper()
	path := filepath.Join(l.home, name)
	if err := errors.Join(os.MkdirAll(path, 0o755), os.Chown(path, nobody, nobody)); err != nil {
		l.Fatal(err)
	}
	return path
}

// machine is what a run must leave as it was: interfaces, routes, rules, sysctls, mounts,
// cgroups, and the folders that kubelets and container runtimes like to write to.
func machine(t *testing.T) string {
	t.Helper()
	const look = `ip -br addr; ip route; iptables-save | grep -v '^#' || true; stat -c '%A %u:%g %t:%T' /dev/null; sort /proc/self/mounts
		for f in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys net/ipv4/ip_forward; do echo "$f $(cat /proc/sys/$f)"; done
		find /sys/fs/cgroup -maxdepth 2 -type d -name 'skein-e2e*'
		for d in /opt /var/lib/kubelet /var/lib/cni /var/lib/containerd /var/log/pods /var/log/containers /run/containerd /run/netns /etc/cni /usr/libexec/kubernetes; do
			[ ! -d $d ] || ls -d $d $d/*; done 2>&1`
	out, err := exec.Command("bash", "-c", look).Output()
	if err != nil {
		t.Fatalf("looking at the machine: %v", err)
	}
	return string(out)
}
