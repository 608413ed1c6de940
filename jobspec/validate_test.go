package jobspec

import (
	"strings"
	"testing"
)

func TestEveryConflictIsNamedWithItsConsequence(t *testing.T) {
	for _, c := range []struct{ settings, want string }{
		{"kind=Serve", `kind: is "Serve"; known here: FineTune`},
		{"name=My Job", `name: is "My Job"; it must be 1 to 63 lower-case letters, digits and dashes`},
		{"name=" + strings.Repeat("a", 64), "it must be 1 to 63"},
		{"model.base=smollm2@1", `"smollm2@1" names a model in a registry, which this release does not have`},
		{`model.base="a\0b"`, "model.base: holds a NUL character"},
		{"method=lora", "method: lora: adapters are not in this release; use full"},
		{"method=qlora", "method: qlora: adapters are not in this release; use full"},
		{"method=sgd", `method: is "sgd"; known here: full`},
		{"data.validation=60%", "data.validation: is a share of 60%; it must be more than 0% and at most 50%"},
		{"data.sequenceLength=4", "data.sequenceLength: is 4; it must be between 8 and 1048576"},
		{"data.sequenceLength=2000000", "it must be between 8 and 1048576"},
		{"data.tooLong=wrap", `data.tooLong: is "wrap"; known here: split, truncate, drop`},
		{"data.maxBadLines=-1", "data.maxBadLines: is -1; 0 stops at the first malformed line"},
		{"train.epochs=2", "steps and epochs are both given; they would fight over the length of the run, so give one"},
		{"train.steps=0", "train.steps: is missing; give train.steps or train.epochs"},
		{"train.steps=-3", "train.steps: is -3; it must be between 0 and"},
		{"train.steps=0 train.epochs=-1", "train.epochs: is -1; it must be more than 0"},
		{"train.steps=0 train.epochs=.nan", "train.epochs: is NaN; it must be more than 0"},
		{"train.optimizer.learningRate=0", "train.optimizer.learningRate: is missing or 0, and with 0 nothing is learnt"},
		{"train.optimizer.learningRate=.nan", "is NaN, and every weight would become NaN at step 1"},
		{"train.optimizer.learningRate=.inf", "is +Inf, and weights would leave the range of fp32"},
		{"train.optimizer.learningRate=-3e-4", "is -0.0003; a negative rate climbs the loss"},
		{"train.optimizer.name=sgd", `train.optimizer.name: is "sgd"; known here: adamw`},
		{"train.optimizer.beta1=1", "train.optimizer.beta1: is 1; it must be at least 0 and below 1"},
		{"train.optimizer.beta2=-0.1", "train.optimizer.beta2: is -0.1; it must be at least 0 and below 1"},
		{"train.optimizer.epsilon=0", "divides by zero"},
		{"train.optimizer.weightDecay=-1", "train.optimizer.weightDecay: is -1; it must be between 0 and 10"},
		{"train.optimizer.clip=.inf", "train.optimizer.clip: is +Inf; it must be 0 (off) or more, and finite"},
		{"train.precision=medium", "train.precision: is \"medium\""},
		{"train.numericClass=amx-bf16-high", "train.numericClass: is \"amx-bf16-high\", but train.precision is bf16: kernels that end with -high are for precision high"},
		{"train.precision=fp16", `train.precision: is "fp16"; known here: bf16, fp32`},
		{"train.numericClass=AMX", "train.numericClass: is \"AMX\"; it is auto, or the name of kernels that skein doctor lists"},
		{"train.activationCheckpointing=some", `train.activationCheckpointing: is "some"; known here: none, selective, full`},
		{"train.schedule.kind=step", `train.schedule.kind: is "step"; known here: constant, linear, cosine`},
		{"train.schedule.warmupSteps=2", "is 2 of 1 steps: the learning rate would never reach its peak"},
		{"train.schedule.floor=0.1", "train.schedule.floor: has no meaning with kind constant"},
		{"train.schedule.kind=linear train.schedule.floor=2", "is 2; it is a share of learningRate"},
		{"cluster.worldSize=0x4", "must be a whole number"},
		{"cluster.worldSize=17", "cluster.worldSize: is 17; it must be between 1 and 16"},
		{"cluster.worldSize=4 train.globalBatch=6", "train.globalBatch: is 6, which cluster.worldSize 4 does not divide: ranks would train on unequal shares; use 4 or 8"},
		{"cluster.worldSize=2 train.globalBatch=12 train.microBatch=4", "train.microBatch: is 4, which does not divide the 6 sequences of a rank (globalBatch 12 / worldSize 2); use auto or one of 6, 3, 2, 1"},
		{"cluster.workers.max=2", "cluster.workers.max: is 2, more than cluster.worldSize 1"},
		{"cluster.worldSize=4 cluster.workers.min=3 cluster.workers.max=2", "cluster.workers.max: is 2, below workers.min 3"},
		{"cluster.workers.min=-1", "cluster.workers.min: is -1; a job needs at least 1 worker"},
		{"cluster.zero=4", "cluster.zero: is 4; the stages are 0, 1, 2 and 3"},
		{"cluster.protect=mirrors", "cluster.protect: is \"mirrors\"; known here: checkpoint, mirror"},
		{"cluster.priority=101", "cluster.priority: is 101; it must be between -100 and 100"},
		{"cluster.wire=fp8", `cluster.wire: is "fp8"; known here: fp32, bf16`},
		{"eval.every=8 steps", "eval.every: asks for held-out loss, but data.validation is missing"},
		{"eval.exactMatch=3", "eval.exactMatch: asks for held-out examples, but data.validation is missing"},
		{"eval.maxNewTokens=-1", "eval.maxNewTokens: is -1; it must be between 1 and"},
		{"checkpoint.keep=-1", "checkpoint.keep: is -1; keep at least 1"},
		{"output.export=./m", "output.export: is the folder of the base model; name a new one"},
		{"output.dtype=int8", `output.dtype: is "int8"; known here: bf16, fp32`},
		{"output.maxShard=1KiB", "output.maxShard: is 1KiB; the smallest is 1MiB"},
		{"resources.memory=1MiB", "resources.memory: is 1MiB; the smallest is 64MiB"},
		{"resources.threads=4096", "resources.threads: is 4096; it must be between 0 and 1024"},
	} {
		settings := strings.Split(c.settings, " ")
		if strings.Contains(c.settings, "My Job") || strings.Contains(c.settings, "8 steps") {
			settings = []string{c.settings}
		}
		got := problems(t, minimal, settings...)
		if !strings.Contains(got[0], c.want) {
			t.Errorf("%s:\n got  %q\n want %q", c.settings, got, c.want)
		}
	}
}

func TestAnEmptyJobIsToldEverythingItNeeds(t *testing.T) {
	got := strings.Join(problems(t, "kind: FineTune\n"), "\n")
	for _, want := range []string{"name: ", "model.base: ", "data.train: ", "train.steps: ", "train.optimizer.learningRate: "} {
		if !strings.Contains(got, "job.yaml: "+want) && !strings.Contains(got, "job.yaml:1: "+want) {
			t.Errorf("missing key %s is not asked for in\n%s", want, got)
		}
	}
}

func TestAConflictIsReportedOnTheLineOfItsKey(t *testing.T) {
	src := strings.Replace(pronounce(t), "worldSize: 4", "worldSize: 3", 1)
	got := problems(t, src)
	want := "job.yaml:16: train.globalBatch: is 4, which cluster.worldSize 3 does not divide"
	if !strings.HasPrefix(got[0], want) {
		t.Errorf("got %q, want %q", got[0], want)
	}
}
