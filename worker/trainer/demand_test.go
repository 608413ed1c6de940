package trainer

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/model/modeltest"
	"github.com/skein-ml/skein/shard"
)

// observed notes the order of a worker's gathers among its computations.
type observed struct {
	collective
	say func(format string, args ...any)
}

func (o observed) gather(bucket int) error {
	o.say("asks for %d", bucket)
	return o.collective.gather(bucket)
}

func (o observed) gathered(ctx context.Context, bucket int) error {
	defer o.say("has %d", bucket)
	return o.collective.gathered(ctx, bucket)
}

// attending notes when attention is computed, which each layer does once, forward and backward.
type attending struct {
	device.Device
	say func(format string, args ...any)
}

func (d *attending) Attention(s device.Stream, o, lse, q, k, v device.Tensor, docs device.Docs, a device.AttnShape, ws device.Buf) {
	d.say("forward")
	d.Device.Attention(s, o, lse, q, k, v, docs, a, ws)
}

func (d *attending) AttentionGrad(s device.Stream, dq, dk, dv, do, q, k, v, o, lse device.Tensor, docs device.Docs, a device.AttnShape, ws device.Buf) {
	d.say("backward")
	d.Device.AttentionGrad(s, dq, dk, dv, do, q, k, v, o, lse, docs, a, ws)
}

// TestTheNextLayersWeightsAreOnTheirWayWhileOneIsComputed looks at a step of ZeRO-3.
func TestTheNextLayersWeightsAreOnTheirWayWhileOneIsComputed(t *testing.T) {
	g := golden{modeltest.Load(t, "llama-untied-bias")}
	if g.Config.Layers != 3 {
		t.Fatalf("the golden has %d layers, and the order below is of three", g.Config.Layers)
	}
	c := g.config(2, 2)
	c.Stage = shard.StageWeights
	var seen []string
	say := func(format string, args ...any) { seen = append(seen, fmt.Sprintf(format, args...)) }
	quiet := func(string, ...any) {}
	mine := &attending{Device: newDevice(t, "generic", 1), say: quiet}
	m := newTeam(t, func(w int) device.Device {
		if w == 0 {
			return mine
		}
		return newDevice(t, "generic", 1)
	}, g, c, 2)
	m.steps(t, 1)
	m.trainers[0].peers, mine.say = observed{m.trainers[0].peers, say}, say
	m.steps(t, 1)
	// Buckets: the embedding, three layers, the norm with the head. There is room for two layers, so that the
	// backward finds the last two where the forward has left them.
	want := []string{
		"asks for 0", "has 0",
		"asks for 1", "has 1", "asks for 2", "forward",
		"has 2", "asks for 3", "forward",
		"has 3", "asks for 4", "forward",
		"has 4", "backward",
		"asks for 1", "backward",
		"has 1", "backward",
	}
	if !slices.Equal(seen, want) {
		t.Errorf("a step goes\n%q, want\n%q", seen, want)
	}
}
