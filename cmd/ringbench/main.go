// Command ringbench measures the ring between hosts: every host runs one, as one
// worker with one rank, and worker 0 prints how long a reduce and a gather of so many
// bytes take together. scripts/bench-ring.sh runs it beside Gloo.
package main

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/device/cpu"
	"github.com/skein-ml/skein/shard"
)

type options struct {
	worker    int
	addresses []string // of all workers, in order
	sizes     []int64
	seconds   float64 // per size
	chunk     int
	wire      allreduce.Wire
	certs     string // folder, or "" for plain text
}

func main() {
	o, err := parse(os.Args[1:])
	if err == nil {
		err = run(context.Background(), o, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "ringbench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (options, error) {
	f := flag.NewFlagSet("ringbench", flag.ContinueOnError)
	var o options
	var addresses, sizes string
	var bf16 bool
	f.IntVar(&o.worker, "worker", 0, "this worker's `index`")
	f.StringVar(&addresses, "addresses", "", "`host:port,…` of all workers, in order")
	f.StringVar(&sizes, "bytes", "67108864,4096", "`sizes` to measure")
	f.Float64Var(&o.seconds, "seconds", 2, "time for each size")
	f.IntVar(&o.chunk, "chunk", 0, "`bytes` of a frame; 0: the default")
	f.BoolVar(&bf16, "bf16", false, "send partial sums in bf16")
	f.StringVar(&o.certs, "certs", "", "`folder` with ca.crt, tls.crt, tls.key: mutual TLS")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if bf16 {
		o.wire = allreduce.WireBF16
	}
	o.addresses = strings.Split(addresses, ",")
	if len(o.addresses) < 2 || o.worker < 0 || o.worker >= len(o.addresses) {
		return o, fmt.Errorf("worker %d of %d addresses: give at least two, and an index among them", o.worker, len(o.addresses))
	}
	for s := range strings.SplitSeq(sizes, ",") {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 4 || n%4 != 0 {
			return o, fmt.Errorf("%q is not a number of bytes in fp32 elements", s)
		}
		o.sizes = append(o.sizes, n)
	}
	return o, nil
}

// memory holds one rank's gradient, which is gathered in place, as in ZeRO-0.
type memory struct{ grad, sum []byte }

func (m *memory) Gradient(_ shard.Rank, _ int, r shard.Range) []byte { return m.grad[4*r.Lo : 4*r.Hi] }
func (m *memory) Reduced(_ int, r shard.Range) []byte                { return m.sum[4*r.Lo : 4*r.Hi] }
func (m *memory) Gathered(_ int, r shard.Range) []byte               { return m.sum[4*r.Lo : 4*r.Hi] }
func (m *memory) ElemBytes() int                                     { return 4 }

func run(ctx context.Context, o options, out io.Writer) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	var config *tls.Config
	if o.certs != "" {
		var err error
		if config, err = loadTLS(o.certs); err != nil {
			return err
		}
	}
	nl, err := net.Listen("tcp", o.addresses[o.worker])
	if err != nil {
		return err
	}
	l := allreduce.Listen(nl, allreduce.ListenerConfig{TLS: config, Log: log})
	defer l.Close()
	for i, size := range o.sizes {
		if err := measure(ctx, o, l, config, uint64(i)+1, size, out); err != nil {
			return err
		}
	}
	return nil
}

// measure connects, runs steps for the time given, and prints the best.
func measure(ctx context.Context, o options, l *allreduce.Listener, config *tls.Config, generation uint64, size int64, out io.Writer) error {
	workers := len(o.addresses)
	table, err := shard.NewTable([]shard.Group{{Name: "all", Tensors: []shard.Tensor{{Name: "all", Elems: size / 4}}}}, workers)
	if err != nil {
		return err
	}
	placement, err := shard.EvenPlacement(workers, workers)
	if err != nil {
		return err
	}
	padded := 4 * table.Bucket(0).Padded
	m := &memory{make([]byte, padded), make([]byte, padded)}
	for i := range padded / 4 {
		binary.LittleEndian.PutUint32(m.grad[4*i:], math.Float32bits(float32(o.worker+1)))
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	link, err := allreduce.Connect(ctx, l, allreduce.LinkConfig{
		Key:   allreduce.Key{Job: "ringbench", Generation: generation, SpecHash: strconv.FormatInt(size, 10), Class: "any"},
		Table: table, Placement: placement, Worker: o.worker, Next: o.addresses[(o.worker+1)%workers],
		Names: o.addresses, Wire: o.wire, ChunkBytes: o.chunk, Memory: m, TLS: config,
		Arithmetic: allreduce.Arithmetic{AddF32: cpu.AddF32, RoundBF16: cpu.RoundBF16, AddBF16: cpu.AddBF16, AddBF16Last: cpu.AddBF16Last},
		Decide: func(votes []allreduce.Vote) (allreduce.Decision, error) {
			return allreduce.Decide(votes, allreduce.Rule{WorldSize: workers, Buckets: 1}, 0, votes[0].Step-1)
		},
	})
	if err != nil {
		return err
	}
	defer link.Close()
	best, err := steps(ctx, link, shard.Rank(o.worker), o.seconds)
	if err != nil {
		return err
	}
	want := math.Float32bits(float32(workers * (workers + 1) / 2))
	for i := range size / 4 {
		if got := binary.LittleEndian.Uint32(m.sum[4*i:]); got != want {
			return fmt.Errorf("element %d is %v, want %v", i, math.Float32frombits(got), math.Float32frombits(want))
		}
	}
	if o.worker == 0 {
		fmt.Fprintf(out, "%d %.9f %.9f\n", size, best.ring.Seconds(), best.step.Seconds())
	}
	return nil
}

// stepsMin are run however long they take.
const stepsMin = 4

// timing is what a step took: reduce and gather alone, and with vote and decision.
type timing struct{ ring, step time.Duration }

// steps runs rounds of steps and returns the best round's mean. Worker 0 says in its
// vote when time is up, so that all stop after the same step.
func steps(ctx context.Context, link *allreduce.Link, rank shard.Rank, seconds float64) (timing, error) {
	best := timing{math.MaxInt64, math.MaxInt64}
	begin := time.Now()
	perRound := 1
	for step := int64(1); ; {
		var ring time.Duration
		round := time.Now()
		for range perRound {
			stop := rank == 0 && step > stepsMin && time.Since(begin).Seconds() > seconds
			took, last, err := one(ctx, link, rank, step, stop)
			if err != nil {
				return best, err
			}
			if last {
				return best, nil
			}
			ring += took
			step++
		}
		n := time.Duration(perRound)
		if whole := time.Since(round); step > 2 { // the first step meets cold memory
			best.ring, best.step = min(best.ring, ring/n), min(best.step, whole/n)
		}
		// Rounds of small sizes have enough steps for the clock. Every worker counts its
		// own; only the stop is common.
		if perRound < 200 && time.Since(round) < 20*time.Millisecond {
			perRound *= 2
		}
	}
}

// lastStep is a request of this program's own: the decision that has it is the last.
const lastStep allreduce.Requests = 1 << 3

// one runs a step and returns the time of its reduce and its gather.
func one(ctx context.Context, link *allreduce.Link, rank shard.Rank, step int64, stop bool) (time.Duration, bool, error) {
	begin := time.Now()
	if err := link.Begin(ctx, step); err != nil {
		return 0, false, err
	}
	link.Ready(rank, 0)
	if err := link.WaitReduced(ctx, 0); err != nil {
		return 0, false, err
	}
	reduced := time.Since(begin)
	vote := allreduce.Vote{Step: step, Rank: rank, SqNorms: []float64{1}, Tokens: 1, Finite: true}
	if stop {
		vote.Requests = lastStep
	}
	d, err := link.Vote(ctx, []allreduce.Vote{vote})
	if err != nil {
		return 0, false, err
	}
	begin = time.Now()
	if err := link.BeginGather(ctx, step); err != nil {
		return 0, false, err
	}
	link.GatherReady(0)
	if err := link.WaitGathered(ctx, 0); err != nil {
		return 0, false, err
	}
	return reduced + time.Since(begin), d.Requests&lastStep != 0, nil
}
