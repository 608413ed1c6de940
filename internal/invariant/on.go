//go:build invariants

package invariant

// Enabled says whether Check checks.
const Enabled = true
