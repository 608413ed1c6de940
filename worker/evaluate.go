package worker

import (
	"context"
	"fmt"
	"strings"

	"github.com/skein-ml/skein/data"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/eval"
	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/model"
)

// examiner measures a model whose weights are packed and current, or become so in its hooks.
type examiner struct {
	model    *model.Model
	stream   device.Stream
	hooks    model.Hooks
	language *Language
	rows     int // sequences of one forward
	seqLen   int
}

// loss is the mean loss over a data set, in the order of its packs; it stops after
// limit targets, 0: at the end.
func (x examiner) loss(ctx context.Context, set *data.Dataset, limit int) (eval.Result, error) {
	var b data.Batch
	var next, seen int64
	indices := make([]int64, x.rows)
	return eval.Loss(ctx, x.model, x.stream, x.hooks, func() (model.Batch, bool, error) {
		if next >= set.Len() || limit > 0 && seen >= int64(limit) {
			return model.Batch{}, false, nil
		}
		for i := range indices {
			indices[i] = next
			if next++; next > set.Len() {
				indices[i] = -1 // the last batch is filled up with sequences without targets
			}
		}
		err := set.Batch(ctx, indices, &b)
		seen += b.TargetCount
		return model.Batch{IDs: b.Tokens, Targets: b.Targets, CuDocs: b.CuDocs}, true, err
	})
}

// question is something to ask, and what the data says is right.
type question struct {
	text string // for people
	ids  []int32
	want string
}

// questions are the first n examples of the validation data that hold an answer.
func questions(ctx context.Context, fsys vfs.FS, spec data.Spec, l *Language, n int) ([]question, error) {
	var list []question
	var failed error
	if n == 0 {
		return nil, nil
	}
	err := data.Examples(ctx, fsys, spec, true, func(e data.Example) bool {
		msgs, prompt, want, ok := e.Question()
		if !ok {
			return true
		}
		q := question{text: prompt, want: strings.TrimSpace(want)}
		if prompt != "" {
			q.ids, failed = l.Text(prompt)
		} else {
			q.text = msgs[len(msgs)-1].Content
			q.ids, failed = l.Ask(msgs, e.Tools)
		}
		if failed != nil {
			failed = fmt.Errorf("%s:%d: %w", e.File, e.Line, failed)
			return false
		}
		list = append(list, q)
		return len(list) < n
	})
	if err == nil {
		err = failed
	}
	return list, err
}

// answer is the model's greedy answer. A question too long for the model is answered with nothing.
func (x examiner) answer(ctx context.Context, d *model.Decoder, q question, tokensMax int) (string, error) {
	if len(q.ids) >= x.seqLen {
		return "", nil
	}
	ids, err := eval.Generate(ctx, d, x.stream, x.hooks, q.ids, eval.Sampling{
		TokensMax: tokensMax, Stop: x.language.Stop, IDsMax: x.language.Tokenizer.VocabSize(),
	}, nil)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(x.language.Tokenizer.Decode(ids, true)), nil
}

// match asks all questions, gives the first show answers to emit, and counts those
// that are right word for word.
func (x examiner) match(ctx context.Context, step int64, qs []question, tokensMax, show int, emit func(console.Event)) (exact int, err error) {
	if len(qs) == 0 {
		return 0, nil
	}
	d, err := x.model.NewDecoder(x.seqLen)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	for i, q := range qs {
		got, err := x.answer(ctx, d, q, tokensMax)
		if err != nil {
			return exact, err
		}
		if got == q.want {
			exact++
		}
		if i < show {
			emit(console.Answered{Step: step, Prompt: q.text, Answer: got, Want: q.want})
		}
	}
	return exact, nil
}

// answersShown is how many held-out answers a run prints.
const answersShown = 3

// evaluate measures the job's model on its held-out data. A full evaluation also
// asks questions; the others are there to be quick.
func (r *run) evaluate(ctx context.Context, full bool) error {
	job, emit := &r.Spec.Job, r.emit
	if r.mute {
		emit = func(console.Event) {}
	}
	m, stream, hooks, err := r.tr.Model(ctx)
	if err != nil {
		return err
	}
	x := examiner{model: m, stream: stream, hooks: hooks, language: r.Language, rows: r.Config.Batch.Micro, seqLen: r.Config.Batch.SeqLen}
	step := r.tr.StepsDone()
	if r.Validation != nil {
		ev := console.Evaluated{Step: step}
		res, err := x.loss(ctx, r.Validation, 0)
		if err != nil {
			return fmt.Errorf("held-out loss: %w", err)
		}
		ev.Loss, ev.Targets = res.Loss, res.Targets
		r.store.result(step, lossName, res.Loss)
		if full && job.Eval.ExactMatch > 0 {
			qs, err := questions(ctx, r.FS, r.dataSpec, r.Language, job.Eval.ExactMatch)
			if err != nil {
				return err
			}
			exact, err := x.match(ctx, step, qs, job.Eval.MaxNewTokens, answersShown, emit)
			if err != nil {
				return err
			}
			ev.ExactMatch, ev.Asked = &exact, len(qs)
			r.store.result(step, "exact_match", float64(exact))
			r.store.result(step, "exact_match_asked", float64(len(qs)))
		}
		emit(ev)
	}
	if !full {
		return nil
	}
	return r.answerPrompts(ctx, x, step, emit)
}

// answerPrompts answers the job's own prompts.
func (r *run) answerPrompts(ctx context.Context, x examiner, step int64, emit func(console.Event)) error {
	var qs []question
	for _, p := range r.Spec.Job.Eval.Prompts {
		ids, err := r.Language.Ask([]data.Message{{Role: "user", Content: p}}, nil)
		if err != nil {
			return fmt.Errorf("eval.prompts: %q: %w", p, err)
		}
		qs = append(qs, question{text: p, ids: ids})
	}
	_, err := x.match(ctx, step, qs, r.Spec.Job.Eval.MaxNewTokens, len(qs), emit)
	return err
}
