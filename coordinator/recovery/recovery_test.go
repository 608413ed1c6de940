package recovery

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/fsm/fsmtest"
	"github.com/skein-ml/skein/protocol"
	"github.com/skein-ml/skein/shard"
)

// Commands: alive w1 … · away w1 … · running job w1 w2 · lost w1 reason=… · broken job
// by=w1 reason=… at=1s · gaveup job by=w1 reason=… at=1s · stray w1 task=… at=1s ·
// stopped w1 · draining w1 at=1s · read job w1 … · unread job w1 · joined at=1s ·
// sealed job w1 … step=3 (mirror=1: it holds the ranks of the worker before it too; summed=1:
// and their sums of the next step; nothing=1: it holds nothing; reaches=w1,w2; yielded=1) ·
// protected job · warm job w1 … · preempt job by=other · promised w1 … to=job · decide at=3s.
// lostat w1 at=1s · connected w1 … at=1s · dropped job w1 (it keeps that no more) · silent job w1 … (they
// have not told this leader, which has just begun).
// What decide asks of workers stands below what it decides.
func TestTranscripts(t *testing.T) {
	stories := map[*fsmtest.Story]*Seen{}
	var c Config
	c.EnsureDefaults()
	fsmtest.Run(t, func(t *testing.T, s *fsmtest.Story, cmd fsmtest.Command) string {
		seen := stories[s]
		if seen == nil {
			seen = &Seen{Alive: map[string]bool{}, Lost: map[string]string{}, Broken: map[string]Broken{},
				Draining: map[string]time.Time{}, Reads: map[string]map[string]bool{},
				GaveUp: map[string]map[string]GaveUp{}, Strays: map[string]Stray{}, Sealed: map[string]map[string]Sealed{},
				Ending: map[string]time.Time{}, Protected: map[string]bool{}, Warm: map[string]string{}, Promised: map[string]string{},
				Preempt: map[string]string{}, LostAt: map[string]time.Time{}, Connected: map[string]time.Time{}}
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
		case "lostat":
			seen.LostAt[cmd.Args[0]] = cmd.At()
		case "connected":
			for _, w := range cmd.Args {
				seen.Connected[w] = cmd.At()
			}
		case "silent":
			for _, w := range cmd.Args[1:] {
				delete(seen.Sealed[s.ID(cmd.Args[0])], w)
			}
			delete(seen.Ending, s.ID(cmd.Args[0]))
		case "dropped":
			r := seen.Sealed[s.ID(cmd.Args[0])][cmd.Args[1]]
			r.Held, r.Summed = nil, nil
			seen.Sealed[s.ID(cmd.Args[0])][cmd.Args[1]] = r
		case "draining":
			seen.Draining[cmd.Args[0]] = cmd.At()
		case "read":
			id := s.ID(cmd.Args[0])
			seen.Reads[id] = map[string]bool{}
			for _, w := range cmd.Args[1:] {
				seen.Reads[id][w] = true
			}
		case "joined":
			seen.LastJoin = cmd.At()
		case "sealed":
			seal(t, s, seen, cmd)
		case "protected":
			seen.Protected[s.ID(cmd.Args[0])] = true
		case "exposed":
			delete(seen.Protected, s.ID(cmd.Args[0]))
		case "warm":
			for _, w := range cmd.Args[1:] {
				seen.Warm[w] = s.ID(cmd.Args[0])
			}
		case "preempt":
			seen.Preempt[s.ID(cmd.Args[0])] = s.ID(cmd.Keys["by"])
		case "promised":
			for _, w := range cmd.Args {
				seen.Promised[w] = s.ID(cmd.Keys["to"])
			}
		case "pause":
			s.Apply(t, &fsm.Pause{Job: s.ID(cmd.Args[0])})
		case "resume":
			s.Apply(t, &fsm.Resume{Job: s.ID(cmd.Args[0])})
		case "scale":
			n, err := strconv.Atoi(cmd.Keys["workers"])
			if err != nil {
				t.Fatal(err)
			}
			s.Apply(t, &fsm.Scale{Job: s.ID(cmd.Args[0]), Workers: n})
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
			return decide(t, s, seen, cmd, c)
		default:
			t.Fatalf("no command %q", cmd.Word)
		}
		return ""
	})
}

// decide carries out what is decided, and remembers what the leader would.
func decide(t *testing.T, s *fsmtest.Story, seen *Seen, cmd fsmtest.Command, c Config) string {
	t.Helper()
	seen.Apart = c.Apart(cmd.At(), s.State, *seen)
	d := Decide(cmd.At(), s.State, *seen, c)
	var b strings.Builder
	for _, id := range slices.Sorted(maps.Keys(d.Notes)) {
		fmt.Fprintf(&b, "%s %s\n", id, d.Notes[id])
	}
	for _, id := range slices.Sorted(maps.Keys(d.Yield)) {
		fmt.Fprintf(&b, "yield %s", id)
		if d.Yield[id].Save {
			b.WriteString(" and save")
		}
		b.WriteString("\n")
	}
	for _, w := range slices.Sorted(maps.Keys(d.Warm)) {
		fmt.Fprintf(&b, "warm %s for %s\n", w, d.Warm[w])
	}
	for _, w := range slices.Sorted(maps.Keys(d.Joining)) {
		fmt.Fprintf(&b, "%s is to join %s\n", w, d.Joining[w])
	}
	for _, id := range slices.Sorted(maps.Keys(d.Hold)) {
		fmt.Fprintf(&b, "hold %s\n", id)
	}
	for _, w := range slices.Sorted(maps.Keys(d.Keeps)) {
		fmt.Fprintf(&b, "%s keeps steps of %s\n", w, d.Keeps[w])
	}
	for _, w := range slices.Sorted(maps.Keys(d.Stays)) {
		fmt.Fprintf(&b, "%s stays for %s\n", w, d.Stays[w])
	}
	for id := range d.Seal {
		if _, known := seen.Ending[id]; !known {
			seen.Ending[id] = cmd.At()
		}
	}
	for id := range d.Hold {
		if _, known := seen.Ending[id]; !known {
			seen.Ending[id] = cmd.At()
		}
	}
	for _, e := range d.Entries {
		if g, ok := e.Decision.(*fsm.Generate); ok {
			delete(seen.Ending, g.Job)
			delete(seen.Protected, g.Job)
		}
	}
	return s.Carry(t, d.Entries) + b.String()
}

// seal reports what workers of a job hold that will not act in its generation again.
func seal(t *testing.T, s *fsmtest.Story, seen *Seen, cmd fsmtest.Command) {
	t.Helper()
	id := s.ID(cmd.Args[0])
	j := s.State.Jobs[id]
	ended := j.Ended()
	if seen.Sealed[id] == nil {
		seen.Sealed[id] = map[string]Sealed{}
	}
	step, err := strconv.ParseInt(cmd.Keys["step"], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	var everyone []string
	for _, p := range ended.Placement {
		everyone = append(everyone, p.Worker)
	}
	if cmd.Keys["reaches"] != "" {
		everyone = strings.Split(cmd.Keys["reaches"], ",")
	}
	for _, w := range cmd.Args[1:] {
		r := Sealed{Generation: ended.Generation, Incarnation: s.State.Workers[w].Incarnation, Yielded: cmd.Keys["yielded"] != "", At: cmd.At(),
			Ring: ended.Placement, Report: protocol.Report{Worker: w, Step: step, Reaches: everyone}}
		if step > j.Resume.Step {
			r.Decision = fmt.Appendf(nil, "D(%d)", step)
		}
		for i, p := range ended.Placement {
			next := ended.Placement[(i+1)%len(ended.Placement)].Worker
			if p.Worker != w && (next != w || cmd.Keys["mirror"] == "") || cmd.Keys["nothing"] != "" {
				continue
			}
			for _, rank := range p.Ranks {
				r.Held = append(r.Held, shard.Rank(rank))
			}
		}
		if cmd.Keys["summed"] != "" {
			r.Summed = r.Held
		}
		seen.Sealed[id][w] = r
	}
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

func TestDoubtsOfAClockThatWasSetBackCountNoMore(t *testing.T) {
	var c Config
	c.EnsureDefaults()
	now := time.Unix(1_700_000_000, 0)
	for _, x := range []struct {
		ago  time.Duration
		want int
	}{{0, 2}, {-time.Second, 2}, {9 * time.Minute, 2}, {11 * time.Minute, 0}, {-time.Hour, 0}} {
		at := now.Add(-x.ago).UnixMilli()
		j := &fsm.Job{Doubts: []fsm.Doubt{{Worker: "w1", At: at}, {Worker: "w1", At: at}, {Worker: "w2", At: at}}}
		if got := c.Doubts(now, j, "w1"); got != x.want {
			t.Errorf("named %s ago: %d doubts, want %d", x.ago, got, x.want)
		}
		if got := c.Doubts(now, j, "w2"); got != 0 {
			t.Errorf("named once, %s ago: %d doubts", x.ago, got)
		}
	}
}
