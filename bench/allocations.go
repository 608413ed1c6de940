package bench

import (
	"context"
	"runtime"
	"runtime/debug"
)

// Allocations is how often a steady step allocates on Go's heap, over the given number of
// steps after two that fill what is kept, and how many bytes. Other goroutines of the
// process should rest.
func Allocations(ctx context.Context, s *Stepper, steps int) (count, bytes float64, err error) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	var before, after runtime.MemStats
	for i := range 2 + steps {
		if i == 2 {
			runtime.ReadMemStats(&before)
		}
		if _, err := s.Step(ctx); err != nil {
			return 0, 0, err
		}
	}
	runtime.ReadMemStats(&after)
	n := float64(steps)
	return float64(after.Mallocs-before.Mallocs) / n, float64(after.TotalAlloc-before.TotalAlloc) / n, nil
}
