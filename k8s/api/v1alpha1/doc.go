// Package v1alpha1 is what users of Kubernetes write: a SkeinCluster is a cluster of
// Skein, a FineTuneJob one job on it. The fields of a job are those of the job file and
// are read by package jobspec, so that there is one notion of a job.
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the API's.
var GroupVersion = schema.GroupVersion{Group: "skein.dev", Version: "v1alpha1"}

// Kinds.
const (
	KindSkeinCluster = "SkeinCluster"
	KindFineTuneJob  = "FineTuneJob"
)

// AddToScheme makes the kinds known.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &SkeinCluster{}, &SkeinClusterList{}, &FineTuneJob{}, &FineTuneJobList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}

// Labels and names that the operator writes and users may select by.
const (
	LabelCluster = "skein.dev/cluster" // on everything that belongs to a SkeinCluster
	LabelPool    = "skein.dev/pool"    // on workers: which pool
	LabelJob     = "skein.dev/job"     // on workers that host ranks: the FineTuneJob
	LabelRole    = "skein.dev/role"    // coordinator or worker

	// LabelQueue names a queue of Kueue. A job that has it and leaves spec.suspend open
	// waits until somebody sets it to false.
	LabelQueue = "kueue.x-k8s.io/queue-name"

	// Controller is who manages jobs whose spec.managedBy is left out.
	Controller = "skein.dev/operator"

	// Finalizer keeps a FineTuneJob until its job is over at the coordinators.
	Finalizer = "skein.dev/cancel"
)

// Types of conditions.
const (
	// Of a SkeinCluster.
	ConditionReady       = "Ready"       // jobs can be submitted
	ConditionProgressing = "Progressing" // something is under way
	ConditionDegraded    = "Degraded"    // it works, and a further failure may stop it

	// Of a FineTuneJob.
	ConditionAccepted  = "Accepted"  // the coordinators have taken the job
	ConditionRunning   = "Running"   // ranks are on workers
	ConditionSuspended = "Suspended" // nothing runs, and the last step is in a checkpoint
	ConditionComplete  = "Complete"
	ConditionFailed    = "Failed"
)

// Reasons of conditions. Each comes with a message that says what to do.
const (
	ReasonInvalidSpec      = "InvalidSpec"
	ReasonNoCluster        = "NoCluster"
	ReasonSeveralClusters  = "SeveralClusters"
	ReasonClusterNotReady  = "ClusterNotReady"
	ReasonUnreachable      = "CoordinatorsUnreachable"
	ReasonRefused          = "Refused"
	ReasonTaken            = "Taken"
	ReasonQueued           = "Queued"
	ReasonPreparing        = "Preparing"
	ReasonOnWorkers        = "OnWorkers"
	ReasonSuspending       = "Suspending"
	ReasonSuspended        = "SuspendedByUser"
	ReasonWaitsForQueue    = "WaitsForQueue"
	ReasonPausedElsewhere  = "PausedElsewhere"
	ReasonNotSuspended     = "NotSuspended"
	ReasonOver             = "Over"
	ReasonDone             = "Done"
	ReasonFailed           = "TrainingFailed"
	ReasonCanceled         = "Canceled"
	ReasonCanceling        = "Canceling"
	ReasonLost             = "UnknownToCluster"
	ReasonQuorum           = "Quorum"
	ReasonNoQuorum         = "NoQuorum"
	ReasonStarting         = "CoordinatorsStarting"
	ReasonAllReady         = "AllReady"
	ReasonCoordinatorDown  = "CoordinatorDown"
	ReasonNoRedundancy     = "OneCoordinator"
	ReasonMemberChange     = "MemberChange"
	ReasonPoolsFollow      = "PoolsFollow"
	ReasonVolumePending    = "VolumePending"
	ReasonImageUnavailable = "ImageUnavailable"
	ReasonQuotaExceeded    = "QuotaExceeded"
	ReasonUnschedulable    = "Unschedulable"
	ReasonNoRoom           = "NoRoom"
)
