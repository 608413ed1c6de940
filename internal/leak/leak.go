// Package leak lets tests fail that leave goroutines behind. A busy machine takes its time to
// end what was told to end, so it waits much longer than goleak does by itself.
package leak

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience is for goroutines that are about to end.
const patience = 30 * time.Second

// Main is a package's TestMain: it runs the tests and then looks for goroutines.
func Main(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := left(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// None lets t fail if goroutines that were not there yet outlive it and what it cleans up. It
// is the first thing that a test calls.
func None(t testing.TB) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		if err := left(before); err != nil {
			t.Error(err)
		}
	})
}

func left(options ...goleak.Option) error {
	for late := time.Now().Add(patience); ; {
		if err := goleak.Find(options...); err == nil || time.Now().After(late) {
			return err
		}
	}
}
