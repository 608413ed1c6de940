package invariant

import (
	"strings"
	"testing"
)

// panicOf runs f and returns what it panicked with, or nil.
func panicOf(f func()) (v any) {
	defer func() { v = recover() }()
	f()
	return nil
}

func TestABrokenInvariantPanicsOnlyWhenEnabled(t *testing.T) {
	got := panicOf(func() { Check(false, "piece %d has no owner", 3) })
	if !Enabled {
		if got != nil {
			t.Fatalf("checks are off, yet Check panicked: %v", got)
		}
		return
	}
	text, isText := got.(string)
	if !isText || !strings.Contains(text, "piece 3 has no owner") {
		t.Fatalf("panic %v does not carry the message", got)
	}
}

func TestAnInvariantThatHoldsIsSilent(t *testing.T) {
	if got := panicOf(func() { Check(true, "never") }); got != nil {
		t.Fatalf("Check(true) panicked: %v", got)
	}
}
