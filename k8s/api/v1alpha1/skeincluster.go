package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// SkeinCluster is a cluster of Skein: coordinators that agree, pools of workers that
// compute, and the storage that they share.
type SkeinCluster struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitzero"`

	Spec   SkeinClusterSpec   `json:"spec"`
	Status SkeinClusterStatus `json:"status,omitzero"`
}

// SkeinClusterList is a list of clusters.
type SkeinClusterList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitzero"`
	Items           []SkeinCluster `json:"items"`
}

// SkeinClusterSpec is what the cluster is made of.
type SkeinClusterSpec struct {
	Image            string                        `json:"image" doc:"of skein, the same version as the operator" crd:"minLength=1,maxLength=1024"`
	ImagePullPolicy  corev1.PullPolicy             `json:"imagePullPolicy,omitempty" doc:"as in pods" crd:"enum=Always|IfNotPresent|Never"`
	ImagePullSecrets []corev1.LocalObjectReference `json:"imagePullSecrets,omitempty" doc:"as in pods" crd:"maxItems=16"`
	Coordinators     Coordinators                  `json:"coordinators,omitzero" doc:"who agree on what is decided"`
	WorkerPools      []WorkerPool                  `json:"workerPools" doc:"workers of one kind each; jobs take them from all" crd:"minItems=1,maxItems=16,listMapKey=name"`
	Storage          Storage                       `json:"storage" doc:"what all workers share"`
}

// Coordinators are the members of the replicated log.
type Coordinators struct {
	Replicas     *int32                      `json:"replicas,omitempty" doc:"1, 3 or 5; of three, any one can be lost" crd:"enum=1|3|5,default=3"`
	Resources    corev1.ResourceRequirements `json:"resources,omitzero" doc:"of one coordinator"`
	Volume       CoordinatorVolume           `json:"volume,omitzero" doc:"for the log of one coordinator"`
	AntiAffinity AntiAffinity                `json:"antiAffinity,omitempty" doc:"Required: no two in one place of topologyKey; Preferred: two if there is no other room" crd:"enum=Required|Preferred,default=Required"`
	TopologyKey  string                      `json:"topologyKey,omitempty" doc:"label of nodes that says what fails together" crd:"default=kubernetes.io/hostname,minLength=1,maxLength=316"`
	NodeSelector map[string]string           `json:"nodeSelector,omitempty" doc:"as in pods" crd:"maxProperties=32"`
	Tolerations  []corev1.Toleration         `json:"tolerations,omitempty" doc:"as in pods" crd:"maxItems=32"`
}

// AntiAffinity is how strictly coordinators keep away from each other.
type AntiAffinity string

// The degrees of it.
const (
	AntiAffinityRequired  AntiAffinity = "Required"
	AntiAffinityPreferred AntiAffinity = "Preferred"
)

// CoordinatorVolume is the claim of each coordinator. It cannot be changed, because that
// of a StatefulSet cannot.
type CoordinatorVolume struct {
	Size             *resource.Quantity `json:"size,omitempty" doc:"a log takes some tens of megabytes" crd:"default=1Gi"`
	StorageClassName *string            `json:"storageClassName,omitempty" doc:"left out: the default class" crd:"maxLength=253"`
}

// WorkerPool is a kind of workers. Between min and max of them run, as many as jobs ask
// for.
type WorkerPool struct {
	Name              string                      `json:"name" doc:"unique in the cluster" crd:"pattern=^[a-z0-9]([-a-z0-9]*[a-z0-9])?$,maxLength=20"`
	Min               int32                       `json:"min,omitempty" doc:"workers that are kept even if no job needs them" crd:"min=0,max=1000"`
	Max               int32                       `json:"max" doc:"most workers" crd:"min=1,max=1000"`
	Resources         corev1.ResourceRequirements `json:"resources,omitzero" doc:"of one worker: cpu becomes its threads, memory what jobs may use; nvidia.com/gpu and claims are passed on"`
	ResourceClaims    []corev1.PodResourceClaim   `json:"resourceClaims,omitempty" doc:"devices by dynamic resource allocation, as in pods; resources.claims names them" crd:"maxItems=8"`
	NumericClass      string                      `json:"numericClass,omitempty" doc:"kernels to offer; left out: all that the machine can run" crd:"pattern=^[a-z0-9]+(-[a-z0-9]+)*$,maxLength=63"`
	NodeSelector      map[string]string           `json:"nodeSelector,omitempty" doc:"as in pods" crd:"maxProperties=32"`
	Tolerations       []corev1.Toleration         `json:"tolerations,omitempty" doc:"as in pods" crd:"maxItems=32"`
	PriorityClassName string                      `json:"priorityClassName,omitempty" doc:"as in pods" crd:"maxLength=253"`
	IdleSeconds       *int32                      `json:"idleSeconds,omitempty" doc:"how long a worker above min that no job wants is kept" crd:"min=0,max=86400,default=60"`
}

// Storage is the folder that all workers share.
type Storage struct {
	ClaimName string `json:"claimName" doc:"a PersistentVolumeClaim of the same namespace that many nodes can mount (ReadWriteMany); the operator never makes or deletes it" crd:"minLength=1,maxLength=253,immutable"`
	MountPath string `json:"mountPath,omitempty" doc:"where workers see it, and where relative paths of jobs start" crd:"pattern=^/[^:]*[^:/]$,maxLength=255,default=/shared,immutable"`
}

// SkeinClusterStatus is what is known of a cluster.
type SkeinClusterStatus struct {
	ObservedGeneration int64              `json:"observedGeneration,omitempty" doc:"of the spec that the rest tells of"`
	Conditions         []metav1.Condition `json:"conditions,omitempty" doc:"Ready, Progressing, Degraded" crd:"conditions"`
	Leader             string             `json:"leader,omitempty" doc:"coordinator that leads"`
	Members            []string           `json:"members,omitempty" doc:"coordinators that vote"`
	ReadyCoordinators  int32              `json:"readyCoordinators,omitempty" doc:"pods of coordinators that are ready"`
	Workers            int32              `json:"workers,omitempty" doc:"pods of workers"`
	ConnectedWorkers   int32              `json:"connectedWorkers,omitempty" doc:"workers that the leader hears"`
	WantedWorkers      int32              `json:"wantedWorkers,omitempty" doc:"workers that the jobs would use"`
	ActiveJobs         int32              `json:"activeJobs,omitempty" doc:"jobs that are not over"`
	QueuedJobs         int32              `json:"queuedJobs,omitempty" doc:"of them, those that wait for workers"`
}
