package worker

import (
	"context"
	"errors"
	"fmt"

	"github.com/skein-ml/skein/data"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/eval"
	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/model"
)

// EvalConfig says how a model is measured outside a job.
type EvalConfig struct {
	Model          string   // a Hugging Face folder or a GGUF file
	Data           []string // JSONL files or globs
	SequenceLength int      // 0: evalTokens, or what the model takes
	Precision      device.DType
	ExactMatch     int // examples to answer greedily and compare
	Show           int // of those, how many answers are events
	MaxNewTokens   int
	Limit          int // target tokens after which measuring stops; 0: all
}

// evalRows is how many sequences one forward takes outside a job: enough to keep
// all threads busy, and few enough for any machine.
const evalRows = 2

// evalTokens is the length of a sequence where nobody asked for another.
const evalTokens = 512

// Eval measures a model on held-out data.
func Eval(ctx context.Context, env Env, c EvalConfig) error {
	base, x, err := open(env, c.Model, c.SequenceLength, evalRows, c.Precision)
	if err != nil {
		return err
	}
	defer base.Close()
	defer x.model.Close()
	spec := data.Spec{
		Train: c.Data, SequenceLength: x.seqLen, Packing: true, CacheDir: env.CacheDir,
		Threads: env.Device.Info().Threads,
	}
	prepared, err := data.Prepare(ctx, env.FS, spec, x.language.Encoder)
	if err != nil {
		return err
	}
	set, err := data.Open(env.FS, prepared.Train)
	if err != nil {
		return err
	}
	defer set.Close()
	res, err := x.loss(ctx, set, c.Limit)
	if err != nil {
		return err
	}
	ev := console.Evaluated{Loss: res.Loss, Targets: res.Targets}
	if c.ExactMatch > 0 {
		spec.Validation = c.Data // questions are those of the validation side
		qs, err := questions(ctx, env.FS, spec, x.language, c.ExactMatch)
		if err != nil {
			return err
		}
		exact, err := x.match(ctx, 0, qs, c.MaxNewTokens, c.Show, env.emit)
		if err != nil {
			return err
		}
		ev.ExactMatch, ev.Asked = &exact, len(qs)
	}
	env.emit(ev)
	return nil
}

// open loads a model for forward passes only.
func open(env Env, path string, seqLen, rows int, precision device.DType) (_ *Base, x examiner, err error) {
	base, err := OpenBase(path)
	if err != nil {
		return nil, x, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, base.Close())
		}
	}()
	for _, n := range base.Notices {
		env.note("%s", n)
	}
	if most := base.Config().MaxPositions; seqLen > most {
		return nil, x, fmt.Errorf("model %s: a sequence of %d tokens is beyond its %d positions; ask for shorter ones", path, seqLen, most)
	}
	if seqLen == 0 {
		seqLen = min(evalTokens, base.Config().MaxPositions)
	}
	if x.language, err = base.Language(); err != nil {
		return nil, x, err
	}
	m, err := model.New(env.Device, base.Config(), model.Options{DType: precision, SeqLen: seqLen, Sequences: rows, ForwardOnly: true})
	if err != nil {
		return nil, x, err
	}
	x.model, x.stream, x.hooks, x.rows, x.seqLen = m, env.Device.Stream(device.StreamCompute), eval.Resident{}, rows, seqLen
	if err := m.LoadWeights(x.stream, base); err != nil {
		m.Close()
		return nil, x, err
	}
	return base, x, nil
}

// GenerateConfig says how a model answers.
type GenerateConfig struct {
	Model        string
	Prompts      []string
	System       string // "": the template's own
	Raw          bool   // go on from the text as it is, without the chat template
	Precision    device.DType
	MaxNewTokens int
	Temperature  float64 // 0: greedy
	TopK         int     // 0: all
	TopP         float64 // 1: all
	Seed         uint64
}

// Generate answers prompts, one after the other. What is known of an answer goes to write at
// once; each ends with a line break.
func Generate(ctx context.Context, env Env, c GenerateConfig, write func(string)) error {
	base, err := OpenBase(c.Model)
	if err != nil {
		return err
	}
	language, err := base.Language()
	if err == nil {
		err = base.Close()
	}
	if err != nil {
		return err
	}
	asked := make([][]int32, len(c.Prompts))
	longest := 0
	for i, p := range c.Prompts {
		if asked[i], err = c.ask(language, p); err != nil {
			return fmt.Errorf("%q: %w", p, err)
		}
		longest = max(longest, len(asked[i]))
	}
	tokens := min(longest+c.MaxNewTokens, base.Config().MaxPositions)
	if longest >= tokens {
		return fmt.Errorf("a prompt has %d tokens, the model takes %d: shorten it", longest, base.Config().MaxPositions)
	}
	base, x, err := open(env, c.Model, tokens, 1, c.Precision)
	if err != nil {
		return err
	}
	defer base.Close()
	defer x.model.Close()
	d, err := x.model.NewDecoder(tokens)
	if err != nil {
		return err
	}
	defer d.Close()
	for i, ids := range asked {
		if err := c.answer(ctx, x, d, ids, uint64(i), write); err != nil {
			return err
		}
	}
	return nil
}

func (c GenerateConfig) ask(l *Language, prompt string) ([]int32, error) {
	if c.Raw {
		return l.Text(prompt)
	}
	var msgs []data.Message
	if c.System != "" {
		msgs = append(msgs, data.Message{Role: "system", Content: c.System})
	}
	return l.Ask(append(msgs, data.Message{Role: "user", Content: prompt}), nil)
}

// answer writes one answer as it comes.
func (c GenerateConfig) answer(ctx context.Context, x examiner, d *model.Decoder, ids []int32, n uint64, write func(string)) error {
	text := x.language.Tokenizer.NewStream(true)
	_, err := eval.Generate(ctx, d, x.stream, x.hooks, ids, eval.Sampling{
		TokensMax: c.MaxNewTokens, Temperature: c.Temperature, TopK: c.TopK, TopP: c.TopP, Seed: c.Seed + n,
		Stop: x.language.Stop, IDsMax: x.language.Tokenizer.VocabSize(),
	}, func(id int32) { write(text.Push(id)) })
	write(text.Flush() + "\n")
	return err
}
