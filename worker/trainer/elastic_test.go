package trainer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/opaque"
	"github.com/skein-ml/skein/model/modeltest"
	"github.com/skein-ml/skein/protocol"
	"github.com/skein-ml/skein/shard"
)

// troupe is the workers of a job that come and go. Its coordinator is the test.
type troupe struct {
	t          *testing.T
	g          golden
	c          Config
	actors     map[string]*actor
	ring       []string // of the generation, by worker
	placement  shard.Placement
	generation uint64
	decided    func(allreduce.Decision) // nil, or called where a decision has been made and nobody been told
}

// actor is one worker process.
type actor struct {
	name  string
	tr    *Trainer
	ring  *allreduce.Listener
	conns *tracked
	link  *allreduce.Link
	fresh bool // it has no state yet
}

// tracked is a listener whose connections can be cut, as by the death of a process.
type tracked struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func (l *tracked) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.mu.Lock()
		l.conns = append(l.conns, c)
		l.mu.Unlock()
	}
	return c, err
}

func (l *tracked) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
	l.conns = nil
}

func newTroupe(t *testing.T, g golden, c Config) *troupe {
	return &troupe{t: t, g: g, c: c, actors: map[string]*actor{}}
}

// hire starts a worker process without state.
func (p *troupe) hire(name string, dev device.Device) {
	p.t.Helper()
	tr, err := New(dev, p.c, p.g)
	if err != nil {
		p.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	conns := &tracked{Listener: l}
	a := &actor{name: name, tr: tr, ring: allreduce.Listen(conns, allreduce.ListenerConfig{}), conns: conns, fresh: true}
	p.t.Cleanup(func() {
		if a.link != nil {
			_ = a.link.Close()
		}
		a.ring.Close()
		tr.Close()
	})
	p.actors[name] = a
}

// begin starts a generation with blocks of ranks on workers, from a plan, or from the base
// model if there is none.
func (p *troupe) begin(ring []string, blocks []int, plan *protocol.Plan) error {
	placement, err := shard.NewPlacement(blocks)
	if err != nil {
		return err
	}
	p.generation++
	p.ring, p.placement = ring, placement
	var all sync.WaitGroup
	errs := make([]error, len(ring))
	for w, name := range ring {
		all.Go(func() {
			if err := p.enter(w, p.actors[name], plan); err != nil {
				errs[w] = fmt.Errorf("%s enters generation %d: %w", name, p.generation, err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func (p *troupe) enter(w int, a *actor, plan *protocol.Plan) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if plan != nil {
		err := a.tr.Enter(plan.Target, plan.Decision)
		if a.fresh || err != nil && !slices.Contains(plan.Sources, a.name) {
			err = a.tr.Forget(plan.Target, 0, plan.Decision)
		}
		if err != nil {
			return err
		}
	}
	a.fresh = false
	if err := a.tr.Place(p.placement, w, true); err != nil {
		return err
	}
	if !a.tr.Alone() {
		mem, err := a.tr.LinkMemory()
		if err != nil {
			return err
		}
		a.link, err = allreduce.Connect(ctx, a.ring, allreduce.LinkConfig{
			Key:   allreduce.Key{Job: "job", Generation: p.generation, SpecHash: "spec", Class: "class"},
			Table: a.tr.Table(), Placement: p.placement, Worker: w, Names: p.ring, Next: p.actors[p.ring[(w+1)%len(p.ring)]].ring.Addr(),
			Wire: p.c.Wire, Arithmetic: a.tr.Arithmetic(), Memory: mem, ChunkBytes: 4096,
			Mirror: a.tr.cfg.Mirror, GatherFirst: a.tr.replicated(), OnDemand: a.tr.OnDemand(), Silence: 20 * time.Second,
			Decide: func(votes []allreduce.Vote) (allreduce.Decision, error) {
				d, err := a.tr.Decide(votes)
				if p.decided != nil {
					p.decided(d)
				}
				return d, err
			},
		})
		if err != nil {
			return err
		}
		a.tr.Join(a.link)
	}
	if plan == nil {
		return a.tr.Import(modeltest.Weights{Model: p.g.Config})
	}
	if a.tr.Alone() {
		return a.tr.Spread()
	}
	own, err := json.Marshal(a.tr.Ready())
	if err != nil {
		return err
	}
	blobs, err := a.link.Exchange(ctx, "what is here", own)
	if err != nil {
		return err
	}
	has, source := make([][]shard.Rank, len(blobs)), make([]int, p.c.WorldSize)
	for i, b := range blobs {
		if err := json.Unmarshal(b, &has[i]); err != nil {
			return err
		}
	}
	for r, name := range plan.Sources {
		source[r] = slices.Index(p.ring, name)
	}
	hosts, mirrors := a.tr.Moves(has, source)
	if err := a.tr.Transfer(ctx, hosts); err != nil {
		return err
	}
	if err := a.tr.Spread(); err != nil {
		return err
	}
	return a.tr.Fill(mirrors)
}

// play has every worker take steps up to a step. While they do, disturb is called with a
// channel that is closed once all have taken one; workers that it kills are no part of the
// play any more.
func (p *troupe) play(until int64, disturb func(stepped <-chan struct{})) error {
	var all, first sync.WaitGroup
	errs := make([]error, len(p.ring))
	stepped := make(chan struct{})
	first.Add(len(p.ring))
	go func() { first.Wait(); close(stepped) }()
	for i, name := range p.ring {
		a := p.actors[name]
		all.Go(func() {
			once := sync.OnceFunc(first.Done)
			defer once()
			for a.tr.StepsDone() < until {
				res, err := a.tr.Step(context.Background())
				once()
				if err != nil {
					if a.link != nil {
						_ = a.link.Close() // its neighbours are to hear of it too
					}
					errs[i] = err
				}
				if err != nil || res.Decision.Requests&allreduce.RequestYield != 0 {
					return
				}
			}
		})
	}
	disturb(stepped)
	all.Wait()
	return errors.Join(errs...)
}

// kill cuts a worker's connections, both ways, and forgets it.
func (p *troupe) kill(name string) {
	w := slices.Index(p.ring, name)
	p.actors[name].conns.cut()
	p.actors[p.ring[(w+1)%len(p.ring)]].conns.cut()
	p.actors[name].ring.Close()
	delete(p.actors, name)
}

// recover seals who is left and finds where they go on, with what those have who stay.
func (p *troupe) recover(leave ...string) (protocol.Plan, error) {
	owners := make([]string, p.c.WorldSize)
	for r := range owners {
		owners[r] = p.ring[p.placement.Worker(shard.Rank(r))]
	}
	var reports []protocol.Report
	var known int64 // the highest step that anybody who is left knows to be decided
	for _, name := range p.ring {
		a := p.actors[name]
		if a == nil {
			continue
		}
		if a.link != nil {
			_ = a.link.Close()
			if d, ok := a.link.Decided(); ok {
				known = max(known, d.Step)
			}
		}
		h, err := a.tr.Seal()
		if err != nil {
			return protocol.Plan{}, fmt.Errorf("%s seals: %w", name, err)
		}
		if slices.Contains(leave, name) {
			continue
		}
		reports = append(reports, protocol.Report{Worker: name, Step: h.Step, Decision: h.Decision, Held: h.Ranks, Summed: h.Summed, Reaches: p.ring})
	}
	plan, err := protocol.Recover(p.c.WorldSize, owners, reports)
	if err != nil {
		err = fmt.Errorf("%w: ranks were on %v, who is left reports %+v", err, owners, reports)
	}
	if err == nil && plan.Target < known {
		p.t.Errorf("on from step %d, and somebody who is left knew that step %d is decided", plan.Target, known)
	}
	return plan, err
}

// atRest checks that the hosts of the workers keep nothing of state that has arrived.
func (p *troupe) atRest() {
	p.t.Helper()
	for _, name := range p.ring {
		l, ok := p.actors[name].tr.peers.(*linked)
		if !ok {
			continue
		}
		l.mu.Lock()
		for r, s := range l.state {
			if s != nil {
				p.t.Errorf("%s keeps what was copied of the state of rank %d for its way", name, r)
			}
		}
		l.mu.Unlock()
	}
}

// hash is the hash of the master weights, each piece from its host.
func (p *troupe) hash() shard.Digest {
	p.t.Helper()
	table := p.actors[p.ring[0]].tr.Table()
	h := shard.NewWeightsHash(table)
	for r := range shard.Rank(p.c.WorldSize) {
		tr := p.actors[p.ring[p.placement.Worker(r)]].tr
		for b, piece := range table.Segment(r) {
			le := make([]byte, piece.Len()*4)
			if err := tr.ReadState(checkpoint.Master, b, piece.Lo, le); err != nil {
				p.t.Fatal(err)
			}
			if err := h.Write(b, piece.Lo, le); err != nil {
				p.t.Fatal(err)
			}
		}
	}
	sum, err := h.Sum()
	if err != nil {
		p.t.Fatal(err)
	}
	return sum
}

// takeOver gives a lost worker's block to the next one of the ring.
func takeOver(ring []string, blocks []int, lost string) ([]string, []int) {
	w := slices.Index(ring, lost)
	next := (w + 1) % len(ring)
	blocks = slices.Clone(blocks)
	if next == 0 { // blocks follow the ranks: the first worker's block cannot grow at its end
		next = w - 1
	}
	blocks[next] += blocks[w]
	return slices.Delete(slices.Clone(ring), w, w+1), slices.Delete(blocks, w, w+1)
}

// TestAnyWorkerMayDieAtAnyMomentAndTheBitsStayTheSame kills two workers in each run. SKEIN_DEATHS is how many runs
// of each stage there are.
func TestAnyWorkerMayDieAtAnyMomentAndTheBitsStayTheSame(t *testing.T) {
	const steps = 8
	seeds := uint64(6)
	if n, err := strconv.ParseUint(os.Getenv("SKEIN_DEATHS"), 10, 64); err == nil {
		seeds = n
	}
	g := golden{modeltest.Load(t, "llama-tied-gqa")}
	for _, stage := range stages {
		c := g.config(6, 6)
		c.Precision, c.Stage = device.BF16, stage
		alone := newTrainer(t, newDevice(t, "generic", 2), g, c)
		began := time.Now()
		for range steps {
			if _, err := alone.Step(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		want, pace := hash(t, alone), time.Since(began)/steps
		for seed := range seeds {
			t.Run(fmt.Sprintf("ZeRO-%d/seed %d", stage, seed), func(t *testing.T) {
				dice := rand.New(rand.NewPCG(seed, 1))
				p := newTroupe(t, g, c)
				ring, blocks := []string{"a", "b", "c"}, []int{2, 2, 2}
				for i, name := range ring {
					p.hire(name, anyDevice(t, i+int(seed)))
				}
				if err := p.begin(ring, blocks, nil); err != nil {
					t.Fatal(err)
				}
				for deaths := 0; ; {
					lost := ""
					if p.actors[p.ring[0]].tr.StepsDone() == steps {
						deaths = 2 // no step is left in which mirrors could be filled
					}
					err := p.play(steps, func(stepped <-chan struct{}) {
						if deaths < 2 {
							if deaths > 0 { // until then, the mirrors of the generation are being filled
								<-stepped
							}
							time.Sleep(time.Duration(dice.Int64N(int64(4 * pace))))
							lost = p.ring[dice.IntN(len(p.ring))]
							p.kill(lost)
							deaths++
						}
					})
					if lost == "" {
						if err != nil {
							t.Fatal(err)
						}
						break
					}
					plan, err := p.recover()
					if err != nil {
						t.Fatal(err)
					}
					ring, blocks = takeOver(ring, blocks, lost)
					if err := p.begin(ring, blocks, &plan); err != nil {
						t.Fatal(err)
					}
				}
				if got := p.hash(); got != want {
					t.Errorf("weights %v after two deaths, %v undisturbed", got, want)
				}
			})
		}
	}
}

// anyDevice is the generic path, or one whose memory the host cannot reach.
func anyDevice(t *testing.T, i int) device.Device {
	if i%3 != 0 {
		return newDevice(t, "generic", 1)
	}
	hidden, err := opaque.New(opaque.Options{Seed: uint64(i), DelayMax: 20 * time.Microsecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hidden.Close() })
	return hidden
}

func TestWorkersComeAndGoWhileTheBitsStayTheSame(t *testing.T) {
	g := golden{modeltest.Load(t, "llama-tied-gqa")}
	for _, stage := range stages {
		c := g.config(6, 6)
		c.Precision, c.Stage = device.BF16, stage
		alone := newTrainer(t, newDevice(t, "generic", 2), g, c)
		want := func() shard.Digest { steps(t, alone, 2); return hash(t, alone) }
		p := newTroupe(t, g, c)
		for i, name := range []string{"a", "b", "c", "d"} {
			p.hire(name, anyDevice(t, i))
		}
		var plan *protocol.Plan
		for i, cast := range []struct {
			ring   []string
			blocks []int
			leaves string // afterwards; its mirror has what it takes along
		}{
			{ring: []string{"a"}, blocks: []int{6}},
			{ring: []string{"a", "b"}, blocks: []int{3, 3}},
			{ring: []string{"c", "a", "b", "d"}, blocks: []int{2, 1, 1, 2}, leaves: "a"},
			{ring: []string{"d", "b", "c"}, blocks: []int{1, 4, 1}, leaves: "d"},
			{ring: []string{"b", "c"}, blocks: []int{1, 5}, leaves: "b"},
			{ring: []string{"c"}, blocks: []int{6}},
		} {
			if err := p.begin(cast.ring, cast.blocks, plan); err != nil {
				t.Fatal(err)
			}
			until := int64(2 * (i + 1))
			if err := p.play(until, func(<-chan struct{}) {}); err != nil {
				t.Fatal(err)
			}
			if got := p.hash(); got != want() {
				t.Fatalf("ZeRO-%d: other weights after step %d on %v", stage, until, cast.ring)
			}
			p.atRest()
			next, err := p.recover(cast.leaves)
			if err != nil {
				t.Fatal(err)
			}
			plan = &next
		}
	}
}

func TestADecisionThatOneWorkerKnowsIsAppliedByAll(t *testing.T) {
	g := golden{modeltest.Load(t, "llama-tied-gqa")}
	for _, stage := range []shard.Stage{shard.StageReplicated, shard.StageOptimizer} {
		c := g.config(4, 4)
		c.Precision, c.Stage = device.BF16, stage
		alone := newTrainer(t, newDevice(t, "generic", 1), g, c)
		steps(t, alone, 5)
		p := newTroupe(t, g, c)
		for i, name := range []string{"a", "b"} {
			p.hire(name, anyDevice(t, i))
		}
		a, b := p.actors["a"].tr, p.actors["b"].tr
		p.decided = func(d allreduce.Decision) {
			if d.Step == 3 {
				p.actors["b"].conns.cut() // what a sends from now on, b does not get
			}
		}
		if err := p.begin([]string{"a", "b"}, []int{2, 2}, nil); err != nil {
			t.Fatal(err)
		}
		if err := p.play(5, func(<-chan struct{}) {}); err == nil {
			t.Fatal("nobody has noticed that the ring is cut")
		}
		p.decided = nil
		plan, err := p.recover()
		if err != nil {
			t.Fatal(err)
		}
		if plan.Target != 3 || a.StepsDone() != 3 || b.StepsDone() != 2 {
			t.Fatalf("ZeRO-%d: on from step %d with a at step %d and b at step %d; only a knows the decision of step 3",
				stage, plan.Target, a.StepsDone(), b.StepsDone())
		}
		if err := p.begin([]string{"a", "b"}, []int{2, 2}, &plan); err != nil {
			t.Fatal(err)
		}
		if b.StepsDone() != 3 {
			t.Errorf("ZeRO-%d: b enters at step %d", stage, b.StepsDone())
		}
		if err := p.play(5, func(<-chan struct{}) {}); err != nil {
			t.Fatal(err)
		}
		if got, want := p.hash(), hash(t, alone); got != want {
			t.Errorf("ZeRO-%d: weights %v, undisturbed %v", stage, got, want)
		}
	}
}
