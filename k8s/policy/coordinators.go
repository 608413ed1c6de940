package policy

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
)

// CoordinatorsMax is the most coordinators that a cluster can have.
const CoordinatorsMax = 5

// foundersKey is the key of the founders' ConfigMap.
const foundersKey = "members"

// Founders is the ConfigMap that the first coordinator begins a cluster with. Once a
// member is known it is empty: a coordinator that has lost its volume then waits to be
// added, instead of beginning a second cluster of the same name.
func Founders(c *v1alpha1.SkeinCluster, begun bool) *corev1.ConfigMap {
	members := fmt.Sprintf("%s=%s", CoordinatorID(c, 0), CoordinatorAddress(c, 0))
	if begun {
		members = ""
	}
	return &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metadata(c, FoundersMap(c), RoleCoordinator), Data: map[string]string{foundersKey: members},
	}
}

// CoordinatorService gives each coordinator a name. Names of pods that are not ready
// count: a coordinator is ready once it knows a leader, and has to be reached before.
func CoordinatorService(c *v1alpha1.SkeinCluster) *corev1.Service {
	return headless(c, Coordinators(c), RoleCoordinator, corev1.ServicePort{Name: "skein", Port: CoordinatorPort, TargetPort: intstr.FromInt32(CoordinatorPort), Protocol: corev1.ProtocolTCP})
}

// WorkerService gives each worker a name.
func WorkerService(c *v1alpha1.SkeinCluster) *corev1.Service {
	return headless(c, Workers(c), RoleWorker, corev1.ServicePort{Name: "ring", Port: RingPort, TargetPort: intstr.FromInt32(RingPort), Protocol: corev1.ProtocolTCP})
}

func headless(c *v1alpha1.SkeinCluster, name, role string, ports ...corev1.ServicePort) *corev1.Service {
	return &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metadata(c, name, role),
		Spec:       corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, PublishNotReadyAddresses: true, Selector: selects(c, role), Ports: ports},
	}
}

// DisruptionBudget lets so many coordinators be evicted that a majority stays. One alone
// may not be evicted: that is for whoever drains its node to decide.
func DisruptionBudget(c *v1alpha1.SkeinCluster) *policyv1.PodDisruptionBudget {
	quorum := intstr.FromInt(Replicas(c)/2 + 1)
	return &policyv1.PodDisruptionBudget{
		TypeMeta:   metav1.TypeMeta{APIVersion: "policy/v1", Kind: "PodDisruptionBudget"},
		ObjectMeta: metadata(c, Coordinators(c), RoleCoordinator),
		Spec: policyv1.PodDisruptionBudgetSpec{
			MinAvailable: &quorum, Selector: &metav1.LabelSelector{MatchLabels: selects(c, RoleCoordinator)},
			// One that cannot get ready holds up nobody's drain.
			UnhealthyPodEvictionPolicy: new(policyv1.AlwaysAllow),
		},
	}
}

// annotationCertificates changes when certificates do, which makes pods start again.
const annotationCertificates = "skein.dev/certificates"

// CoordinatorSet is the StatefulSet. Replicas may be more than the spec asks for, while
// a member is still to be removed. Certificates names the ones that it starts with.
func CoordinatorSet(c *v1alpha1.SkeinCluster, replicas int, certificates string) *appsv1.StatefulSet {
	volume := c.Spec.Coordinators.Volume
	size := resource.MustParse("1Gi")
	if volume.Size != nil {
		size = *volume.Size
	}
	return &appsv1.StatefulSet{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "StatefulSet"},
		ObjectMeta: metadata(c, Coordinators(c), RoleCoordinator),
		Spec: appsv1.StatefulSetSpec{
			ServiceName: Coordinators(c), Replicas: new(int32(replicas)), Selector: &metav1.LabelSelector{MatchLabels: selects(c, RoleCoordinator)},
			// All at once: none is ready before a majority has met.
			PodManagementPolicy: appsv1.ParallelPodManagement,
			UpdateStrategy:      appsv1.StatefulSetUpdateStrategy{Type: appsv1.RollingUpdateStatefulSetStrategyType},
			PersistentVolumeClaimRetentionPolicy: &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{
				WhenDeleted: appsv1.RetainPersistentVolumeClaimRetentionPolicyType, // what is published is known from there
				WhenScaled:  appsv1.DeletePersistentVolumeClaimRetentionPolicyType, // a removed member's log cannot be used again
			},
			Template: coordinatorPod(c, certificates),
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{
				TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
				ObjectMeta: metav1.ObjectMeta{Name: "state"},
				Spec: corev1.PersistentVolumeClaimSpec{
					AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: volume.StorageClassName,
					Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: size}},
				},
			}},
		},
	}
}

func coordinatorPod(c *v1alpha1.SkeinCluster, certificates string) corev1.PodTemplateSpec {
	co := &c.Spec.Coordinators
	host := "$(POD_NAME)." + Coordinators(c) + "." + c.Namespace + ".svc"
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels(c, RoleCoordinator), Annotations: map[string]string{annotationCertificates: certificates}},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: new(false), EnableServiceLinks: new(false), SecurityContext: securedPod(), ImagePullSecrets: c.Spec.ImagePullSecrets,
			NodeSelector: co.NodeSelector, Tolerations: co.Tolerations, Affinity: apart(c), TerminationGracePeriodSeconds: new(int64(30)),
			Containers: []corev1.Container{{
				Name: RoleCoordinator, Image: c.Spec.Image, ImagePullPolicy: c.Spec.ImagePullPolicy, Resources: co.Resources, SecurityContext: secured(),
				Args: []string{
					"coordinator", "--id", "$(POD_NAME)", "--listen", fmt.Sprintf("0.0.0.0:%d", CoordinatorPort), "--advertise", fmt.Sprintf("%s:%d", host, CoordinatorPort),
					"--dir", statePath + "/log", "--tls", tlsPath, "--members=$(FOUNDERS)", "--wait", "--monitor", fmt.Sprintf("0.0.0.0:%d", MonitorPort), "--log-format", "json",
				},
				Env: []corev1.EnvVar{fieldEnv("POD_NAME", "metadata.name"), {Name: "FOUNDERS", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{
					LocalObjectReference: corev1.LocalObjectReference{Name: FoundersMap(c)}, Key: foundersKey,
				}}}},
				Ports:          []corev1.ContainerPort{{Name: "skein", ContainerPort: CoordinatorPort, Protocol: corev1.ProtocolTCP}, {Name: "monitor", ContainerPort: MonitorPort, Protocol: corev1.ProtocolTCP}},
				ReadinessProbe: probe("/readyz", 2, 2), LivenessProbe: probe("/healthz", 10, 6),
				VolumeMounts: []corev1.VolumeMount{{Name: "state", MountPath: statePath}, {Name: "tls", MountPath: tlsPath, SubPathExpr: "$(POD_NAME)", ReadOnly: true}},
			}},
			Volumes: []corev1.Volume{{Name: "tls", VolumeSource: corev1.VolumeSource{Secret: coordinatorCertificates(c)}}},
		},
	}
}

// CoordinatorProbe is a pod like a coordinator's, for the API server to say whether it would
// take one. It is never made.
func CoordinatorProbe(c *v1alpha1.SkeinCluster) *corev1.Pod {
	template := coordinatorPod(c, "")
	p := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metadata(c, Coordinators(c)+"-probe", ""), Spec: template.Spec}
	p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "state", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	return p
}

// coordinatorCertificates lays each coordinator's files into a folder of its own, of
// which its container sees no other. All that there can be are listed, so that another
// number of coordinators is no other pod.
func coordinatorCertificates(c *v1alpha1.SkeinCluster) *corev1.SecretVolumeSource {
	var items []corev1.KeyToPath
	for i := range CoordinatorsMax {
		id := CoordinatorID(c, i)
		for _, f := range [][2]string{{FileAuthority, FileAuthority}, {FileGossip, FileGossip}, {id + ".crt", FileCertificate}, {id + ".key", FileKey}} {
			items = append(items, corev1.KeyToPath{Key: f[0], Path: id + "/" + f[1]})
		}
	}
	return &corev1.SecretVolumeSource{SecretName: CoordinatorSecret(c), DefaultMode: new(int32(secretMode)), Items: items}
}

// apart keeps coordinators on different machines, or whatever fails together.
func apart(c *v1alpha1.SkeinCluster) *corev1.Affinity {
	co := &c.Spec.Coordinators
	term := corev1.PodAffinityTerm{TopologyKey: co.TopologyKey, LabelSelector: &metav1.LabelSelector{MatchLabels: selects(c, RoleCoordinator)}}
	if term.TopologyKey == "" {
		term.TopologyKey = corev1.LabelHostname
	}
	if co.AntiAffinity == v1alpha1.AntiAffinityPreferred {
		return &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
			PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 100, PodAffinityTerm: term}},
		}}
	}
	return &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{term}}}
}
