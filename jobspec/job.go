// Package jobspec is the job: its type, its defaults, its strict reading from
// YAML, its validation, and the resolved form whose hash names the job's
// arithmetic. The command line, and later the coordinator and the Kubernetes
// operator, all use this one.
//
// The life of a spec:
//
//	Read      YAML → Job; an unknown or ill-typed key is an error with its line
//	(Job).EnsureDefaults, Validate   zero means default; every conflict is named
//	(Job).Resolve                    every "auto" becomes a number, once, at admission
//	(Resolved).Hash, Arithmetic      what the job is; what fixes its bits
package jobspec

import "path/filepath"

// KindFineTune is the one kind of job there is so far.
const KindFineTune = "FineTune"

// Job is what the user asks for. A pointer field is one whose zero is a
// meaningful choice; nil means default, and EnsureDefaults leaves no nil.
// The json tag is the key in the job file and in the resolved spec; the doc tag
// is the line of docs/JOBFILE.md.
type Job struct {
	Kind       string     `json:"kind" doc:"what to do: FineTune"`
	Name       string     `json:"name" doc:"lower-case letters, digits and dashes; names the run and its default output folder"`
	Model      Model      `json:"model"`
	Data       Data       `json:"data"`
	Method     Method     `json:"method" doc:"full: every weight is trained"`
	Train      Train      `json:"train"`
	Eval       Eval       `json:"eval"`
	Cluster    Cluster    `json:"cluster"`
	Checkpoint Checkpoint `json:"checkpoint"`
	Output     Output     `json:"output"`
	Resources  Resources  `json:"resources"`

	// dir is the folder of the job file: what its relative paths start from.
	dir string
}

// Model says where the weights come from.
type Model struct {
	Base string `json:"base" doc:"a Hugging Face folder or a GGUF file"`
}

// Data says what is learnt and how it is cut into sequences.
type Data struct {
	Train          Paths      `json:"train" doc:"JSONL files: a path, a glob or a list of them"`
	Validation     Validation `json:"validation,omitzero" doc:"held-out JSONL (a path, a glob, a list), or a share of the training data such as 2%; none if left out"`
	SequenceLength int        `json:"sequenceLength" doc:"tokens in one sequence, at most the model's max positions"`
	Packing        *bool      `json:"packing" doc:"true: several examples share a sequence without seeing each other; false: one example each, padded"`
	TooLong        TooLong    `json:"tooLong" doc:"an example longer than sequenceLength: split, truncate or drop; counted and reported"`
	Shuffle        *bool      `json:"shuffle" doc:"true: a new order each epoch, fixed by the seed; false: the order of the files"`
	MaxBadLines    int        `json:"maxBadLines" doc:"malformed lines that are skipped and reported before preparation stops"`
}

// Train is the recipe. Everything in it but MicroBatch and
// ActivationCheckpointing takes part in fixing the weights' bits.
type Train struct {
	Steps                   int                     `json:"steps,omitempty" doc:"optimizer steps; give this or epochs"`
	Epochs                  float64                 `json:"epochs,omitempty" doc:"passes over the training data; give this or steps"`
	GlobalBatch             int                     `json:"globalBatch" doc:"sequences per optimizer step over all ranks; a multiple of cluster.worldSize"`
	MicroBatch              MicroBatch              `json:"microBatch" doc:"sequences per forward and backward on one rank: auto, or a divisor of globalBatch / worldSize; never changes the bits"`
	Precision               Precision               `json:"precision" doc:"bf16 (fp32 master weights and sums), fp32, or high: fp32 whose products are three of bf16, for kernels that end with -high"`
	NumericClass            string                  `json:"numericClass" doc:"auto, or the kernels to pin, as skein doctor lists them: amx-bf16, avx512, avx2, generic and others"`
	ActivationCheckpointing ActivationCheckpointing `json:"activationCheckpointing" doc:"none; selective: compute each layer's first MLP product again; full: keep only each layer's input and compute the rest again. Less memory, more time, the same bits"`
	Optimizer               Optimizer               `json:"optimizer"`
	Schedule                Schedule                `json:"schedule"`
	Seed                    uint64                  `json:"seed" doc:"of every random choice"`
}

// Optimizer is AdamW (Loshchilov and Hutter, 2019). Weight decay is not applied
// to norms and biases.
type Optimizer struct {
	Name         string   `json:"name" doc:"adamw"`
	LearningRate float64  `json:"learningRate" doc:"the peak; no default, because it depends on model and data (full fine-tuning: 1e-5 to 3e-4)"`
	Beta1        *float64 `json:"beta1" doc:"decay of the first moment"`
	Beta2        *float64 `json:"beta2" doc:"decay of the second moment"`
	Epsilon      *float64 `json:"epsilon" doc:"added to the denominator"`
	WeightDecay  *float64 `json:"weightDecay" doc:"decoupled; not on norms and biases"`
	Clip         *float64 `json:"clip" doc:"largest norm of the whole gradient; 0 turns clipping off"`
}

// Schedule scales the learning rate over the steps.
type Schedule struct {
	Kind        ScheduleKind `json:"kind" doc:"after the warm-up: constant, linear or cosine down to floor × learningRate at the last step"`
	WarmupSteps int          `json:"warmupSteps" doc:"steps of linear rise from 0; step k of w has k/w of the peak"`
	Floor       float64      `json:"floor" doc:"share of learningRate left at the last step of linear and cosine"`
}

// Eval says what is measured on the held-out data, and when.
type Eval struct {
	Every        Steps    `json:"every,omitzero" doc:"held-out loss during training, such as 8 steps; before and after it is measured anyway"`
	ExactMatch   int      `json:"exactMatch" doc:"held-out examples answered greedily and compared word for word, before and after"`
	Prompts      []string `json:"prompts,omitempty" doc:"user messages answered greedily and printed, before and after"`
	MaxNewTokens int      `json:"maxNewTokens" doc:"longest answer, in tokens"`
}

// Cluster says over how many logical ranks the job is cut, and where they run.
type Cluster struct {
	WorldSize int     `json:"worldSize" doc:"logical ranks, 1 to 16; fixes the arithmetic for the life of the job"`
	Workers   Workers `json:"workers"`
	Zero      *int    `json:"zero" doc:"ZeRO stage: 0 replicates, 1 shards the optimizer state, 2 gradients too, 3 working weights too; the same bits"`
	Protect   Protect `json:"protect" doc:"mirror: each rank's state is kept by two workers, so that the loss of one costs no step; checkpoint: a lost worker sends the job back to the last checkpoint"`
	Priority  int     `json:"priority,omitempty" doc:"-100 to 100: jobs of higher priority go first, and get the workers of running jobs of lower priority at a step boundary"`
	Wire      Wire    `json:"wire" doc:"type of gradients between ranks: fp32 or bf16 (half the bytes, other bits)"`
}

// Workers bounds how many processes host the ranks.
type Workers struct {
	Min int `json:"min" doc:"fewest workers to run on; memory is planned for this many"`
	Max int `json:"max" doc:"most workers, at most worldSize"`
}

// Checkpoint says when training state is saved.
type Checkpoint struct {
	Every Steps  `json:"every,omitzero" doc:"such as 8 steps; the last step is saved anyway"`
	Keep  int    `json:"keep" doc:"how many of the newest stay in the store"`
	Store string `json:"store" doc:"folder of the checkpoints"`
}

// Output says what the user gets.
type Output struct {
	Export   string   `json:"export" doc:"the Hugging Face folder to write; must not exist"`
	DType    DType    `json:"dtype" doc:"type of the exported weights: bf16 or fp32"`
	MaxShard ByteSize `json:"maxShard" doc:"largest safetensors file; a bigger model is written in several"`
}

// Resources bounds what a worker may use. It never changes the bits.
type Resources struct {
	Memory  ByteSize `json:"memory,omitzero" doc:"budget of one worker, such as 8GiB; left out: what the machine has free"`
	Threads int      `json:"threads,omitempty" doc:"compute threads of one worker; left out: one per core"`
}

// Dir returns the folder that the job's relative paths start from; empty for a
// job that was not read from a file.
func (j *Job) Dir() string { return j.dir }

// In returns the job with its relative paths starting from dir.
func (j *Job) In(dir string) *Job {
	moved := *j
	moved.dir = dir
	return &moved
}

// Path returns p as the process can open it: relative paths start from the
// folder of the job file, so that a job file means the same from anywhere.
func (j *Job) Path(p string) string {
	if p == "" || filepath.IsAbs(p) || j.dir == "" {
		return p
	}
	return filepath.Join(j.dir, p)
}

// high stands for the best kernels of precision high.
const high = "high"

// Kernels are what the job has to be computed with: the ones that it names, auto, or "high" for
// the best that a machine has of precision high.
func (t *Train) Kernels() string {
	if t.Precision == PrecisionHigh && t.NumericClass == Auto {
		return high
	}
	return t.NumericClass
}
