package scheduler

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/fsm/fsmtest"
)

// Commands: alive w1 … · away w1 … · joined at=1s · read job w1 … error=… · broken job
// reason=… · resting job w1 why=… · doubted job w1 … times=2 · trusted job w1 … · stray w1 task=… at=1s · stopped w1 · restored ·
// keeps w1 … of=job · forgets w1 … · pause job · resume job · suspend job · hold job · release job · joining w1 to=job ·
// decide at=3s.
func TestTranscripts(t *testing.T) {
	stories := map[*fsmtest.Story]*Seen{}
	var c Config
	c.EnsureDefaults()
	fsmtest.Run(t, func(t *testing.T, s *fsmtest.Story, cmd fsmtest.Command) string {
		seen := stories[s]
		if seen == nil {
			seen = &Seen{Alive: map[string]bool{}, Reads: map[string]map[string]Read{}, Broken: map[string]Broken{},
				Resting: map[string]map[string]string{}, Doubted: map[string]map[string]Doubted{}, Strays: map[string]Stray{}, Hold: map[string]bool{}, Joining: map[string]string{}, Keeps: map[string]string{}}
			stories[s] = seen
		}
		switch cmd.Word {
		case "alive", "away":
			for _, w := range cmd.Args {
				seen.Alive[w] = cmd.Word == "alive"
			}
		case "joined":
			seen.LastJoin = cmd.At()
		case "read":
			id := s.ID(cmd.Args[0])
			if seen.Reads[id] == nil {
				seen.Reads[id] = map[string]Read{}
			}
			for _, w := range cmd.Args[1:] {
				seen.Reads[id][w] = Read{Err: cmd.Keys["error"]}
			}
		case "broken":
			id := s.ID(cmd.Args[0])
			seen.Broken[id] = Broken{Number: s.State.Jobs[id].Preparation.Number, Reason: cmd.Keys["reason"]}
		case "resting":
			seen.Resting[s.ID(cmd.Args[0])] = map[string]string{cmd.Args[1]: cmd.Keys["why"]}
		case "doubted", "trusted":
			id := s.ID(cmd.Args[0])
			if seen.Doubted[id] == nil {
				seen.Doubted[id] = map[string]Doubted{}
			}
			for _, w := range cmd.Args[1:] {
				times, err := strconv.Atoi(cmd.Keys["times"])
				if seen.Doubted[id][w] = (Doubted{times, "left out, because its weights differed " + cmd.Keys["times"] + " times"}); cmd.Word == "trusted" {
					delete(seen.Doubted[id], w)
				} else if err != nil {
					t.Fatal(err)
				}
			}
		case "stray":
			seen.Strays[cmd.Args[0]] = Stray{Task: cmd.Keys["task"], Since: cmd.At()}
		case "stopped":
			delete(seen.Strays, cmd.Args[0])
		case "pause":
			s.Apply(t, &fsm.Pause{Job: s.ID(cmd.Args[0])})
		case "resume":
			s.Apply(t, &fsm.Resume{Job: s.ID(cmd.Args[0])})
		case "suspend":
			id := s.ID(cmd.Args[0])
			s.Apply(t, &fsm.Suspend{Job: id, Generation: s.State.Jobs[id].Generation + 1})
		case "hold", "release":
			seen.Hold[s.ID(cmd.Args[0])] = cmd.Word == "hold"
		case "keeps":
			for _, w := range cmd.Args {
				seen.Keeps[w] = s.ID(cmd.Keys["of"])
			}
		case "forgets":
			for _, w := range cmd.Args {
				delete(seen.Keeps, w)
			}
		case "joining":
			seen.Joining[cmd.Args[0]] = s.ID(cmd.Keys["to"])
		case "restored":
			s.State = s.State.Restored(cmd.At().UnixMilli())
		case "decide":
			d := Decide(cmd.At(), s.State, *seen, c)
			var b strings.Builder
			for _, id := range slices.Sorted(maps.Keys(d.Waiting)) {
				fmt.Fprintf(&b, "%s %s\n", id, d.Waiting[id])
			}
			for _, id := range slices.Sorted(maps.Keys(d.Preempt)) {
				fmt.Fprintf(&b, "preempt %s for %s\n", id, d.Preempt[id])
			}
			return s.Carry(t, d.Entries) + s.Short(b.String())
		default:
			t.Fatalf("no command %q", cmd.Word)
		}
		return ""
	})
}
