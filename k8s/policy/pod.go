package policy

import (
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Both kinds of pods meet the restricted Pod Security Standard: no root, no rights to
// gain, a root file system that cannot be written.

// secured is the security of a container.
func secured() *corev1.SecurityContext {
	return &corev1.SecurityContext{
		AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}
}

// securedPod is the security of a pod; its volumes are given to its group.
func securedPod() *corev1.PodSecurityContext {
	return &corev1.PodSecurityContext{
		RunAsNonRoot: new(true), RunAsUser: new(int64(user)), RunAsGroup: new(int64(user)), FSGroup: new(int64(user)),
		// A shared volume with a million files is not walked through at each start.
		FSGroupChangePolicy: new(corev1.FSGroupChangeOnRootMismatch),
		SeccompProfile:      &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}

// fieldEnv is an environment variable that has a field of the pod.
func fieldEnv(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}}}
}

// probe asks the monitor of a process.
func probe(path string, period, failures int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(MonitorPort), Scheme: corev1.URISchemeHTTP}},
		PeriodSeconds: period, TimeoutSeconds: 5, FailureThreshold: failures, SuccessThreshold: 1,
	}
}

const (
	tlsPath   = "/etc/skein/tls"
	statePath = "/var/lib/skein"
)

// secretMode lets the pod's group read, which is how a process that is not root gets at
// a Secret.
const secretMode = 0o440

// machineArgs say to a worker what it may use, where the pool limits it.
func machineArgs(limits corev1.ResourceList) []string {
	var args []string
	if cpu, ok := limits[corev1.ResourceCPU]; ok {
		args = append(args, "--threads", strconv.FormatInt(max(1, cpu.MilliValue()/1000), 10))
	}
	if memory, ok := limits[corev1.ResourceMemory]; ok {
		// The rest is for what is no job: connections, the program itself, the kernel's
		// buffers, which count as the container's too.
		args = append(args, "--memory", fmt.Sprint(memory.Value()*9/10))
	}
	return args
}
