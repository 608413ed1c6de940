package recovery

import (
	"testing"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/protocol"
)

// TestTheLaterReportOfTwoTellsWhetherTheyAreApart has workers a and b, and c, which was
// started again since.
func TestTheLaterReportOfTwoTellsWhetherTheyAreApart(t *testing.T) {
	var c Config
	c.EnsureDefaults()
	at := func(s int) time.Time { return time.Unix(1_800_000_000+int64(s), 0) }
	ring := func(names ...string) (list []fsm.Place) {
		for _, n := range names {
			list = append(list, fsm.Place{Worker: n, Incarnation: "1"})
		}
		return list
	}
	report := func(by string, when int, ring []fsm.Place, reaches ...string) Sealed {
		return Sealed{Incarnation: "1", At: at(when), Ring: ring, Report: protocol.Report{Worker: by, Reaches: reaches}}
	}
	s := fsm.New()
	for name, incarnation := range map[string]string{"a": "1", "b": "1", "c": "2"} {
		s.Workers[name] = &fsm.Worker{Name: name, Incarnation: incarnation}
	}
	for name, x := range map[string]struct {
		job, other []Sealed
		now        int
		apart      bool
		back       int // when b's session began
	}{
		"they reach each other":                {[]Sealed{report("a", 1, ring("a", "b"), "b"), report("b", 2, ring("a", "b"), "a")}, nil, 3, false, 0},
		"neither does":                         {[]Sealed{report("a", 1, ring("a", "b")), report("b", 2, ring("a", "b"))}, nil, 3, true, 0},
		"the first did not, the later does":    {[]Sealed{report("a", 1, ring("a", "b")), report("b", 2, ring("a", "b"), "a")}, nil, 3, false, 0},
		"the first did, the later does not":    {[]Sealed{report("a", 1, ring("a", "b"), "b"), report("b", 2, ring("a", "b"))}, nil, 3, true, 0},
		"both must at the same moment":         {[]Sealed{report("a", 1, ring("a", "b"), "b"), report("b", 1, ring("a", "b"))}, nil, 3, true, 0},
		"of a later ring without the other":    {[]Sealed{report("a", 1, ring("a", "b")), report("b", 2, ring("b", "c"), "c")}, nil, 3, true, 0},
		"in the ring of another job":           {[]Sealed{report("a", 1, ring("a", "b"))}, []Sealed{report("a", 2, ring("a", "b"), "b")}, 3, false, 0},
		"long ago":                             {[]Sealed{report("a", 1, ring("a", "b"))}, nil, 62, false, 0},
		"one that has been away since":         {[]Sealed{report("a", 1, ring("a", "b"))}, nil, 3, false, 2},
		"by one that has been away since":      {[]Sealed{report("b", 1, ring("a", "b"))}, nil, 3, false, 2},
		"one of another process":               {[]Sealed{report("c", 1, ring("a", "c"))}, nil, 3, false, 0},
		"from another process":                 {[]Sealed{report("a", 1, ring("a", "c"))}, nil, 3, false, 0},
		"a report that says nothing of others": {[]Sealed{report("a", 1, nil)}, nil, 3, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			reports := map[string]map[string]Sealed{"job": {}, "other": {}}
			for _, r := range x.job {
				reports["job"][r.Worker] = r
			}
			for _, r := range x.other {
				reports["other"][r.Worker] = r
			}
			got := c.Apart(at(x.now), s, Seen{Sealed: reports, Connected: map[string]time.Time{"b": at(x.back)}})
			if want := map[bool]int{true: 2}[x.apart]; len(got) != want || got[[2]string{"a", "b"}] != x.apart || got[[2]string{"b", "a"}] != x.apart {
				t.Errorf("%v", got)
			}
		})
	}
}
