package jobspec

// Limits of a job file. They bound what the rest of the program has to be
// correct for, and catch a slipped zero before it becomes an allocation.
const (
	worldSizeMax      = 16 // logical ranks
	sequenceLengthMin = 8
	sequenceLengthMax = 1 << 20
	globalBatchMax    = 1 << 20
	stepsMax          = 1 << 30
	threadsMax        = 1024
	exactMatchMax     = 1 << 16
	maxNewTokensMax   = 1 << 16
	promptsMax        = 256
	shardBytesMin     = 1 << 20 // a smaller safetensors file is a slip, not a wish
	memoryBytesMin    = 64 << 20
	priorityMax       = 100 // and the least is −100
)

// EnsureDefaults fills every field left out. It is idempotent, never changes a
// field that was given, and leaves what has no sensible default (name, model,
// data, learning rate, steps or epochs) for Validate to ask for.
func (j *Job) EnsureDefaults() {
	setDefault(&j.Kind, KindFineTune)
	setDefault(&j.Method, MethodFull)
	j.Data.ensureDefaults()
	j.Cluster.ensureDefaults()
	j.Train.ensureDefaults(j.Cluster.WorldSize)
	setDefault(&j.Eval.MaxNewTokens, 64)
	setDefault(&j.Checkpoint.Keep, 3)
	setDefault(&j.Checkpoint.Store, "./checkpoints")
	if j.Name != "" {
		setDefault(&j.Output.Export, "./"+j.Name)
	}
	setDefault(&j.Output.DType, DTypeBF16)
	setDefault(&j.Output.MaxShard, 5<<30)
}

func (d *Data) ensureDefaults() {
	setDefault(&d.SequenceLength, 512)
	setDefaultPtr(&d.Packing, true)
	setDefault(&d.TooLong, TooLongSplit)
	setDefaultPtr(&d.Shuffle, true)
}

func (c *Cluster) ensureDefaults() {
	setDefault(&c.WorldSize, 1)
	setDefault(&c.Workers.Min, 1)
	setDefault(&c.Workers.Max, max(c.WorldSize, c.Workers.Min))
	setDefaultPtr(&c.Zero, 1)
	setDefault(&c.Protect, ProtectCheckpoint)
	setDefault(&c.Wire, WireFP32)
}

func (t *Train) ensureDefaults(worldSize int) {
	setDefault(&t.GlobalBatch, worldSize)
	setDefault(&t.Precision, PrecisionBF16)
	setDefault(&t.NumericClass, Auto)
	setDefault(&t.ActivationCheckpointing, ActivationCheckpointingNone)
	o := &t.Optimizer
	setDefault(&o.Name, "adamw")
	setDefaultPtr(&o.Beta1, 0.9)
	setDefaultPtr(&o.Beta2, 0.95)
	setDefaultPtr(&o.Epsilon, 1e-8)
	setDefaultPtr(&o.WeightDecay, 0.1)
	setDefaultPtr(&o.Clip, 1.0)
	setDefault(&t.Schedule.Kind, ScheduleConstant)
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func setDefaultPtr[T any](field **T, value T) {
	if *field == nil {
		*field = &value
	}
}
