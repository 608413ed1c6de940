package linear

import (
	"context"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"google.golang.org/grpc"

	"github.com/skein-ml/skein/coordinator/raftlog"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// cluster are three coordinators, each a process, on a wire.
type cluster struct {
	*testing.T
	dir     string
	seed    uint64
	pace    time.Duration // the longest that a client rests between two calls
	wire    *wire
	members []raftlog.Server
	nodes   map[string]*node
	done    sync.WaitGroup // of workers

	mu     sync.Mutex
	groups []*group
}

func newCluster(t *testing.T, seed uint64) *cluster {
	c := &cluster{T: t, dir: t.TempDir(), seed: seed, pace: 20 * time.Millisecond, nodes: map[string]*node{}}
	t.Cleanup(func() {
		for id := range c.nodes {
			c.kill(id)
		}
	})
	c.wire = newWire(t)
	for _, id := range []string{"c1", "c2", "c3"} {
		c.members = append(c.members, raftlog.Server{ID: id, Address: c.wire.open(id)})
	}
	for _, m := range c.members {
		c.spawn(m.ID)
	}
	return c
}

// group begins a history.
func (c *cluster) group() *group {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := &group{number: len(c.groups), history: newHistory()}
	c.groups = append(c.groups, g)
	return g
}

// find is the history of a job.
func (c *cluster) find(id string) (*group, int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, g := range c.groups {
		for n := range jobsEach {
			if g.id(n) == id {
				return g, n
			}
		}
	}
	return nil, 0
}

// leader is who leads, by the word of a coordinator that leads. Where several say so, the
// highest term is right.
func (c *cluster) leader(asker *client) string {
	c.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		best, term := "", uint64(0)
		for _, m := range c.members {
			ctx, cancel := context.WithTimeout(c.Context(), askWait)
			s, err := skeinv1.NewClusterClient(asker.conn(m.Address)).Status(outgoing(ctx), &skeinv1.StatusRequest{})
			cancel()
			if err == nil && s.GetState() == "leader" && s.GetTerm() >= term {
				best, term = m.ID, s.GetTerm()
			}
		}
		if best != "" {
			return best
		}
		asker.pause(c.Context(), 50*time.Millisecond)
	}
	c.Fatal("nobody leads")
	return ""
}

// until waits for a condition.
func (c *cluster) until(what string, ok func() bool) {
	c.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.Fatalf("never happened: %s", what)
		}
	}
}

// others are all coordinators but one.
func (c *cluster) others(id string) (list []string) {
	for _, m := range c.members {
		if m.ID != id {
			list = append(list, m.ID)
		}
	}
	return list
}

// trouble strikes a coordinator, the leader unless it says otherwise, and returns how that
// is undone.
var trouble = []struct {
	name   string
	strike func(c *cluster, leader string) (undo func())
}{
	{"the leader is killed", func(c *cluster, leader string) func() {
		c.kill(leader)
		return func() { c.spawn(leader) }
	}},
	{"the leader and the others do not hear each other", func(c *cluster, leader string) func() {
		for _, id := range c.others(leader) {
			c.wire.hold(id, leader)
			c.wire.hold(leader, id)
		}
		return c.wire.flow
	}},
	{"the leader does not hear the others", func(c *cluster, leader string) func() {
		for _, id := range c.others(leader) {
			c.wire.hold(id, leader)
		}
		return c.wire.flow
	}},
	{"the leader is stopped", func(c *cluster, leader string) func() {
		c.signal(leader, syscall.SIGSTOP)
		return func() { c.signal(leader, syscall.SIGCONT) }
	}},
	{"all are killed", func(c *cluster, _ string) func() {
		for _, m := range c.members {
			c.kill(m.ID)
		}
		return func() {
			for _, m := range c.members {
				c.spawn(m.ID)
			}
		}
	}},
	{"nobody hears the leader", func(c *cluster, leader string) func() {
		for _, id := range c.others(leader) {
			c.wire.hold(leader, id)
		}
		return c.wire.flow
	}},
	{"nobody hears anybody", func(c *cluster, _ string) func() {
		for _, m := range c.members {
			for _, id := range c.others(m.ID) {
				c.wire.hold(m.ID, id)
			}
		}
		return c.wire.flow
	}},
	{"every connection breaks", func(c *cluster, _ string) func() {
		c.wire.cutAll()
		return func() {}
	}},
	{"a follower is killed", func(c *cluster, leader string) func() {
		follower := c.others(leader)[0]
		c.kill(follower)
		return func() { c.spawn(follower) }
	}},
	{"a follower does not hear the others", func(c *cluster, leader string) func() {
		follower := c.others(leader)[1]
		for _, id := range c.others(follower) {
			c.wire.hold(id, follower)
		}
		return c.wire.flow
	}},
}

// short is what strikes in the short form, by its place in trouble.
const short = 5

func (c *cluster) signal(id string, what os.Signal) {
	if err := c.nodes[id].cmd.Process.Signal(what); err != nil {
		c.Fatal(err)
	}
}

// TestHistoriesUnderKillsAndPartitionsAreLinearizable lets clients submit, scale, cancel
// and read jobs, and workers complete them, while coordinators are killed, stopped and cut
// off from each other; the clients always reach all of them, also one that believes to
// lead. What everybody was told must be explained by one order of all calls, each between
// its beginning and its answer. A call without an answer may have happened at any time
// since, or never. SKEIN_LINEAR=n strikes so often (make linear N=n), SKEIN_LINEAR_SEED
// makes the same calls and faults.
func TestHistoriesUnderKillsAndPartitionsAreLinearizable(t *testing.T) {
	const clients, calls = 3, 20
	n, seed := number(t, "SKEIN_LINEAR", short), uint64(number(t, "SKEIN_LINEAR_SEED", 1))
	c := newCluster(t, seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	ctx, cancel := context.WithCancel(t.Context())
	defer c.done.Wait()
	defer cancel()
	for i := range 2 {
		c.worker(ctx, clients+i+1)
	}
	watcher := c.client(0)
	var all []*client
	for i := range clients {
		all = append(all, c.client(i+1))
	}
	answered, lost := 0, 0
	for round := range n {
		f := trouble[round%len(trouble)]
		if n > short {
			f = trouble[rng.IntN(len(trouble))]
		}
		leader := c.leader(watcher)
		g := c.group()
		var asking sync.WaitGroup
		for _, cl := range all {
			asking.Go(func() { cl.work(ctx, g, calls) })
		}
		asked := func(part int) func() bool {
			return func() bool { return g.asked.Load() >= int64(clients*calls*part/4) }
		}
		c.until("a quarter of the calls", asked(1))
		undo := f.strike(c, leader)
		struck := time.Now() // nothing more may be asked before it is undone, if there is no majority
		c.until("half of the calls, or a while", func() bool { return asked(3)() || time.Since(struck) > 1500*time.Millisecond })
		undo()
		asking.Wait()
		if got := g.history.check(); got != porcupine.Ok {
			t.Fatalf("round %d, %s (%s leads), seed %d: %s: no order of these calls explains their answers\n%s", round, f.name, leader, seed, got, g.history)
		}
		a, l := g.history.count()
		answered, lost = answered+a, lost+l
		t.Logf("%-50s %3d calls answered, %d not: %s", f.name, a, l, g.history.ends())
		c.clear(ctx, watcher, g)
	}
	if answered < n*clients*calls/3 {
		t.Errorf("of %d calls only %d were answered", n*clients*calls, answered)
	}
	t.Logf("linear ok: faults=%d answered=%d unanswered=%d seed=%d", n, answered, lost, seed)
}

// clear cancels what is left of a group, so that the next one finds free workers.
func (c *cluster) clear(ctx context.Context, by *client, g *group) {
	for n := range jobsEach {
		for outcome := unknown; outcome == unknown && ctx.Err() == nil; {
			outcome = by.outcome(by.once(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
				_, err := skeinv1.NewJobsClient(conn).Cancel(ctx, &skeinv1.CancelRequest{Job: g.id(n)})
				return err
			}))
		}
	}
}

func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s is %q, want a number", name, text)
	}
	return n
}

// TestAStaleReadIsFound makes a read that is not linearizable: what a watch has shown last,
// at a leader that is cut off from the others. The checker finds it.
func TestAStaleReadIsFound(t *testing.T) {
	c := newCluster(t, 1)
	alice, bob := c.client(1), c.client(2)
	g := c.group()
	ctx, cancelAll := context.WithTimeout(t.Context(), patience)
	defer cancelAll()
	first := c.leader(alice)
	alice.do(ctx, g, call{submit, 0, 4})
	i := slices.IndexFunc(c.members, func(m raftlog.Server) bool { return m.ID == first })
	watch, err := skeinv1.NewJobsClient(alice.conn(c.members[i].Address)).Watch(outgoing(ctx), &skeinv1.WatchRequest{Job: g.id(0)})
	if err != nil {
		t.Fatal(err)
	}
	var shown *skeinv1.Job
	for shown == nil {
		m, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		shown = m.GetJob()
	}
	for _, id := range c.others(first) {
		c.wire.hold(first, id)
		c.wire.hold(id, first)
	}
	bob.do(ctx, g, call{kind: get}) // under another leader, or not answered
	for canceled := false; !canceled; canceled = slices.ContainsFunc(g.history.ops, func(op porcupine.Operation) bool {
		return op.Input.(call).kind == cancel && op.Output.(answer).outcome == held
	}) {
		if ctx.Err() != nil {
			t.Fatal("nobody cancels the job")
		}
		bob.do(ctx, g, call{kind: cancel})
	}
	if got := g.history.check(); got != porcupine.Ok {
		t.Fatalf("before the stale read: %s\n%s", got, g.history)
	}
	g.history.ask(1, call{kind: get})(answer{held, table{rowOf(shown)}})
	if got := g.history.check(); got != porcupine.Illegal {
		t.Errorf("a read of %v after the job was canceled: %s\n%s", rowOf(shown), got, g.history)
	}
	c.wire.flow()
}
