// Package fsmtest runs transcripts: text files in which a story is told to a state of
// the log, and what is decided at each point stands below it.
//
//	worker w1 w2 node=n1
//	submit a world=4 workers=2-4
//	----
//	decide at=3s
//	----
//	prepare a 1: w1 imports the model and prepares the data
//
// A block is one or more commands, a line of dashes, and what they print. Commands
// that change the state print nothing. A test runs with -rewrite to write down what
// is printed now; look at the difference before you keep it.
package fsmtest

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
)

var rewrite = flag.Bool("rewrite", false, "write down what transcripts print now")

// Start is the moment zero of every story.
var Start = time.Unix(1_800_000_000, 0)

// Command is one line: a word, plain arguments, and arguments of the form key=value.
type Command struct {
	Word string
	Args []string
	Keys map[string]string
}

// At is the moment that the command's at=3s names; Start without one.
func (c Command) At() time.Time { return Start.Add(c.Duration("at")) }

// Duration reads a key's value.
func (c Command) Duration(key string) time.Duration {
	d, err := time.ParseDuration(c.Keys[key])
	if err != nil && c.Keys[key] != "" {
		panic(err)
	}
	return d
}

// Story is a state with names for its jobs.
type Story struct {
	State *fsm.State
	Jobs  map[string]string // name in the story → id
	now   time.Time
}

// ID is the id of a job that the story calls name.
func (s *Story) ID(name string) string { return s.Jobs[name] }

// Short writes the story's names of jobs in the place of their ids.
func (s *Story) Short(text string) string {
	for name, id := range s.Jobs {
		text = strings.ReplaceAll(text, id, name)
	}
	return text
}

// Run plays all transcripts in testdata. Commands that it does not know itself go to
// do, which returns what they print.
func Run(t *testing.T, do func(t *testing.T, s *Story, c Command) string) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { play(t, file, do) })
	}
}

func play(t *testing.T, file string, do func(t *testing.T, s *Story, c Command) string) {
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := &Story{State: fsm.New(), Jobs: map[string]string{}, now: Start}
	var now strings.Builder
	for block := range strings.SplitSeq(strings.TrimSpace(string(raw)), "\n\n") {
		commands, want, _ := strings.Cut(block, "----")
		var out []string
		for line := range strings.Lines(commands) {
			line = strings.TrimSpace(line)
			if line == "" || line[0] == '#' {
				continue
			}
			if text := s.run(t, parse(line), do); text != "" {
				out = append(out, strings.TrimRight(text, "\n"))
			}
		}
		got := strings.Join(out, "\n")
		fmt.Fprintf(&now, "%s\n----\n%s\n\n", strings.TrimSpace(commands), got)
		if want = strings.TrimSpace(want); got != want && !*rewrite {
			t.Errorf("%s:\n%s\ngot:\n%s\nwant:\n%s", file, strings.TrimSpace(commands), got, want)
		}
	}
	if *rewrite {
		text := strings.ReplaceAll(now.String(), "----\n\n\n", "----\n\n")
		if err := os.WriteFile(file, []byte(strings.TrimRight(text, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func parse(line string) Command {
	words := strings.Fields(line)
	c := Command{Word: words[0], Keys: map[string]string{}}
	for _, w := range words[1:] {
		if key, value, ok := strings.Cut(w, "="); ok {
			c.Keys[key] = strings.ReplaceAll(value, "_", " ")
		} else {
			c.Args = append(c.Args, w)
		}
	}
	return c
}

func (s *Story) run(t *testing.T, c Command, do func(t *testing.T, s *Story, c Command) string) string {
	if at, ok := c.Keys["at"]; ok && at != "" {
		s.now = c.At()
	}
	switch c.Word {
	case "worker": // worker w1 w2 node=n1 zone=z1 class=generic_r1 memory=1000000 incarnation=2
		for _, w := range c.Args {
			s.Apply(t, &fsm.Register{Worker: fsm.Worker{
				Name: w, Incarnation: w + "-" + or(c.Keys["incarnation"], "1"), Node: or(c.Keys["node"], "node-"+w), Zone: c.Keys["zone"],
				Classes: strings.Split(or(c.Keys["class"], "generic r1"), ","), Memory: number(t, or(c.Keys["memory"], "0")),
			}})
		}
	case "submit": // submit a world=4 workers=1-4 class=auto priority=5 mirror=1
		s.submit(t, c)
	case "resolved": // resolved a class=generic_r1 memory=1000000 nonce=x
		j := s.State.Jobs[s.ID(c.Args[0])]
		d := &fsm.Resolve{Job: j.ID, Number: j.Preparation.Number, Resolved: []byte("{}"), Steps: 100, Class: or(c.Keys["class"], "generic r1"), Step0: fsm.Checkpoint{Manifest: "0"}}
		d.Memory = number(t, or(c.Keys["memory"], "0"))
		if c.Keys["nonce"] != "" {
			d.Nonce = fsm.Nonce{Object: c.Keys["nonce"], Value: "42"}
		}
		s.Apply(t, d)
	case "publish": // publish a step=8
		j := s.State.Jobs[s.ID(c.Args[0])]
		s.Apply(t, &fsm.Publish{Job: j.ID, Checkpoint: fsm.Checkpoint{Generation: j.Generation, Step: number(t, c.Keys["step"]), Manifest: "m", Weights: "w"}})
	case "drain":
		for _, w := range c.Args {
			s.Apply(t, &fsm.Drain{Worker: w, Incarnation: s.State.Workers[w].Incarnation})
		}
	case "remove":
		for _, w := range c.Args {
			s.Apply(t, &fsm.Remove{Worker: w, Incarnation: s.State.Workers[w].Incarnation})
		}
	case "diverge": // diverge a owner=w1 mirror=w2
		j := s.State.Jobs[s.ID(c.Args[0])]
		s.Apply(t, &fsm.Diverge{Job: j.ID, Generation: j.Ended().Generation, Owner: c.Keys["owner"], Mirror: c.Keys["mirror"]})
	case "cancel":
		s.Apply(t, &fsm.Cancel{Job: s.ID(c.Args[0])})
	default:
		return s.Short(do(t, s, c))
	}
	return ""
}

func (s *Story) submit(t *testing.T, c Command) {
	lo, hi, _ := strings.Cut(or(c.Keys["workers"], "1-4"), "-")
	name := c.Args[0]
	s.Jobs[name] = s.Apply(t, &fsm.Submit{
		Request: name, Name: "job", Spec: []byte("{}"), WorldSize: int(number(t, or(c.Keys["world"], "4"))),
		WorkersMin: int(number(t, lo)), WorkersMax: int(number(t, hi)), Class: or(c.Keys["class"], "auto"), Store: "/store",
		Priority: int(number(t, or(c.Keys["priority"], "0"))), Mirror: c.Keys["mirror"] != "",
	})
}

// Apply applies a decision that must not be refused, and returns its job.
func (s *Story) Apply(t *testing.T, d fsm.Decision) string {
	t.Helper()
	r := s.State.Apply(s.State.Index+1, fsm.Entry{At: s.now.UnixMilli(), Reason: "told", Decision: d})
	if r.Err != nil {
		t.Fatalf("%s: %v", d.Kind(), r.Err)
	}
	return r.Job
}

// Carry applies what was decided and prints it.
func (s *Story) Carry(t *testing.T, entries []fsm.Entry) string {
	t.Helper()
	var b strings.Builder
	for _, e := range entries {
		about := s.Apply(t, e.Decision)
		if about == "" {
			if r, ok := e.Decision.(*fsm.Remove); ok {
				about = r.Worker
			}
		}
		fmt.Fprintf(&b, "%s %s: %s\n", e.Decision.Kind(), about, e.Reason)
	}
	return b.String()
}

func number(t *testing.T, text string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}
