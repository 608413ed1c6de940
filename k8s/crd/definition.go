package crd

import (
	"reflect"

	"sigs.k8s.io/yaml"

	"github.com/skein-ml/skein/k8s/api/v1alpha1"
)

// column is what `kubectl get` shows.
type column struct{ name, kind, path, doc string }

func columns(list ...column) []any {
	var out []any
	for _, c := range list {
		o := object{"name": c.name, "type": c.kind, "jsonPath": c.path}
		if c.doc != "" {
			o["description"] = c.doc
		}
		out = append(out, o)
	}
	return out
}

// definition is a CustomResourceDefinition of one version, with a status of its own.
func definition(kind, singular, plural string, short []any, schema object, subresources object, shown []any) object {
	return object{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": object{"name": plural + "." + v1alpha1.GroupVersion.Group},
		"spec": object{
			"group": v1alpha1.GroupVersion.Group, "scope": "Namespaced",
			"names": object{"kind": kind, "listKind": kind + "List", "singular": singular, "plural": plural, "shortNames": short, "categories": []any{"skein"}},
			"versions": []any{object{
				"name": v1alpha1.GroupVersion.Version, "served": true, "storage": true,
				"schema": object{"openAPIV3Schema": schema}, "subresources": subresources, "additionalPrinterColumns": shown,
			}},
		},
	}
}

func whole(doc string, spec, status object) object {
	return object{"type": "object", "description": doc, "required": []any{"spec"}, "properties": object{
		"apiVersion": object{"type": "string"}, "kind": object{"type": "string"}, "metadata": object{"type": "object"}, "spec": spec, "status": status,
	}}
}

// FineTuneJob is the definition of jobs, as YAML.
func FineTuneJob() ([]byte, error) {
	schema := whole("FineTuneJob is one job on a SkeinCluster. Its fields are those of the job file.", jobSchema(), structSchema(reflect.TypeFor[v1alpha1.FineTuneJobStatus]()))
	addRule(schema, nameRule.Rule, nameRule.Message)
	scale := object{"specReplicasPath": ".spec.cluster.workers.max", "statusReplicasPath": ".status.workers", "labelSelectorPath": ".status.selector"}
	return yaml.Marshal(definition(v1alpha1.KindFineTuneJob, "finetunejob", "finetunejobs", []any{"ftj"}, schema, object{"status": object{}, "scale": scale}, columns(
		column{"Phase", "string", ".status.phase", ""},
		column{"Step", "integer", ".status.step", "steps taken"},
		column{"Steps", "integer", ".status.steps", "of the whole job"},
		column{"Workers", "integer", ".status.workers", "that host its ranks"},
		column{"Loss", "string", ".status.loss", ""},
		column{"Message", "string", ".status.message", ""},
		column{"Age", "date", ".metadata.creationTimestamp", ""},
	)))
}

// SkeinCluster is the definition of clusters, as YAML.
func SkeinCluster() ([]byte, error) {
	spec := structSchema(reflect.TypeFor[v1alpha1.SkeinClusterSpec]())
	pools := spec["properties"].(object)["workerPools"].(object)["items"].(object)
	addRule(pools, "!has(self.min) || self.min <= self.max", "min is more than max; no number of workers would do")
	coordinators := spec["properties"].(object)["coordinators"].(object)
	coordinators["default"] = object{}
	volume := coordinators["properties"].(object)["volume"].(object)
	volume["default"] = object{}
	addRule(volume, "self == oldSelf", "volume cannot be changed: the claims of a StatefulSet cannot; make a new SkeinCluster")
	schema := whole("SkeinCluster is a cluster of Skein: coordinators that agree, pools of workers that compute, and the storage that they share.",
		spec, structSchema(reflect.TypeFor[v1alpha1.SkeinClusterStatus]()))
	addRule(schema, "self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,28}[a-z0-9])?$')", "metadata.name: 1 to 30 lower-case letters, digits and dashes, because names of pods are made of it")
	return yaml.Marshal(definition(v1alpha1.KindSkeinCluster, "skeincluster", "skeinclusters", []any{"skein"}, schema, object{"status": object{}}, columns(
		column{"Ready", "string", ".status.conditions[?(@.type=='Ready')].status", ""},
		column{"Coordinators", "integer", ".status.readyCoordinators", "that are ready"},
		column{"Leader", "string", ".status.leader", ""},
		column{"Workers", "integer", ".status.connectedWorkers", "that the leader hears"},
		column{"Wanted", "integer", ".status.wantedWorkers", "workers that the jobs would use"},
		column{"Queued", "integer", ".status.queuedJobs", "jobs that wait for workers"},
		column{"Age", "date", ".metadata.creationTimestamp", ""},
	)))
}
