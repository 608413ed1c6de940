package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/internal/console"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/worker"
)

// sent takes what is sent, as job:sequences.
func sent(t *testing.T, l *lines) map[string][]uint64 {
	t.Helper()
	got := map[string][]uint64{}
	err := l.send(func(m *skeinv1.JobLines) error {
		if len(m.GetLines()) > linesMax {
			t.Errorf("%d lines in one message", len(m.GetLines()))
		}
		for _, line := range m.GetLines() {
			got[m.GetJob()] = append(got[m.GetJob()], line.GetSequence())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func note(n int) console.Event { return console.Note{Text: fmt.Sprint("line ", n)} }

func TestLinesAreSentOnceInASessionAndAgainInTheNext(t *testing.T) {
	l := newLines("w1")
	at := time.UnixMilli(5)
	for i := range 3 {
		l.add(at, "a", note(i))
	}
	l.add(at, "b", note(9))
	if got := fmt.Sprint(sent(t, l)); got != "map[a:[1 2 3] b:[1]]" {
		t.Errorf("first: %s", got)
	}
	l.add(at, "a", note(3))
	if got := fmt.Sprint(sent(t, l)); got != "map[a:[4]]" {
		t.Errorf("then: %s", got)
	}
	l.rewind()
	if got := fmt.Sprint(sent(t, l)); got != "map[a:[1 2 3 4] b:[1]]" {
		t.Errorf("in the next session: %s", got)
	}
}

func TestOnlyTheNewestLinesOfTheLastJobsAreKept(t *testing.T) {
	l := newLines("w1")
	for i := range keptMax + 250 {
		l.add(time.UnixMilli(1), "a", note(i))
	}
	got := sent(t, l)["a"]
	if len(got) != keptMax || got[0] != 251 || got[keptMax-1] != keptMax+250 {
		t.Errorf("%d lines are kept, from %d to %d", len(got), got[0], got[len(got)-1])
	}
	for i := range keptJobsMax {
		l.add(time.UnixMilli(1), fmt.Sprint("job", i), note(i))
	}
	l.rewind()
	if all := sent(t, l); len(all) != keptJobsMax || all["a"] != nil {
		t.Errorf("%d jobs are kept, and of the oldest %d lines", len(all), len(all["a"]))
	}
}

func TestAnEventThatIsTooLongIsNamed(t *testing.T) {
	l := newLines("w1")
	l.add(time.UnixMilli(1), "a", console.Note{Text: strings.Repeat("x", skeinv1.LineBytesMax)})
	err := l.send(func(m *skeinv1.JobLines) error {
		line := m.GetLines()[0]
		if got := console.Unmarshal(line.GetName(), line.GetJson()).Line(); got != "an event was too long to be sent: note" {
			t.Errorf("it is sent as %q", got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestLongLinesGoInSeveralMessages(t *testing.T) {
	l := newLines("w1")
	const count = 3 * batchBytes / skeinv1.LineBytesMax
	for range count {
		l.add(time.UnixMilli(1), "a", console.Note{Text: strings.Repeat("x", skeinv1.LineBytesMax-100)})
	}
	messages, lines := 0, 0
	err := l.send(func(m *skeinv1.JobLines) error {
		bytes := 0
		for _, line := range m.GetLines() {
			if bytes += len(line.GetJson()); len(line.GetJson()) < skeinv1.LineBytesMax-100 {
				t.Errorf("line %d was cut to %d bytes", line.GetSequence(), len(line.GetJson()))
			}
		}
		if bytes > batchBytes {
			t.Errorf("%d bytes in one message", bytes)
		}
		messages++
		lines += len(m.GetLines())
		return nil
	})
	if err != nil || lines != count || messages < 3 {
		t.Errorf("%d of %d lines in %d messages: %v", lines, count, messages, err)
	}
}

func TestWhatCouldNotBeSentIsSentLater(t *testing.T) {
	l := newLines("w1")
	l.add(time.UnixMilli(1), "a", note(1))
	broken := errors.New("broken")
	if err := l.send(func(*skeinv1.JobLines) error { return broken }); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	if got := fmt.Sprint(sent(t, l)); got != "map[a:[1]]" {
		t.Errorf("then: %s", got)
	}
}

func TestFlushWaitsUntilAllIsSentButNotForLong(t *testing.T) {
	l := newLines("w1")
	l.flush(t.Context(), time.Hour) // nothing is to be sent
	l.add(time.UnixMilli(1), "a", note(1))
	l.flush(t.Context(), time.Millisecond) // nobody sends
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.flush(t.Context(), time.Hour)
	}()
	sent(t, l)
	<-done
}

func TestCallsAreRepeatedUntilTheLeaderHasDecided(t *testing.T) {
	var c Config
	c.EnsureDefaults()
	a := &agent{config: c, log: c.Logger, ctx: t.Context()}
	fenced := skeinv1.Refuse(codes.Aborted, &skeinv1.Refusal{Kind: skeinv1.Refusal_KIND_FENCED}, "generation 1 is over")
	for what, c := range map[string]struct {
		answers []error
		check   func(error) bool
	}{
		"taken":             {[]error{nil}, func(err error) bool { return err == nil }},
		"taken in the end":  {[]error{status.Error(codes.Unavailable, "no leader"), status.Error(codes.DeadlineExceeded, "slow"), nil}, func(err error) bool { return err == nil }},
		"fenced":            {[]error{fenced}, func(err error) bool { return errors.Is(err, worker.ErrFenced) }},
		"an unknown job":    {[]error{status.Error(codes.NotFound, "no such job")}, func(err error) bool { return errors.Is(err, worker.ErrFenced) }},
		"refused for good":  {[]error{status.Error(codes.FailedPrecondition, "other bits")}, func(err error) bool { return errors.As(err, &refused{}) && strings.Contains(err.Error(), "other bits") }},
		"refused in detail": {[]error{status.Error(codes.InvalidArgument, "no"), nil}, func(err error) bool { return errors.As(err, &refused{}) }},
	} {
		tries := 0
		err := a.decided(t.Context(), "publish", "a", func(context.Context) error {
			tries++
			return c.answers[tries-1]
		})
		if !c.check(err) {
			t.Errorf("%s: %v after %d tries", what, err, tries)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := a.decided(ctx, "publish", "a", func(context.Context) error {
		cancel()
		return status.Error(codes.Unavailable, "no leader")
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a task that is stopped waits for an answer: %v", err)
	}
}

func TestErrorsOfTasksSayWhoHearsOfThem(t *testing.T) {
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		ctx  context.Context
		err  error
		want How
	}{
		{t.Context(), nil, Done},
		{t.Context(), fmt.Errorf("step 3: %w", &worker.BrokenError{Accused: "w2", Reason: "reset"}), Broken},
		{t.Context(), fmt.Errorf("publish: %w", worker.ErrFenced), Fenced},
		{t.Context(), errors.New("record 7 is damaged"), Failed},
		{t.Context(), context.DeadlineExceeded, Broken},
		{stopped, fmt.Errorf("stopped: %w", context.Canceled), Canceled},
		{stopped, errors.New("closed"), Canceled},
		{stopped, nil, Done},
	} {
		if got := outcome(c.ctx, c.err); got.How != c.want {
			t.Errorf("%v is taken as %v, want %v", c.err, got.How, c.want)
		}
	}
}

func TestOthersDialWhatIsAdvertised(t *testing.T) {
	own := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7500}
	for advertise, want := range map[string]string{
		"": "127.0.0.1:7500", "w1.example": "w1.example:7500", "w1.example:0": "w1.example:7500", "w1.example:9": "w1.example:9", "10.0.0.1": "10.0.0.1:7500",
		"::1": "[::1]:7500", "[::1]:9": "[::1]:9",
	} {
		if got := advertised(advertise, own); got != want {
			t.Errorf("%q is advertised as %s, want %s", advertise, got, want)
		}
	}
}
