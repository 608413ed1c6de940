package recovery

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/fsm/fsmtest"
)

// Commands: alive w1 … · away w1 … · running job w1 w2 · lost w1 reason=… · broken job
// by=w1 reason=… at=1s · gaveup job by=w1 reason=… at=1s · stray w1 task=… at=1s ·
// stopped w1 · draining w1 at=1s · read job w1 · unread job w1 · decide at=3s.
func TestTranscripts(t *testing.T) {
	stories := map[*fsmtest.Story]*Seen{}
	var c Config
	c.EnsureDefaults()
	fsmtest.Run(t, func(t *testing.T, s *fsmtest.Story, cmd fsmtest.Command) string {
		seen := stories[s]
		if seen == nil {
			seen = &Seen{Alive: map[string]bool{}, Lost: map[string]string{}, Broken: map[string]Broken{},
				Draining: map[string]time.Time{}, Reads: map[string]map[string]bool{},
				GaveUp: map[string]map[string]GaveUp{}, Strays: map[string]Stray{}}
			stories[s] = seen
		}
		switch cmd.Word {
		case "running":
			run(t, s, cmd)
		case "alive", "away":
			for _, w := range cmd.Args {
				seen.Alive[w] = cmd.Word == "alive"
			}
		case "lost":
			seen.Lost[cmd.Args[0]] = cmd.Args[0] + " lost: " + cmd.Keys["reason"]
		case "draining":
			seen.Draining[cmd.Args[0]] = cmd.At()
		case "read":
			seen.Reads[s.ID(cmd.Args[0])] = map[string]bool{cmd.Args[1]: true}
		case "unread":
			delete(seen.Reads[s.ID(cmd.Args[0])], cmd.Args[1])
		case "broken", "gaveup":
			id, by := s.ID(cmd.Args[0]), cmd.Keys["by"]
			j := s.State.Jobs[id]
			seen.Broken[id] = Broken{Generation: j.Generation, By: by, Reason: cmd.Keys["reason"], At: cmd.At()}
			if cmd.Word == "gaveup" {
				if seen.GaveUp[id] == nil {
					seen.GaveUp[id] = map[string]GaveUp{}
				}
				seen.GaveUp[id][by] = GaveUp{Generation: j.Generation, Times: seen.GaveUp[id][by].Times + 1, At: cmd.At(), Reason: cmd.Keys["reason"]}
			}
		case "stray":
			seen.Strays[cmd.Args[0]] = Stray{Task: cmd.Keys["task"], Since: cmd.At()}
		case "stopped":
			delete(seen.Strays, cmd.Args[0])
		case "decide":
			entries, notes := Decide(cmd.At(), s.State, *seen, c)
			var b strings.Builder
			for _, id := range slices.Sorted(maps.Keys(notes)) {
				fmt.Fprintf(&b, "%s %s\n", id, notes[id])
			}
			return s.Carry(t, entries) + b.String()
		default:
			t.Fatalf("no command %q", cmd.Word)
		}
		return ""
	})
}

// run places a submitted job on the workers that are named.
func run(t *testing.T, s *fsmtest.Story, cmd fsmtest.Command) {
	t.Helper()
	id := s.ID(cmd.Args[0])
	var on []*fsm.Worker
	for _, w := range cmd.Args[1:] {
		on = append(on, s.State.Workers[w])
	}
	s.Apply(t, &fsm.Prepare{Job: id, Number: 1, Worker: on[0].Name, Incarnation: on[0].Incarnation})
	s.Apply(t, &fsm.Resolve{Job: id, Number: 1, Resolved: []byte("{}"), Steps: 100, Class: "generic r1", Step0: fsm.Checkpoint{Manifest: "0"},
		Nonce: fsm.Nonce{Object: cmd.Keys["nonce"], Value: "42"}})
	j := s.State.Jobs[id]
	places, err := j.Cut(on)
	if err != nil {
		t.Fatal(err)
	}
	s.Apply(t, &fsm.Generate{Job: id, Generation: 1, Placement: places})
}
