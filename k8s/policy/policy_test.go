package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// lab is a cluster of three coordinators and the pools that are given.
func lab(pools ...v1alpha1.WorkerPool) *v1alpha1.SkeinCluster {
	c := &v1alpha1.SkeinCluster{}
	c.Name, c.Namespace, c.UID = "lab", "ml", "u1"
	c.Spec.Image, c.Spec.Coordinators.Replicas, c.Spec.Storage.ClaimName, c.Spec.WorkerPools = "skein:1", new(int32(3)), "shared", pools
	return c
}

func ids(n ...int) []Member {
	var list []Member
	for i, ordinal := range n {
		list = append(list, Member{ID: fmt.Sprintf("lab-coordinator-%d", ordinal), Leader: i == 0, Voter: true})
	}
	return list
}

func pods(n ...int) map[string]bool {
	all := map[string]bool{}
	for _, ordinal := range n {
		all[fmt.Sprintf("lab-coordinator-%d", ordinal)] = true
	}
	return all
}

func TestACoordinatorIsAddedAfterItRunsAndRemovedBeforeItGoes(t *testing.T) {
	for what, c := range map[string]struct {
		replicas int32
		m        Membership
		change   MemberChange
		pods     int
	}{
		"nothing is there":     {3, Membership{}, MemberChange{}, 3},
		"nobody answers":       {1, Membership{Pods: 3, Running: pods(0, 1, 2)}, MemberChange{}, 3},
		"the first is alone":   {3, Membership{Known: true, Members: ids(0), Running: pods(0), Pods: 3}, MemberChange{}, 3},
		"the second runs":      {3, Membership{Known: true, Members: ids(0), Running: pods(0, 1), Pods: 3}, MemberChange{Add: "lab-coordinator-1"}, 3},
		"one has no vote yet":  {3, Membership{Known: true, Members: append(ids(0, 1), Member{ID: "lab-coordinator-2"}), Running: pods(0, 1, 2), Pods: 3}, MemberChange{Add: "lab-coordinator-2"}, 3},
		"all are in":           {3, Membership{Known: true, Members: ids(0, 1, 2), Running: pods(0, 1), Pods: 3}, MemberChange{}, 3},
		"two are too many":     {3, Membership{Known: true, Members: ids(0, 1, 2, 3, 4), Running: pods(0, 1, 2, 3, 4), Pods: 5}, MemberChange{Remove: "lab-coordinator-4"}, 5},
		"then one is":          {3, Membership{Known: true, Members: ids(0, 1, 2, 3), Running: pods(0, 1, 2, 3, 4), Pods: 5}, MemberChange{Remove: "lab-coordinator-3"}, 4},
		"who is to go leads":   {1, Membership{Known: true, Members: ids(2, 0, 1), Running: pods(0, 1, 2), Pods: 3}, MemberChange{Transfer: "lab-coordinator-0"}, 3},
		"strangers stay":       {1, Membership{Known: true, Members: append(ids(0), Member{ID: "c9", Voter: true}), Running: pods(0), Pods: 1}, MemberChange{}, 1},
		"a pod lost its place": {3, Membership{Known: true, Members: ids(0, 2), Running: pods(0, 1, 2), Pods: 3}, MemberChange{Add: "lab-coordinator-1"}, 3},
	} {
		cluster := lab()
		cluster.Spec.Coordinators.Replicas = &c.replicas
		change, n, reason := Members(cluster, c.m)
		if change != c.change || n != c.pods || change != (MemberChange{}) && reason == "" {
			t.Errorf("%s: %+v with %d pods because %q, want %+v with %d", what, change, n, reason, c.change, c.pods)
		}
	}
}

// TestAnyNumberOfCoordinatorsIsReachedWithoutLosingAMajority plays the changes one after
// the other: no member is ever without a pod, and each change is of one member.
func TestAnyNumberOfCoordinatorsIsReachedWithoutLosingAMajority(t *testing.T) {
	for _, way := range [][2]int{{1, 3}, {3, 5}, {5, 1}, {1, 5}, {3, 1}} {
		c, members, podCount := lab(), ids(0, 1, 2, 3, 4)[:way[0]], way[0]
		c.Spec.Coordinators.Replicas = new(int32(way[1]))
		for range 20 {
			running := map[string]bool{}
			for i := range podCount {
				running[CoordinatorID(c, i)] = true
			}
			change, n, _ := Members(c, Membership{Known: true, Members: members, Running: running, Pods: podCount})
			podCount = n
			switch {
			case change.Add != "":
				members = append(slices.Clone(members), Member{ID: change.Add, Voter: true})
			case change.Remove != "":
				members = slices.DeleteFunc(slices.Clone(members), func(m Member) bool { return m.ID == change.Remove })
			}
			for _, m := range members {
				if Ordinal(c, m.ID) >= podCount {
					t.Fatalf("%v: %s is a member and has no pod", way, m.ID)
				}
			}
		}
		if len(members) != way[1] || podCount != way[1] {
			t.Errorf("%v: ended with %d members and %d pods", way, len(members), podCount)
		}
	}
}

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func pool(name string, least, most int32) v1alpha1.WorkerPool {
	return v1alpha1.WorkerPool{Name: name, Min: least, Max: most, IdleSeconds: new(int32(60))}
}

// worker is a pod of pool cpu of the cluster; free is for how long its worker has had no
// job, 0 if it has one.
func worker(c *v1alpha1.SkeinCluster, name string, free time.Duration) PoolPod {
	p := PoolPod{Name: name, Pool: "cpu", Template: Template(c, &c.Spec.WorkerPools[0]), Ready: true, Born: noon.Add(-time.Hour), Job: "j"}
	if free > 0 {
		p.FreeFrom, p.Job = noon.Add(-free), ""
	}
	return p
}

func TestPoolsFollowTheJobs(t *testing.T) {
	c := lab(pool("cpu", 1, 4), pool("big", 0, 2))
	busy, fresh, idle := 0*time.Second, 10*time.Second, 2*time.Minute
	old := worker(c, "w-old", busy)
	old.Template = "earlier"
	unready := worker(c, "w-new", busy)
	unready.Ready = false
	leaving := worker(c, "w-leaving", busy)
	leaving.Leaving = true
	ended := worker(c, "w-ended", busy)
	ended.Ended = true
	expiring := worker(c, "w-expiring", busy)
	expiring.Expiring = true
	lost := worker(c, "w-lost", idle)
	lost.Pool = "gone"
	for what, f := range map[string]struct {
		demands []Demand
		pods    []PoolPod
		silent  bool
		create  map[string]int
		remove  []string
	}{
		"the least is kept":                    {nil, nil, false, map[string]int{"cpu": 1}, nil},
		"jobs get what they want":              {[]Demand{{Max: 2}, {Max: 1}}, []PoolPod{worker(c, "a", busy)}, false, map[string]int{"cpu": 2}, nil},
		"the next pool has the rest":           {[]Demand{{Max: 5}}, nil, false, map[string]int{"cpu": 4, "big": 1}, nil},
		"no pool is overfilled":                {[]Demand{{Max: 16}}, nil, false, map[string]int{"cpu": 4, "big": 2}, nil},
		"a paused job wants none":              {[]Demand{{Max: 4, Paused: true}}, []PoolPod{worker(c, "a", busy)}, false, nil, nil},
		"who has been free for long goes":      {[]Demand{{Max: 1}}, []PoolPod{worker(c, "a", busy), worker(c, "b", idle)}, false, nil, []string{"b"}},
		"who has just become free stays":       {[]Demand{{Max: 1}}, []PoolPod{worker(c, "a", busy), worker(c, "b", fresh)}, false, nil, nil},
		"who has ranks is never too many":      {nil, []PoolPod{worker(c, "a", busy), worker(c, "b", busy), worker(c, "d", busy)}, false, nil, nil},
		"as many go as are too many":           {[]Demand{{Max: 2}}, []PoolPod{worker(c, "a", idle), worker(c, "b", idle), worker(c, "d", idle)}, false, nil, []string{"a"}},
		"nobody goes while the leader is away": {nil, []PoolPod{worker(c, "a", idle), worker(c, "b", idle)}, true, nil, nil},
		"who has ended is replaced":            {[]Demand{{Max: 1}}, []PoolPod{ended}, false, map[string]int{"cpu": 1}, []string{"w-ended"}},
		"who leaves is replaced at once":       {[]Demand{{Max: 1}}, []PoolPod{leaving}, false, map[string]int{"cpu": 1}, nil},
		"an earlier spec drains":               {[]Demand{{Max: 2}}, []PoolPod{worker(c, "a", busy), old}, false, nil, []string{"w-old"}},
		"but not before the others are ready":  {[]Demand{{Max: 2}}, []PoolPod{unready, old}, false, nil, nil},
		"and one at a time":                    {[]Demand{{Max: 2}}, []PoolPod{worker(c, "a", busy), old, leaving}, false, nil, nil},
		"a certificate that ends is replaced":  {[]Demand{{Max: 1}}, []PoolPod{expiring}, false, nil, []string{"w-expiring"}},
		"a pool that is gone is emptied":       {[]Demand{{Max: 1}}, []PoolPod{worker(c, "a", busy), lost}, false, nil, []string{"w-lost"}},
	} {
		plan := Pools(c, Fleet{Now: noon, Known: !f.silent, Demands: f.demands, Pods: f.pods})
		if fmt.Sprint(plan.Create) != fmt.Sprint(f.create) && len(plan.Create)+len(f.create) > 0 || !slices.Equal(plan.Delete, f.remove) {
			t.Errorf("%s: makes %v and deletes %v because %q, want %v and %v", what, plan.Create, plan.Delete, plan.Reason, f.create, f.remove)
		}
		if len(plan.Create)+len(plan.Delete) > 0 && plan.Reason == "" {
			t.Errorf("%s: no reason", what)
		}
	}
}

func TestAWorkerOfAnotherSpecHasAnotherTemplate(t *testing.T) {
	c := lab(pool("cpu", 0, 1))
	was := Template(c, &c.Spec.WorkerPools[0])
	for what, change := range map[string]func(){
		"image": func() { c.Spec.Image = "skein:2" },
		"limit": func() {
			c.Spec.WorkerPools[0].Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("10Gi")}
		},
		"selector": func() { c.Spec.WorkerPools[0].NodeSelector = map[string]string{"a": "b"} },
	} {
		change()
		if is := Template(c, &c.Spec.WorkerPools[0]); is == was {
			t.Errorf("another %s is the same template", what)
		} else {
			was = is
		}
	}
	c.Spec.Coordinators.Replicas = new(int32(5))
	c.Spec.WorkerPools[0].Max = 9
	if is := Template(c, &c.Spec.WorkerPools[0]); is != was {
		t.Error("more coordinators or more workers make each worker another one")
	}
	args := strings.Join(WorkerPod(c, &c.Spec.WorkerPools[0], "lab-cpu-x").Spec.Containers[0].Args, " ")
	for _, want := range []string{"--threads 2", "--memory 9663676416", "--coordinator lab-coordinator-0.lab-coordinator.ml.svc:7401,", "--ring-advertise $(POD_NAME).lab-worker.ml.svc:7411"} {
		if !strings.Contains(args, want) {
			t.Errorf("a worker is started without %q: %s", want, args)
		}
	}
}

// TestPodsAreRestricted holds both kinds of pods against what the restricted Pod Security
// Standard asks for.
func TestPodsAreRestricted(t *testing.T) {
	c := lab(pool("cpu", 0, 1))
	for what, spec := range map[string]corev1.PodSpec{
		"coordinator": CoordinatorSet(c, 3, "x").Spec.Template.Spec, "worker": WorkerPod(c, &c.Spec.WorkerPools[0], "lab-cpu-x").Spec,
	} {
		s := spec.SecurityContext
		if !*s.RunAsNonRoot || *s.RunAsUser == 0 || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault || spec.HostNetwork || spec.HostPID || *spec.AutomountServiceAccountToken {
			t.Errorf("%s: %+v", what, s)
		}
		for _, container := range spec.Containers {
			s := container.SecurityContext
			if *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || len(s.Capabilities.Drop) != 1 || s.Capabilities.Drop[0] != "ALL" || len(s.Capabilities.Add) > 0 {
				t.Errorf("%s: %+v", what, s)
			}
		}
		for _, v := range spec.Volumes {
			if v.HostPath != nil {
				t.Errorf("%s: volume %s is of its node", what, v.Name)
			}
		}
	}
}

func TestEachCoordinatorSeesItsOwnCertificateAlone(t *testing.T) {
	set := CoordinatorSet(lab(), 3, "x")
	files := map[string]string{}
	for _, item := range set.Spec.Template.Spec.Volumes[0].Secret.Items {
		files[item.Path] = item.Key
	}
	if files["lab-coordinator-1/tls.key"] != "lab-coordinator-1.key" || files["lab-coordinator-1/ca.crt"] != "ca.crt" || len(files) != 4*CoordinatorsMax {
		t.Errorf("the files are %v", files)
	}
	for _, m := range set.Spec.Template.Spec.Containers[0].VolumeMounts {
		if m.Name == "tls" && m.SubPathExpr != "$(POD_NAME)" {
			t.Errorf("it sees %+v", m)
		}
	}
}

func TestAMajorityOfCoordinatorsCannotBeEvicted(t *testing.T) {
	for replicas, want := range map[int32]int{1: 1, 3: 2, 5: 3} {
		c := lab()
		c.Spec.Coordinators.Replicas = &replicas
		if got := DisruptionBudget(c).Spec.MinAvailable.IntValue(); got != want {
			t.Errorf("of %d coordinators %d have to stay, want %d", replicas, got, want)
		}
	}
}

func TestOnlyTheFirstCoordinatorFoundsAndOnlyOnce(t *testing.T) {
	c := lab()
	if got := Founders(c, false).Data["members"]; got != "lab-coordinator-0=lab-coordinator-0.lab-coordinator.ml.svc:7401" {
		t.Errorf("the founders are %q", got)
	}
	if got := Founders(c, true).Data["members"]; got != "" {
		t.Errorf("a cluster that has members is founded again by %q", got)
	}
}

func job(name string, change ...func(*v1alpha1.FineTuneJob)) *v1alpha1.FineTuneJob {
	j := &v1alpha1.FineTuneJob{}
	j.Name, j.Namespace, j.UID, j.Generation = name, "ml", "0B5A9C1E-7D2F-4E0A-9A53-6B1F0C2D3E4F", 2
	for _, f := range change {
		f(j)
	}
	return j
}

func TestAJobFindsItsCluster(t *testing.T) {
	a, b := v1alpha1.SkeinCluster{}, v1alpha1.SkeinCluster{}
	a.Name, b.Name = "a", "b"
	named := func(name string) func(*v1alpha1.FineTuneJob) {
		return func(j *v1alpha1.FineTuneJob) { j.Spec.ClusterRef = &v1alpha1.ClusterReference{Name: name} }
	}
	for what, c := range map[string]struct {
		job      *v1alpha1.FineTuneJob
		clusters []v1alpha1.SkeinCluster
		want     string
		reason   string
		advice   string
	}{
		"the only one":   {job("j"), []v1alpha1.SkeinCluster{a}, "a", "", ""},
		"by name":        {job("j", named("b")), []v1alpha1.SkeinCluster{a, b}, "b", "", ""},
		"none":           {job("j"), nil, "", "NoCluster", "make one"},
		"no such":        {job("j", named("c")), []v1alpha1.SkeinCluster{a, b}, "", "NoCluster", "here: a, b"},
		"several":        {job("j"), []v1alpha1.SkeinCluster{b, a}, "", "SeveralClusters", "(a, b); make the job again with spec.clusterRef.name"},
		"where it is":    {job("j", func(j *v1alpha1.FineTuneJob) { j.Status.Cluster = "a" }), []v1alpha1.SkeinCluster{a, b}, "a", "", ""},
		"where it stays": {job("j", named("b"), func(j *v1alpha1.FineTuneJob) { j.Status.Cluster = "a" }), []v1alpha1.SkeinCluster{b}, "", "NoCluster", "no SkeinCluster a"},
	} {
		got, refusal := Cluster(c.job, c.clusters)
		switch {
		case c.reason == "" && (refusal != nil || got.Name != c.want):
			t.Errorf("%s: %v, %+v", what, got, refusal)
		case c.reason != "" && (refusal == nil || refusal.Reason != c.reason || !strings.Contains(refusal.Message, c.advice)):
			t.Errorf("%s: %v, %+v", what, got, refusal)
		}
	}
}

func TestAQueuedJobWaitsUntilItIsAdmitted(t *testing.T) {
	queued := func(j *v1alpha1.FineTuneJob) { j.Labels = map[string]string{v1alpha1.LabelQueue: "team"} }
	suspend := func(is bool) func(*v1alpha1.FineTuneJob) {
		return func(j *v1alpha1.FineTuneJob) { j.Spec.Suspend = &is }
	}
	for what, c := range map[string]struct {
		job    *v1alpha1.FineTuneJob
		held   bool
		reason string
	}{
		"no queue":             {job("j"), false, v1alpha1.ReasonNotSuspended},
		"in a queue":           {job("j", queued), true, v1alpha1.ReasonWaitsForQueue},
		"admitted":             {job("j", queued, suspend(false)), false, v1alpha1.ReasonNotSuspended},
		"stopped by its queue": {job("j", queued, suspend(true)), true, v1alpha1.ReasonSuspended},
		"suspended":            {job("j", suspend(true)), true, v1alpha1.ReasonSuspended},
	} {
		if held, reason, _ := Held(c.job); held != c.held || reason != c.reason {
			t.Errorf("%s: held %v because of %s", what, held, reason)
		}
	}
	if Ours(job("j", func(j *v1alpha1.FineTuneJob) { j.Spec.ManagedBy = new("kueue.x-k8s.io/multikueue") })) || !Ours(job("j")) {
		t.Error("who manages a job does not count")
	}
	if id := RequestID(job("j")); id != "k8s-0b5a9c1e-7d2f-4e0a-9a53-6b1f0c2d3e4f" {
		t.Errorf("the request id is %q", id)
	}
}

func TestConditionsFollowTheJob(t *testing.T) {
	running := &skeinv1.Job{
		Id: "j-1", Phase: skeinv1.Phase_PHASE_RUNNING, Steps: 24, WorkersMax: 4, Generation: 3, Members: []*skeinv1.Member{{Worker: "a"}, {Worker: "b"}},
		Progress: &skeinv1.Progress{Step: 17, Loss: 1.742}, Published: &skeinv1.Checkpoint{Step: 16, Weights: "5b1c"}, SubmittedUnixMs: noon.UnixMilli(), ChangedUnixMs: noon.UnixMilli(),
	}
	j := job("j")
	Mirror(j, "lab", running)
	s := j.Status
	if s.Phase != "running" || s.Step != 17 || s.Steps != 24 || s.Published != 16 || s.Workers != 2 || s.Wanted != 4 || s.Loss != "1.742" || s.Selector != "skein.dev/job=j" || s.ObservedGeneration != 2 || !s.StartTime.Time.Equal(noon) {
		t.Errorf("the status is %+v", s)
	}
	is := func(kind string, want metav1.ConditionStatus, reason string) {
		t.Helper()
		c := meta.FindStatusCondition(j.Status.Conditions, kind)
		if c == nil || c.Status != want || c.Reason != reason || c.ObservedGeneration != 2 {
			t.Errorf("%s is %+v, want %s because of %s", kind, c, want, reason)
		}
	}
	is("Accepted", "True", "Taken")
	is("Running", "True", "OnWorkers")
	is("Suspended", "False", "NotSuspended")

	j.Spec.Suspend = new(true)
	Mirror(j, "lab", running)
	is("Suspended", "False", "Suspending")
	if Resumes(j) {
		t.Error("it goes on although it is suspended")
	}
	paused := &skeinv1.Job{Id: "j-1", Phase: skeinv1.Phase_PHASE_PAUSED, Paused: true, Steps: 24, WorkersMax: 4, Published: &skeinv1.Checkpoint{Step: 18}}
	Mirror(j, "lab", paused)
	is("Running", "False", "Queued")
	is("Suspended", "True", "SuspendedByUser")
	if j.Status.Step != 18 || j.Status.Workers != 0 || j.Status.Wanted != 0 {
		t.Errorf("a paused job is %+v", j.Status)
	}
	j.Spec.Suspend = new(false)
	if !Resumes(j) {
		t.Error("it does not go on")
	}
	other := job("j")
	Mirror(other, "lab", paused)
	if Resumes(other) {
		t.Error("a job that somebody paused by the command line is resumed")
	}
	Mirror(j, "lab", &skeinv1.Job{Id: "j-1", Phase: skeinv1.Phase_PHASE_DONE, Steps: 24, Published: &skeinv1.Checkpoint{Step: 24, Weights: "5b1c"}, ChangedUnixMs: noon.UnixMilli()})
	is("Complete", "True", "Done")
	is("Suspended", "False", "Over")
	if j.Status.Result != "5b1c" || !j.Status.CompletionTime.Time.Equal(noon) {
		t.Errorf("a job that is done is %+v", j.Status)
	}
	failed := job("j")
	Mirror(failed, "lab", &skeinv1.Job{Id: "j-1", Phase: skeinv1.Phase_PHASE_FAILED, Reason: "no space left"})
	if c := meta.FindStatusCondition(failed.Status.Conditions, "Failed"); c == nil || c.Message != "no space left" {
		t.Errorf("a job that failed says %+v", c)
	}
}

func TestTroubleSaysWhatToDo(t *testing.T) {
	waiting := func(reason string) corev1.Pod {
		return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{
			{Image: "skein:9", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}},
		}}}
	}
	unplaced := func(message string) corev1.Pod {
		return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Status: corev1.PodStatus{Conditions: []corev1.PodCondition{
			{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: message},
		}}}
	}
	for what, c := range map[string]struct {
		pod            corev1.Pod
		reason, advice string
	}{
		"no image":  {waiting("ImagePullBackOff"), "ImageUnavailable", "correct spec.image"},
		"no volume": {unplaced(`0/3 nodes are available: persistentvolumeclaim "shared" not found`), "VolumePending", "storage.claimName"},
		"no room":   {unplaced("0/3 nodes are available: 3 Insufficient cpu."), "Unschedulable", "add nodes"},
		"starting":  {waiting("ContainerCreating"), "", ""},
		"leaving": {func() corev1.Pod {
			p := waiting("ImagePullBackOff")
			p.DeletionTimestamp = new(metav1.NewTime(noon))
			return p
		}(), "", ""},
	} {
		got := Trouble([]corev1.Pod{c.pod})
		if c.reason == "" && got != nil || c.reason != "" && (got == nil || got.Reason != c.reason || !strings.Contains(got.Message, c.advice)) {
			t.Errorf("%s: %+v", what, got)
		}
	}
}

func TestAClusterSaysHowItIs(t *testing.T) {
	for what, c := range map[string]struct {
		h        Health
		leader   string
		ready    string
		degraded string
	}{
		"made":      {Health{Silence: "they are being started"}, "", "False CoordinatorsStarting", "True CoordinatorDown"},
		"well":      {Health{Known: true, Ready: 3, Members: ids(0, 1, 2)}, "x", "True Quorum", "False AllReady"},
		"one down":  {Health{Known: true, Ready: 2, Members: ids(0, 1, 2)}, "x", "True Quorum", "True CoordinatorDown"},
		"no quorum": {Health{Ready: 1, Silence: "no coordinator answers"}, "x", "False NoQuorum", "True CoordinatorDown"},
		"no image":  {Health{Trouble: &Refusal{"ImageUnavailable", "m"}}, "", "False ImageUnavailable", "True ImageUnavailable"},
		"quota":     {Health{Known: true, Ready: 3, Blocking: &Refusal{"QuotaExceeded", "m"}}, "x", "True QuotaExceeded", "True QuotaExceeded"},
	} {
		cluster := lab()
		cluster.Status.Leader = c.leader
		Conditions(cluster, c.h)
		shown := func(kind string) string {
			got := meta.FindStatusCondition(cluster.Status.Conditions, kind)
			return fmt.Sprintf("%s %s", got.Status, got.Reason)
		}
		if shown("Ready") != c.ready || shown("Degraded") != c.degraded {
			t.Errorf("%s: Ready %s, Degraded %s; want %s, %s", what, shown("Ready"), shown("Degraded"), c.ready, c.degraded)
		}
	}
}

func TestCertificatesAreReplacedAMonthBeforeTheirEnd(t *testing.T) {
	if Due(noon, noon.Add(CertificateValidity)) || !Due(noon, noon.Add(24*time.Hour)) || !Due(noon, noon.Add(-time.Hour)) {
		t.Error("a certificate is replaced at the wrong time")
	}
	b, err := json.Marshal(Secret(lab(), "s", map[string][]byte{FileKey: []byte("k")}))
	if err != nil || !strings.Contains(string(b), `"tls.key":"aw=="`) {
		t.Errorf("%s, %v", b, err)
	}
}
