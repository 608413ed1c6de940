package agent

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/skein-ml/skein/internal/console"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

const (
	keptMax     = 1000    // lines of one job
	keptJobsMax = 8       // jobs whose lines are kept
	batchBytes  = 1 << 20 // of JSON in one message, well below what a leader reads
)

// lines keeps the newest console events of the last jobs, and remembers which of them
// this session has sent. A new session sends all that is kept: its leader may be
// another one, which has none.
type lines struct {
	worker string
	wake   chan struct{} // one token: there is something to send

	mu     sync.Mutex
	jobs   []*jobLines   // the one that spoke last at the end
	change chan struct{} // closed when something was sent
}

// jobLines are those of one job, numbered from 1.
type jobLines struct {
	job  string
	last uint64 // number of the newest line
	sent uint64 // number of the newest line that this session has sent
	kept []*skeinv1.Line
}

func newLines(worker string) *lines {
	return &lines{worker: worker, wake: make(chan struct{}, 1), change: make(chan struct{})}
}

// add keeps an event and has it sent.
func (l *lines) add(at time.Time, job string, e console.Event) {
	name, body := e.Name(), console.Marshal(e)
	if len(body) > skeinv1.LineBytesMax {
		note := console.Note{Text: "an event was too long to be sent: " + name}
		name, body = note.Name(), console.Marshal(note)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	j := l.of(job)
	j.last++
	j.kept = append(j.kept, &skeinv1.Line{Worker: l.worker, Sequence: j.last, AtUnixMs: at.UnixMilli(), Name: name, Json: body})
	if len(j.kept) > keptMax {
		j.kept = slices.Delete(j.kept, 0, len(j.kept)-keptMax)
	}
	signal(l.wake)
}

// of finds a job's lines and puts them at the end. l.mu is held.
func (l *lines) of(job string) *jobLines {
	i := slices.IndexFunc(l.jobs, func(j *jobLines) bool { return j.job == job })
	j := &jobLines{job: job}
	if i >= 0 {
		j = l.jobs[i]
		l.jobs = slices.Delete(l.jobs, i, i+1)
	}
	if l.jobs = append(l.jobs, j); len(l.jobs) > keptJobsMax {
		l.jobs = slices.Delete(l.jobs, 0, 1)
	}
	return j
}

// rewind has everything sent again.
func (l *lines) rewind() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, j := range l.jobs {
		j.sent = 0
	}
	if len(l.jobs) > 0 {
		signal(l.wake)
	}
}

// send sends what this session has not sent yet. It is called by one goroutine.
func (l *lines) send(to func(*skeinv1.JobLines) error) error {
	for {
		j, batch := l.next()
		if j == nil {
			return nil
		}
		if err := to(&skeinv1.JobLines{Job: j.job, Lines: batch}); err != nil {
			return err
		}
		l.mu.Lock()
		j.sent = batch[len(batch)-1].GetSequence()
		close(l.change)
		l.change = make(chan struct{})
		l.mu.Unlock()
	}
}

// next is the next batch to send; nil if all is sent.
func (l *lines) next() (*jobLines, []*skeinv1.Line) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, j := range l.jobs {
		if n := min(int(j.last-j.sent), len(j.kept)); n > 0 {
			from := j.kept[len(j.kept)-n:]
			return j, slices.Clone(from[:fitting(from)])
		}
	}
	return nil, nil
}

// fitting is how many of the lines go into one message; at least one does.
func fitting(lines []*skeinv1.Line) int {
	bytes := 0
	for i, l := range lines[:min(len(lines), linesMax)] {
		if bytes += len(l.GetJson()); bytes > batchBytes {
			return i
		}
	}
	return min(len(lines), linesMax)
}

// flush waits until what is kept has been sent, but not for long.
func (l *lines) flush(ctx context.Context, wait time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		l.mu.Lock()
		change := l.change
		all := !slices.ContainsFunc(l.jobs, func(j *jobLines) bool { return j.sent < j.last })
		l.mu.Unlock()
		if all {
			return
		}
		select {
		case <-change:
		case <-ctx.Done():
			return
		}
	}
}
