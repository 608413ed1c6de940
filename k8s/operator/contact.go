package operator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	kube "sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	"github.com/skein-ml/skein/k8s/policy"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// Coordinators is what the operator asks of a cluster. [client.Client] is one.
type Coordinators interface {
	Submit(ctx context.Context, s *client.Submission) (id, leader string, err error)
	Get(ctx context.Context, id string) (*skeinv1.GetResponse, error)
	List(ctx context.Context, activeOnly bool) ([]*skeinv1.Job, error)
	Cancel(ctx context.Context, id, reason string) error
	Pause(ctx context.Context, id, reason string) error
	Resume(ctx context.Context, id string) error
	Scale(ctx context.Context, id string, workers int32) (useful int32, err error)
	Nodes(ctx context.Context) (*skeinv1.NodesResponse, error)
	AddCoordinator(ctx context.Context, id, address string) error
	RemoveCoordinator(ctx context.Context, id string, force bool) error
	TransferLeadership(ctx context.Context, id string) error
	Close() error
}

// Dial reaches the coordinators of a cluster. Addresses are those of its pods.
type Dial func(addresses []string, secure *tls.Config, build string) (Coordinators, error)

// patience is how long the operator waits for a leader before it says that there is none
// and looks at other things.
const patience = 3 * time.Second

func dial(addresses []string, secure *tls.Config, build string) (Coordinators, error) {
	return client.New(client.Config{Coordinators: addresses, TLS: secure, Build: build, Patience: patience})
}

// operatorValidity is how long the operator's own certificates are good for. They live in
// its memory alone, and are made again with half of their time left.
const operatorValidity = 24 * time.Hour

// contacts are the connections to clusters.
type contacts struct {
	live   kube.Reader
	config Config

	mu   sync.Mutex
	open map[types.NamespacedName]*contact
}

type contact struct {
	Coordinators
	addresses []string
	authority string // its certificate
	renew     time.Time
}

func newContacts(live kube.Reader, c Config) *contacts {
	return &contacts{live: live, config: c, open: map[types.NamespacedName]*contact{}}
}

// to returns the connection to a cluster, made as an admin of it. It connects when it is
// first used.
func (c *contacts) to(ctx context.Context, cluster *v1alpha1.SkeinCluster) (Coordinators, error) {
	ca, err := c.authority(ctx, cluster)
	if err != nil {
		return nil, err
	}
	addresses := policy.Addresses(cluster, policy.Replicas(cluster))
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	known := c.open[kube.ObjectKeyFromObject(cluster)]
	if known != nil && slices.Equal(known.addresses, addresses) && known.authority == string(ca.Certificate()) && now.Before(known.renew) {
		return known, nil
	}
	files, err := ca.Member(pki.Admin, "skein-operator", nil, operatorValidity)
	if err != nil {
		return nil, err
	}
	conn, err := c.config.Dial(addresses, files.Expect(pki.Coordinator), c.config.Build)
	if err != nil {
		return nil, err
	}
	if known != nil {
		err = known.Close()
	}
	now = now.Add(operatorValidity / 2)
	c.open[kube.ObjectKeyFromObject(cluster)] = &contact{conn, addresses, string(ca.Certificate()), now}
	return conn, err
}

// errNoAuthority is the error of a cluster that has no certificates yet.
var errNoAuthority = errors.New("its certificates are not made yet")

// authority reads the authority of a cluster.
func (c *contacts) authority(ctx context.Context, cluster *v1alpha1.SkeinCluster) (*pki.CA, error) {
	var secret corev1.Secret
	err := c.live.Get(ctx, kube.ObjectKey{Namespace: cluster.Namespace, Name: policy.AuthoritySecret(cluster)}, &secret)
	if kube.IgnoreNotFound(err) != nil {
		return nil, err
	}
	if err != nil {
		return nil, errNoAuthority
	}
	ca, err := pki.ParseCA(secret.Data, time.Now())
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", secret.Name, err)
	}
	return ca, nil
}

// forget closes the connection to a cluster that is gone.
func (c *contacts) forget(name types.NamespacedName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if known := c.open[name]; known != nil {
		delete(c.open, name)
		known.Close() //nolint:errcheck // nothing is lost with it
	}
}

func (c *contacts) close() {
	c.mu.Lock()
	names := slices.Collect(maps.Keys(c.open))
	c.mu.Unlock()
	for _, name := range names {
		c.forget(name)
	}
}
