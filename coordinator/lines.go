package coordinator

import (
	"maps"
	"slices"
	"strings"

	"github.com/skein-ml/skein/coordinator/fsm"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// Limits on the lines that a leader keeps in its memory. They are for people: a line
// that is lost costs nothing else.
const (
	linesMax           = 2000      // of a job, the newest
	linesBytesMax      = 4 << 20   // of a job
	linesBytesTotalMax = 256 << 20 // of all jobs; those of jobs that are over make way
	lineBytesExtra     = 200       // about what a line takes beside its JSON
)

// lines are what the workers of a job said to people, in the order in which this leader
// heard it.
type lines struct {
	kept  []*skeinv1.Line // the newest; read only
	bytes int             // of kept
	next  uint64          // number of the line that comes after the last of kept, from 0
	last  map[string]heardLine
}

func lineBytes(l *skeinv1.Line) int { return len(l.GetJson()) + lineBytesExtra }

// heardLine is the last line of one worker. Workers say their lines in order, and say
// them again from the oldest that they have when they begin a new session.
type heardLine struct {
	incarnation string
	sequence    uint64
}

// say keeps the lines of a worker process that are new.
func (m *memory) say(job, incarnation string, said []*skeinv1.Line) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.lines[job]
	if l == nil {
		l = &lines{last: map[string]heardLine{}}
		m.lines[job] = l
	}
	before := l.next
	for _, line := range said {
		last, ok := l.last[line.GetWorker()]
		if ok && last.incarnation == incarnation && line.GetSequence() <= last.sequence {
			continue
		}
		l.last[line.GetWorker()] = heardLine{incarnation, line.GetSequence()}
		l.kept = append(l.kept, line)
		l.bytes += lineBytes(line)
		l.next++
	}
	over := 0
	for len(l.kept)-over > linesMax || l.bytes > linesBytesMax {
		l.bytes -= lineBytes(l.kept[over])
		over++
	}
	l.kept = slices.Delete(l.kept, 0, over)
	if l.next != before {
		m.wakeWatchers()
	}
}

// linesFrom are the kept lines of a job from a number on, and the number to ask for next.
func (m *memory) linesFrom(job string, from uint64) ([]*skeinv1.Line, uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.lines[job]
	if l == nil {
		return nil, from
	}
	skip := uint64(0)
	if first := l.next - uint64(len(l.kept)); from > first {
		skip = min(from-first, uint64(len(l.kept)))
	}
	return slices.Clone(l.kept[skip:]), l.next
}

// lastLines are the newest lines of a job, at most so many (-1: all), and the number to
// ask for next. They are in order of time: after a change of leaders, workers tell theirs
// one after the other.
func (m *memory) lastLines(job string, most int) ([]*skeinv1.Line, uint64) {
	list, next := m.linesFrom(job, 0)
	slices.SortStableFunc(list, func(a, b *skeinv1.Line) int {
		switch {
		case a.GetAtUnixMs() != b.GetAtUnixMs():
			return int(min(max(a.GetAtUnixMs()-b.GetAtUnixMs(), -1), 1))
		default:
			return strings.Compare(a.GetWorker(), b.GetWorker())
		}
	})
	if most >= 0 && len(list) > most {
		list = list[len(list)-most:]
	}
	return list, next
}

// forgetLines drops the lines of jobs that are forgotten, and of the oldest that are
// over if there are too many lines. m.mu is held.
func (m *memory) forgetLines(s *fsm.State) {
	maps.DeleteFunc(m.lines, func(job string, _ *lines) bool { return s.Jobs[job] == nil })
	total := 0
	for _, l := range m.lines {
		total += l.bytes
	}
	if total <= linesBytesTotalMax {
		return
	}
	for _, j := range s.InOrder() {
		if l := m.lines[j.ID]; l != nil && j.Phase.Final() && total > linesBytesTotalMax {
			total -= l.bytes
			delete(m.lines, j.ID)
		}
	}
}
