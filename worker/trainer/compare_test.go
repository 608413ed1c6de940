package trainer

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/model/modeltest"
	"github.com/skein-ml/skein/shard"
)

// TestCopiesThatDifferAreNamed changes a weight of a mirror as if it had been computed wrongly in
// step 3. Where the host reaches the device's memory, that step is named.
func TestCopiesThatDifferAreNamed(t *testing.T) {
	g := golden{modeltest.Load(t, "llama-tied-gqa")}
	for _, far := range []bool{false, true} {
		for _, stage := range []shard.Stage{shard.StageReplicated, shard.StageOptimizer} {
			c := g.config(4, 4)
			c.Stage = stage
			p := newTroupe(t, g, c)
			for i, name := range []string{"a", "b"} {
				if far {
					i = 0
				} else {
					i++
				}
				p.hire(name, anyDevice(t, i))
			}
			if err := p.begin([]string{"a", "b"}, []int{2, 2}, nil); err != nil {
				t.Fatal(err)
			}
			mirror := p.actors["b"].tr
			if got := mirror.Copies(); !slices.Equal(got, []shard.Rank{0, 1}) {
				t.Errorf("ZeRO-%d: b has copies of ranks %v", stage, got)
			}
			buckets := int64(mirror.table.Buckets())
			wrong, before := int64(3), int64(3)
			if far { // one bucket in a step; all have had their turn
				wrong = buckets + 3
				before = wrong
			}
			if err := p.play(wrong, func(<-chan struct{}) {}); err != nil {
				t.Fatal(err)
			}
			flipped := []float32{42}
			mirror.dev.Upload(mirror.stream, mirror.segments[1].state[checkpoint.Master][2].ColRange(3, 4).Buf, device.HostBytes(flipped))
			err := p.play(before+buckets, func(<-chan struct{}) {})
			found, ok := errors.AsType[*DivergedError](err)
			if !ok || !errors.Is(err, ErrDiverged) {
				t.Fatalf("ZeRO-%d: %v, want an error that says that copies differ", stage, err)
			}
			want := DivergedError{Step: wrong, Began: wrong, Rank: 1, Bucket: 2, Layer: mirror.table.Bucket(2).Name, Owner: 0, Mirror: 1}
			if far {
				for want.Step%buckets != 2 {
					want.Step++
				}
				want.Began = want.Step - buckets + 1
			}
			sums := found.OwnerSum != found.MirrorSum
			found.OwnerSum, found.MirrorSum = 0, 0
			if *found != want || !sums {
				t.Errorf("ZeRO-%d: found %+v, want %+v and two checksums", stage, *found, want)
			}
			if !far && !strings.Contains(err.Error(), "after step 3, and not before") {
				t.Errorf("ZeRO-%d: %v", stage, err)
			}
		}
	}
}

// TestCopiesAreComparedInEveryStepWhereThatCostsNothingToSpeakOf looks at what has its turn when.
func TestCopiesAreComparedInEveryStepWhereThatCostsNothingToSpeakOf(t *testing.T) {
	g := golden{modeltest.Load(t, "llama-tied-gqa")}
	tr := newTrainer(t, newDevice(t, "generic", 1), g, g.config(2, 2))
	var groups []shard.Group
	for i := range 12 {
		groups = append(groups, shard.Group{Name: fmt.Sprint("layer.", i), Tensors: []shard.Tensor{{Name: fmt.Sprint(i), Elems: 5 << 20}}})
	}
	var err error
	if tr.table, err = shard.NewTable(groups, 2); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		global, seq int
		want        string
	}{
		{8, 512, "[0 12]"},
		{4, 512, "[0 6 12]"},
		{1, 1024, "[0 3 6 9 12]"},
		{1, 1, "[0 1 2 3 4 5 6 7 8 9 10 11 12]"},
	} {
		tr.cfg.Batch.Global, tr.cfg.Batch.SeqLen = c.global, c.seq
		if got := fmt.Sprint(tr.findTurns()); got != c.want {
			t.Errorf("%d sequences of %d tokens: buckets have their turns from %s on, want %s", c.global, c.seq, got, c.want)
		}
	}
}

func TestChecksumsOfAnotherLengthAreTheOwnersFault(t *testing.T) {
	g := golden{modeltest.Load(t, "llama-tied-gqa")}
	c := g.config(4, 4)
	c.Stage, c.Mirror = shard.StageOptimizer, true
	m := newTeam(t, func(int) device.Device { return newDevice(t, "generic", 1) }, g, c, 2)
	tr := m.trainers[0]
	for what, theirs := range map[string][]byte{
		"nothing": nil, "too little": make([]byte, 3), "no sums": make([]byte, 4), "half of the ranks": make([]byte, 4+4), "a bucket too many": make([]byte, 4+8*(tr.table.Buckets()+1)),
		"no such bucket": append([]byte{0, 0, 0, 255}, make([]byte, 8)...),
	} {
		if peer, ok := errors.AsType[*PeerError](tr.compareWith(theirs)); !ok || peer.Worker != 1 {
			t.Errorf("%s: %v, want one that names worker 1", what, tr.compareWith(theirs))
		}
	}
}

// counted is a device that counts how often its stream for copies is asked for.
type counted struct {
	device.Device
	copies atomic.Int64
}

func (d *counted) Stream(k device.StreamKind) device.Stream {
	if k == device.StreamCopy {
		d.copies.Add(1)
	}
	return d.Device.Stream(k)
}

func TestCopiesAreComparedOnTheStreamOfTheStep(t *testing.T) {
	g := golden{modeltest.Load(t, "llama-tied-gqa")}
	c := g.config(4, 4)
	c.Stage, c.Mirror = shard.StageOptimizer, true
	devices := []*counted{{Device: newDevice(t, "generic", 1)}, {Device: newDevice(t, "generic", 1)}}
	m := newTeam(t, func(w int) device.Device { return devices[w] }, g, c, 2)
	m.steps(t, 2)
	for w, d := range devices {
		if n := d.copies.Load(); n != 0 {
			t.Errorf("worker %d has used the stream of checkpoints %d times", w, n)
		}
	}
}
