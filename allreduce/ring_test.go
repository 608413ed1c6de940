package allreduce

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/skein-ml/skein/shard"
)

// testTable makes buckets of the given sizes.
func testTable(t interface{ Fatal(...any) }, worldSize int, elems ...int64) shard.Table {
	var groups []shard.Group
	for i, n := range elems {
		groups = append(groups, shard.Group{Name: fmt.Sprint(i), Tensors: []shard.Tensor{{Name: fmt.Sprintf("t%d", i), Elems: n, Decay: true}}})
	}
	table, err := shard.NewTable(groups, worldSize)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// randomGrads draws gradients of very different sizes, so that every change of
// the order of addition shows.
func randomGrads(table shard.Table, seed uint64) [][][]byte {
	r := rand.New(rand.NewPCG(seed, 7))
	grads := make([][][]byte, table.WorldSize())
	for rank := range grads {
		for i := range table.Buckets() {
			le := make([]byte, table.Bucket(i).Padded*4)
			for at := 0; at < len(le); at += 4 {
				x := float32(r.NormFloat64() * math.Ldexp(1, r.IntN(20)))
				binary.LittleEndian.PutUint32(le[at:], math.Float32bits(x))
			}
			grads[rank] = append(grads[rank], le)
		}
	}
	return grads
}

// definition is the sum over ranks as the design page words it, of a whole bucket.
func definition(table shard.Table, wire Wire, grads [][][]byte, bucket int) []byte {
	sums := make([]byte, table.Bucket(bucket).Padded*4)
	for p := range table.WorldSize() {
		order := shard.FoldOrder(shard.Rank(p), table.WorldSize())
		piece := table.Bucket(bucket).Piece(shard.Rank(p))
		for at := piece.Lo * 4; at < piece.Hi*4; at += 4 {
			load := func(r shard.Rank) float32 {
				return math.Float32frombits(binary.LittleEndian.Uint32(grads[r][bucket][at:]))
			}
			sum := load(order[0])
			for _, r := range order[1:] {
				if wire == WireBF16 {
					sum = math.Float32frombits(RoundBits(math.Float32bits(sum)))
				}
				sum += load(r)
			}
			binary.LittleEndian.PutUint32(sums[at:], math.Float32bits(sum))
		}
	}
	return sums
}

// differing counts the elements in which two buckets differ, and names the first.
func differing(a, b []byte) (count, first int) {
	for at := 0; at < len(a); at += 4 {
		if !bytes.Equal(a[at:at+4], b[at:at+4]) {
			if count == 0 {
				first = at / 4
			}
			count++
		}
	}
	return count, first
}

// cluster is one ring per rank, each with memory of its own, and links between
// neighbours that keep order only within a piece. Partial sums cross a link in the
// wire type.
type cluster struct {
	t     testing.TB
	r     *rand.Rand
	table shard.Table
	wire  Wire
	rings []*Ring
	grads [][][]byte
	sums  [][][]byte // by rank and bucket
	final [][][]byte // gathered bytes, by rank and bucket
	links map[flow][]letter
	busy  []flow // flows with letters, for a fair draw
	done  map[Do]int
}

type flow struct {
	to     int
	op     Op
	bucket int
	piece  shard.Rank
}

type letter struct {
	frame   Frame
	payload []byte
}

func newCluster(t testing.TB, r *rand.Rand, table shard.Table, wire Wire, grads [][][]byte) *cluster {
	c := &cluster{t: t, r: r, table: table, wire: wire, grads: grads, links: map[flow][]letter{}, done: map[Do]int{}}
	for rank := range table.WorldSize() {
		c.rings = append(c.rings, NewRing(table, shard.Rank(rank), wire, 60+r.Int64N(700)))
		var sums, final [][]byte
		for i := range table.Buckets() {
			sums = append(sums, make([]byte, table.Bucket(i).Padded*4))
			final = append(final, make([]byte, table.Bucket(i).Padded*4))
		}
		c.sums, c.final = append(c.sums, sums), append(c.final, final)
	}
	return c
}

func (c *cluster) do(rank int, acts []Action) {
	for _, a := range acts {
		f := a.Frame
		lo, hi := f.Range.Lo*4, f.Range.Hi*4
		sum, own := c.sums[rank][f.Bucket][lo:hi], c.grads[rank][f.Bucket][lo:hi]
		switch a.Do {
		case DoCopy:
			copy(sum, own)
		case DoRoundOwn:
			RoundRef(sum, own)
		case DoRound:
			RoundRef(sum, sum)
		case DoAdd:
			AddRef(sum, sum, own)
		case DoSendOwn:
			c.send(rank, f, own)
		case DoSend:
			if f.Op == OpGather {
				sum = c.final[rank][f.Bucket][lo:hi]
			}
			c.send(rank, f, sum)
		case DoneReduce:
			c.done[a.Do]++
			copy(c.final[rank][f.Bucket][lo:hi], sum)
			c.do(rank, c.rings[rank].GatherReady(f.Bucket, nil))
		case DoneGather:
			c.done[a.Do]++
		}
	}
}

// send packs partial sums to two bytes an element on a bf16 wire, which must lose
// nothing because they are rounded already.
func (c *cluster) send(rank int, f Frame, le []byte) {
	payload := append([]byte(nil), le...)
	if c.wire == WireBF16 && f.Op == OpReduce {
		payload = payload[:0]
		for i := 0; i < len(le); i += 4 {
			payload = append(payload, le[i+2], le[i+3])
		}
	}
	key := flow{(rank + 1) % c.table.WorldSize(), f.Op, f.Bucket, f.Piece}
	if len(c.links[key]) == 0 {
		c.busy = append(c.busy, key)
	}
	c.links[key] = append(c.links[key], letter{f, payload})
}

// deliver takes the first letter of a flow, maybe in two halves, since a link may
// cut frames as it likes.
func (c *cluster) deliver(at int) {
	key := c.busy[at]
	rank, l := key.to, c.links[key][0]
	c.links[key] = c.links[key][1:]
	n := l.frame.Range.Len()
	size := int64(len(l.payload)) / n
	if n > 1 && c.r.IntN(4) == 0 {
		cut := 1 + c.r.Int64N(n-1)
		rest := l
		rest.frame.Range.Lo += cut
		rest.payload = l.payload[cut*size:]
		c.links[key] = append([]letter{rest}, c.links[key]...)
		l.frame.Range.Hi = l.frame.Range.Lo + cut
		l.payload = l.payload[:cut*size]
	}
	if len(c.links[key]) == 0 {
		c.busy = slices.Delete(c.busy, at, at+1)
	}
	place := c.sums[rank]
	if key.op == OpGather {
		place = c.final[rank]
	}
	for i := range l.frame.Range.Len() {
		to := place[key.bucket][(l.frame.Range.Lo+i)*4:]
		if size == 2 {
			copy(to, []byte{0, 0, l.payload[i*2], l.payload[i*2+1]})
		} else {
			copy(to, l.payload[i*4:i*4+4])
		}
	}
	acts, err := c.rings[rank].Arrived(l.frame, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	c.do(rank, acts)
}

// run lets gradients become ready and letters arrive in a random order.
func (c *cluster) run(step int64) {
	type ready struct{ rank, bucket int }
	var waiting []ready
	for rank, ring := range c.rings {
		ring.Begin(step)
		for i := range c.table.Buckets() {
			waiting = append(waiting, ready{rank, i})
		}
	}
	for len(waiting)+len(c.busy) > 0 {
		i := c.r.IntN(len(waiting) + len(c.busy))
		if i >= len(waiting) {
			c.deliver(i - len(waiting))
			continue
		}
		w := waiting[i]
		waiting = slices.Delete(waiting, i, i+1)
		c.do(w.rank, c.rings[w.rank].Ready(w.bucket, nil))
	}
}

// TestRingAddsByTheDefinition runs 1 to 16 ranks, odd sizes and both wires through
// links that cut, delay and interleave frames, and compares every bit.
func TestRingAddsByTheDefinition(t *testing.T) {
	for worldSize := 1; worldSize <= shard.WorldSizeMax; worldSize++ {
		for _, wire := range []Wire{WireFP32, WireBF16} {
			for try := range 3 {
				seed := uint64(10*worldSize + try)
				t.Run(fmt.Sprintf("ranks=%d/wire=%d/seed=%d", worldSize, wire, seed), func(t *testing.T) {
					runRing(t, worldSize, wire, seed)
				})
			}
		}
	}
}

func runRing(t *testing.T, worldSize int, wire Wire, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 11))
	table := testTable(t, worldSize, 1+r.Int64N(300), 1+r.Int64N(9000))
	grads := randomGrads(table, seed)
	c := newCluster(t, r, table, wire, grads)
	for step := int64(1); step <= 2; step++ {
		clear(c.done)
		c.run(step)
		if want := worldSize * table.Buckets(); c.done[DoneReduce] != want || c.done[DoneGather] != want {
			t.Fatalf("step %d: completed %v, want %d each", step, c.done, want)
		}
		for bucket := range table.Buckets() {
			want := definition(table, wire, grads, bucket)
			for rank := range worldSize {
				if n, first := differing(c.final[rank][bucket], want); n != 0 {
					t.Fatalf("step %d, bucket %d on rank %d: %d elements are not by the definition, the first is %d", step, bucket, rank, n, first)
				}
			}
		}
	}
}

func TestLocalLinkGivesTheBitsOfTheDefinition(t *testing.T) {
	for worldSize := 1; worldSize <= shard.WorldSizeMax; worldSize++ {
		for _, wire := range []Wire{WireFP32, WireBF16} {
			table := testTable(t, worldSize, 1, 257, 4099)
			grads := randomGrads(table, uint64(worldSize))
			l, host := newLocal(table, wire, grads)
			r := rand.New(rand.NewPCG(uint64(worldSize), 3))
			for step := int64(1); step <= 2; step++ {
				l.Begin(step)
				readyInRandomOrder(t, l, table, r)
				compareSums(t, table, wire, grads, host.Sums)
			}
		}
	}
}

func newLocal(table shard.Table, wire Wire, grads [][][]byte) (*Local, *Host) {
	host := &Host{Grads: grads, AddFunc: AddRef, RoundFunc: RoundRef}
	for i := range table.Buckets() {
		host.Sums = append(host.Sums, make([]byte, table.Bucket(i).Padded*4))
	}
	return NewLocal(table, wire, host), host
}

func readyInRandomOrder(t *testing.T, l *Local, table shard.Table, r *rand.Rand) {
	t.Helper()
	n := table.WorldSize() * table.Buckets()
	for _, i := range r.Perm(n) {
		bucket := i % table.Buckets()
		if l.Reduced(bucket) {
			t.Fatalf("bucket %d is reduced before all ranks are ready", bucket)
		}
		if err := l.Ready(shard.Rank(i/table.Buckets()), bucket); err != nil {
			t.Fatal(err)
		}
	}
	for bucket := range table.Buckets() {
		if !l.Reduced(bucket) {
			t.Fatalf("bucket %d is not reduced though all ranks are ready", bucket)
		}
	}
}

func compareSums(t *testing.T, table shard.Table, wire Wire, grads [][][]byte, sums [][]byte) {
	t.Helper()
	for bucket := range table.Buckets() {
		if n, first := differing(sums[bucket], definition(table, wire, grads, bucket)); n != 0 {
			t.Fatalf("%d ranks, wire %d, bucket %d: %d elements are not by the definition, the first is %d", table.WorldSize(), wire, bucket, n, first)
		}
	}
}

// TestTheDefinitionSeesOrderAndWire makes sure that the comparisons above can fail.
func TestTheDefinitionSeesOrderAndWire(t *testing.T) {
	table := testTable(t, 4, 4099)
	grads := randomGrads(table, 1)
	swapped := append([][][]byte{grads[1], grads[0]}, grads[2:]...)
	base := definition(table, WireFP32, grads, 0)
	order, _ := differing(base, definition(table, WireFP32, swapped, 0))
	wire, _ := differing(base, definition(table, WireBF16, grads, 0))
	if order < 100 || wire < 1000 {
		t.Errorf("another order changes %d elements, another wire %d", order, wire)
	}
}

func TestLocalStepAllocatesNothing(t *testing.T) {
	table := testTable(t, 4, 300, 5000)
	l, _ := newLocal(table, WireBF16, randomGrads(table, 1))
	step := int64(0)
	if n := testing.AllocsPerRun(5, func() {
		step++
		l.Begin(step)
		for rank := range 4 {
			for bucket := range 2 {
				if err := l.Ready(shard.Rank(rank), bucket); err != nil {
					t.Fatal(err)
				}
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations a step", n)
	}
}

func TestFramesOutOfPlaceAreRefusedByName(t *testing.T) {
	table := testTable(t, 4, 5000)
	piece := table.Bucket(0).Piece(0)
	good := Frame{Step: 3, Op: OpReduce, Bucket: 0, Piece: 0, Range: piece}
	for _, c := range []struct {
		why    string
		change func(*Frame)
		want   error
	}{
		{"next step", func(f *Frame) { f.Step = 4 }, ErrEarly},
		{"last step", func(f *Frame) { f.Step = 2 }, ErrFrame},
		{"two steps ahead", func(f *Frame) { f.Step = 5 }, ErrFrame},
		{"no such operation", func(f *Frame) { f.Op = opCount }, ErrFrame},
		{"no such bucket", func(f *Frame) { f.Bucket = 1 }, ErrFrame},
		{"bucket below zero", func(f *Frame) { f.Bucket = -1 }, ErrFrame},
		{"no such piece", func(f *Frame) { f.Piece = 4 }, ErrFrame},
		{"a piece that begins here", func(f *Frame) { f.Piece, f.Range = 1, table.Bucket(0).Piece(1) }, ErrFrame},
		{"own piece gathered", func(f *Frame) { f.Op, f.Piece, f.Range = OpGather, 2, table.Bucket(0).Piece(2) }, ErrFrame},
		{"a gap", func(f *Frame) { f.Range.Lo++ }, ErrFrame},
		{"empty", func(f *Frame) { f.Range.Hi = f.Range.Lo }, ErrFrame},
		{"into the next piece", func(f *Frame) { f.Range.Hi++ }, ErrFrame},
	} {
		r := NewRing(table, 2, WireFP32, 100)
		r.Begin(3)
		f := good
		c.change(&f)
		acts, err := r.Arrived(f, nil)
		if !errors.Is(err, c.want) || len(acts) != 0 {
			t.Errorf("%s: %d actions, error %v", c.why, len(acts), err)
		}
		if _, err := r.Arrived(good, nil); err != nil {
			t.Errorf("after %s the right frame is refused: %v", c.why, err)
		}
		if _, err := r.Arrived(good, nil); !errors.Is(err, ErrFrame) {
			t.Errorf("the same frame twice: %v", err)
		}
	}
}

func TestRoundBitsIsNearestEven(t *testing.T) {
	for _, c := range [][2]uint32{
		{0x3F800000, 0x3F800000}, {0x3F808000, 0x3F800000}, {0x3F818000, 0x3F820000}, {0x3F808001, 0x3F810000},
		{0x3F807FFF, 0x3F800000}, {0x7F7FFFFF, 0x7F800000}, {0x7F800000, 0x7F800000}, {0xFF800000, 0xFF800000},
		{0x80000000, 0x80000000}, {0x7F800001, 0x7FC00000}, {0xFFFFFFFF, 0xFFFF0000}, {0x00008000, 0}, {0x00018000, 0x00020000},
	} {
		if got := RoundBits(c[0]); got != c[1] {
			t.Errorf("%08x rounds to %08x, want %08x", c[0], got, c[1])
		}
	}
}
