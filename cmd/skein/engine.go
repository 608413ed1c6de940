package main

import (
	"context"

	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/jobspec"
)

// engine is what the commands need of the rooms below: the one that trains, and
// in tests one that only notes what it was asked. Every method returns when the
// work is done or ctx ends; it reports through emit, from any goroutine.
type engine interface {
	// Plan says what the job would take, without starting it.
	Plan(ctx context.Context, c planConfig, emit func(console.Event)) (*planReport, error)
	// Train runs the job, from the last checkpoint in its store if there is one.
	Train(ctx context.Context, c trainConfig, emit func(console.Event)) error
	// Eval measures a model on held-out data.
	Eval(ctx context.Context, c evalConfig, emit func(console.Event)) error
	// Generate answers prompts; pieces of the answers go to write as they come.
	Generate(ctx context.Context, c generateConfig, write func(string)) error
	// Export writes a checkpoint as a Hugging Face folder and returns its step.
	Export(ctx context.Context, c exportConfig) (int64, error)
}

// trainConfig is skein train.
type trainConfig struct {
	Job     *jobspec.Job
	Cache   string // prepared data sets
	Workers int    // processes; 0: this one does it all
}

// planConfig is skein plan.
type planConfig struct {
	Job       *jobspec.Job
	Cache     string // prepared data sets
	Calibrate bool   // time a step
}

// evalConfig is skein eval.
type evalConfig struct {
	Model          string   // a Hugging Face folder or a GGUF file
	Data           []string // JSONL files or globs
	Cache          string   // prepared data sets
	SequenceLength int
	Precision      jobspec.Precision
	NumericClass   string
	ExactMatch     int // examples to answer and compare
	Show           int // of those, how many answers to print
	MaxNewTokens   int
	Limit          int // target tokens after which measuring stops; 0: all
	Threads        int
}

// generateConfig is skein generate.
type generateConfig struct {
	Model        string
	Prompts      []string
	System       string // "": the template's own
	Raw          bool   // continue the text as it is, without the chat template
	MaxNewTokens int
	Temperature  float64 // 0: greedy
	TopK         int     // 0: all
	TopP         float64 // 1: all
	Seed         uint64
	Precision    jobspec.Precision
	NumericClass string
	Threads      int
}

// exportConfig is skein export.
type exportConfig struct {
	Store    string // folder of checkpoints
	Step     int64  // -1: the newest
	Dir      string
	DType    jobspec.DType
	MaxShard jobspec.ByteSize
}
