package allreduce

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/skein-ml/skein/shard"
)

var quiet = slog.New(slog.DiscardHandler)

// testWorker is a worker of a ring over loopback, with memory of its own.
type testWorker struct {
	t        testing.TB
	c        LinkConfig
	listener *Listener
	link     *Link
	grads    [][][]byte // by rank and bucket, shared: workers read only their ranks'
	sums     [][]byte
	gathered [][]byte
	mirrored [][]byte
	state    map[string][]byte // by rank, part and bucket: what this worker expects
	elem     int
}

func (w *testWorker) Gradient(rank shard.Rank, bucket int, r shard.Range) []byte {
	if w.c.Placement.Worker(rank) != w.c.Worker {
		panic("the gradient of a rank that is hosted elsewhere")
	}
	return w.grads[rank][bucket][4*r.Lo : 4*r.Hi]
}

func (w *testWorker) Reduced(bucket int, r shard.Range) []byte {
	return w.sums[bucket][4*r.Lo : 4*r.Hi]
}

func (w *testWorker) Mirror(bucket int, r shard.Range) []byte {
	return w.mirrored[bucket][4*r.Lo : 4*r.Hi]
}

func (w *testWorker) State(rank shard.Rank, part, bucket int, r shard.Range) []byte {
	b := w.state[fmt.Sprint(rank, part, bucket)]
	if b == nil {
		return nil
	}
	lo := w.c.Table.Bucket(bucket).Piece(rank).Lo
	return b[4*(r.Lo-lo) : 4*(r.Hi-lo)]
}

func (w *testWorker) Gathered(bucket int, r shard.Range) []byte {
	if w.c.GatherFirst {
		return w.Reduced(bucket, r)
	}
	return w.gathered[bucket][int64(w.elem)*r.Lo : int64(w.elem)*r.Hi]
}

func (w *testWorker) ElemBytes() int { return w.elem }

func (w *testWorker) ranks() []shard.Rank { return w.c.Placement.Ranks(w.c.Worker) }

// testRuleOf makes decisions with the votes that these tests cast.
func testRuleOf(table shard.Table) Rule {
	return Rule{WorldSize: table.WorldSize(), Buckets: table.Buckets(), LossShift: 3}
}

type ringOptions struct {
	worldSize, workers int
	wire               Wire
	elem               int
	mirror             bool
	gatherFirst        bool
	chunk              int
	elems              []int64
	seed               uint64
	change             func(*LinkConfig)
	listen             func(worker int, l net.Listener) net.Listener
	address            func(worker int, addr string) string // what the worker before dials
	server             ListenerConfig
	serverTLS          func(worker int) *tls.Config // if each has its own
}

// newWorkers makes workers with listeners, not yet connected.
func newWorkers(t testing.TB, o ringOptions) []*testWorker {
	t.Helper()
	table := testTable(t, o.worldSize, o.elems...)
	placement, err := shard.EvenPlacement(o.worldSize, o.workers)
	if err != nil {
		t.Fatal(err)
	}
	grads := randomGrads(table, o.seed)
	var names []string
	for i := range o.workers {
		names = append(names, fmt.Sprintf("w%d", i))
	}
	rule := testRuleOf(table)
	workers := make([]*testWorker, o.workers)
	for i := range workers {
		nl, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if o.listen != nil {
			nl = o.listen(i, nl)
		}
		server := o.server
		server.Log = quiet
		if o.serverTLS != nil {
			server.TLS = o.serverTLS(i)
		}
		w := &testWorker{t: t, listener: Listen(nl, server), grads: grads, elem: o.elem}
		for b := range table.Buckets() {
			w.sums = append(w.sums, make([]byte, 4*table.Bucket(b).Padded))
			w.mirrored = append(w.mirrored, make([]byte, 4*table.Bucket(b).Padded))
			w.gathered = append(w.gathered, make([]byte, int64(o.elem)*table.Bucket(b).Padded))
		}
		w.c = LinkConfig{
			Key: Key{Job: "job-1", Generation: 3, SpecHash: "5bec", Class: "generic-1"}, Table: table, Placement: placement, Worker: i,
			Names: names, Wire: o.wire, Mirror: o.mirror, GatherFirst: o.gatherFirst, Memory: w, ChunkBytes: o.chunk, Log: quiet, Silence: 5 * time.Second,
			Decide: func(votes []Vote) (Decision, error) { return Decide(votes, rule, 7, votes[0].Step-1) },
		}
		workers[i] = w
	}
	for i, w := range workers {
		next := (i + 1) % o.workers
		w.c.Next = workers[next].listener.Addr()
		if o.address != nil {
			w.c.Next = o.address(next, w.c.Next)
		}
		if o.change != nil {
			o.change(&w.c)
		}
	}
	t.Cleanup(func() {
		for _, w := range workers {
			_ = w.listener.Close()
		}
	})
	return workers
}

// connect connects all workers.
func connect(t testing.TB, workers []*testWorker) {
	t.Helper()
	each(t, workers, func(w *testWorker) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		link, err := Connect(ctx, w.listener, w.c)
		w.link = link
		return err
	})
	t.Cleanup(func() { closeAll(workers) })
}

func newRing(t testing.TB, o ringOptions) []*testWorker {
	t.Helper()
	workers := newWorkers(t, o)
	connect(t, workers)
	return workers
}

func closeAll(workers []*testWorker) {
	var wg sync.WaitGroup
	for _, w := range workers {
		if w.link != nil {
			wg.Go(func() { _ = w.link.Close() })
		}
	}
	wg.Wait()
}

// each runs f for all workers at once and fails on an error.
func each(t testing.TB, workers []*testWorker, f func(*testWorker) error) {
	t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, len(workers))
	for i, w := range workers {
		wg.Go(func() { errs[i] = f(w) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("worker %d: %v", i, err)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}

// testRows are the sparse rows of a rank in a step.
func testRows(rank shard.Rank, step int64) RankRows {
	r := rand.New(rand.NewPCG(uint64(rank), uint64(step)))
	var rows RankRows
	for id := range int32(40) {
		if r.IntN(3) == 0 && step%3 != 0 { // no row at all now and then
			rows.IDs = append(rows.IDs, id)
			for range 12 {
				rows.Rows = append(rows.Rows, byte(r.Uint32()))
			}
		}
	}
	return rows
}

// vote is what a rank says in tests. Its loss is exact, so that sums can be compared.
func (w *testWorker) vote(rank shard.Rank, step int64) Vote {
	return Vote{Step: step, Rank: rank, SqNorms: make([]float64, w.c.Table.Buckets()), Loss: float64(rank) + 1, Tokens: 1, Finite: true}
}

func (w *testWorker) votes(step int64) []Vote {
	var votes []Vote
	for _, r := range w.ranks() {
		votes = append(votes, w.vote(r, step))
	}
	return votes
}

// reduce runs a step up to its decision, with ranks and buckets ready in a random order.
func (w *testWorker) reduce(ctx context.Context, step int64, r *rand.Rand) (Decision, error) {
	if err := w.link.Begin(ctx, step); err != nil {
		return Decision{}, err
	}
	ranks := w.ranks()
	n := len(ranks) * w.c.Table.Buckets()
	for _, i := range r.Perm(n) {
		w.link.Ready(ranks[i%len(ranks)], i/len(ranks))
	}
	for _, rank := range ranks {
		rows := testRows(rank, step)
		w.link.SendRows(rank, rows.IDs, rows.Rows)
	}
	for b := range w.c.Table.Buckets() {
		if err := w.link.WaitReduced(ctx, b); err != nil {
			return Decision{}, err
		}
	}
	all, err := w.link.WaitRows(ctx)
	if err != nil {
		return Decision{}, err
	}
	for rank, got := range all {
		if want := testRows(shard.Rank(rank), step); !slices.Equal(got.IDs, want.IDs) || !bytes.Equal(got.Rows, want.Rows) {
			return Decision{}, fmt.Errorf("step %d: rows of rank %d are %d, want %d", step, rank, len(got.IDs), len(want.IDs))
		}
	}
	if err := w.beforeVote(ctx, step, r); err != nil {
		return Decision{}, err
	}
	return w.link.Vote(ctx, w.votes(step))
}

// beforeVote sends sums to the mirror, or gathers them, where the generation does.
func (w *testWorker) beforeVote(ctx context.Context, step int64, r *rand.Rand) error {
	if w.c.GatherFirst {
		if err := w.link.BeginGather(ctx, step); err != nil {
			return err
		}
	}
	for _, b := range r.Perm(w.c.Table.Buckets()) {
		if w.link.MirrorReady(b); w.c.GatherFirst {
			w.link.GatherReady(b)
		}
	}
	for b := range w.c.Table.Buckets() {
		if err := w.link.WaitMirrored(ctx, b); err != nil {
			return err
		}
		if w.c.GatherFirst {
			if err := w.link.WaitGathered(ctx, b); err != nil {
				return err
			}
		}
	}
	return nil
}

// fill makes the final bytes of owned pieces from the reduced gradient, and wipes all
// others, so that only the gather can make them right.
func (w *testWorker) fill(bucket int, step int64) {
	for p := range w.c.Table.WorldSize() {
		piece := w.c.Table.Bucket(bucket).Piece(shard.Rank(p))
		own := w.c.Placement.Worker(shard.Rank(p)) == w.c.Worker
		for i := piece.Lo; i < piece.Hi; i++ {
			to := w.gathered[bucket][i*int64(w.elem):][:w.elem]
			if own {
				final(to, w.sums[bucket][4*i:], step)
			} else {
				clear(to)
			}
		}
	}
}

// final is the element that a step makes of a reduced gradient.
func final(to, sum []byte, step int64) {
	x := binary.LittleEndian.Uint32(sum) + uint32(step)
	if len(to) == 2 {
		binary.LittleEndian.PutUint16(to, uint16(x>>16^x))
	} else {
		binary.LittleEndian.PutUint32(to, x)
	}
}

// gather runs the gather of a step.
func (w *testWorker) gather(ctx context.Context, step int64, r *rand.Rand) error {
	for b := range w.c.Table.Buckets() {
		w.fill(b, step)
	}
	if err := w.link.BeginGather(ctx, step); err != nil {
		return err
	}
	for _, b := range r.Perm(w.c.Table.Buckets()) {
		w.link.GatherReady(b)
	}
	for b := range w.c.Table.Buckets() {
		if err := w.link.WaitGathered(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// check compares what a worker holds with the definition of the sum.
func (w *testWorker) check(step int64, want [][]byte) error {
	for b := range want {
		for _, rank := range w.ranks() {
			p := w.c.Table.Bucket(b).Piece(rank)
			if n, first := differing(w.sums[b][4*p.Lo:4*p.Hi], want[b][4*p.Lo:4*p.Hi]); n != 0 {
				return fmt.Errorf("step %d, bucket %d, piece %d: %d elements are not by the definition, the first is %d", step, b, rank, n, first)
			}
		}
		all := make([]byte, len(w.gathered[b]))
		for i := range len(all) / w.elem {
			final(all[i*w.elem:][:w.elem], want[b][4*i:], step)
		}
		if !bytes.Equal(all, w.gathered[b]) {
			return fmt.Errorf("step %d, bucket %d: what is gathered differs", step, b)
		}
	}
	return nil
}

// localSums are the sums that the link in one worker's memory gives.
func localSums(t testing.TB, w *testWorker) [][]byte {
	t.Helper()
	l, host := newLocal(w.c.Table, w.c.Wire, w.grads)
	l.Begin(1)
	for rank := range w.c.Table.WorldSize() {
		for b := range w.c.Table.Buckets() {
			if err := l.Ready(shard.Rank(rank), b); err != nil {
				t.Fatal(err)
			}
		}
	}
	return host.Sums
}
