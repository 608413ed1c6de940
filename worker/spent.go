package worker

import (
	"time"

	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// spent is where the time of a generation went on this worker since it got its orders.
type spent struct {
	last       time.Time // up to which it is accounted for
	step       int64     // the last that was decided
	entering   time.Duration
	productive time.Duration
	data       time.Duration
	checkpoint time.Duration
	evaluation time.Duration
	unfinished time.Duration // of the step that was under way when this worker stopped
	marks      []*skeinv1.Mark
}

// marksMax is how many checkpoints the leader may have to tell apart: the newest that is
// published, and one on its way.
const marksMax = 3

// lap adds the time since the last one to something.
func (s *spent) lap(to *time.Duration) time.Duration {
	now := time.Now()
	d := now.Sub(s.last)
	s.last = now
	*to += d
	return d
}

// decided divides the time of a step: what it waited for is not productive.
func (s *spent) decided(step int64, data, hold time.Duration) {
	s.step = step
	s.data += data
	s.checkpoint += hold
	s.lap(&s.productive)
	s.productive = max(s.productive-data-hold, 0)
}

// finished notes that the step under way was decided all the same.
func (s *spent) finished(step int64) {
	if step > s.step {
		s.step = step
		s.productive += s.unfinished
		s.unfinished = 0
	}
}

// mark notes what the step of a checkpoint has cost.
func (s *spent) mark(step int64) {
	s.marks = append(s.marks[max(0, len(s.marks)+1-marksMax):], &skeinv1.Mark{Step: step, ProductiveMs: s.productive.Milliseconds()})
}

// message is the account as the leader gets it.
func (s *spent) message() *skeinv1.Spent {
	return &skeinv1.Spent{
		Step: s.step, EnteringMs: s.entering.Milliseconds(), ProductiveMs: s.productive.Milliseconds(), DataWaitMs: s.data.Milliseconds(),
		CheckpointMs: s.checkpoint.Milliseconds(), EvaluationMs: s.evaluation.Milliseconds(), UnfinishedMs: s.unfinished.Milliseconds(),
		Marks: append([]*skeinv1.Mark(nil), s.marks...),
	}
}
