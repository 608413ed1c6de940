package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	kube "sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	"github.com/skein-ml/skein/k8s/policy"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// jobs looks after FineTuneJobs.
type jobs struct{ shared }

func (r *jobs) setup(m ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(m).Named("finetunejob").
		For(&v1alpha1.FineTuneJob{}, builder.WithPredicates(predicate.Or(predicate.GenerationChangedPredicate{}, predicate.LabelChangedPredicate{}))).
		Watches(&v1alpha1.SkeinCluster{}, handler.EnqueueRequestsFromMapFunc(r.waiting), builder.WithPredicates(readyChanged)).
		Complete(r)
}

// waiting are the jobs that a change of a cluster may concern.
func (r *jobs) waiting(ctx context.Context, o kube.Object) []reconcile.Request {
	var list v1alpha1.FineTuneJobList
	if err := r.List(ctx, &list, kube.InNamespace(o.GetNamespace())); err != nil {
		return nil // they look again by themselves
	}
	var all []reconcile.Request
	for i := range list.Items {
		if !finished(&list.Items[i]) {
			all = append(all, reconcile.Request{NamespacedName: kube.ObjectKeyFromObject(&list.Items[i])})
		}
	}
	return all
}

var readyChanged = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	was, ok := e.ObjectOld.(*v1alpha1.SkeinCluster)
	is, same := e.ObjectNew.(*v1alpha1.SkeinCluster)
	return !ok || !same || ready(was) != ready(is)
}}

func ready(c *v1alpha1.SkeinCluster) bool {
	return meta.IsStatusConditionTrue(c.Status.Conditions, v1alpha1.ConditionReady)
}

func finished(j *v1alpha1.FineTuneJob) bool {
	return meta.IsStatusConditionTrue(j.Status.Conditions, v1alpha1.ConditionComplete) || meta.IsStatusConditionTrue(j.Status.Conditions, v1alpha1.ConditionFailed)
}

// Reconcile implements reconcile.Reconciler.
func (r *jobs) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	j := &v1alpha1.FineTuneJob{}
	if err := r.Get(ctx, request.NamespacedName, j); err != nil {
		return reconcile.Result{}, kube.IgnoreNotFound(err)
	}
	if !policy.Ours(j) {
		return reconcile.Result{}, nil
	}
	if j.DeletionTimestamp != nil {
		return r.leave(ctx, j)
	}
	if finished(j) && j.Status.ObservedGeneration == j.Generation {
		return reconcile.Result{}, nil
	}
	was := j.DeepCopy()
	again, err := r.follow(ctx, j)
	return reconcile.Result{RequeueAfter: again}, errors.Join(err, r.store(ctx, was, j))
}

// follow takes a job one step on: to the coordinators, and from there into its status. It
// returns when to look again; 0: when something changes.
func (r *jobs) follow(ctx context.Context, j *v1alpha1.FineTuneJob) (again time.Duration, err error) {
	c, refusal, err := r.cluster(ctx, j)
	if err != nil {
		return 0, err
	}
	if refusal != nil {
		policy.Pending(j, *refusal)
		return r.config.PollIdle, nil
	}
	spec, err := j.Read(policy.MountPath(c))
	if _, invalid := errors.AsType[*jobspec.Invalid](err); invalid {
		policy.Pending(j, policy.Refusal{Reason: v1alpha1.ReasonInvalidSpec, Message: err.Error()})
		return 0, nil // until the spec changes
	}
	if err != nil {
		return 0, err
	}
	if err := r.complete(ctx, j, spec); err != nil {
		return 0, err
	}
	held, reason, message := policy.Held(j)
	if held && j.Status.Job == "" {
		policy.Pending(j, policy.Refusal{Reason: reason, Message: message})
		policy.Condition(j, v1alpha1.ConditionSuspended, true, reason, message)
		return 0, nil
	}
	api, err := r.contacts.to(ctx, c)
	if errors.Is(err, errNoAuthority) {
		policy.Pending(j, policy.Refusal{Reason: v1alpha1.ReasonClusterNotReady, Message: fmt.Sprintf("SkeinCluster %s is being made; the job goes to it when it is ready", c.Name)})
		return r.config.Poll, nil
	}
	if err != nil {
		return 0, err
	}
	return r.converse(ctx, j, c, api, spec)
}

// cluster finds the cluster of a job.
func (r *jobs) cluster(ctx context.Context, j *v1alpha1.FineTuneJob) (*v1alpha1.SkeinCluster, *policy.Refusal, error) {
	var list v1alpha1.SkeinClusterList
	if err := r.List(ctx, &list, kube.InNamespace(j.Namespace)); err != nil {
		return nil, nil, err
	}
	c, refusal := policy.Cluster(j, list.Items)
	return c, refusal, nil
}

// complete writes the most workers into a spec that leaves them open, once: the scale
// subresource reads and changes them there.
func (r *jobs) complete(ctx context.Context, j *v1alpha1.FineTuneJob, spec *jobspec.Job) error {
	if j.Spec.HasWorkersMax() {
		return nil
	}
	status := j.Status
	patch := fmt.Sprintf(`{"spec":{"cluster":{"workers":{"max":%d}}}}`, spec.Cluster.Workers.Max)
	if err := r.Patch(ctx, j, kube.RawPatch(types.MergePatchType, []byte(patch)), owner); err != nil {
		return fmt.Errorf("cluster.workers.max: %w", err)
	}
	j.Status = status
	return nil
}

// converse brings the coordinators and the spec together.
func (r *jobs) converse(ctx context.Context, j *v1alpha1.FineTuneJob, c *v1alpha1.SkeinCluster, api Coordinators, spec *jobspec.Job) (time.Duration, error) {
	id := j.Status.Job
	var err error
	if id == "" {
		if id, err = r.submit(ctx, j, api, spec); err != nil {
			return r.refused(j, c, err)
		}
		r.tell(j, false, v1alpha1.ReasonTaken, "Submit", "submitted to "+c.Name+" as "+id)
	}
	got, err := api.Get(ctx, id)
	if unknown(err) {
		policy.Pending(j, policy.Refusal{Reason: v1alpha1.ReasonLost, Message: fmt.Sprintf("the coordinators of %s do not know job %s: were they restored from an earlier backup? Delete this object and make it again; it goes on from its newest checkpoint", c.Name, id)})
		return r.config.PollIdle, nil
	}
	if err != nil {
		j.Status.Job, j.Status.Cluster = id, c.Name
		return r.refused(j, c, err)
	}
	if err := r.steer(ctx, j, api, spec, got.GetJob()); err != nil {
		return r.refused(j, c, err)
	}
	policy.Mirror(j, c.Name, got.GetJob())
	if h := policy.Hindrance(c, got.GetJob()); h != nil {
		j.Status.Message = h.Message
		policy.Condition(j, v1alpha1.ConditionRunning, false, h.Reason, h.Message)
	}
	if policy.Over(got.GetJob().GetPhase()) {
		return 0, nil
	}
	return r.config.Poll, nil
}

// submit gives a job to the coordinators. The finalizer comes first: from here on there is
// something that deleting the object has to end.
func (r *jobs) submit(ctx context.Context, j *v1alpha1.FineTuneJob, api Coordinators, spec *jobspec.Job) (string, error) {
	if err := r.finalizer(ctx, j, controllerutil.AddFinalizer); err != nil {
		return "", err
	}
	s, err := client.NewSubmission(spec)
	if err != nil {
		return "", err
	}
	if err := s.Repeat(policy.RequestID(j)); err != nil {
		return "", err
	}
	id, _, err := api.Submit(ctx, s)
	return id, err
}

// finalizer adds or removes the operator's.
func (r *jobs) finalizer(ctx context.Context, j *v1alpha1.FineTuneJob, change func(kube.Object, string) bool) error {
	was := j.DeepCopy()
	if !change(j, v1alpha1.Finalizer) {
		return nil
	}
	status := j.Status
	err := r.Patch(ctx, j, kube.MergeFromWithOptions(was, kube.MergeFromWithOptimisticLock{}), owner)
	j.Status = status
	return err
}

// steer has the coordinators do what the spec says now: stop, go on, use more workers or
// fewer.
func (r *jobs) steer(ctx context.Context, j *v1alpha1.FineTuneJob, api Coordinators, spec *jobspec.Job, job *skeinv1.Job) error {
	if policy.Over(job.GetPhase()) {
		return nil
	}
	held, _, message := policy.Held(j)
	var err error
	switch {
	case held && !job.GetPaused():
		err = api.Pause(ctx, job.GetId(), message)
	case job.GetPaused() && policy.Resumes(j):
		err = api.Resume(ctx, job.GetId())
	}
	if want := int32(spec.Cluster.Workers.Max); err == nil && want != job.GetWorkersMax() {
		if _, err = api.Scale(ctx, job.GetId(), want); err == nil {
			r.tell(j, false, "Scaled", "Scale", fmt.Sprintf("at most %d workers", want))
		}
	}
	return err
}

// refused says in the conditions what the coordinators' no, or their silence, means.
func (r *jobs) refused(j *v1alpha1.FineTuneJob, c *v1alpha1.SkeinCluster, err error) (time.Duration, error) {
	_, rejected := errors.AsType[*client.RejectedError](err)
	_, answered := errors.AsType[*client.AnsweredError](err)
	_, uncertain := errors.AsType[*client.UncertainError](err)
	_, silent := errors.AsType[*client.UnreachableError](err)
	switch {
	case rejected || answered:
		r.pendingUnlessTaken(j, policy.Refusal{Reason: v1alpha1.ReasonRefused, Message: err.Error()})
		return r.config.PollIdle, nil
	case uncertain || silent:
		if a := policy.Ailment(c); a != nil {
			r.pendingUnlessTaken(j, *a)
			return r.config.Poll, nil
		}
		r.pendingUnlessTaken(j, policy.Refusal{Reason: v1alpha1.ReasonUnreachable, Message: fmt.Sprintf("the coordinators of SkeinCluster %s do not answer; it is tried again. See `kubectl describe skeincluster %s`: %s", c.Name, c.Name, err)})
		return r.config.Poll, nil
	}
	return 0, err
}

// pendingUnlessTaken says it of a job that the coordinators do not have. One that they have
// goes on without the operator: it is only not seen.
func (r *jobs) pendingUnlessTaken(j *v1alpha1.FineTuneJob, refusal policy.Refusal) {
	if j.Status.Job == "" {
		policy.Pending(j, refusal)
		return
	}
	j.Status.Message = refusal.Message
}

// unknown tells whether the coordinators do not have a job.
func unknown(err error) bool {
	answered, ok := errors.AsType[*client.AnsweredError](err)
	_, notFound := errors.AsType[*client.NotFoundError](err)
	return notFound || ok && answered.Code == codes.NotFound
}

// store writes a status that has changed.
func (r *jobs) store(ctx context.Context, was, is *v1alpha1.FineTuneJob) error {
	if equality.Semantic.DeepEqual(was.Status, is.Status) {
		return nil
	}
	if err := r.Status().Update(ctx, is); err != nil {
		return kube.IgnoreNotFound(err)
	}
	r.tellConditions(is, was.Status.Conditions, is.Status.Conditions)
	return nil
}

// pauseWait is how long a job that is deleted may take to publish its last step before it
// is canceled without.
const pauseWait = 2 * time.Minute

// leave ends a job whose object is deleted. A running one is paused first, so that its
// last step is in a checkpoint: made again, it goes on from there.
func (r *jobs) leave(ctx context.Context, j *v1alpha1.FineTuneJob) (reconcile.Result, error) {
	if !slices.Contains(j.Finalizers, v1alpha1.Finalizer) {
		return reconcile.Result{}, nil
	}
	over, err := r.end(ctx, j)
	if err != nil {
		_, rejected := errors.AsType[*client.RejectedError](err)
		if rejected && j.Status.Job == "" { // so it never was taken
			return reconcile.Result{}, r.finalizer(ctx, j, controllerutil.RemoveFinalizer)
		}
		r.tell(j, true, v1alpha1.ReasonCanceling, "Cancel", fmt.Sprintf("it is kept until its job is canceled: %v. To let it go all the same, remove the finalizer %s", err, v1alpha1.Finalizer))
		return reconcile.Result{RequeueAfter: r.config.PollIdle}, nil
	}
	if !over {
		return reconcile.Result{RequeueAfter: r.config.Poll}, nil
	}
	return reconcile.Result{}, r.finalizer(ctx, j, controllerutil.RemoveFinalizer)
}

// end tells whether a deleted job is over at the coordinators, and does what is next.
func (r *jobs) end(ctx context.Context, j *v1alpha1.FineTuneJob) (over bool, err error) {
	c, refusal, err := r.cluster(ctx, j)
	if err != nil {
		return false, err
	}
	if refusal != nil || c.DeletionTimestamp != nil {
		return true, nil // who had the job is gone
	}
	api, err := r.contacts.to(ctx, c)
	if errors.Is(err, errNoAuthority) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	id := j.Status.Job
	if id == "" { // it may have been taken all the same: asked again, the answer is its id
		spec, err := j.Read(policy.MountPath(c))
		if _, invalid := errors.AsType[*jobspec.Invalid](err); invalid {
			return true, nil
		}
		if err == nil {
			id, err = r.submit(ctx, j, api, spec)
		}
		if err != nil {
			return false, err
		}
	}
	got, err := api.Get(ctx, id)
	if err != nil {
		return unknown(err), known(err)
	}
	job := got.GetJob()
	switch {
	case policy.Over(job.GetPhase()):
		return true, nil
	case job.GetPhase() == skeinv1.Phase_PHASE_RUNNING && time.Since(j.DeletionTimestamp.Time) < pauseWait:
		if !job.GetPaused() {
			err = api.Pause(ctx, id, "its FineTuneJob is deleted")
		}
		return false, err
	}
	return false, api.Cancel(ctx, id, "its FineTuneJob was deleted")
}

// known leaves out the error of a job that the coordinators do not have.
func known(err error) error {
	if unknown(err) {
		return nil
	}
	return err
}
