package agent

import (
	"context"

	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/worker"
)

// Bind makes the real tasks, which find env around them.
func Bind(env worker.Env) Tasks { return bound{env, worker.NewKeep()} }

type bound struct {
	env  worker.Env
	keep *worker.Keep
}

// Prepare implements Tasks.
func (b bound) Prepare(ctx context.Context, emit func(console.Event), p worker.PrepareConfig) (worker.Preparation, error) {
	b.env.Emit = emit
	return worker.Prepare(ctx, b.env, p)
}

// Host implements Tasks.
func (b bound) Host(ctx context.Context, emit func(console.Event), h worker.HostConfig) error {
	b.env.Emit, h.Keep = emit, b.keep
	return worker.Host(ctx, b.env, h)
}

// Warm implements Tasks.
func (b bound) Warm(ctx context.Context, emit func(console.Event), c worker.WarmConfig) error {
	b.env.Emit, c.Keep = emit, b.keep
	return worker.Warm(ctx, b.env, c)
}

// Drop implements Tasks.
func (b bound) Drop() { b.keep.Drop() }
