package access

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"reflect"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/k8s/api/v1alpha1"
	"github.com/skein-ml/skein/k8s/policy"
)

const jobs = "finetunejobs"

// Manifest is the FineTuneJob of a job file's job: the keys that do not already follow
// from the others, so that it reads as a person would have written it.
func Manifest(job *jobspec.Job, cluster string) (*v1alpha1.FineTuneJob, error) {
	if len(job.Data.Validation.Paths) > 1 {
		return nil, &ChoiceError{"data.validation: in Kubernetes it is one path, one glob or a share, not a list; give a glob that finds all the files"}
	}
	raw, err := json.Marshal(job)
	if err != nil {
		return nil, err
	}
	var tree map[string]any
	numbers := json.NewDecoder(bytes.NewReader(raw))
	numbers.UseNumber() // a seed has more digits than a float64
	if err := numbers.Decode(&tree); err != nil {
		return nil, err
	}
	j := &v1alpha1.FineTuneJob{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: v1alpha1.KindFineTuneJob},
		ObjectMeta: metav1.ObjectMeta{Name: job.Name},
	}
	if cluster != "" {
		j.Spec.ClusterRef = &v1alpha1.ClusterReference{Name: cluster}
	}
	means := func() bool {
		if j.Spec.Job, err = json.Marshal(tree); err != nil {
			return false
		}
		read, err := j.Read("")
		return err == nil && reflect.DeepEqual(read, job.In(""))
	}
	for _, k := range jobspec.Keys() {
		keys := strings.Split(k.Path, ".")
		section, last := tree, keys[len(keys)-1]
		for _, key := range keys[:len(keys)-1] {
			section, _ = section[key].(map[string]any)
		}
		// The scale subresource reads the most workers, so they stay.
		if value, there := section[last]; there && !k.Section && k.Path != "cluster.workers.max" {
			delete(section, last)
			if !means() {
				section[last] = value
			}
		}
	}
	prune(tree)
	if !means() {
		return nil, errors.Join(fmt.Errorf("job %s cannot be said as a FineTuneJob", job.Name), err)
	}
	return j, nil
}

// prune removes sections that have no keys.
func prune(tree map[string]any) {
	for key, value := range tree {
		if section, ok := value.(map[string]any); ok {
			if prune(section); len(section) == 0 {
				delete(tree, key)
			}
		}
	}
}

// Elsewhere names the keys whose absolute paths no worker of the cluster can see.
func Elsewhere(job *jobspec.Job, c *v1alpha1.SkeinCluster) (keys []string) {
	root := policy.MountPath(c)
	look := func(key string, paths ...string) {
		for _, p := range paths {
			if path.IsAbs(p) && path.Clean(p) != root && !strings.HasPrefix(path.Clean(p), root+"/") {
				keys = append(keys, fmt.Sprintf("%s: %s", key, p))
			}
		}
	}
	look("model.base", job.Model.Base)
	look("data.train", job.Data.Train...)
	look("data.validation", job.Data.Validation.Paths...)
	look("checkpoint.store", job.Checkpoint.Store)
	look("output.export", job.Output.Export)
	return keys
}

// Submit makes the FineTuneJob of a job.
func (k *Kube) Submit(ctx context.Context, c *v1alpha1.SkeinCluster, job *jobspec.Job) (*v1alpha1.FineTuneJob, error) {
	j, err := Manifest(job, c.Name)
	if err != nil {
		return nil, err
	}
	j.Namespace = k.namespace
	body, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	made := &v1alpha1.FineTuneJob{}
	err = k.send(ctx, k.http.Post().AbsPath(k.path(jobs)...).Param("fieldValidation", "Strict").Param("fieldManager", "skein").Body(body), made)
	switch {
	case apierrors.IsAlreadyExists(err):
		return nil, &ChoiceError{fmt.Sprintf("there is a FineTuneJob %s in namespace %s; give this one another name (--set name=…), or delete that one first", j.Name, k.namespace)}
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		return nil, &ChoiceError{oneLine(err)}
	}
	return made, err
}

// Job returns a FineTuneJob; nil if there is none of that name.
func (k *Kube) Job(ctx context.Context, name string) (*v1alpha1.FineTuneJob, error) {
	if len(validation.IsDNS1123Subdomain(name)) > 0 {
		return nil, nil
	}
	j := &v1alpha1.FineTuneJob{}
	err := k.send(ctx, k.http.Get().AbsPath(k.path(jobs, name)...), j)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return j, nil
}

// Jobs lists the FineTuneJobs of a cluster, and those that have none yet.
func (k *Kube) Jobs(ctx context.Context, c *v1alpha1.SkeinCluster) ([]v1alpha1.FineTuneJob, error) {
	var list v1alpha1.FineTuneJobList
	if err := k.send(ctx, k.http.Get().AbsPath(k.path(jobs)...), &list); err != nil {
		return nil, err
	}
	var ours []v1alpha1.FineTuneJob
	for i := range list.Items {
		j := list.Items[i]
		wanted := j.Status.Cluster
		if j.Spec.ClusterRef != nil {
			wanted = cmp.Or(wanted, j.Spec.ClusterRef.Name)
		}
		if wanted == "" || wanted == c.Name {
			ours = append(ours, j)
		}
	}
	return ours, nil
}

// PendingError says of a FineTuneJob that the coordinators do not have it.
type PendingError struct{ Name, Why string }

func (e *PendingError) Error() string {
	return fmt.Sprintf("FineTuneJob %s has not reached the coordinators: %s", e.Name, e.Why)
}

// Why is what keeps a FineTuneJob from the coordinators.
func Why(j *v1alpha1.FineTuneJob) string {
	if c := meta.FindStatusCondition(j.Status.Conditions, v1alpha1.ConditionAccepted); c != nil && c.Status != metav1.ConditionTrue && c.Message != "" {
		return c.Message
	}
	return cmp.Or(j.Status.Message, "the operator has not looked at it yet; is one running? see `kubectl get deployment --all-namespaces -l app.kubernetes.io/name=skein-operator`")
}

// Resolve returns the id that the coordinators know a FineTuneJob by, and any other word
// as it is. One of another cluster is a ChoiceError, one that they do not have a
// PendingError.
func (k *Kube) Resolve(ctx context.Context, c *v1alpha1.SkeinCluster, word string) (string, error) {
	j, err := k.Job(ctx, word)
	switch {
	case err != nil || j == nil:
		return word, err
	case j.Status.Cluster != "" && j.Status.Cluster != c.Name:
		return "", &ChoiceError{fmt.Sprintf("FineTuneJob %s is on SkeinCluster %s; give --cluster %s", word, j.Status.Cluster, j.Status.Cluster)}
	case j.Status.Job == "":
		return "", &PendingError{word, Why(j)}
	}
	return j.Status.Job, nil
}

// Owner returns the FineTuneJob that a word means, by its name or by the id that the
// coordinators know it by; nil if it means none.
func (k *Kube) Owner(ctx context.Context, c *v1alpha1.SkeinCluster, word string) (*v1alpha1.FineTuneJob, error) {
	j, err := k.Job(ctx, word)
	if err != nil || j != nil {
		return j, err
	}
	list, err := k.Jobs(ctx, c)
	if err != nil {
		return nil, err
	}
	for i := range list {
		if list[i].Status.Job == word {
			return &list[i], nil
		}
	}
	return nil, nil
}

// Scale changes the most workers of a FineTuneJob, as kubectl scale does.
func (k *Kube) Scale(ctx context.Context, name string, workers int32) error {
	patch := fmt.Sprintf(`{"spec":{"replicas":%d}}`, workers)
	err := k.send(ctx, k.http.Patch(types.MergePatchType).AbsPath(k.path(jobs, name, "scale")...).Param("fieldManager", "skein").Body([]byte(patch)), nil)
	if status, ok := errors.AsType[*apierrors.StatusError](err); ok && status.ErrStatus.Code == http.StatusUnprocessableEntity {
		return &ChoiceError{oneLine(err)}
	}
	return err
}
