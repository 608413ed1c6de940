package agent

import (
	"context"

	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/worker"
)

// Bind makes the real tasks, which find env around them.
func Bind(env worker.Env) Tasks { return bound{env} }

type bound struct{ env worker.Env }

// Prepare implements Tasks.
func (b bound) Prepare(ctx context.Context, emit func(console.Event), p worker.PrepareConfig) (worker.Preparation, error) {
	b.env.Emit = emit
	return worker.Prepare(ctx, b.env, p)
}

// Host implements Tasks.
func (b bound) Host(ctx context.Context, emit func(console.Event), h worker.HostConfig) error {
	b.env.Emit = emit
	return worker.Host(ctx, b.env, h)
}
