package apitest

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
)

// page is what users of Kubernetes read.
const page = "../../docs/KUBERNETES.md"

// block is one fenced block of the page.
type block struct{ kind, text string }

// commands are its lines; one that ends with a backslash goes on.
func (b block) commands() (list []string) {
	for line := range strings.Lines(strings.ReplaceAll(b.text, "\\\n", "")) {
		if line = strings.TrimSpace(line); line != "" {
			list = append(list, line)
		}
	}
	return list
}

func blocks(t *testing.T) (list []block) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for i, part := range strings.Split("\n"+string(text), "\n```") {
		if i%2 == 1 {
			kind, lines, _ := strings.Cut(part, "\n")
			list = append(list, block{kind, lines})
		}
	}
	if len(list) == 0 {
		t.Fatalf("%s has no block", page)
	}
	return list
}

// verbs are the commands of kubectl and helm that the page may use.
var verbs = map[string][]string{
	"kubectl": {"apply", "get", "describe", "explain", "scale", "patch", "annotate", "delete"},
	"helm":    {"install", "upgrade", "uninstall"},
	"skein":   nil, // the program's own tests hold these against its commands
}

func TestEveryBlockOfThePageIsACommandOrAManifest(t *testing.T) {
	reasons := regexp.MustCompile("`([A-Z][A-Za-z]+)`")
	for _, b := range blocks(t) {
		switch b.kind {
		case "sh":
		case "yaml":
			job := v1alpha1.FineTuneJob{}
			if err := yaml.Unmarshal([]byte(b.text), &job); err != nil {
				t.Errorf("%v in\n%s", err, b.text)
			} else if _, err := job.Read("/shared"); job.Kind == v1alpha1.KindFineTuneJob && err != nil {
				t.Errorf("%v in\n%s", err, b.text)
			}
			continue
		default:
			t.Errorf("a block is %q; only sh and yaml are run:\n%s", b.kind, b.text)
			continue
		}
		for _, line := range b.commands() {
			words := strings.Fields(line)
			known, ok := verbs[words[0]]
			if !ok || known != nil && !slices.Contains(known, words[1]) {
				t.Errorf("nobody tries %q", line)
			}
			for _, w := range words {
				if _, err := os.Stat("../../" + w); strings.HasPrefix(w, "k8s/") && err != nil || strings.HasPrefix(w, "examples/") && err != nil {
					t.Errorf("%q: %v", line, err)
				}
			}
		}
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	sources := sources(t)
	_, table, _ := strings.Cut(string(text), "## Troubleshooting")
	for row := range strings.Lines(table) {
		what, _, _ := strings.Cut(strings.TrimPrefix(row, "|"), "|")
		for _, reason := range reasons.FindAllStringSubmatch(what, -1) {
			if !strings.Contains(sources, `"`+reason[1]+`"`) && reason[1] != "SchedulingGated" { // kubectl's own word
				t.Errorf("nothing says %s, which Troubleshooting tells of", reason[1])
			}
		}
	}
}

// sources are the operator and what it has to say.
func sources(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, pattern := range []string{"../api/*/*.go", "../policy/*.go", "../operator/*.go"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			all.Write(b)
		}
	}
	return all.String()
}

// tools is a folder of what there is of kubectl and helm.
func tools(t *testing.T) (dir string, has map[string]bool) {
	t.Helper()
	dir, has = t.TempDir(), map[string]bool{}
	for name, pattern := range map[string]string{"kubectl": "../../.cache/kube/*/kubectl", "helm": "../../.cache/bin/helm"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		if len(found) == 0 {
			continue
		}
		path, err := filepath.Abs(found[len(found)-1])
		if err == nil {
			err = os.Symlink(path, filepath.Join(dir, name))
		}
		if err != nil {
			t.Fatal(err)
		}
		has[name] = true
	}
	return dir, has
}

// kubeconfig leads to a namespace of the API server, as one who may do everything.
func kubeconfig(t *testing.T, namespace string) []byte {
	t.Helper()
	c := api.NewConfig()
	c.Clusters["test"] = &api.Cluster{Server: server.Host, CertificateAuthorityData: server.CAData}
	c.AuthInfos["test"] = &api.AuthInfo{ClientCertificateData: server.CertData, ClientKeyData: server.KeyData, Token: server.BearerToken}
	c.Contexts["test"] = &api.Context{Cluster: "test", AuthInfo: "test", Namespace: namespace}
	c.CurrentContext = "test"
	b, err := clientcmd.Write(*c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// enough is how long a command of the page may take on a busy machine.
const enough = 2 * time.Minute

// reader is a user in front of a terminal.
type reader struct {
	*testing.T
	env []string
}

// does runs a command of the page, from the root of the repository.
func (r reader) does(line string) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), enough)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", "exec "+line)
	cmd.Dir, cmd.Env, cmd.WaitDelay = "../..", r.env, time.Minute
	var out output
	cmd.Stdout, cmd.Stderr = &out, &out
	watches := strings.Contains(line, "--watch")
	if watches { // it goes on until it has shown something
		out.first = cancel
	}
	err := cmd.Run()
	if watches && out.String() != "" && ctx.Err() == context.Canceled {
		err = nil
	}
	if err != nil {
		r.Errorf("%s: %v\n%s", line, err, out.String())
	}
}

// output keeps what a command prints, and tells of the first of it.
type output struct {
	mu    sync.Mutex
	text  bytes.Buffer
	first func()
}

// Write implements io.Writer.
func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.first != nil {
		o.first()
	}
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// TestEveryCommandOfThePageDoesItsWork runs the page from its beginning to its end, as a
// platform team and an engineer would.
func TestEveryCommandOfThePageDoesItsWork(t *testing.T) {
	c := admin(t)
	dir, has := tools(t)
	if !has["kubectl"] {
		t.Skip("SKIPPED: no kubectl in .cache/kube; `make kube-nodes` builds one, once")
	}
	ns := &corev1.Namespace{}
	ns.GenerateName = "documented-"
	if err := c.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(file, kubeconfig(t, ns.Name), 0o600); err != nil {
		t.Fatal(err)
	}
	r := reader{t, append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "KUBECONFIG="+file, "HOME="+dir, "XDG_CACHE_HOME="+dir)}
	for _, b := range blocks(t) {
		if b.kind == "yaml" {
			for part := range strings.SplitSeq(b.text, "\n---\n") {
				u := &unstructured.Unstructured{}
				if err := yaml.Unmarshal([]byte(part), &u.Object); err != nil {
					t.Fatal(err)
				}
				u.SetNamespace(ns.Name)
				if err := c.Create(t.Context(), u, strict, client.DryRunAll); err != nil {
					t.Errorf("%v in\n%s", err, b.text)
				}
			}
			continue
		}
		for _, line := range b.commands() {
			switch program, _, _ := strings.Cut(line, " "); {
			case program == "skein":
			case !has[program]:
				t.Logf("SKIPPED: %s: `make %s` builds the program, once", line, program)
			case program == "helm":
				r.does(line + " --take-ownership") // what kubectl apply has made before
			default:
				r.does(line)
			}
		}
	}
}
