package jobspec

import (
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Problem is one thing wrong with a job, at the key where it is wrong.
type Problem struct {
	Path    string // such as "train.optimizer.learningRate"; empty for the file as a whole
	Message string // what is wrong and what to do
	Source  string // "job.yaml:14"; empty for a job that was not read from a file
}

func (p Problem) String() string {
	return strings.Join(slices.DeleteFunc([]string{p.Source, p.Path, p.Message}, func(s string) bool { return s == "" }), ": ")
}

// Invalid is the error of a job that cannot run: every problem found, one a line.
type Invalid struct{ Problems []Problem }

func (e *Invalid) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Validate names every conflict and its consequence, all at once. It looks at
// the spec alone: what needs the model, the data or the machine is checked when
// those are open. Call EnsureDefaults first. The error is an *Invalid.
func (j *Job) Validate() error {
	var c checker
	c.oneOf("kind", j.Kind, []string{KindFineTune}, nil)
	c.that(nameShape.MatchString(j.Name) && len(j.Name) <= 63, "name", "is %s; it must be 1 to 63 lower-case letters, digits and dashes, beginning and ending with a letter or digit", shown(j.Name))
	c.oneOf("method", string(j.Method), []string{string(MethodFull)}, later{"lora": adapters, "qlora": adapters})
	c.path("model.base", j.Model.Base)
	c.that(!strings.Contains(filepath.Base(j.Model.Base), "@"), "model.base", "%q names a model in a registry, which this release does not have; give a Hugging Face folder or a GGUF file", j.Model.Base)
	c.data(&j.Data)
	c.train(j)
	c.cluster(&j.Cluster)
	c.eval(j)
	c.that(j.Checkpoint.Keep >= 1, "checkpoint.keep", "is %d; keep at least 1, or there is nothing to go on from", j.Checkpoint.Keep)
	c.path("checkpoint.store", j.Checkpoint.Store)
	c.path("output.export", j.Output.Export)
	c.that(j.Output.Export == "" || filepath.Clean(j.Output.Export) != filepath.Clean(j.Model.Base), "output.export", "is the folder of the base model; name a new one")
	c.oneOf("output.dtype", string(j.Output.DType), []string{string(DTypeBF16), string(DTypeFP32)}, nil)
	c.that(j.Output.MaxShard >= shardBytesMin, "output.maxShard", "is %s; the smallest is 1MiB", j.Output.MaxShard)
	c.that(j.Resources.Memory == 0 || j.Resources.Memory >= memoryBytesMin, "resources.memory", "is %s; the smallest is 64MiB", j.Resources.Memory)
	c.between("resources.threads", j.Resources.Threads, 0, threadsMax)
	if len(c.problems) > 0 {
		return &Invalid{c.problems}
	}
	return nil
}

var nameShape = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

const adapters = "adapters are not in this release; use full"

// later maps a word that is meant to come to what the user should do meanwhile.
type later map[string]string

type checker struct{ problems []Problem }

// that adds a problem unless ok.
func (c *checker) that(ok bool, path, format string, args ...any) {
	if !ok {
		c.problems = append(c.problems, Problem{Path: path, Message: fmt.Sprintf(format, args...)})
	}
}

func (c *checker) oneOf(path, word string, known []string, planned later) {
	if advice, ok := planned[word]; ok {
		c.that(false, path, "%s: %s", word, advice)
		return
	}
	c.that(slices.Contains(known, word), path, "is %s; known here: %s", shown(word), strings.Join(known, ", "))
}

func (c *checker) between(path string, n, lo, hi int) {
	c.that(lo <= n && n <= hi, path, "is %d; it must be between %d and %d", n, lo, hi)
}

func (c *checker) path(path, value string) {
	c.that(value != "", path, "is missing; give a path")
	c.that(!strings.ContainsRune(value, 0), path, "holds a NUL character")
}

func (c *checker) data(d *Data) {
	c.that(len(d.Train) > 0, "data.train", "is missing; give a JSONL file, a glob or a list")
	for _, p := range d.Train {
		c.path("data.train", p)
	}
	for _, p := range d.Validation.Paths {
		c.path("data.validation", p)
	}
	share := d.Validation.Share
	c.that(share == 0 && !math.Signbit(share) || share > 0 && share <= 0.5, "data.validation", "is a share of %g%%; it must be more than 0%% and at most 50%%", share*100)
	c.between("data.sequenceLength", d.SequenceLength, sequenceLengthMin, sequenceLengthMax)
	c.oneOf("data.tooLong", string(d.TooLong), []string{string(TooLongSplit), string(TooLongTruncate), string(TooLongDrop)}, nil)
	c.that(d.MaxBadLines >= 0, "data.maxBadLines", "is %d; 0 stops at the first malformed line", d.MaxBadLines)
}

func (c *checker) train(j *Job) {
	t := &j.Train
	switch {
	case t.Steps != 0 && t.Epochs != 0:
		c.that(false, "train.steps", "steps and epochs are both given; they would fight over the length of the run, so give one")
	case t.Steps == 0 && t.Epochs == 0:
		c.that(false, "train.steps", "is missing; give train.steps or train.epochs")
	}
	c.between("train.steps", t.Steps, 0, stepsMax)
	c.that(t.Epochs >= 0 && t.Epochs <= 1e6, "train.epochs", "is %g; it must be more than 0 and at most 1e6", t.Epochs)
	c.batches(t, j.Cluster.WorldSize)
	c.oneOf("train.precision", string(t.Precision), []string{string(PrecisionBF16), string(PrecisionFP32), string(PrecisionHigh)}, nil)
	c.that(classShape.MatchString(t.NumericClass), "train.numericClass", "is %s; it is auto, or the name of kernels that skein doctor lists", shown(t.NumericClass))
	if isHigh := t.NumericClass == high || strings.HasSuffix(t.NumericClass, "-"+high); t.NumericClass != Auto {
		c.that(isHigh == (t.Precision == PrecisionHigh), "train.numericClass", "is %s, but train.precision is %s: kernels that end with -high are for precision high, and for that alone; leave it at auto", shown(t.NumericClass), t.Precision)
	}
	c.oneOf("train.activationCheckpointing", string(t.ActivationCheckpointing), []string{string(ActivationCheckpointingNone), string(ActivationCheckpointingSelective), string(ActivationCheckpointingFull)}, nil)
	c.optimizer(&t.Optimizer)
	s := t.Schedule
	c.oneOf("train.schedule.kind", string(s.Kind), []string{string(ScheduleConstant), string(ScheduleLinear), string(ScheduleCosine)}, nil)
	c.between("train.schedule.warmupSteps", s.WarmupSteps, 0, stepsMax)
	c.that(t.Steps == 0 || s.WarmupSteps <= t.Steps, "train.schedule.warmupSteps", "is %d of %d steps: the learning rate would never reach its peak; warm up for fewer", s.WarmupSteps, t.Steps)
	c.that(s.Floor >= 0 && s.Floor <= 1, "train.schedule.floor", "is %g; it is a share of learningRate, between 0 and 1", s.Floor)
	c.that(s.Floor == 0 || s.Kind != ScheduleConstant, "train.schedule.floor", "has no meaning with kind constant; leave it out")
}

var classShape = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

func (c *checker) batches(t *Train, worldSize int) {
	c.between("train.globalBatch", t.GlobalBatch, 1, globalBatchMax)
	if worldSize < 1 || t.GlobalBatch < 1 {
		return
	}
	perRank := t.GlobalBatch / worldSize
	if perRank*worldSize != t.GlobalBatch {
		c.that(false, "train.globalBatch", "is %d, which cluster.worldSize %d does not divide: ranks would train on unequal shares; use %d or %d",
			t.GlobalBatch, worldSize, max(perRank, 1)*worldSize, (perRank+1)*worldSize)
		return
	}
	m := int(t.MicroBatch)
	c.that(m >= 0, "train.microBatch", "is %d; give auto or a number from 1 up", m)
	c.that(m <= 0 || perRank%m == 0, "train.microBatch", "is %d, which does not divide the %d sequences of a rank (globalBatch %d / worldSize %d); use auto or one of %s",
		m, perRank, t.GlobalBatch, worldSize, divisors(perRank))
}

func (c *checker) optimizer(o *Optimizer) {
	const at = "train.optimizer."
	c.oneOf(at+"name", o.Name, []string{"adamw"}, nil)
	lr := o.LearningRate
	c.that(lr > 0 && lr <= 10, at+"learningRate", "%s", learningRateFault(lr))
	for _, v := range []struct {
		key    string
		value  *float64
		ok     func(float64) bool
		bounds string
	}{
		{"beta1", o.Beta1, inUnit, "at least 0 and below 1"},
		{"beta2", o.Beta2, inUnit, "at least 0 and below 1"},
		{"epsilon", o.Epsilon, func(x float64) bool { return x > 0 && x <= 1 }, "more than 0 and at most 1: with 0, a weight whose gradient is zero divides by zero"},
		{"weightDecay", o.WeightDecay, func(x float64) bool { return x >= 0 && x <= 10 }, "between 0 and 10"},
		{"clip", o.Clip, func(x float64) bool { return x >= 0 && !math.IsInf(x, 1) }, "0 (off) or more, and finite"},
	} {
		if v.value != nil {
			c.that(v.ok(*v.value), at+v.key, "is %g; it must be %s", *v.value, v.bounds)
		}
	}
}

func inUnit(x float64) bool { return x >= 0 && x < 1 }

func learningRateFault(lr float64) string {
	switch {
	case lr == 0:
		return "is missing or 0, and with 0 nothing is learnt; give one, for full fine-tuning 1e-5 to 3e-4"
	case math.IsNaN(lr):
		return "is NaN, and every weight would become NaN at step 1; give a number such as 3e-4"
	case lr < 0:
		return fmt.Sprintf("is %g; a negative rate climbs the loss, give a number such as 3e-4", lr)
	}
	return fmt.Sprintf("is %g, and weights would leave the range of fp32; give a number such as 3e-4", lr)
}

func (c *checker) cluster(cl *Cluster) {
	c.between("cluster.worldSize", cl.WorldSize, 1, worldSizeMax)
	c.that(cl.Workers.Min >= 1, "cluster.workers.min", "is %d; a job needs at least 1 worker", cl.Workers.Min)
	c.that(cl.Workers.Max >= cl.Workers.Min, "cluster.workers.max", "is %d, below workers.min %d; no number of workers would do", cl.Workers.Max, cl.Workers.Min)
	c.that(cl.Workers.Max <= cl.WorldSize, "cluster.workers.max", "is %d, more than cluster.worldSize %d: a worker hosts at least one rank, so the rest would idle; lower it or raise worldSize", cl.Workers.Max, cl.WorldSize)
	if cl.Zero != nil {
		stage := *cl.Zero
		c.that(stage >= 0 && stage <= 3, "cluster.zero", "is %d; the stages are 0, 1, 2 and 3", stage)
	}
	c.oneOf("cluster.protect", string(cl.Protect), []string{string(ProtectCheckpoint), string(ProtectMirror)}, nil)
	c.between("cluster.priority", cl.Priority, -priorityMax, priorityMax)
	c.oneOf("cluster.wire", string(cl.Wire), []string{string(WireFP32), string(WireBF16)}, nil)
}

func (c *checker) eval(j *Job) {
	e := &j.Eval
	c.between("eval.exactMatch", e.ExactMatch, 0, exactMatchMax)
	c.between("eval.maxNewTokens", e.MaxNewTokens, 1, maxNewTokensMax)
	c.that(len(e.Prompts) <= promptsMax, "eval.prompts", "holds %d prompts; at most %d", len(e.Prompts), promptsMax)
	none := j.Data.Validation.IsZero()
	c.that(!none || e.Every == 0, "eval.every", "asks for held-out loss, but data.validation is missing; add it or leave this out")
	c.that(!none || e.ExactMatch == 0, "eval.exactMatch", "asks for held-out examples, but data.validation is missing; add it or leave this out")
}

// shown quotes a word, or says that there is none.
func shown(word string) string {
	if word == "" {
		return "missing"
	}
	return fmt.Sprintf("%q", word)
}

// divisors lists the divisors of n, the largest 8 of them.
func divisors(n int) string {
	var found []string
	for d := n; d >= 1 && len(found) < 8; d-- {
		if n%d == 0 {
			found = append(found, fmt.Sprint(d))
		}
	}
	return strings.Join(found, ", ")
}
