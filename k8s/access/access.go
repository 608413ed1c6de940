// Package access is an engineer's way to a SkeinCluster in Kubernetes. It has a
// kubeconfig and nothing else: it finds the cluster, reads the client's certificate that
// the operator made, and reaches coordinators through the API server, so that nobody
// needs to know of pods.
package access

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // those that a kubeconfig may name
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/klog/v2"

	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	"github.com/skein-ml/skein/k8s/policy"
)

// Config says which cluster. Zero values mean what kubectl means by them.
type Config struct {
	Kubeconfig string        // file; "": $KUBECONFIG, else ~/.kube/config, else that of the pod
	Context    string        // of the file; "": its current one
	Namespace  string        // "": that of the context
	Cluster    string        // SkeinCluster; "": the only one of the namespace
	Build      string        // version of this program
	Patience   time.Duration // for one answer of the API server; 0: 10 s
	Warn       func(string)  // told what the API server warns of; may be nil
}

// ChoiceError says that what is asked for is not there, or could be several things.
type ChoiceError struct{ text string }

func (e *ChoiceError) Error() string { return e.text }

// UnreachableError says that the API server does not answer.
type UnreachableError struct {
	Host string
	Err  error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("the API server at %s does not answer: %v; see whether `kubectl get skeinclusters` works", e.Host, cause(e.Err))
}

// Unwrap gives what went wrong.
func (e *UnreachableError) Unwrap() error { return e.Err }

// cause leaves out the request, which a user has not made.
func cause(err error) error {
	if request, ok := errors.AsType[*url.Error](err); ok {
		return request.Err
	}
	return err
}

// silence drops the library's remarks, which are not for users.
var silence = sync.OnceFunc(func() { klog.SetLogger(logr.Discard()) })

// Kube is the API server of a Kubernetes, seen from one namespace. It is safe for
// concurrent use.
type Kube struct {
	config    Config
	rest      *rest.Config
	http      rest.Interface
	namespace string
}

// Open reads the kubeconfig. Nothing is asked yet.
func Open(c Config) (*Kube, error) {
	if c.Patience <= 0 {
		c.Patience = 10 * time.Second
	}
	silence()
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath, rules.WarnIfAllMissing = c.Kubeconfig, false
	overrides := &clientcmd.ConfigOverrides{CurrentContext: c.Context, Context: clientcmdapi.Context{Namespace: c.Namespace}}
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides)
	to, err := loader.ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, &ChoiceError{"which Kubernetes? there is no kubeconfig; give --kubeconfig FILE, or set KUBECONFIG"}
	}
	if err != nil {
		return nil, &ChoiceError{fmt.Sprintf("kubeconfig: %s; see `kubectl config view`", oneLine(err))}
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, &ChoiceError{fmt.Sprintf("kubeconfig: %s; see `kubectl config view`", oneLine(err))}
	}
	return with(to, namespace, c)
}

// With is Open for who has a connection already. The namespace is c's, or default.
func With(to *rest.Config, c Config) (*Kube, error) {
	if c.Patience <= 0 {
		c.Patience = 10 * time.Second
	}
	namespace := c.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	return with(rest.CopyConfig(to), namespace, c)
}

func with(to *rest.Config, namespace string, c Config) (*Kube, error) {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"}) // what errors are made of
	to.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	to.QPS = -1 // no limit: a command asks a few times
	to.ContentType, to.UserAgent, to.WarningHandler = "application/json", "skein/"+c.Build, warner(c.Warn)
	talk, err := rest.UnversionedRESTClientFor(to)
	if err != nil {
		return nil, &ChoiceError{fmt.Sprintf("kubeconfig: %s; see `kubectl config view`", oneLine(err))}
	}
	return &Kube{config: c, rest: to, http: talk, namespace: namespace}, nil
}

// warner passes warnings on; nil drops them.
type warner func(string)

// HandleWarningHeader implements rest.WarningHandler.
func (w warner) HandleWarningHeader(code int, _, text string) {
	if w != nil && code == 299 && text != "" {
		w(text)
	}
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// Namespace is where clusters and jobs are looked for.
func (k *Kube) Namespace() string { return k.namespace }

// send makes a request and reads the answer as JSON; into may be nil.
func (k *Kube) send(ctx context.Context, r *rest.Request, into any) error {
	within, cancel := context.WithTimeout(ctx, k.config.Patience)
	defer cancel()
	answer := r.Do(within)
	if err := answer.Error(); err != nil {
		return cmp.Or(ctx.Err(), k.explain(err))
	}
	raw, err := answer.Raw()
	if err != nil || into == nil {
		return err
	}
	return json.Unmarshal(raw, into)
}

// explain says what to do about an answer that is an error. What callers look at stays
// an error of the API server.
func (k *Kube) explain(err error) error {
	status, answered := errors.AsType[*apierrors.StatusError](err)
	switch {
	case !answered:
		return &UnreachableError{k.rest.Host, err}
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%w; ask for the role `edit` in namespace %s", err, k.namespace)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("the API server at %s does not know you (%w); log in again, or choose another --context", k.rest.Host, err)
	case status.ErrStatus.Code >= http.StatusInternalServerError || apierrors.IsTooManyRequests(err):
		return &UnreachableError{k.rest.Host, err}
	}
	return err
}

// path is where the objects of a kind of ours are.
func (k *Kube) path(resource string, more ...string) []string {
	return append([]string{"apis", v1alpha1.GroupVersion.Group, v1alpha1.GroupVersion.Version, "namespaces", k.namespace, resource}, more...)
}

// Cluster finds the SkeinCluster: the one that is asked for, or the only one.
func (k *Kube) Cluster(ctx context.Context) (*v1alpha1.SkeinCluster, error) {
	var list v1alpha1.SkeinClusterList
	err := k.send(ctx, k.http.Get().AbsPath(k.path("skeinclusters")...), &list)
	if apierrors.IsNotFound(err) {
		return nil, &ChoiceError{fmt.Sprintf("the API server at %s knows no SkeinClusters; install Skein there (docs/KUBERNETES.md), or choose another --context", k.rest.Host)}
	}
	if err != nil {
		return nil, err
	}
	names := make([]string, len(list.Items))
	for i := range list.Items {
		names[i] = list.Items[i].Name
		if names[i] == k.config.Cluster {
			return &list.Items[i], nil
		}
	}
	switch {
	case k.config.Cluster != "":
		return nil, &ChoiceError{fmt.Sprintf("namespace %s has no SkeinCluster %s (here: %s); give another --cluster or --namespace", k.namespace, k.config.Cluster, listed(names))}
	case len(names) == 0:
		return nil, &ChoiceError{fmt.Sprintf("namespace %s has no SkeinCluster; give another --namespace, or make one (docs/KUBERNETES.md)", k.namespace)}
	case len(names) > 1:
		return nil, &ChoiceError{fmt.Sprintf("namespace %s has several SkeinClusters: %s; say which with --cluster", k.namespace, listed(names))}
	}
	return &list.Items[0], nil
}

func listed(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// Credentials reads the certificate with which users speak to the coordinators.
func (k *Kube) Credentials(ctx context.Context, c *v1alpha1.SkeinCluster) (*pki.Files, error) {
	name := policy.ClientSecret(c)
	var secret struct {
		Data map[string][]byte `json:"data"`
	}
	err := k.send(ctx, k.http.Get().AbsPath("api", "v1", "namespaces", k.namespace, "secrets", name), &secret)
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("the operator has not made secret %s yet; see `kubectl describe skeincluster %s`", name, c.Name)
	}
	if err != nil {
		return nil, err
	}
	files, err := pki.ParseFiles(secret.Data, time.Now())
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w; delete it, and the operator makes another", name, err)
	}
	return files, nil
}
