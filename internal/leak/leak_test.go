package leak

import (
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { Main(m) }

func TestAGoroutineThatIsAboutToEndIsWaitedFor(t *testing.T) {
	None(t)
	end := make(chan struct{})
	go func() { <-end }()
	time.AfterFunc(time.Second, func() { close(end) }) // goleak alone gives up before
}

func TestAGoroutineThatStaysIsNamed(t *testing.T) {
	before := goleak.IgnoreCurrent()
	end, ended := make(chan struct{}), make(chan struct{})
	go func() { defer close(ended); <-end }()
	defer func() { close(end); <-ended }()
	if err := goleak.Find(before); err == nil {
		t.Error("nothing is left")
	}
}
