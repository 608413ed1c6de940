package v1alpha1

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skein-ml/skein/jobspec"
)

// FineTuneJob is one job on a SkeinCluster.
type FineTuneJob struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitzero"`

	Spec   FineTuneJobSpec   `json:"spec"`
	Status FineTuneJobStatus `json:"status,omitzero"`
}

// FineTuneJobList is a list of jobs.
type FineTuneJobList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitzero"`
	Items           []FineTuneJob `json:"items"`
}

// FineTuneJobSpec is what Kubernetes has to know of a job, and beside it the keys of the
// job file. Those are kept as they were written: an object that this version cannot read
// gets a condition that says so, where a field of the wrong type would keep the operator
// from listing any job.
type FineTuneJobSpec struct {
	ClusterRef *ClusterReference
	Suspend    *bool
	ManagedBy  *string

	// Job are the keys of the job file, an object in JSON.
	Job json.RawMessage
}

// ClusterReference names a SkeinCluster of the same namespace.
type ClusterReference struct {
	Name string `json:"name" doc:"a SkeinCluster of the same namespace" crd:"minLength=1,maxLength=253"`
}

// KubernetesFields are the keys of a FineTuneJob's spec that no job file has.
type KubernetesFields struct {
	ClusterRef *ClusterReference `json:"clusterRef,omitempty" doc:"the cluster to run on; may be left out where the namespace has one alone"`
	Suspend    *bool             `json:"suspend,omitempty" doc:"true: stop after the next step, with a checkpoint of it, and give the workers back; with a queue label and left out, the job waits for false"`
	ManagedBy  *string           `json:"managedBy,omitempty" doc:"who looks after this job; left out or skein.dev/operator: Skein's operator, which leaves all others alone" crd:"maxLength=63,immutable"`
}

// MarshalJSON puts all keys into one object.
func (s FineTuneJobSpec) MarshalJSON() ([]byte, error) {
	all := map[string]json.RawMessage{}
	if len(s.Job) > 0 {
		if err := json.Unmarshal(s.Job, &all); err != nil {
			return nil, fmt.Errorf("the fields of the job: %w", err)
		}
	}
	own, err := json.Marshal(KubernetesFields{s.ClusterRef, s.Suspend, s.ManagedBy})
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(own, &all); err != nil {
		return nil, err
	}
	return json.Marshal(all)
}

// UnmarshalJSON takes Kubernetes' keys out of the object; the rest is the job's. Only
// what is no object is an error.
func (s *FineTuneJobSpec) UnmarshalJSON(b []byte) error {
	*s = FineTuneJobSpec{}
	if string(bytes.TrimSpace(b)) == "null" {
		return nil
	}
	all := map[string]json.RawMessage{}
	if err := json.Unmarshal(b, &all); err != nil {
		return err
	}
	for key, into := range map[string]any{"clusterRef": &s.ClusterRef, "suspend": &s.Suspend, "managedBy": &s.ManagedBy} {
		if raw, there := all[key]; there && json.Unmarshal(raw, into) == nil {
			delete(all, key) // what cannot be read stays, and is refused as an unknown key of the job
		}
	}
	job, err := json.Marshal(all)
	s.Job = job
	return err
}

// Read returns the job that the spec describes. Its name is that of the FineTuneJob
// unless the spec has one; relative paths start from dir. Problems are a
// *[jobspec.Invalid].
func (j *FineTuneJob) Read(dir string) (*jobspec.Job, error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(j.Spec.Job, &keys); err != nil {
		keys = map[string]json.RawMessage{}
	}
	raw := j.Spec.Job
	if _, named := keys["name"]; !named {
		name, err := json.Marshal(j.Name)
		if err != nil {
			return nil, err
		}
		keys["name"] = name
		if raw, err = json.Marshal(keys); err != nil {
			return nil, err
		}
	}
	job, err := jobspec.Read("spec", bytes.NewReader(raw))
	if invalid, ok := errors.AsType[*jobspec.Invalid](err); ok {
		for i := range invalid.Problems {
			invalid.Problems[i].Source = "" // its lines are ours, not the user's
		}
	}
	if err != nil {
		return nil, err
	}
	return job.In(dir), nil
}

// HasWorkersMax tells whether the spec says how many workers are the most.
func (s *FineTuneJobSpec) HasWorkersMax() bool {
	var keys struct {
		Cluster struct {
			Workers struct {
				Max *json.Number `json:"max"`
			} `json:"workers"`
		} `json:"cluster"`
	}
	return json.Unmarshal(s.Job, &keys) == nil && keys.Cluster.Workers.Max != nil
}

// FineTuneJobStatus is what is known of a job.
type FineTuneJobStatus struct {
	ObservedGeneration int64              `json:"observedGeneration,omitempty" doc:"of the spec that the rest tells of"`
	Conditions         []metav1.Condition `json:"conditions,omitempty" doc:"Accepted, Running, Suspended, Complete, Failed" crd:"conditions"`
	Job                string             `json:"job,omitempty" doc:"id at the coordinators, as skein describe takes it"`
	Cluster            string             `json:"cluster,omitempty" doc:"SkeinCluster that has the job"`
	Phase              string             `json:"phase,omitempty" doc:"pending, preparing, queued, running, paused, done, failed or canceled"`
	Message            string             `json:"message,omitempty" doc:"why it is in this phase, or what it waits for"`
	Step               int64              `json:"step,omitempty" doc:"steps taken"`
	Steps              int64              `json:"steps,omitempty" doc:"of the whole job; 0 until it is prepared"`
	Published          int64              `json:"published,omitempty" doc:"step of the newest checkpoint"`
	Loss               string             `json:"loss,omitempty" doc:"of the last step that was reported"`
	Generation         int64              `json:"generation,omitempty" doc:"version of the placement of ranks on workers"`
	Workers            int32              `json:"workers,omitempty" doc:"that host its ranks now"`
	Wanted             int32              `json:"wanted,omitempty" doc:"workers that it would use"`
	Selector           string             `json:"selector,omitempty" doc:"of the pods of its workers, for the scale subresource"`
	Result             string             `json:"result,omitempty" doc:"of a job that is done: sha256 of the weights"`
	StartTime          *metav1.Time       `json:"startTime,omitempty" doc:"when the coordinators took it"`
	CompletionTime     *metav1.Time       `json:"completionTime,omitempty" doc:"when it was over"`
}
