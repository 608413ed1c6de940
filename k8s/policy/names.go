// Package policy decides what the operator does, one policy in a file: which objects make
// up a cluster, when a coordinator joins or leaves, how many workers a pool has and which
// of them goes, what a job's conditions are. It asks neither clock nor API server: what it
// needs it is given, and it says why.
package policy

import (
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
)

// Ports of the processes.
const (
	CoordinatorPort = 7401
	RingPort        = 7411
	StreamPort      = 7412
	MonitorPort     = 9401
)

// Roles that pods have by the label.
const (
	RoleCoordinator = "coordinator"
	RoleWorker      = "worker"
)

// user is whom all containers run as: nobody on the node.
const user = 65532

// Coordinators is the name of the StatefulSet, the Service and the disruption budget.
func Coordinators(c *v1alpha1.SkeinCluster) string { return c.Name + "-coordinator" }

// Workers is the name of the Service that gives workers their addresses.
func Workers(c *v1alpha1.SkeinCluster) string { return c.Name + "-worker" }

// AuthoritySecret holds the cluster's certificate authority.
func AuthoritySecret(c *v1alpha1.SkeinCluster) string { return c.Name + "-ca" }

// CoordinatorSecret holds the certificates of all coordinators.
func CoordinatorSecret(c *v1alpha1.SkeinCluster) string { return c.Name + "-coordinator-tls" }

// ClientSecret holds the certificate with which users speak to the coordinators.
func ClientSecret(c *v1alpha1.SkeinCluster) string { return c.Name + "-client-tls" }

// FoundersMap is the ConfigMap that names the first member while there is none.
func FoundersMap(c *v1alpha1.SkeinCluster) string { return c.Name + "-founders" }

// ClusterName is what certificates call the cluster: two of one name in two namespaces
// are not the same.
func ClusterName(c *v1alpha1.SkeinCluster) string {
	name := c.Namespace + "." + c.Name
	return name[:min(len(name), 64)]
}

// CoordinatorID is the id of a coordinator, and the name of its pod.
func CoordinatorID(c *v1alpha1.SkeinCluster, ordinal int) string {
	return fmt.Sprintf("%s-%d", Coordinators(c), ordinal)
}

// Ordinal is the inverse of CoordinatorID; -1 for what it did not make.
func Ordinal(c *v1alpha1.SkeinCluster, id string) int {
	var n int
	digits, ok := strings.CutPrefix(id, Coordinators(c)+"-")
	if _, err := fmt.Sscanf(digits, "%d", &n); !ok || err != nil || CoordinatorID(c, n) != id {
		return -1
	}
	return n
}

// Host is the name of a pod in the cluster's DNS.
func Host(c *v1alpha1.SkeinCluster, service, pod string) string {
	return pod + "." + service + "." + c.Namespace + ".svc"
}

// CoordinatorAddress is where a coordinator is reached.
func CoordinatorAddress(c *v1alpha1.SkeinCluster, ordinal int) string {
	return fmt.Sprintf("%s:%d", Host(c, Coordinators(c), CoordinatorID(c, ordinal)), CoordinatorPort)
}

// Addresses are those of the first n coordinators.
func Addresses(c *v1alpha1.SkeinCluster, n int) []string {
	var list []string
	for i := range n {
		list = append(list, CoordinatorAddress(c, i))
	}
	return list
}

// Replicas is how many coordinators the spec asks for.
func Replicas(c *v1alpha1.SkeinCluster) int {
	if c.Spec.Coordinators.Replicas == nil {
		return 3
	}
	return int(*c.Spec.Coordinators.Replicas)
}

// MountPath is where workers see the shared storage.
func MountPath(c *v1alpha1.SkeinCluster) string {
	if c.Spec.Storage.MountPath == "" {
		return "/shared"
	}
	return c.Spec.Storage.MountPath
}

// labels are on everything of a cluster; role may be empty.
func labels(c *v1alpha1.SkeinCluster, role string) map[string]string {
	l := map[string]string{
		"app.kubernetes.io/name": "skein", "app.kubernetes.io/instance": c.Name, "app.kubernetes.io/managed-by": "skein-operator",
		v1alpha1.LabelCluster: c.Name,
	}
	if role != "" {
		l[v1alpha1.LabelRole] = role
	}
	return l
}

// selects are the labels that tell the pods of a role.
func selects(c *v1alpha1.SkeinCluster, role string) map[string]string {
	return map[string]string{v1alpha1.LabelCluster: c.Name, v1alpha1.LabelRole: role}
}

// metadata is the metadata of an object that goes with its cluster.
func metadata(c *v1alpha1.SkeinCluster, name, role string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Namespace: c.Namespace, Labels: labels(c, role), OwnerReferences: []metav1.OwnerReference{Owner(c)}}
}

// Owner makes the garbage collector remove what belongs to a cluster with it.
func Owner(c *v1alpha1.SkeinCluster) metav1.OwnerReference {
	return metav1.OwnerReference{
		APIVersion: v1alpha1.GroupVersion.String(), Kind: v1alpha1.KindSkeinCluster, Name: c.Name, UID: c.UID,
		Controller: new(true), BlockOwnerDeletion: new(true),
	}
}
