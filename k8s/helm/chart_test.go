// Package helm holds the chart against k8s/config: with its own values it makes the same
// objects, and each value changes what it says.
package helm

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/template"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the files that the chart takes over from k8s/config")

// keep is the annotation with which helm leaves an object behind.
const keep = "helm.sh/resource-policy"

// taken are the files of the chart that are those of k8s/config, or documents of them.
func taken(t *testing.T) map[string]string {
	t.Helper()
	const generated = "# Taken over from k8s/config with `make generate`; do not edit.\n"
	all := map[string]string{}
	for _, kind := range []string{"skeinclusters", "finetunejobs"} {
		name := "skein.dev_" + kind + ".yaml"
		head, rest, ok := strings.Cut(read(t, "../config/crd/"+name), "metadata:\n")
		if !ok {
			t.Fatalf("%s has no metadata", name)
		}
		all["files/"+name] = generated + head + "metadata:\n  annotations:\n    " + keep + ": keep\n" + rest
	}
	for doc := range strings.SplitSeq(read(t, "../config/rbac.yaml"), "\n---\n") {
		switch o := object(t, doc); {
		case o.GetKind() != "ClusterRole":
		case o.GetName() == "skein-operator":
			all["files/operator-role.yaml"] = generated + strings.TrimSpace(doc) + "\n"
		case all["files/people-roles.yaml"] == "":
			all["files/people-roles.yaml"] = generated + strings.TrimSpace(doc) + "\n"
		default:
			all["files/people-roles.yaml"] += "---\n" + strings.TrimSpace(doc) + "\n"
		}
	}
	return all
}

func TestGeneratedFilesOfTheChartAreThoseOfTheConfig(t *testing.T) {
	want := taken(t)
	for name, text := range want {
		if *rewrite {
			if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(name); err != nil || string(got) != text {
			t.Errorf("%s is not what k8s/config says (%v); run `make generate`", name, err)
		}
	}
	there, err := filepath.Glob("files/*")
	if err != nil || !slices.Equal(there, slices.Sorted(maps.Keys(want))) {
		t.Errorf("files are %q, %v", there, err)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func object(t *testing.T, doc string) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(doc), &u.Object); err != nil {
		t.Fatalf("%v in\n%s", err, doc)
	}
	return u
}

// objects are those of a stream of documents, by kind, namespace and name.
func objects(t *testing.T, text string) map[string]map[string]any {
	t.Helper()
	all := map[string]map[string]any{}
	for doc := range strings.SplitSeq("\n"+text, "\n---\n") {
		u := object(t, doc)
		if len(u.Object) == 0 {
			continue
		}
		key := fmt.Sprintf("%s %s/%s", u.GetKind(), u.GetNamespace(), u.GetName())
		if all[key] != nil {
			t.Errorf("%s is there twice", key)
		}
		if u.GetKind() == "CustomResourceDefinition" {
			if u.GetAnnotations()[keep] != "keep" {
				t.Errorf("%s goes when the chart is uninstalled, and all its objects with it", key)
			}
			unstructured.RemoveNestedField(u.Object, "metadata", "annotations")
		}
		all[key] = u.Object
	}
	return all
}

// files are those of a chart, as templates read them.
type files struct{}

// Get is what helm has.
func (files) Get(name string) (string, error) {
	b, err := os.ReadFile(name)
	return string(b), err
}

// functions are those of helm that the templates use, and no others: so a chart that needs
// more fails here.
var functions = template.FuncMap{
	"toYaml": func(v any) (string, error) {
		b, err := yaml.Marshal(v)
		return strings.TrimSuffix(string(b), "\n"), err
	},
	"nindent": func(n int, s string) string {
		pad := "\n" + strings.Repeat(" ", n)
		return pad + strings.ReplaceAll(s, "\n", pad)
	},
	"quote": func(v any) string { return strconv.Quote(fmt.Sprint(v)) },
	"join": func(by string, list []any) string {
		words := make([]string, len(list))
		for i, v := range list {
			words[i] = fmt.Sprint(v)
		}
		return strings.Join(words, by)
	},
}

// values are the chart's own, with some changed: each is a key and its YAML.
func values(t *testing.T, changes map[string]string) map[string]any {
	t.Helper()
	tree := object(t, read(t, "values.yaml")).Object
	for path, text := range changes {
		var v any
		if err := yaml.Unmarshal([]byte(text), &v); err != nil {
			t.Fatal(err)
		}
		if err := unstructured.SetNestedField(tree, v, strings.Split(path, ".")...); err != nil {
			t.Fatal(err)
		}
	}
	return tree
}

// render makes what helm template would.
func render(t *testing.T, namespace string, changes map[string]string) string {
	t.Helper()
	data := map[string]any{
		"Values": values(t, changes), "Files": files{},
		"Release": map[string]any{"Namespace": namespace, "Name": "skein"}, "Chart": object(t, read(t, "Chart.yaml")).Object,
	}
	names, err := filepath.Glob("templates/*.yaml")
	if err != nil || len(names) == 0 {
		t.Fatalf("templates: %v, %v", names, err)
	}
	var all bytes.Buffer
	for _, name := range append(names, "templates/NOTES.txt") {
		var out bytes.Buffer
		parsed, err := template.New(name).Funcs(functions).Option("missingkey=error").Parse(read(t, name))
		if err == nil {
			err = parsed.Execute(&out, data)
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, ".yaml") {
			fmt.Fprintf(&all, "---\n%s\n", out.String())
		}
	}
	return all.String()
}

// config is what kubectl apply -k makes, but the namespace, which helm install makes with
// --create-namespace.
func config(t *testing.T) map[string]map[string]any {
	t.Helper()
	var k struct {
		Resources []string
		Images    []struct{ Name, NewName, NewTag string }
	}
	if err := yaml.UnmarshalStrict([]byte(read(t, "../config/kustomization.yaml")), &struct {
		APIVersion, Kind string
		Resources        *[]string
		Images           *[]struct{ Name, NewName, NewTag string }
	}{Resources: &k.Resources, Images: &k.Images}); err != nil {
		t.Fatalf("the kustomization does something that this test does not know: %v", err)
	}
	all := map[string]map[string]any{}
	for _, name := range k.Resources {
		for doc := range strings.SplitSeq(read(t, "../config/"+name), "\n---\n") {
			for _, image := range k.Images {
				doc = strings.ReplaceAll(doc, "image: "+image.Name+"\n", "image: "+image.NewName+":"+image.NewTag+"\n")
			}
			u := object(t, doc)
			if u.GetKind() != "Namespace" {
				all[fmt.Sprintf("%s %s/%s", u.GetKind(), u.GetNamespace(), u.GetName())] = u.Object
			}
		}
	}
	return all
}

func TestTheChartMakesWhatTheConfigMakes(t *testing.T) {
	if d := cmp.Diff(config(t), objects(t, render(t, "skein-system", nil))); d != "" {
		t.Errorf("k8s/config (-) and the chart (+) differ; make them the same in k8s/helm/templates:\n%s", d)
	}
}

func TestTheChartFollowsItsNamespace(t *testing.T) {
	text := render(t, "elsewhere", nil)
	if strings.Contains(text, "skein-system") {
		t.Error("skein-system is in it all the same")
	}
	for key, o := range objects(t, text) {
		kind := (&unstructured.Unstructured{Object: o}).GetKind()
		if clusterWide := strings.HasPrefix(kind, "Cluster") || kind == "CustomResourceDefinition"; strings.Contains(key, " elsewhere/") == clusterWide {
			t.Errorf("%s is in the wrong place", key)
		}
	}
}

func TestEachValueOfTheChartChangesWhatItSays(t *testing.T) {
	const deployment = "Deployment a/skein-operator"
	for path, c := range map[string]struct {
		value string
		at    string // object, then the way into it; "": the object itself
		want  string // YAML
	}{
		"image.repository":  {"registry.example/team/skein-operator", deployment + " spec.template.spec.containers.0.image", "registry.example/team/skein-operator:latest"},
		"image.tag":         {`"1.2"`, deployment + " spec.template.spec.containers.0.image", "localhost/skein-operator:1.2"},
		"image.pullPolicy":  {"Never", deployment + " spec.template.spec.containers.0.imagePullPolicy", "Never"},
		"imagePullSecrets":  {"[{name: registry}]", deployment + " spec.template.spec.imagePullSecrets", "[{name: registry}]"},
		"replicas":          {"2", deployment + " spec.replicas", "2"},
		"resources":         {"{limits: {memory: 1Gi}}", deployment + " spec.template.spec.containers.0.resources", "{limits: {memory: 1Gi}}"},
		"nodeSelector":      {"{role: infra}", deployment + " spec.template.spec.nodeSelector", "{role: infra}"},
		"tolerations":       {"[{key: infra, operator: Exists}]", deployment + " spec.template.spec.tolerations", "[{key: infra, operator: Exists}]"},
		"priorityClassName": {"high", deployment + " spec.template.spec.priorityClassName", "high"},
		"namespaces":        {"[red, blue]", deployment + " spec.template.spec.containers.0.args.3", "--namespaces=red,blue"},
		"crds.install":      {"false", "CustomResourceDefinition /finetunejobs.skein.dev", "null"},
		"roles.aggregate":   {"false", "ClusterRole /skein-edit", "null"},
	} {
		all := objects(t, render(t, "a", map[string]string{path: c.value}))
		parts := strings.SplitN(c.at, " ", 3)
		var got any
		if o := all[parts[0]+" "+parts[1]]; o != nil {
			got = o
		}
		if len(parts) == 3 {
			got = within(got, strings.Split(parts[2], ".")...)
		}
		var want any
		if err := yaml.Unmarshal([]byte(c.want), &want); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s: %s %s", path, c.value, c.at, d)
		}
	}
}

// within follows keys and indexes into a tree; nil: there is no such way.
func within(tree any, way ...string) any {
	for _, step := range way {
		switch at := tree.(type) {
		case map[string]any:
			tree = at[step]
		case []any:
			i, err := strconv.Atoi(step)
			if err != nil || i >= len(at) {
				return nil
			}
			tree = at[i]
		default:
			return nil
		}
	}
	return tree
}

func TestAnOperatorOfSomeNamespacesHasNoRightsInOthers(t *testing.T) {
	all := objects(t, render(t, "a", map[string]string{"namespaces": "[red, blue]"}))
	for key := range all {
		if strings.HasPrefix(key, "ClusterRoleBinding ") {
			t.Errorf("%s gives rights everywhere", key)
		}
	}
	for _, namespace := range []string{"red", "blue"} {
		binding := all["RoleBinding "+namespace+"/skein-operator-clusters"]
		if within(binding, "roleRef", "kind") != "ClusterRole" || within(binding, "subjects", "0", "namespace") != "a" {
			t.Errorf("in %s it is bound by %v", namespace, binding)
		}
	}
}

// program is helm itself, where `make helm` has built it.
func program(t *testing.T, args ...string) string {
	t.Helper()
	const path = "../../.cache/bin/helm"
	if _, err := os.Stat(path); err != nil {
		t.Skip("SKIPPED: no helm in .cache/bin; `make helm` builds it, once")
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+t.TempDir(), "HELM_CONFIG_HOME="+t.TempDir(), "HELM_DATA_HOME="+t.TempDir(), "KUBECONFIG=")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("helm %s: %v\n%s%s", strings.Join(args, " "), err, out, errs.String())
	}
	return string(out)
}

func TestHelmItselfFindsNoFaultAndMakesTheSame(t *testing.T) {
	if out := program(t, "lint", "--strict", "."); !strings.Contains(out, "0 chart(s) failed") {
		t.Errorf("helm lint says %s", out)
	}
	for _, set := range []map[string]string{nil, {"namespaces": "[red, blue]", "tolerations": "[{key: infra, operator: Exists}]", "image.pullPolicy": "Never", "crds.install": "false"}} {
		raw, err := yaml.Marshal(values(t, set))
		file := filepath.Join(t.TempDir(), "values.yaml")
		if err == nil {
			err = os.WriteFile(file, raw, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		out := program(t, "template", "skein", ".", "--namespace", "skein-system", "--kube-version", "1.37.0", "--values", file)
		if d := cmp.Diff(objects(t, render(t, "skein-system", set)), objects(t, out)); d != "" {
			t.Errorf("%v: this test's templates (-) and helm's (+) differ:\n%s", set, d)
		}
	}
}
