// Package operator makes what SkeinClusters and FineTuneJobs ask for. Package policy
// decides; this package reads the API server and the coordinators, applies what was
// decided, and writes down how it stands. It speaks to coordinators as any user does.
package operator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
)

// Config is what the operator needs. Zero values mean the defaults.
type Config struct {
	Namespaces []string // that it looks at; all, if empty
	Metrics    string   // host:port for /metrics; "0": none
	Health     string   // host:port for /healthz and /readyz; "0": none
	Leader     bool     // of several operators one alone acts
	LeaderIn   string   // namespace of the lock; that of the pod, if empty
	Build      string   // version of this program

	// Poll is how often the coordinators of a cluster with active jobs are asked; 2 s. A
	// cluster without is asked every PollIdle; 15 s.
	Poll     time.Duration
	PollIdle time.Duration

	Gangs string // how workers that start together are kept together: auto (also ""), podgroups, gates

	// Dial reaches the coordinators of a cluster; nil: at their addresses.
	Dial Dial

	Logger *slog.Logger // nil: nobody listens
}

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	if c.Poll == 0 {
		c.Poll = 2 * time.Second
	}
	if c.PollIdle == 0 {
		c.PollIdle = 15 * time.Second
	}
	if c.Metrics == "" {
		c.Metrics = "0"
	}
	if c.Health == "" {
		c.Health = "0"
	}
	if c.Gangs == "" {
		c.Gangs = GangsAuto
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Dial == nil {
		c.Dial = dial
	}
}

// Validate names every conflict.
func (c *Config) Validate() error {
	if c.Poll < 0 || c.PollIdle < 0 {
		return fmt.Errorf("poll: %s and %s; a time must be more than 0", c.Poll, c.PollIdle)
	}
	if !slices.Contains([]string{GangsAuto, GangsGroups, GangsGates}, c.Gangs) {
		return fmt.Errorf("gangs: %q; there are %s, %s and %s", c.Gangs, GangsAuto, GangsGroups, GangsGates)
	}
	return nil
}

// Scheme knows all kinds that the operator reads and writes.
func Scheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(s); err != nil {
			panic(fmt.Sprintf("operator: a scheme that cannot be: %v", err))
		}
	}
	return s
}

// lock is the name of the lease that makes one operator of several act.
const lock = "skein-operator"

// Run is the operator; it returns when ctx ends, or when it cannot go on.
func Run(ctx context.Context, to *rest.Config, c Config) error {
	c.EnsureDefaults()
	if err := c.Validate(); err != nil {
		return err
	}
	ctrl.SetLogger(logr.FromSlogHandler(c.Logger.Handler()))
	options := ctrl.Options{
		Scheme: Scheme(), Metrics: server.Options{BindAddress: c.Metrics}, HealthProbeBindAddress: c.Health,
		LeaderElection: c.Leader, LeaderElectionID: lock, LeaderElectionNamespace: c.LeaderIn, LeaderElectionReleaseOnCancel: true,
		Controller: config.Controller{SkipNameValidation: new(true)}, // a test runs several operators in one process
	}
	if len(c.Namespaces) > 0 {
		options.Cache.DefaultNamespaces = map[string]cache.Config{}
		for _, n := range c.Namespaces {
			options.Cache.DefaultNamespaces[n] = cache.Config{}
		}
	}
	m, err := ctrl.NewManager(to, options)
	if err != nil {
		return err
	}
	groups, err := grouped(c.Gangs, m.GetRESTMapper())
	if err != nil {
		return err
	}
	contacts := newContacts(m.GetAPIReader(), c)
	defer contacts.close()
	err = errors.Join(
		(&clusters{shared: shared{m.GetClient(), m.GetAPIReader(), m.GetEventRecorder(lock), contacts, c}, idle: newIdle(), grouped: groups}).setup(m),
		(&jobs{shared{m.GetClient(), m.GetAPIReader(), m.GetEventRecorder(lock), contacts, c}}).setup(m),
		m.AddHealthzCheck("healthz", healthz.Ping), m.AddReadyzCheck("readyz", healthz.Ping),
	)
	if err != nil {
		return err
	}
	return m.Start(ctx)
}

// Start is Run with the API server of a file, or of the pod that this runs in.
func Start(ctx context.Context, kubeconfig string, c Config) error {
	to, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("which API server? in a pod it is known, elsewhere give --kubeconfig: %w", err)
	}
	to.QPS = -1 // the API server itself sees to it that nobody takes more than a share
	return Run(ctx, to, c)
}

// Reconcilers are the controllers without a manager, for tests that take one step after
// the other.
func Reconcilers(to client.Client, c Config) (clusterSide, jobSide reconcile.Reconciler) {
	c.EnsureDefaults()
	contacts := newContacts(to, c)
	with := shared{to, to, quiet{}, contacts, c}
	return &clusters{shared: with, idle: newIdle(), grouped: c.Gangs == GangsGroups}, &jobs{with}
}

// quiet drops events.
type quiet struct{}

// Eventf implements events.EventRecorder.
func (quiet) Eventf(runtime.Object, runtime.Object, string, string, string, string, ...any) {}
