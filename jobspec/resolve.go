package jobspec

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// resolvedVersion is the version of the resolved spec's JSON. It takes part in
// both hashes: a new version is a new meaning.
const resolvedVersion = 1

// Facts is what only the open model, the prepared data and the machine know.
type Facts struct {
	ModelHash    string // of the imported weights
	DataHash     string // of the prepared training sequences
	Sequences    int64  // how many of them there are
	NumericClass string // such as "amx-bf16 r1"
	MicroBatch   int    // sequences per forward and backward; must divide a rank's share
}

// Resolved is a job with every "auto" replaced by what was decided at admission.
// It is what is logged, hashed, stored in checkpoints and in the lineage.
type Resolved struct {
	Version   int    `json:"version"`
	Job       Job    `json:"job"`
	ModelHash string `json:"modelHash"`
	DataHash  string `json:"dataHash"`
	Sequences int64  `json:"sequences"`
}

// Resolve decides what the job left open. The job must be valid.
func (j *Job) Resolve(f Facts) (*Resolved, error) {
	if f.Sequences < int64(j.Train.GlobalBatch) {
		return nil, fmt.Errorf("data.train: %d sequences are fewer than one global batch of %d; give more data, a shorter data.sequenceLength or a smaller train.globalBatch",
			f.Sequences, j.Train.GlobalBatch)
	}
	perRank := j.Train.GlobalBatch / j.Cluster.WorldSize
	if f.MicroBatch < 1 || perRank%f.MicroBatch != 0 {
		return nil, fmt.Errorf("train.microBatch: %d does not divide the %d sequences of a rank", f.MicroBatch, perRank)
	}
	r := &Resolved{Version: resolvedVersion, Job: *j, ModelHash: f.ModelHash, DataHash: f.DataHash, Sequences: f.Sequences}
	r.Job.dir = ""
	t := &r.Job.Train
	t.MicroBatch, t.NumericClass = MicroBatch(f.MicroBatch), f.NumericClass
	if t.Steps == 0 {
		total, batch := r.Samples(), int64(t.GlobalBatch)
		if total > stepsMax*batch {
			return nil, fmt.Errorf("train.epochs: %g epochs of %d sequences are more than %d steps; give fewer", t.Epochs, f.Sequences, stepsMax)
		}
		t.Steps = int((total + batch - 1) / batch)
	}
	if w := t.Schedule.WarmupSteps; w > t.Steps {
		return nil, fmt.Errorf("train.schedule.warmupSteps: is %d of %d steps: the learning rate would never reach its peak; warm up for fewer", w, t.Steps)
	}
	return r, nil
}

// Samples is how many sequences a job of so many epochs reads, at least one; 0 for a job
// of so many steps, which fills all of them.
func (r *Resolved) Samples() int64 {
	epochs := r.Job.Train.Epochs
	if epochs == 0 {
		return 0
	}
	return max(1, int64(math.Round(min(epochs*float64(r.Sequences), math.MaxInt64/2))))
}

// Canonical returns the resolved spec as JSON with sorted keys and no spaces:
// the same job gives the same bytes, whatever the order of its file.
func (r *Resolved) Canonical() []byte {
	var tree any
	dec := json.NewDecoder(bytes.NewReader(mustJSON(r)))
	dec.UseNumber() // a float64 would round the seed
	if err := dec.Decode(&tree); err != nil {
		panic(fmt.Sprintf("jobspec: our own JSON does not parse: %v", err))
	}
	return mustJSON(tree)
}

// Hash names the resolved spec: the sha256 of Canonical, in hex.
func (r *Resolved) Hash() string { return hashHex(r.Canonical()) }

// Term is one setting that takes part in fixing the bits of the weights.
type Term struct{ Path, Value string }

// Arithmetic lists the settings that fix the bits of the weights after any given
// step, in a fixed order. What is missing (names and paths, micro-batch,
// checkpointing, ZeRO stage, workers, threads, evaluation, output) cannot change
// them, and tests hold the trainer to that. The number of steps counts only
// where the schedule looks at it, so a constant schedule can be prolonged; epochs
// count where they are given, because the last batch is filled up at their end.
func (r *Resolved) Arithmetic() []Term {
	j := &r.Job
	t, o, s := j.Train, j.Train.Optimizer, j.Train.Schedule
	terms := []Term{
		{"version", strconv.Itoa(r.Version)},
		{"kind", j.Kind},
		{"method", string(j.Method)},
		{"model (hash of the weights)", r.ModelHash},
		{"data.sequenceLength", strconv.Itoa(j.Data.SequenceLength)},
		{"data (hash of the training sequences)", r.DataHash},
		{"data.shuffle", strconv.FormatBool(*j.Data.Shuffle)},
		{"train.globalBatch", strconv.Itoa(t.GlobalBatch)},
		{"train.precision", string(t.Precision)},
		{"train.numericClass", t.NumericClass},
		{"train.optimizer.name", o.Name},
		{"train.optimizer.learningRate", exact(o.LearningRate)},
		{"train.optimizer.beta1", exact(*o.Beta1)},
		{"train.optimizer.beta2", exact(*o.Beta2)},
		{"train.optimizer.epsilon", exact(*o.Epsilon)},
		{"train.optimizer.weightDecay", exact(*o.WeightDecay)},
		{"train.optimizer.clip", exact(*o.Clip)},
		{"train.schedule.kind", string(s.Kind)},
		{"train.schedule.warmupSteps", strconv.Itoa(s.WarmupSteps)},
		{"train.schedule.floor", exact(s.Floor)},
		{"train.seed", strconv.FormatUint(t.Seed, 10)},
		{"cluster.worldSize", strconv.Itoa(j.Cluster.WorldSize)},
		{"cluster.wire", string(j.Cluster.Wire)},
	}
	if s.Kind != ScheduleConstant {
		terms = append(terms, Term{"train.steps", strconv.Itoa(t.Steps)})
	}
	if t.Epochs != 0 {
		terms = append(terms, Term{"train.epochs", exact(t.Epochs)})
	}
	return terms
}

// ArithmeticHash names what fixes the bits: two jobs with equal hashes have
// equal weights at every step that both reach.
func (r *Resolved) ArithmeticHash() string {
	var b strings.Builder
	for _, t := range r.Arithmetic() {
		fmt.Fprintf(&b, "%s=%s\n", t.Path, t.Value)
	}
	return hashHex([]byte(b.String()))
}

// MayContinue tells whether this job may go on from a checkpoint that saved
// made. If not, the error names every setting that differs, with both values.
func (r *Resolved) MayContinue(saved *Resolved) error {
	theirs := map[string]string{}
	for _, t := range saved.Arithmetic() {
		theirs[t.Path] = t.Value
	}
	var differ []string
	for _, t := range r.Arithmetic() {
		if was, ok := theirs[t.Path]; !ok || was != t.Value {
			differ = append(differ, fmt.Sprintf("%s was %s and is %s", t.Path, brief(was), brief(t.Value)))
		}
		delete(theirs, t.Path)
	}
	for _, path := range slices.Sorted(maps.Keys(theirs)) {
		differ = append(differ, fmt.Sprintf("%s was %s and no longer counts", path, brief(theirs[path])))
	}
	if len(differ) == 0 {
		return nil
	}
	return fmt.Errorf("the checkpoint belongs to another job: %s; use another checkpoint.store, or the job file it was made with", strings.Join(differ, "; "))
}

// ParseResolved reads what Canonical wrote, strictly: an unknown key or version
// is an error, because a spec half understood gives other bits.
func ParseResolved(b []byte) (*Resolved, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var r Resolved
	if err := dec.Decode(&r); err != nil {
		return nil, fmt.Errorf("resolved spec: %w", err)
	}
	if dec.More() {
		return nil, fmt.Errorf("resolved spec: more than one JSON value")
	}
	if r.Version != resolvedVersion {
		return nil, fmt.Errorf("resolved spec: version %d, this build reads version %d", r.Version, resolvedVersion)
	}
	r.Job.EnsureDefaults() // no nil, whoever wrote it
	if err := r.asWritten().Validate(); err != nil {
		return nil, fmt.Errorf("resolved spec: %w", err)
	}
	return &r, nil
}

// asWritten returns the job with its resolved words taken back, so that the rules
// of the job file apply: "amx-bf16 r1" is no word of it, and a file that gives
// epochs gives no steps.
func (r *Resolved) asWritten() *Job {
	j := r.Job
	j.Train.NumericClass = Auto
	if j.Train.Epochs != 0 {
		j.Train.Steps = 0
	}
	return &j
}

// exact writes a float so that it reads back to the same bits.
func exact(x float64) string { return strconv.FormatFloat(x, 'g', -1, 64) }

// brief shortens a hash for a message.
func brief(s string) string {
	switch {
	case s == "":
		return "absent"
	case len(s) > 24:
		return s[:12] + "…"
	}
	return s
}

func hashHex(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func mustJSON(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(fmt.Sprintf("jobspec: a validated spec does not encode: %v", err))
	}
	return bytes.TrimRight(b.Bytes(), "\n")
}

func mustUnmarshal(b []byte, v any) {
	if err := json.Unmarshal(b, v); err != nil {
		panic(fmt.Sprintf("jobspec: our own JSON does not parse: %v", err))
	}
}
