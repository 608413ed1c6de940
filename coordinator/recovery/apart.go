package recovery

import (
	"slices"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
)

// Apart finds the workers that did not reach each other lately, from the newest reports, by
// job and worker. Of two workers the later report of a ring that had both decides: to be
// answered takes both directions, and one of them may have been stopped, or cut off, only
// before. Of two at the same moment, both must say that they reach each other. That one
// reached nobody who was not in its ring, or who has been started again or been away since, says
// nothing; and it does not count for long, because a link may hold again.
func (c Config) Apart(now time.Time, s *fsm.State, seen Seen) fsm.Apart {
	type word struct {
		at    time.Time
		apart bool
	}
	last := map[[2]string]word{} // by pair, in order of names
	for _, of := range seen.Sealed {
		for _, r := range of {
			if !s.Is(r.Worker, r.Incarnation) || now.Sub(r.At) >= c.GiveUpRest || seen.Connected[r.Worker].After(r.At) {
				continue
			}
			for _, p := range r.Ring {
				if p.Worker == r.Worker || !s.Is(p.Worker, p.Incarnation) || seen.Connected[p.Worker].After(r.At) {
					continue
				}
				pair := [2]string{min(r.Worker, p.Worker), max(r.Worker, p.Worker)}
				w := word{r.At, !slices.Contains(r.Reaches, p.Worker)}
				if old, known := last[pair]; !known || w.at.After(old.at) || w.at.Equal(old.at) && w.apart {
					last[pair] = w
				}
			}
		}
	}
	apart := fsm.Apart{}
	for pair, w := range last {
		if w.apart {
			apart.Add(pair[0], pair[1])
		}
	}
	return apart
}
