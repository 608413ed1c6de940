package agent

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// say writes actions as a story does.
func say(actions []Action) string {
	var list []string
	for _, a := range actions {
		switch a := a.(type) {
		case Prepare:
			list = append(list, fmt.Sprintf("prepare %s/%d", a.Order.GetJob(), a.Order.GetNumber()))
		case Host:
			list = append(list, fmt.Sprintf("host %s.%d", a.Order.GetJob(), a.Order.GetGeneration()))
		case Stop:
			list = append(list, "stop "+short(a.Task))
		case Checkpoint:
			list = append(list, "checkpoint "+short(a.Task))
		case Yield:
			list = append(list, "yield "+short(a.Task))
		case Seal:
			list = append(list, "seal "+short(a.Task))
		case Warm:
			list = append(list, "warm "+a.Order.GetJob())
		case Cool:
			list = append(list, "cool")
		case Drop:
			list = append(list, "drop")
		case ReadStore:
			list = append(list, "read "+a.Probe.GetJob())
		case Tell:
			text := fmt.Sprintf("tell %s %s", short(a.Report.Task), a.Report.How)
			if a.Report.Reason != "" {
				text += ": " + a.Report.Reason
			}
			switch s := a.Report.Sealed; {
			case s.GetTold():
				text += fmt.Sprintf(" (told, step %d)", s.GetStep())
			case s != nil:
				text += fmt.Sprintf(" (step %d)", s.GetStep())
			}
			list = append(list, text)
		case TellDrain:
			list = append(list, "tell drain")
		case Exit:
			list = append(list, "exit")
		}
	}
	return strings.Join(list, "; ")
}

func short(t Task) string {
	if t.Generation > 0 {
		return fmt.Sprintf("%s.%d", t.Job, t.Generation)
	}
	return fmt.Sprintf("%s/%d", t.Job, t.Preparation)
}

func host(job string, generation uint64) Ordered {
	return Ordered{&skeinv1.Orders{Assignment: &skeinv1.Assignment{Job: job, Generation: generation}}}
}

func hostAsked(job string, generation, checkpoint uint64) Ordered {
	return Ordered{&skeinv1.Orders{Assignment: &skeinv1.Assignment{Job: job, Generation: generation, CheckpointRequest: checkpoint}}}
}

func hostSealed(job string, generation uint64) Ordered {
	return Ordered{&skeinv1.Orders{Assignment: &skeinv1.Assignment{Job: job, Generation: generation, Seal: true}}}
}

func hostYield(job string, generation, checkpoint uint64) Ordered {
	return Ordered{&skeinv1.Orders{Assignment: &skeinv1.Assignment{Job: job, Generation: generation, YieldRequest: 1, CheckpointRequest: checkpoint}}}
}

func warm(job string) Ordered { return Ordered{&skeinv1.Orders{Warm: &skeinv1.Warm{Job: job}}} }

var kept = &skeinv1.Sealed{Step: 7}

func prepare(job string, number uint64) Ordered {
	return Ordered{&skeinv1.Orders{Preparation: &skeinv1.Preparation{Job: job, Number: number}}}
}

func probes(jobs ...string) Ordered {
	o := &skeinv1.Orders{}
	for _, j := range jobs {
		o.Probes = append(o.Probes, &skeinv1.StoreProbe{Job: j, NonceObject: "n"})
	}
	return Ordered{o}
}

var (
	nothing  = Ordered{&skeinv1.Orders{}}
	released = Ordered{&skeinv1.Orders{Draining: true, Released: true}}
	draining = Ordered{&skeinv1.Orders{Draining: true}}
	prep1    = Task{Job: "a", Preparation: 1}
	gen1     = Task{Job: "a", Generation: 1}
	gen2     = Task{Job: "a", Generation: 2}
)

func TestAWorkerSaysOfWhichJobItKeepsSomething(t *testing.T) {
	var s State
	for _, c := range []struct {
		event Event
		keeps string
	}{
		{Opened{}, ""}, {host("a", 1), "a"}, {Ended{Task: gen1, How: Broken, Sealed: kept}, "a"}, {Lost{}, "a"}, {Opened{}, "a"}, {hostSealed("a", 1), "a"},
		{host("b", 1), "b"}, {Ended{Task: Task{Job: "b", Generation: 1}, How: Broken}, "b"}, {nothing, ""}, {warm("c"), "c"}, {Warmed{Job: "c"}, "c"}, {prepare("d", 1), ""},
	} {
		s.Step(c.event)
		if got := s.Keeps(); got != c.keeps {
			t.Fatalf("after %#v it keeps something of %q, want %q", c.event, got, c.keeps)
		}
	}
}

func TestStories(t *testing.T) {
	result := &skeinv1.PreparedRequest{Job: "a"}
	type beat struct {
		event Event
		want  string
	}
	for name, story := range map[string][]beat{
		"a job is prepared, hosted and done": {
			{Opened{}, ""}, {prepare("a", 1), "prepare a/1"}, {prepare("a", 1), ""},
			{Ended{Task: prep1, How: Done, Prepared: result}, "tell a/1 done"}, {prepare("a", 1), ""},
			{Answered{Report: Report{Task: prep1, How: Done, Prepared: result}}, ""}, {nothing, ""},
			{host("a", 1), "host a.1"}, {host("a", 1), ""}, {Ended{Task: gen1, How: Done}, ""}, {host("a", 1), ""}, {nothing, "drop"},
		},
		"the next task waits for the end of the one before": {
			{Opened{}, ""}, {host("a", 1), "host a.1"}, {host("a", 2), "stop a.1"}, {host("a", 2), ""}, {host("a", 3), ""},
			{Ended{Task: gen1, How: Canceled}, "host a.3"},
		},
		"losing the leader stops nothing": {
			{Opened{}, ""}, {host("a", 1), "host a.1"}, {Lost{}, ""}, {Opened{}, ""}, {host("a", 1), ""}, {Lost{}, ""},
			{Ended{Task: gen1, How: Broken, Accused: "w2", Reason: "reset"}, "tell a.1 broken: reset"},
		},
		"being given up stops the task, and no session starts it again": {
			{Opened{}, ""}, {host("a", 1), "host a.1"}, {Lost{Fenced: true}, "stop a.1"}, {Opened{}, ""},
			{host("a", 1), ""}, {Ended{Task: gen1, How: Canceled}, "tell a.1 broken: it was stopped here, and a generation is not entered twice"},
			{host("a", 1), ""}, {host("a", 2), "host a.2"},
		},
		"a new leader hears again what was given up, once": {
			{Opened{}, ""}, {host("a", 1), "host a.1"}, {Ended{Task: gen1, How: Broken, Reason: "x"}, "tell a.1 broken: x"},
			{host("a", 1), ""}, {Lost{}, ""}, {Opened{}, ""}, {host("a", 1), "tell a.1 broken: x"}, {host("a", 1), ""},
		},
		"a new leader hears again what was prepared": {
			{Opened{}, ""}, {prepare("a", 1), "prepare a/1"}, {Ended{Task: prep1, How: Done, Prepared: result}, "tell a/1 done"},
			{Lost{}, ""}, {Opened{}, ""}, {prepare("a", 1), "tell a/1 done"},
		},
		"restored coordinators may order what looks older": {
			{Opened{}, ""}, {host("a", 1), "host a.1"}, {Lost{}, ""}, {Ended{Task: gen1, How: Broken, Reason: "x"}, "tell a.1 broken: x"},
			{Opened{Epoch: 7}, ""}, {prepare("a", 1), "drop; prepare a/1"},
		},
		"what was begun before a restore is stopped": {
			{Opened{Epoch: 7}, ""}, {host("a", 1), "host a.1"}, {Lost{}, ""}, {Opened{Epoch: 8}, "stop a.1"}, {prepare("a", 2), ""},
			{Ended{Task: gen1, How: Canceled}, "drop; prepare a/2"},
		},
		"a failure is told": {
			{Opened{}, ""}, {prepare("a", 1), "prepare a/1"}, {Ended{Task: prep1, How: Failed, Reason: "no such model"}, "tell a/1 failed: no such model"},
		},
		"orders of a leader that was replaced start nothing old": {
			{Opened{}, ""}, {host("a", 2), "host a.2"}, {Lost{}, ""}, {Opened{}, ""}, {host("a", 1), ""}, {prepare("a", 9), ""}, {host("a", 2), ""},
			{Ended{Task: gen2, How: Broken, Reason: "x"}, "tell a.2 broken: x"}, {host("a", 1), ""}, {prepare("a", 9), ""},
		},
		"what is not in the orders is stopped": {
			{Opened{}, ""}, {host("a", 1), "host a.1"}, {nothing, "stop a.1"}, {Ended{Task: gen1, How: Broken, Reason: "x"}, "drop"},
			{host("b", 1), "host b.1"}, {prepare("c", 1), "stop b.1"},
		},
		"what is kept of a fenced task is told at once": {
			{Opened{}, ""}, {host("a", 1), "host a.1"}, {Ended{Task: gen1, How: Fenced, Sealed: kept}, "tell a.1 broken: a leader said that it is over (told, step 7)"},
			{host("a", 1), ""}, {host("a", 2), "host a.2"},
		},
		"a fenced task is not reported, unless the next leader orders it": {
			{Opened{}, ""}, {host("a", 1), "host a.1"}, {Ended{Task: gen1, How: Fenced}, ""}, {host("a", 1), ""},
			{Lost{}, ""}, {Opened{}, ""}, {host("a", 1), "tell a.1 broken: a leader said that it is over"},
		},
		"who stops without an order says so": {
			{Opened{}, ""}, {host("a", 1), "host a.1"}, {Ended{Task: gen1, How: Canceled}, "tell a.1 broken: it stopped without an order"},
		},
		"a refused preparation is left to others": {
			{Opened{}, ""}, {prepare("a", 1), "prepare a/1"}, {Ended{Task: prep1, How: Done, Prepared: result}, "tell a/1 done"},
			{Answered{Report: Report{Task: prep1, How: Done, Prepared: result}, Refused: "other settings"}, "tell a/1 broken: the coordinator refused the result: other settings"},
			{Answered{Report: Report{Task: prep1, How: Broken}, Refused: "no"}, ""}, {prepare("a", 2), "prepare a/2"},
		},
		"a fenced report is forgotten": {
			{Opened{}, ""}, {prepare("a", 1), "prepare a/1"}, {Ended{Task: prep1, How: Done, Prepared: result}, "tell a/1 done"},
			{Answered{Report: Report{Task: prep1, How: Done, Prepared: result}, Fenced: true, Refused: "over"}, ""},
		},
		"each request for a checkpoint is passed on once": {
			{Opened{}, ""}, {hostAsked("a", 1, 7), "host a.1; checkpoint a.1"}, {hostAsked("a", 1, 7), ""}, {hostAsked("a", 1, 9), "checkpoint a.1"},
			{hostAsked("a", 1, 8), ""}, {nothing, "stop a.1"}, {hostAsked("a", 1, 12), ""},
			{Ended{Task: gen1, How: Canceled}, "tell a.1 broken: it was stopped here, and a generation is not entered twice"},
			{hostAsked("a", 2, 3), "host a.2; checkpoint a.2"},
		},
		"probes are read once while they stand, and again in a new session": {
			{Opened{}, ""}, {probes("a", "b"), "read a; read b"}, {probes("a", "b"), ""}, {probes("b"), ""}, {probes("a"), "read a"},
			{Lost{}, ""}, {Opened{}, ""}, {probes("a"), "read a"},
		},
		"a worker drains: it goes on until it is released": {
			{Opened{}, ""}, {host("a", 1), "host a.1"}, {Drain{}, "tell drain"}, {host("a", 1), ""}, {draining, "stop a.1"},
			{released, ""}, {Ended{Task: gen1, How: Canceled}, "exit"}, {host("b", 1), ""},
		},
		"a new leader hears that a worker wants to leave": {
			{Opened{}, ""}, {host("a", 1), "host a.1"}, {Drain{}, "tell drain"}, {Lost{}, ""}, {Opened{}, "tell drain"}, {Lost{}, ""},
			{Ended{Task: gen1, How: Done}, "exit"},
		},
		"a worker that nobody has welcomed leaves at once": {{Drain{}, "exit"}},
		"a worker that is released though it did not ask leaves": {
			{Opened{}, ""}, {host("a", 1), "host a.1"}, {released, "stop a.1"}, {Ended{Task: gen1, How: Canceled}, "exit"},
		},
		"an idle worker that drains waits to be released": {{Opened{}, ""}, {nothing, ""}, {Drain{}, "tell drain"}, {draining, ""}, {released, "exit"}},
		"one that may not wait any longer stops its task first": {
			{Opened{}, ""}, {host("a", 1), "host a.1"}, {Drain{}, "tell drain"}, {Quit{}, "stop a.1"}, {host("a", 2), ""}, {Ended{Task: gen1, How: Canceled}, "exit"},
		},
		"a generation is sealed once, and a new leader hears again what is kept": {
			{Opened{}, ""}, {host("a", 1), "host a.1"}, {hostSealed("a", 1), "seal a.1"}, {hostSealed("a", 1), ""},
			{Ended{Task: gen1, How: Broken, Reason: "told", Sealed: kept}, "tell a.1 broken: told (told, step 7)"}, {hostSealed("a", 1), ""},
			{Lost{}, ""}, {Opened{}, ""}, {hostSealed("a", 1), "tell a.1 broken: told (told, step 7)"}, {host("a", 2), "host a.2"},
		},
		"a link that breaks by itself is not told to": {
			{Opened{}, ""}, {host("a", 1), "host a.1"}, {Ended{Task: gen1, How: Broken, Reason: "reset", Sealed: kept}, "tell a.1 broken: reset (step 7)"},
			{hostSealed("a", 1), ""}, {host("a", 2), "host a.2"},
		},
		"who never entered a generation says what it keeps, and does not enter it later": {
			{Opened{}, ""}, {host("a", 1), "host a.1"}, {Ended{Task: gen1, How: Broken, Reason: "x", Sealed: kept}, "tell a.1 broken: x (step 7)"},
			{hostSealed("a", 2), "host a.2"}, {Ended{Task: gen2, How: Broken, Reason: "told", Sealed: kept}, "tell a.2 broken: told (told, step 7)"}, {host("a", 2), ""},
		},
		"who keeps nothing says so at once": {
			{Opened{}, ""}, {hostSealed("a", 1), "tell a.1 broken: it keeps nothing of it (told, step 0)"}, {hostSealed("a", 1), ""}, {host("a", 1), ""},
		},
		"what is kept is dropped when the orders name the job no more": {
			{Opened{}, ""}, {host("a", 1), "host a.1"}, {Ended{Task: gen1, How: Broken, Reason: "x", Sealed: kept}, "tell a.1 broken: x (step 7)"},
			{Lost{}, ""}, {Opened{}, ""}, {nothing, "drop"}, {hostSealed("a", 1), "tell a.1 broken: x (step 7)"},
		},
		"and before another job begins": {
			{Opened{}, ""}, {host("a", 1), "host a.1"}, {host("b", 1), "stop a.1"}, {Ended{Task: gen1, How: Broken, Reason: "x", Sealed: kept}, "drop; host b.1"},
		},
		"a checkpoint is asked for before a yield, each once": {
			{Opened{}, ""}, {hostYield("a", 1, 5), "host a.1; checkpoint a.1; yield a.1"}, {hostYield("a", 1, 5), ""}, {host("a", 1), ""},
			{Ended{Task: gen1, How: Broken, Reason: "x"}, "tell a.1 broken: x"}, {hostYield("a", 2, 5), "host a.2; checkpoint a.2; yield a.2"},
		},
		"a worker without work makes ready, and then enters": {
			{Opened{}, ""}, {warm("a"), "warm a"}, {warm("a"), ""}, {Warmed{Job: "a"}, ""}, {warm("a"), ""}, {host("a", 3), "host a.3"},
		},
		"a task waits until making ready has stopped": {
			{Opened{}, ""}, {warm("a"), "warm a"}, {host("b", 1), "cool"}, {host("b", 1), ""}, {Warmed{Job: "a", Err: "canceled"}, "drop; host b.1"},
		},
		"what could not be made ready is tried again in the next session": {
			{Opened{}, ""}, {warm("a"), "warm a"}, {Warmed{Job: "a", Err: "no disk"}, ""}, {warm("a"), ""}, {Lost{}, ""}, {Opened{}, ""}, {warm("a"), "warm a"},
			{nothing, "cool"}, {Warmed{Job: "a"}, "drop"}, {warm("b"), "warm b"}, {Quit{}, "cool"}, {Warmed{Job: "b"}, "exit"},
		},
		"a task without any coordinator stops in the end": {
			{Opened{}, ""}, {host("a", 1), "host a.1"}, {Lost{}, ""}, {Orphaned{}, "stop a.1"}, {Ended{Task: gen1, How: Canceled}, ""},
			{Opened{}, ""}, {host("a", 1), "tell a.1 broken: it was stopped here, and a generation is not entered twice"},
		},
		"an assignment comes before a preparation": {
			{Opened{}, ""}, {Ordered{&skeinv1.Orders{Assignment: host("a", 1).Orders.Assignment, Preparation: prepare("b", 1).Orders.Preparation}}, "host a.1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var s State
			for i, b := range story {
				if got := say(s.Step(b.event)); got != b.want {
					t.Fatalf("event %d, %T %+v: %q, want %q", i+1, b.event, b.event, got, b.want)
				}
			}
		})
	}
}

// world is what a State has done, and what its rules say of it.
type world struct {
	state                     State
	running                   Task
	stopped                   bool
	youngest                  map[string]Task
	open, leaving, quit, over bool
	warming, cooled           bool
	kept                      string
	orders                    *skeinv1.Orders
	epoch                     uint64
}

func (w *world) step(t *rapid.T, e Event) {
	switch e := e.(type) {
	case Opened:
		w.open = true
		if e.Epoch != w.epoch {
			w.orders, w.epoch = nil, e.Epoch
			clear(w.youngest)
		}
	case Lost:
		w.open = false
		if e.Fenced {
			w.orders = nil
		}
	case Ordered:
		w.orders = e.Orders
	case Drain:
		w.leaving = true
	case Warmed:
		w.warming, w.cooled = false, false
	case Quit:
		w.quit = true
	case Orphaned:
		w.orders = nil
	case Ended:
		w.running, w.stopped = Task{}, false
	}
	for _, a := range w.state.Step(e) {
		if w.over {
			t.Fatalf("%T after exit", a)
		}
		switch a := a.(type) {
		case Prepare:
			w.begin(t, Task{Job: a.Order.GetJob(), Preparation: a.Order.GetNumber()})
		case Host:
			w.begin(t, Task{Job: a.Order.GetJob(), Generation: a.Order.GetGeneration()})
		case Stop:
			if a.Task != w.running || w.stopped {
				t.Fatalf("stops %v while %v runs (stopped: %v)", a.Task, w.running, w.stopped)
			}
			w.stopped = true
		case Checkpoint:
			if a.Task != w.running || w.stopped {
				t.Fatalf("a checkpoint of %v while %v runs", a.Task, w.running)
			}
		case Yield:
			if a.Task != w.running || w.stopped {
				t.Fatalf("a yield of %v while %v runs", a.Task, w.running)
			}
		case Seal:
			if a.Task != w.running || w.stopped {
				t.Fatalf("%v is sealed while %v runs", a.Task, w.running)
			}
		case Warm:
			if w.running != (Task{}) || w.warming || w.kept != "" && w.kept != a.Order.GetJob() {
				t.Fatalf("makes ready for %s while %v runs, warming %v, kept %q", a.Order.GetJob(), w.running, w.warming, w.kept)
			}
			w.warming, w.kept = true, a.Order.GetJob()
		case Cool:
			if !w.warming || w.cooled {
				t.Fatal("cools what is not warming")
			}
			w.cooled = true
		case Drop:
			if w.running != (Task{}) || w.warming || w.kept == "" || w.orders.GetAssignment().GetJob() == w.kept {
				t.Fatalf("drops %q while %v runs, by orders %v", w.kept, w.running, w.orders)
			}
			w.kept = ""
		case Tell:
			if a.Report.Sealed.GetTold() && w.youngest[a.Report.Task.Job].before(a.Report.Task) {
				w.youngest[a.Report.Task.Job] = a.Report.Task // a promise not to enter it
			}
			if a.Report.Task == w.running {
				t.Fatalf("reports the end of %v, which runs", a.Report.Task)
			}
			if a.Report.How == Canceled || a.Report.How == Fenced {
				t.Fatalf("reports %v", a.Report)
			}
		case TellDrain:
			if !w.leaving || !w.open {
				t.Fatal("tells to drain, unasked or nobody")
			}
		case Exit:
			if w.running != (Task{}) || !(w.quit || w.leaving && !w.open || w.orders.GetReleased()) {
				t.Fatalf("leaves while %v runs; leaving %v, open %v", w.running, w.leaving, w.open)
			}
			w.over = true
		}
	}
	if w.state.Running() != w.running || w.state.Open() != w.open && !w.over {
		t.Fatalf("it says that %v runs, and %v does", w.state.Running(), w.running)
	}
	// Nothing that orders forbid goes on, and a fresh order is not forgotten.
	if o := w.orders; !w.over && w.running != (Task{}) && !w.stopped && (w.quit || o.GetReleased() || o.GetAssignment() == nil && o.GetPreparation() == nil) {
		t.Fatalf("%v goes on without an order", w.running)
	}
	if a := w.orders.GetAssignment(); !w.over && !w.warming && !w.quit && !w.orders.GetReleased() && a != nil && !a.GetSeal() && w.running == (Task{}) &&
		w.youngest[a.GetJob()].before(Task{Job: a.GetJob(), Generation: a.GetGeneration()}) {
		t.Fatalf("generation %d of %s is ordered and does not run", a.GetGeneration(), a.GetJob())
	}
}

func (w *world) begin(t *rapid.T, next Task) {
	if w.running != (Task{}) || w.warming {
		t.Fatalf("%v starts while %v runs, or making ready: %v", next, w.running, w.warming)
	}
	if w.kept != "" && w.kept != next.Job {
		t.Fatalf("%v starts with what is kept of %s", next, w.kept)
	}
	if next.Generation > 0 {
		w.kept = next.Job
	}
	if last, ok := w.youngest[next.Job]; ok && !last.before(next) {
		t.Fatalf("%v starts after %v", next, last)
	}
	w.running, w.youngest[next.Job] = next, next
}

func TestWhateverHappensOneTaskRunsAndNoneStartsTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{youngest: map[string]Task{}}
		job := rapid.SampledFrom([]string{"a", "b"})
		number := rapid.Uint64Range(1, 4)
		order := rapid.Custom(func(t *rapid.T) Ordered {
			o := &skeinv1.Orders{Draining: rapid.Bool().Draw(t, "draining"), Released: rapid.IntRange(0, 20).Draw(t, "released") == 0}
			switch rapid.IntRange(0, 3).Draw(t, "kind") {
			case 0:
			case 1:
				o.Preparation = &skeinv1.Preparation{Job: job.Draw(t, "job"), Number: number.Draw(t, "number")}
			default:
				o.Assignment = &skeinv1.Assignment{Job: job.Draw(t, "job"), Generation: number.Draw(t, "generation"), CheckpointRequest: number.Draw(t, "request"),
					YieldRequest: uint64(rapid.IntRange(0, 1).Draw(t, "yield")), Seal: rapid.IntRange(0, 3).Draw(t, "seal") == 3}
			}
			if rapid.IntRange(0, 2).Draw(t, "warm") == 2 {
				o.Warm = &skeinv1.Warm{Job: job.Draw(t, "warm job")}
			}
			return Ordered{o}
		})
		for range rapid.IntRange(1, 60).Draw(t, "events") {
			if w.over {
				return
			}
			var e Event
			switch n := rapid.IntRange(0, 19).Draw(t, "event"); {
			case !w.open && n < 10:
				epoch := w.epoch
				if rapid.IntRange(0, 4).Draw(t, "restored") == 0 {
					epoch++
				}
				e = Opened{epoch}
			case w.open && n < 8:
				e = order.Draw(t, "orders")
			case w.open && n < 10:
				e = Lost{Fenced: n == 8}
			case n == 10:
				e = Drain{}
			case n == 11 && !w.open:
				e = Orphaned{}
			case n == 12 && rapid.IntRange(0, 4).Draw(t, "quit") == 0:
				e = Quit{}
			case n == 13:
				task := Task{Job: job.Draw(t, "job"), Preparation: number.Draw(t, "number")}
				e = Answered{Report: Report{Task: task, How: Done}, Refused: "no", Fenced: rapid.Bool().Draw(t, "fenced")}
			case w.warming && n > 14:
				e = Warmed{Job: w.kept, Err: rapid.SampledFrom([]string{"", "no disk"}).Draw(t, "unready")}
			case w.running != (Task{}):
				how := rapid.SampledFrom([]How{Done, Broken, Failed, Fenced, Canceled}).Draw(t, "how")
				e = Ended{Task: w.running, How: how}
			default:
				continue
			}
			w.step(t, e)
		}
	})
}
