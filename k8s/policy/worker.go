package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
)

const (
	// LabelTemplate tells pods of the spec that is from those of an earlier one.
	LabelTemplate = "skein.dev/template"

	// GateCertificate keeps a worker's pod off the nodes until its Secret is there, which
	// goes with the pod, so the pod has to be first.
	GateCertificate = "skein.dev/certificate"

	// drainSeconds is how long a worker that is told to leave may take: the agent waits for
	// 50 s to be released.
	drainSeconds = 90
)

// WorkerSecret is the name of the Secret of a worker's certificate.
func WorkerSecret(pod string) string { return pod }

// WorkerPod is a worker of a pool. Its name is the worker's, once: the next one has
// another, so that nobody takes the one for the other.
func WorkerPod(c *v1alpha1.SkeinCluster, pool *v1alpha1.WorkerPool, name string) *corev1.Pod {
	p := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metadata(c, name, RoleWorker),
		Spec:       workerSpec(c, pool, Addresses(c, Replicas(c))),
	}
	p.Labels[v1alpha1.LabelPool], p.Labels[LabelTemplate] = pool.Name, Template(c, pool)
	p.Spec.Hostname, p.Spec.Volumes[0].Secret.SecretName = name, WorkerSecret(name)
	return p
}

// Template names what the pods of a pool are made from. Where the coordinators are does
// not count: workers hear of others from those that they know.
func Template(c *v1alpha1.SkeinCluster, pool *v1alpha1.WorkerPool) string {
	b, err := json.Marshal(workerSpec(c, pool, nil))
	if err != nil {
		panic(fmt.Sprintf("policy: a pod does not encode: %v", err))
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:5])
}

func workerSpec(c *v1alpha1.SkeinCluster, pool *v1alpha1.WorkerPool, coordinators []string) corev1.PodSpec {
	host := "$(POD_NAME)." + Workers(c) + "." + c.Namespace + ".svc"
	at := func(port int) string { return fmt.Sprintf("%s:%d", host, port) }
	here := func(port int) string { return fmt.Sprintf("0.0.0.0:%d", port) }
	args := []string{
		"worker", "--name", "$(POD_NAME)", "--node", "$(NODE_NAME)", "--coordinator", strings.Join(coordinators, ","),
		"--ring-listen", here(RingPort), "--ring-advertise", at(RingPort), "--stream-listen", here(StreamPort), "--stream-advertise", at(StreamPort),
		"--dir", statePath, "--tls", tlsPath, "--monitor", here(MonitorPort), "--log-format", "json",
	}
	args = append(args, machineArgs(pool.Resources.Limits)...)
	if pool.NumericClass != "" {
		args = append(args, "--numeric-class", pool.NumericClass)
	}
	return corev1.PodSpec{
		AutomountServiceAccountToken: new(false), EnableServiceLinks: new(false), SecurityContext: securedPod(), ImagePullSecrets: c.Spec.ImagePullSecrets,
		NodeSelector: pool.NodeSelector, Tolerations: pool.Tolerations, PriorityClassName: pool.PriorityClassName, ResourceClaims: pool.ResourceClaims,
		TopologySpreadConstraints: spread(c), Subdomain: Workers(c), TerminationGracePeriodSeconds: new(int64(drainSeconds)), RestartPolicy: corev1.RestartPolicyAlways,
		SchedulingGates: []corev1.PodSchedulingGate{{Name: GateCertificate}},
		Containers: []corev1.Container{{
			Name: RoleWorker, Image: c.Spec.Image, ImagePullPolicy: c.Spec.ImagePullPolicy, Args: args, Resources: pool.Resources, SecurityContext: secured(),
			Env: []corev1.EnvVar{
				fieldEnv("POD_NAME", "metadata.name"), fieldEnv("NODE_NAME", "spec.nodeName"), fieldEnv("SKEIN_ZONE", "metadata.labels['topology.kubernetes.io/zone']"),
				{Name: "HOME", Value: statePath}, {Name: "TMPDIR", Value: statePath},
			},
			Ports: []corev1.ContainerPort{
				{Name: "ring", ContainerPort: RingPort, Protocol: corev1.ProtocolTCP}, {Name: "stream", ContainerPort: StreamPort, Protocol: corev1.ProtocolTCP},
				{Name: "monitor", ContainerPort: MonitorPort, Protocol: corev1.ProtocolTCP},
			},
			ReadinessProbe: probe("/readyz", 2, 2), LivenessProbe: probe("/healthz", 10, 6),
			VolumeMounts: []corev1.VolumeMount{
				{Name: "tls", MountPath: tlsPath, ReadOnly: true}, {Name: "state", MountPath: statePath}, {Name: "shared", MountPath: MountPath(c)},
			},
		}},
		Volumes: []corev1.Volume{
			{Name: "tls", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{DefaultMode: new(int32(secretMode))}}},
			{Name: "state", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			{Name: "shared", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c.Spec.Storage.ClaimName}}},
		},
	}
}

// spread keeps workers apart where there is a choice: mirrors of a rank's state are put on
// other machines and in other zones than the rank, if there are any.
func spread(c *v1alpha1.SkeinCluster) []corev1.TopologySpreadConstraint {
	var list []corev1.TopologySpreadConstraint
	for _, key := range []string{corev1.LabelTopologyZone, corev1.LabelHostname} {
		list = append(list, corev1.TopologySpreadConstraint{
			MaxSkew: 1, TopologyKey: key, WhenUnsatisfiable: corev1.ScheduleAnyway, LabelSelector: &metav1.LabelSelector{MatchLabels: selects(c, RoleWorker)},
		})
	}
	return list
}
