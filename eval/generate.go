package eval

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/internal/exact"
	"github.com/skein-ml/skein/model"
)

// Sampling says how the next token is chosen.
type Sampling struct {
	TokensMax   int     // stop after so many
	Temperature float64 // 0: greedy
	TopK        int     // 0: all
	TopP        float64 // 0 or 1: all
	Seed        uint64
	Stop        []int32 // ids that end an answer; they are part of it
	IDsMax      int     // ids from here on are never chosen: the size of the tokenizer; 0: the vocabulary
}

// Generate answers a prompt and returns the new ids. Each is given to emit, unless
// that is nil, as soon as it is known. It stops at a stop id, after TokensMax, or
// when the decoder's cache is full.
func Generate(ctx context.Context, d *model.Decoder, s device.Stream, hooks model.Hooks, prompt []int32, o Sampling, emit func(int32)) ([]int32, error) {
	if o.TokensMax < 1 {
		return nil, fmt.Errorf("eval: asked for %d new tokens, need at least 1", o.TokensMax)
	}
	pick := newPicker(o)
	logits, err := d.Prefill(s, prompt, hooks)
	if err != nil {
		return nil, err
	}
	var out []int32
	for {
		if err := ctx.Err(); err != nil {
			return out, err
		}
		id, err := pick.next(logits)
		if err != nil {
			return out, err
		}
		out = append(out, id)
		if emit != nil {
			emit(id)
		}
		if slices.Contains(o.Stop, id) || len(out) == o.TokensMax || d.Full() {
			return out, nil
		}
		if logits, err = d.Decode(s, id, hooks); err != nil {
			return out, err
		}
	}
}

// picker chooses tokens from logits.
type picker struct {
	o     Sampling
	rng   *rand.Rand
	ranks []choice
}

type choice struct {
	id     int32
	weight float64
}

func newPicker(o Sampling) *picker {
	return &picker{o: o, rng: rand.New(rand.NewPCG(o.Seed, 0x736b65696e))}
}

// next chooses an id. The lowest id wins among equals, so that greedy answers are reproducible.
func (p *picker) next(logits []float32) (int32, error) {
	if p.o.IDsMax > 0 && p.o.IDsMax < len(logits) {
		logits = logits[:p.o.IDsMax]
	}
	best := 0
	for i, x := range logits {
		if x != x {
			return 0, fmt.Errorf("the model's logit of id %d is not a number: its weights are damaged", i)
		}
		if x > logits[best] {
			best = i
		}
	}
	if p.o.Temperature <= 0 {
		return int32(best), nil
	}
	return p.sample(logits, float64(logits[best])), nil
}

func (p *picker) sample(logits []float32, top float64) int32 {
	p.ranks = p.ranks[:0]
	for i, x := range logits {
		p.ranks = append(p.ranks, choice{int32(i), exact.Exp((float64(x) - top) / p.o.Temperature)})
	}
	slices.SortStableFunc(p.ranks, func(a, b choice) int { return cmp.Compare(b.weight, a.weight) })
	keep := p.ranks
	if p.o.TopK > 0 && p.o.TopK < len(keep) {
		keep = keep[:p.o.TopK]
	}
	keep = nucleus(keep, p.o.TopP)
	var total float64
	for _, c := range keep {
		total += c.weight
	}
	at := p.rng.Float64() * total
	for _, c := range keep {
		if at -= c.weight; at < 0 {
			return c.id
		}
	}
	return keep[len(keep)-1].id
}

// nucleus keeps the fewest choices that hold the share topP of all weight.
func nucleus(ranks []choice, topP float64) []choice {
	if topP <= 0 || topP >= 1 {
		return ranks
	}
	var total, sum float64
	for _, c := range ranks {
		total += c.weight
	}
	for i, c := range ranks {
		if sum += c.weight; sum >= topP*total {
			return ranks[:i+1]
		}
	}
	return ranks
}
