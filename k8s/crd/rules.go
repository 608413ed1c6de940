package crd

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// What follows says again, in the words of the API server, what package jobspec says in
// Go. Tests hold the one against the other.

// Bounds are what numbers of the job file may be.
var Bounds = map[string]Bound{
	"data.sequenceLength":          {Min: 8, Max: 1 << 20},
	"data.maxBadLines":             {Min: 0, Max: math.MaxInt32},
	"train.steps":                  {Min: 1, Max: 1 << 30},
	"train.epochs":                 {Min: 0, Max: 1e6, AboveMin: true},
	"train.globalBatch":            {Min: 1, Max: 1 << 20},
	"train.optimizer.learningRate": {Min: 0, Max: 10, AboveMin: true},
	"train.optimizer.beta1":        {Min: 0, Max: 1, BelowX: true},
	"train.optimizer.beta2":        {Min: 0, Max: 1, BelowX: true},
	"train.optimizer.epsilon":      {Min: 0, Max: 1, AboveMin: true},
	"train.optimizer.weightDecay":  {Min: 0, Max: 10},
	"train.optimizer.clip":         {Min: 0, Max: math.Inf(1)},
	"train.schedule.warmupSteps":   {Min: 0, Max: 1 << 30},
	"train.schedule.floor":         {Min: 0, Max: 1},
	"train.seed":                   {Min: 0, Max: math.Inf(1)},
	"eval.exactMatch":              {Min: 0, Max: 1 << 16},
	"eval.maxNewTokens":            {Min: 1, Max: 1 << 16},
	"cluster.worldSize":            {Min: 1, Max: 16},
	"cluster.workers.min":          {Min: 1, Max: 16},
	"cluster.workers.max":          {Min: 1, Max: 16},
	"cluster.zero":                 {Min: 0, Max: 3},
	"cluster.priority":             {Min: -100, Max: 100},
	"checkpoint.keep":              {Min: 1, Max: math.MaxInt32},
	"resources.threads":            {Min: 0, Max: 1024},
}

// Words are what texts of the job file may be.
var Words = map[string][]string{
	"kind":                          {"FineTune"},
	"method":                        {"full"},
	"data.tooLong":                  {"split", "truncate", "drop"},
	"train.precision":               {"bf16", "fp32", "high"},
	"train.activationCheckpointing": {"none", "selective", "full"},
	"train.optimizer.name":          {"adamw"},
	"train.schedule.kind":           {"constant", "linear", "cosine"},
	"cluster.protect":               {"checkpoint", "mirror"},
	"cluster.wire":                  {"fp32", "bf16"},
	"output.dtype":                  {"bf16", "fp32"},
}

var patterns = map[string]string{
	"name":               `^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`,
	"train.numericClass": `^[a-z0-9]+(-[a-z0-9]+)*$`,
}

// Rule ties keys of a job together.
type Rule struct {
	Section string // of the keys; empty: the whole spec
	Rule    string // in CEL
	Message string // what is wrong and what to do
}

// Rules are the conflicts that the API server can see. A default of the job file that a
// rule needs stands in it.
var Rules = []Rule{
	{"model", `!self.base.matches('(^|/)[^/]*@[^/]*/*$')`, "model.base names a model in a registry, which this release does not have; give a Hugging Face folder or a GGUF file"},
	{"train", `has(self.steps) != has(self.epochs)`, "train.steps: give train.steps or train.epochs, and one of them alone"},
	{"train", `!has(self.steps) || !has(self.schedule) || !has(self.schedule.warmupSteps) || self.schedule.warmupSteps <= self.steps`,
		"train.schedule.warmupSteps: the learning rate would never reach its peak; warm up for fewer steps than train.steps"},
	{"train", `!has(self.schedule) || !has(self.schedule.floor) || self.schedule.floor == 0.0 || has(self.schedule.kind) && self.schedule.kind != 'constant'`,
		"train.schedule.floor has no meaning with kind constant; leave it out"},
	{"train", `!has(self.numericClass) || self.numericClass == 'auto' || (self.numericClass == 'high' || self.numericClass.endsWith('-high')) == (has(self.precision) && self.precision == 'high')`,
		"train.numericClass: kernels that end with -high are for precision high, and for that alone; leave it at auto"},
	{"cluster", `!has(self.workers) || !has(self.workers.max) || self.workers.max <= (has(self.worldSize) ? self.worldSize : 1)`,
		"cluster.workers.max is more than cluster.worldSize: a worker hosts at least one rank, so the rest would idle; lower it or raise worldSize"},
	{"cluster", `!has(self.workers) || !has(self.workers.min) || self.workers.min <= (has(self.workers.max) ? self.workers.max : (has(self.worldSize) ? self.worldSize : 1))`,
		"cluster.workers.max is below cluster.workers.min; no number of workers would do"},
	{"", `!has(self.train.globalBatch) || self.train.globalBatch % (has(self.cluster) && has(self.cluster.worldSize) ? self.cluster.worldSize : 1) == 0`,
		"train.globalBatch is not a multiple of cluster.worldSize: ranks would train on unequal shares"},
	{"", `!has(self.train.microBatch) || string(self.train.microBatch) == 'auto' || (has(self.train.globalBatch) ? self.train.globalBatch / (has(self.cluster) && has(self.cluster.worldSize) ? self.cluster.worldSize : 1) : 1) % int(self.train.microBatch) == 0`,
		"train.microBatch does not divide the sequences of a rank (train.globalBatch / cluster.worldSize); use auto"},
	{"", `!has(self.eval) || !has(self.eval.every) || has(self.data.validation)`, "eval.every asks for held-out loss, but data.validation is missing; add it or leave this out"},
	{"", `!has(self.eval) || !has(self.eval.exactMatch) || self.eval.exactMatch == 0 || has(self.data.validation)`,
		"eval.exactMatch asks for held-out examples, but data.validation is missing; add it or leave this out"},
	{"", `!has(self.output) || !has(self.output.export) || self.output.export != self.model.base`, "output.export is the folder of the base model; name a new one"},
}

// nameRule is about the object's own name, which the job takes if it has none of its own.
var nameRule = Rule{"", `has(self.spec.name) || self.metadata.name.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$')`,
	"metadata.name: a job's name is 1 to 63 lower-case letters, digits and dashes; choose another, or give spec.name"}

// changeable are the keys of a spec that may change while the job lives. All others fix
// what the job is.
var changeable = []string{"cluster", "suspend", "managedBy"}

// immutable are the rules that keep the rest of a spec as it was made. The most workers
// may change, and a left out one may be filled in: that is what scaling does.
func immutable(keys object) []Rule {
	var rules []Rule
	same := func(parent, key string) {
		path := strings.TrimPrefix(parent+"."+key, ".")
		self, old := "self."+path, "oldSelf."+path
		rules = append(rules, Rule{"", fmt.Sprintf("has(%s) == has(%s) && (!has(%s) || %s == %s)", self, old, self, self, old),
			path + " cannot be changed: it is part of what the job is; make a new FineTuneJob"})
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if !slices.Contains(changeable, key) {
			same("", key)
		}
	}
	var parts []string
	cluster := keys["cluster"].(object)["properties"].(object)
	for _, key := range slices.Sorted(maps.Keys(cluster)) {
		if key != "workers" {
			parts = append(parts, unchanged("cluster", key))
		}
	}
	parts = append(parts, unchanged("cluster.workers", "min"))
	return append(rules, Rule{"", strings.Join(parts, " && "),
		"cluster cannot be changed but for cluster.workers.max: it is part of what the job is; make a new FineTuneJob"})
}

// unchanged is the rule for one key of a section that may be missing.
func unchanged(section, key string) string {
	keys := strings.Split(section+"."+key, ".")
	value := func(root string) string {
		var there []string
		for i := range keys {
			there = append(there, "has("+root+"."+strings.Join(keys[:i+1], ".")+")")
		}
		return strings.Join(there, " && ")
	}
	self, old := "self."+section+"."+key, "oldSelf."+section+"."+key
	return fmt.Sprintf("(%s) == (%s) && (!(%s) || %s == %s)", value("self"), value("oldSelf"), value("self"), self, old)
}
