// Package badspec is the table of jobs that nobody may run. Tests give each of them to the
// command line, to a coordinator's admission and to the API server of Kubernetes, and none
// of the three may take it.
package badspec

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Case is one job that is wrong.
type Case struct {
	Settings []string // over [Minimal], as --set takes them
	Key      string   // where the problem is
	Local    bool     // only whoever reads the job file can see it: JSON cannot say it, or no rule of Kubernetes can
}

// Minimal is the job that the settings spoil; without them it is a good one.
const Minimal = `{name: a, model: {base: /m}, data: {train: [/t.jsonl]}, train: {optimizer: {learningRate: 0.0001}, steps: 1}, checkpoint: {store: /s}, output: {export: /e}}`

// Cases is the table.
var Cases = []Case{
	{[]string{"kind=Serve"}, "kind", false},
	{[]string{"name=My Job"}, "name", false},
	{[]string{"name=" + strings.Repeat("a", 64)}, "name", false},
	{[]string{"model.base=smollm2@1"}, "model.base", false},
	{[]string{"method=lora"}, "method", false},
	{[]string{"method=sgd"}, "method", false},
	{[]string{"data.validation=60%"}, "data.validation", true},
	{[]string{"data.sequenceLength=4"}, "data.sequenceLength", false},
	{[]string{"data.sequenceLength=2000000"}, "data.sequenceLength", false},
	{[]string{"data.tooLong=wrap"}, "data.tooLong", false},
	{[]string{"data.maxBadLines=-1"}, "data.maxBadLines", false},
	{[]string{"train.epochs=2"}, "train.steps", false},
	{[]string{"train.steps=0"}, "train.steps", false},
	{[]string{"train.steps=-3"}, "train.steps", false},
	{[]string{"train.steps=0", "train.epochs=-1"}, "train.epochs", false},
	{[]string{"train.steps=0", "train.epochs=.nan"}, "train.epochs", true},
	{[]string{"train.optimizer.learningRate=0"}, "train.optimizer.learningRate", false},
	{[]string{"train.optimizer.learningRate=.inf"}, "train.optimizer.learningRate", true},
	{[]string{"train.optimizer.learningRate=-3e-4"}, "train.optimizer.learningRate", false},
	{[]string{"train.optimizer.learningRate=11"}, "train.optimizer.learningRate", false},
	{[]string{"train.optimizer.name=sgd"}, "train.optimizer.name", false},
	{[]string{"train.optimizer.beta1=1"}, "train.optimizer.beta1", false},
	{[]string{"train.optimizer.beta2=-0.1"}, "train.optimizer.beta2", false},
	{[]string{"train.optimizer.epsilon=0"}, "train.optimizer.epsilon", false},
	{[]string{"train.optimizer.weightDecay=-1"}, "train.optimizer.weightDecay", false},
	{[]string{"train.optimizer.clip=-1"}, "train.optimizer.clip", false},
	{[]string{"train.precision=fp16"}, "train.precision", false},
	{[]string{"train.numericClass=amx-bf16-high"}, "train.numericClass", false},
	{[]string{"train.numericClass=AMX"}, "train.numericClass", false},
	{[]string{"train.activationCheckpointing=some"}, "train.activationCheckpointing", false},
	{[]string{"train.schedule.kind=step"}, "train.schedule.kind", false},
	{[]string{"train.schedule.warmupSteps=2"}, "train.schedule.warmupSteps", false},
	{[]string{"train.schedule.floor=0.1"}, "train.schedule.floor", false},
	{[]string{"train.schedule.kind=linear", "train.schedule.floor=2"}, "train.schedule.floor", false},
	{[]string{"train.seed=-1"}, "train.seed", false},
	{[]string{"cluster.worldSize=17"}, "cluster.worldSize", false},
	{[]string{"cluster.worldSize=4", "train.globalBatch=6"}, "train.globalBatch", false},
	{[]string{"cluster.worldSize=2", "train.globalBatch=12", "train.microBatch=4"}, "train.microBatch", false},
	{[]string{"train.microBatch=-1"}, "train.microBatch", false},
	{[]string{"cluster.workers.max=2"}, "cluster.workers.max", false},
	{[]string{"cluster.worldSize=4", "cluster.workers.min=3", "cluster.workers.max=2"}, "cluster.workers.max", false},
	{[]string{"cluster.workers.min=2"}, "cluster.workers.max", false},
	{[]string{"cluster.workers.min=-1"}, "cluster.workers.min", false},
	{[]string{"cluster.zero=4"}, "cluster.zero", false},
	{[]string{"cluster.protect=mirrors"}, "cluster.protect", false},
	{[]string{"cluster.priority=101"}, "cluster.priority", false},
	{[]string{"cluster.wire=fp8"}, "cluster.wire", false},
	{[]string{"eval.every=8 steps"}, "eval.every", false},
	{[]string{"eval.every=now and then"}, "eval.every", false},
	{[]string{"eval.exactMatch=3"}, "eval.exactMatch", false},
	{[]string{"eval.maxNewTokens=-1"}, "eval.maxNewTokens", false},
	{[]string{"checkpoint.keep=-1"}, "checkpoint.keep", false},
	{[]string{"output.export=/m"}, "output.export", false},
	{[]string{"output.dtype=int8"}, "output.dtype", false},
	{[]string{"output.maxShard=1KiB"}, "output.maxShard", true},
	{[]string{"output.maxShard=much"}, "output.maxShard", false},
	{[]string{"resources.memory=1MiB"}, "resources.memory", true},
	{[]string{"resources.threads=4096"}, "resources.threads", false},
	{[]string{"data.train=[]"}, "data.train", false},
	{[]string{"train.learningRate=0.1"}, "train.learningRate", true}, // Kubernetes drops it, or refuses it with strict validation, as kubectl asks for
}

// String is the case as a test names it.
func (c Case) String() string { return strings.Join(c.Settings, " ") }

// Spec is the job as a tree of JSON: what a manifest has under spec.
func (c Case) Spec() (map[string]any, error) {
	var root map[string]any
	if err := yaml.Unmarshal([]byte(Minimal), &root); err != nil {
		return nil, err
	}
	for _, s := range c.Settings {
		path, text, _ := strings.Cut(s, "=")
		var value any
		if err := yaml.Unmarshal([]byte(text), &value); err != nil {
			return nil, fmt.Errorf("%s: %w", s, err)
		}
		keys := strings.Split(path, ".")
		at := root
		for _, key := range keys[:len(keys)-1] {
			next, ok := at[key].(map[string]any)
			if !ok {
				next = map[string]any{}
				at[key] = next
			}
			at = next
		}
		at[keys[len(keys)-1]] = value
	}
	return root, nil
}
