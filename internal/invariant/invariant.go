// Package invariant states what must hold at a point in the program. The build
// tag `invariants` (on in `make test`) turns the statements into checks; without
// it they cost nothing, because Enabled is a constant and the compiler drops
// what stands behind it.
//
// An invariant is about our own mistakes. Bad input from outside is an error
// that the caller returns, never a Check.
package invariant

import "fmt"

// Check panics with the formatted message when ok is false and the checks are
// compiled in. Guard arguments that are costly to compute:
//
//	if invariant.Enabled {
//		invariant.Check(sorted(ids), "ids out of order")
//	}
func Check(ok bool, format string, args ...any) {
	if Enabled && !ok {
		panic("invariant violated: " + fmt.Sprintf(format, args...))
	}
}
