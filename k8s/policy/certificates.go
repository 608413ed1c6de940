package policy

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
)

// Keys of the Secrets, which are the names of the files that processes read.
const (
	FileAuthority   = "ca.crt"
	FileCertificate = "tls.crt"
	FileKey         = "tls.key"
	FileGossip      = "gossip.key"
)

const (
	// CertificateValidity is how long certificates are good for.
	CertificateValidity = 90 * 24 * time.Hour
	// rotateBefore is how long before its end a certificate is replaced: long enough for
	// somebody to notice that it was not.
	rotateBefore = 30 * 24 * time.Hour
)

// Due tells whether a certificate that ends then has to be replaced now.
func Due(now, ends time.Time) bool { return !now.Before(ends.Add(-rotateBefore)) }

// CoordinatorHosts are the names at which a coordinator is called.
func CoordinatorHosts(c *v1alpha1.SkeinCluster, id string) []string {
	return hosts(Host(c, Coordinators(c), id))
}

// WorkerHosts are the names at which a worker is called.
func WorkerHosts(c *v1alpha1.SkeinCluster, pod string) []string {
	return hosts(Host(c, Workers(c), pod))
}

// hosts allow for a caller on the same machine, as kubectl port-forward is.
func hosts(name string) []string {
	return []string{name, fmt.Sprintf("%s.cluster.local", name), "localhost", "127.0.0.1"}
}

// Secret holds files by their names.
func Secret(c *v1alpha1.SkeinCluster, name string, parts map[string][]byte) *corev1.Secret {
	return &corev1.Secret{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metadata(c, name, ""), Type: corev1.SecretTypeOpaque, Data: parts,
	}
}
