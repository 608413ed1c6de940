package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	"github.com/skein-ml/skein/k8s/policy"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// clusters makes SkeinClusters.
type clusters struct {
	shared
	idle    *idle
	refused refusals
	grouped bool // gangs are kept together by PodGroups
}

func (r *clusters) setup(m ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(m).Named("skeincluster").
		For(&v1alpha1.SkeinCluster{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Owns(&appsv1.StatefulSet{}).Owns(&corev1.Pod{}).
		Watches(&v1alpha1.FineTuneJob{}, handler.EnqueueRequestsFromMapFunc(clusterOf), builder.WithPredicates(demandChanged)).
		Complete(r)
}

// clusterOf asks for the cluster of a job to be looked at.
func clusterOf(_ context.Context, o client.Object) []reconcile.Request {
	j, ok := o.(*v1alpha1.FineTuneJob)
	if !ok || j.Status.Cluster == "" {
		return nil
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: j.Namespace, Name: j.Status.Cluster}}}
}

// demandChanged lets through what may change the pools, and not every step of a job.
var demandChanged = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	was, ok := e.ObjectOld.(*v1alpha1.FineTuneJob)
	is, same := e.ObjectNew.(*v1alpha1.FineTuneJob)
	return !ok || !same || was.Status.Job != is.Status.Job || was.Status.Phase != is.Status.Phase || was.Status.Wanted != is.Status.Wanted || was.Status.Workers != is.Status.Workers
}}

// sight is what the operator sees of a cluster.
type sight struct {
	api     Coordinators // nil: there are no certificates, so nobody to ask
	known   bool         // whether the leader has answered
	silence string       // why it has not
	nodes   *skeinv1.NodesResponse
	jobs    []*skeinv1.Job // that are not over
	set     *appsv1.StatefulSet
	pods    []corev1.Pod // of coordinators
	workers []corev1.Pod
	files   issued // that workers are to have
}

// Reconcile implements reconcile.Reconciler.
func (r *clusters) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	c := &v1alpha1.SkeinCluster{}
	if err := r.Get(ctx, request.NamespacedName, c); err != nil {
		if client.IgnoreNotFound(err) == nil {
			r.contacts.forget(request.NamespacedName)
			forgetMetrics(request.NamespacedName)
		}
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if c.DeletionTimestamp != nil {
		return reconcile.Result{}, nil // what belongs to it goes with it
	}
	was := c.DeepCopy()
	h := policy.Health{}
	s, err := r.make(ctx, c, &h)
	h.Blocking = blocking(err)
	if h.Blocking != nil {
		err = nil // the user's to mend; it is looked at again all the same
	}
	if s != nil {
		r.write(c, s, h)
	} else {
		policy.Conditions(c, h)
	}
	c.Status.ObservedGeneration = c.Generation
	err = errors.Join(err, r.store(ctx, was, c))
	again := r.config.PollIdle
	if s == nil || !s.known || len(s.jobs) > 0 || h.Joining != "" || h.Pools != "" {
		again = r.config.Poll
	}
	return reconcile.Result{RequeueAfter: again}, err
}

// make sees to everything that the cluster needs, in an order in which each thing finds
// what it needs.
func (r *clusters) make(ctx context.Context, c *v1alpha1.SkeinCluster, h *policy.Health) (*sight, error) {
	certificates, err := r.certificates(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, o := range []client.Object{policy.CoordinatorService(c), policy.WorkerService(c), policy.DisruptionBudget(c)} {
		if err := r.apply(ctx, o); err != nil {
			return nil, err
		}
	}
	s, err := r.look(ctx, c)
	if err != nil {
		return nil, err
	}
	s.files = certificates
	err = r.coordinators(ctx, c, s, h, certificates.start)
	err = errors.Join(err, r.workers(ctx, c, s, h))
	if err == nil {
		err = r.rotate(ctx, c, s, certificates)
	}
	return s, err
}

// look reads what there is, from the coordinators and from the API server. The pods come
// last: whoever prepared a job that waits now has its node.
func (r *clusters) look(ctx context.Context, c *v1alpha1.SkeinCluster) (*sight, error) {
	s := &sight{set: &appsv1.StatefulSet{}, silence: "they are being started"}
	if err := r.live.Get(ctx, client.ObjectKey{Namespace: c.Namespace, Name: policy.Coordinators(c)}, s.set); client.IgnoreNotFound(err) != nil {
		return nil, err
	}
	if s.set.ResourceVersion != "" {
		if err := r.ask(ctx, c, s); err != nil {
			return nil, err
		}
	}
	for role, into := range map[string]*[]corev1.Pod{policy.RoleCoordinator: &s.pods, policy.RoleWorker: &s.workers} {
		var list corev1.PodList
		labels := client.MatchingLabels{v1alpha1.LabelCluster: c.Name, v1alpha1.LabelRole: role}
		// Past the cache: a pod that was just made and is not in it yet would be made again.
		if err := r.live.List(ctx, &list, client.InNamespace(c.Namespace), labels); err != nil {
			return nil, err
		}
		*into = list.Items
	}
	return s, nil
}

// ask asks the coordinators. That they do not answer is no error.
func (r *clusters) ask(ctx context.Context, c *v1alpha1.SkeinCluster, s *sight) error {
	var err error
	if s.api, err = r.contacts.to(ctx, c); err != nil {
		return err
	}
	if s.nodes, err = s.api.Nodes(ctx); err == nil {
		s.jobs, err = s.api.List(ctx, true)
	}
	if s.known = err == nil; !s.known {
		s.silence = err.Error()
	}
	return nil
}

// coordinators applies the StatefulSet, and makes the next change of members.
func (r *clusters) coordinators(ctx context.Context, c *v1alpha1.SkeinCluster, s *sight, h *policy.Health, certificates string) error {
	m := policy.Membership{Known: s.known, Members: members(s.nodes), Running: map[string]bool{}}
	if s.set.Spec.Replicas != nil && s.set.ResourceVersion != "" {
		m.Pods = int(*s.set.Spec.Replicas)
	}
	for i := range s.pods {
		m.Running[s.pods[i].Name] = running(&s.pods[i])
	}
	change, pods, reason := policy.Members(c, m)
	if s.known {
		h.Joining = reason
	}
	begun := len(c.Status.Members) > 0 || len(m.Members) > 0
	if err := r.apply(ctx, policy.Founders(c, begun)); err != nil {
		return err
	}
	if err := r.apply(ctx, policy.CoordinatorSet(c, pods, certificates)); err != nil {
		return err
	}
	return errors.Join(r.unborn(ctx, c, s), r.change(ctx, c, s.api, change))
}

// unborn is why the API server refuses the pods that the StatefulSet lacks. Its controller
// says so in an event alone, so the operator asks again, for a pod that is not made.
func (r *clusters) unborn(ctx context.Context, c *v1alpha1.SkeinCluster, s *sight) error {
	if s.set.Spec.Replicas == nil || len(s.pods) >= int(*s.set.Spec.Replicas) {
		return nil
	}
	err := r.Create(ctx, policy.CoordinatorProbe(c), client.DryRunAll, owner)
	if blocking(err) == nil {
		return nil // it is on its way, or nobody knows
	}
	return fmt.Errorf("coordinators: %w", err)
}

func (r *clusters) change(ctx context.Context, c *v1alpha1.SkeinCluster, api Coordinators, change policy.MemberChange) (err error) {
	text := ""
	switch {
	case change.Add != "":
		text = change.Add + " becomes a member"
		err = api.AddCoordinator(ctx, change.Add, policy.CoordinatorAddress(c, policy.Ordinal(c, change.Add)))
	case change.Transfer != "":
		text = "leadership goes to " + change.Transfer
		err = api.TransferLeadership(ctx, change.Transfer)
	case change.Remove != "":
		text = change.Remove + " is no member any more; its pod and its volume go"
		err = api.RemoveCoordinator(ctx, change.Remove, false)
	default:
		return nil
	}
	if err != nil { // such as: it does not answer yet. It is tried again
		r.config.Logger.Info("a change of the coordinators was refused", "cluster", c.Name, "change", text, "err", err)
		return nil
	}
	r.tell(c, false, v1alpha1.ReasonMemberChange, "ChangeMembers", text)
	return nil
}

func members(nodes *skeinv1.NodesResponse) []policy.Member {
	var list []policy.Member
	for _, n := range nodes.GetCoordinators() {
		list = append(list, policy.Member{ID: n.GetId(), Leader: n.GetLeader(), Voter: n.GetVoter()})
	}
	return list
}

// running tells whether a pod's process runs, ready or not.
func running(p *corev1.Pod) bool {
	if p.DeletionTimestamp != nil || len(p.Status.ContainerStatuses) == 0 {
		return false
	}
	return p.Status.ContainerStatuses[0].State.Running != nil
}

// write puts what was seen into the status.
func (r *clusters) write(c *v1alpha1.SkeinCluster, s *sight, h policy.Health) {
	h.Known, h.Silence, h.Members = s.known, s.silence, members(s.nodes)
	h.Ready = int(s.set.Status.ReadyReplicas)
	if t := policy.Trouble(slices.Concat(s.pods, s.workers)); t != nil {
		h.Trouble = t
	}
	policy.Conditions(c, h)
	st := &c.Status
	st.ReadyCoordinators, st.Workers = s.set.Status.ReadyReplicas, 0
	for i := range s.workers {
		if s.workers[i].DeletionTimestamp == nil {
			st.Workers++
		}
	}
	if !s.known {
		return // what the leader said last stands
	}
	st.Leader, st.Members, st.ConnectedWorkers, st.ActiveJobs, st.QueuedJobs = "", nil, 0, int32(len(s.jobs)), 0
	for _, m := range h.Members {
		if m.Leader {
			st.Leader = m.ID
		}
		if m.Voter {
			st.Members = append(st.Members, m.ID)
		}
	}
	for _, w := range s.nodes.GetWorkers() {
		if w.GetConnected() {
			st.ConnectedWorkers++
		}
	}
	for _, j := range s.jobs {
		if p := j.GetPhase(); p == skeinv1.Phase_PHASE_QUEUED || p == skeinv1.Phase_PHASE_PREPARING && j.GetPreparer() == "" {
			st.QueuedJobs++
		}
	}
	setMetrics(client.ObjectKeyFromObject(c), *st)
}

// store writes a status that has changed. Events tell of conditions that did.
func (r *clusters) store(ctx context.Context, was, is *v1alpha1.SkeinCluster) error {
	if equality.Semantic.DeepEqual(was.Status, is.Status) {
		return nil
	}
	if err := r.Status().Update(ctx, is); err != nil {
		return client.IgnoreNotFound(err)
	}
	r.tellConditions(is, was.Status.Conditions, is.Status.Conditions)
	return nil
}
