package policy

import (
	"cmp"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// Condition sets a condition of a job. The moment of its last change stays unless its
// status changes.
func Condition(j *v1alpha1.FineTuneJob, kind string, is bool, reason, message string) {
	set(&j.Status.Conditions, j.Generation, kind, is, reason, message)
}

func set(conditions *[]metav1.Condition, generation int64, kind string, is bool, reason, message string) {
	status := metav1.ConditionFalse
	if is {
		status = metav1.ConditionTrue
	}
	meta.SetStatusCondition(conditions, metav1.Condition{Type: kind, Status: status, Reason: reason, Message: clip(message), ObservedGeneration: generation})
}

// messageBytesMax is what Kubernetes takes.
const messageBytesMax = 32768

func clip(s string) string {
	if len(s) <= messageBytesMax {
		return s
	}
	return strings.ToValidUTF8(s[:messageBytesMax-3], "") + "…"
}

// Pending writes that a job is not at the coordinators, and why.
func Pending(j *v1alpha1.FineTuneJob, r Refusal) {
	j.Status.ObservedGeneration, j.Status.Phase, j.Status.Message = j.Generation, "pending", r.Message
	Condition(j, v1alpha1.ConditionAccepted, false, r.Reason, r.Message)
	Condition(j, v1alpha1.ConditionRunning, false, r.Reason, r.Message)
}

// Phase is a phase as users read it.
func Phase(p skeinv1.Phase) string {
	return strings.ToLower(strings.TrimPrefix(p.String(), "PHASE_"))
}

// Over tells whether a phase is final.
func Over(p skeinv1.Phase) bool {
	return p == skeinv1.Phase_PHASE_DONE || p == skeinv1.Phase_PHASE_FAILED || p == skeinv1.Phase_PHASE_CANCELED
}

// Mirror writes what the coordinators say of a job into its status.
func Mirror(j *v1alpha1.FineTuneJob, cluster string, job *skeinv1.Job) {
	s := &j.Status
	s.ObservedGeneration, s.Cluster, s.Job, s.Phase = j.Generation, cluster, job.GetId(), Phase(job.GetPhase())
	s.Message = cmp.Or(job.GetWaitingFor(), job.GetReason())
	s.Steps, s.Generation, s.Published = job.GetSteps(), int64(job.GetGeneration()), job.GetPublished().GetStep()
	s.Selector = v1alpha1.LabelJob + "=" + j.Name
	s.Workers = 0
	if job.GetPhase() == skeinv1.Phase_PHASE_RUNNING {
		s.Workers = int32(len(job.GetMembers()))
	}
	s.Wanted = wanted(job)
	s.Step = max(job.GetProgress().GetStep(), s.Published)
	if p := job.GetProgress(); p.GetStep() > 0 {
		s.Loss = strconv.FormatFloat(p.GetLoss(), 'g', 5, 64)
	}
	if s.StartTime == nil && job.GetSubmittedUnixMs() > 0 {
		s.StartTime = at(job.GetSubmittedUnixMs())
	}
	Condition(j, v1alpha1.ConditionAccepted, true, v1alpha1.ReasonTaken, "the coordinators of "+cluster+" have it as "+job.GetId())
	mirrorPhase(j, job)
}

// wanted is how many workers a job would use now.
func wanted(job *skeinv1.Job) int32 {
	switch {
	case Over(job.GetPhase()) || job.GetPaused():
		return 0
	case job.GetPhase() == skeinv1.Phase_PHASE_PREPARING:
		return 1
	}
	return job.GetWorkersMax()
}

func mirrorPhase(j *v1alpha1.FineTuneJob, job *skeinv1.Job) {
	s := &j.Status
	switch job.GetPhase() {
	case skeinv1.Phase_PHASE_RUNNING:
		Condition(j, v1alpha1.ConditionRunning, true, v1alpha1.ReasonOnWorkers, job.GetReason())
	case skeinv1.Phase_PHASE_PREPARING:
		Condition(j, v1alpha1.ConditionRunning, false, v1alpha1.ReasonPreparing, s.Message)
	case skeinv1.Phase_PHASE_DONE:
		Condition(j, v1alpha1.ConditionRunning, false, v1alpha1.ReasonOver, "the job is done")
		Condition(j, v1alpha1.ConditionComplete, true, v1alpha1.ReasonDone, "all steps are taken")
		s.Result = job.GetPublished().GetWeights()
	case skeinv1.Phase_PHASE_FAILED:
		Condition(j, v1alpha1.ConditionRunning, false, v1alpha1.ReasonOver, "the job failed")
		Condition(j, v1alpha1.ConditionFailed, true, v1alpha1.ReasonFailed, job.GetReason())
	case skeinv1.Phase_PHASE_CANCELED:
		Condition(j, v1alpha1.ConditionRunning, false, v1alpha1.ReasonOver, "the job was canceled")
		Condition(j, v1alpha1.ConditionFailed, true, v1alpha1.ReasonCanceled, job.GetReason())
	default:
		Condition(j, v1alpha1.ConditionRunning, false, v1alpha1.ReasonQueued, s.Message)
	}
	if Over(job.GetPhase()) {
		if s.CompletionTime == nil {
			s.CompletionTime = at(job.GetChangedUnixMs())
		}
		Condition(j, v1alpha1.ConditionSuspended, false, v1alpha1.ReasonOver, "the job is over")
		return
	}
	held, reason, message := Held(j)
	switch {
	case job.GetPhase() == skeinv1.Phase_PHASE_PAUSED:
		if !held {
			reason, message = v1alpha1.ReasonPausedElsewhere, "somebody paused it at the coordinators; skein resume "+job.GetId()+" lets it go on"
		}
		Condition(j, v1alpha1.ConditionSuspended, true, reason, message)
	case held || job.GetPaused():
		Condition(j, v1alpha1.ConditionSuspended, false, v1alpha1.ReasonSuspending, "it stops after its next step, with a checkpoint")
	default:
		Condition(j, v1alpha1.ConditionSuspended, false, v1alpha1.ReasonNotSuspended, "")
	}
}

func at(unixMs int64) *metav1.Time {
	return new(metav1.NewTime(time.UnixMilli(unixMs).UTC().Truncate(time.Second)))
}
