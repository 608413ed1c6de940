package worker_test

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu"
	"github.com/skein-ml/skein/internal/console"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/worker"
	"github.com/skein-ml/skein/worker/workertest"
)

// overflowing is a device whose attention overflows, while it is told to.
type overflowing struct {
	device.Device
	now *atomic.Bool
}

func (d overflowing) Attention(s device.Stream, o, lse, q, k, v device.Tensor, docs device.Docs, a device.AttnShape, ws device.Buf) {
	d.Device.Attention(s, o, lse, q, k, v, docs, a, ws)
	if d.now.Load() {
		d.Fill(s, o.RowRange(0, 1), float32(math.Inf(1)))
	}
}

func TestTheJobsLinesSayWhichRankAndLayerIsNotFinite(t *testing.T) {
	c := newCluster(t, workertest.New(t), 2, "cluster.worldSize=4", "train.steps=8", "eval.every=8 steps")
	c.mustPrepare()
	var now, opened atomic.Bool
	c.openDevice = func(class string) (device.Device, error) {
		path, _, _ := strings.Cut(class, " ")
		d, err := cpu.New(cpu.Options{Path: path, Threads: 1})
		if err != nil || opened.Swap(true) {
			return d, err
		}
		return overflowing{d, &now}, nil
	}
	c.onStep = func(_ string, p *skeinv1.Progress) {
		if p.Step == 2 || p.Step == 4 {
			now.Store(p.Step == 2)
		}
	}
	c.mustRun(c.places)
	c.mu.Lock()
	defer c.mu.Unlock()
	located := regexp.MustCompile(`^NaN or infinity in step (3|4): rank (\d) on (w\d), first in the forward of layer\.0; rank (\d) on (w\d), first in the forward of layer\.0$`)
	said, skipped := 0, 0
	for _, e := range c.events {
		switch e := e.(type) {
		case console.Note:
			m := located.FindStringSubmatch(e.Text)
			if m == nil {
				continue
			}
			said++
			if m[3] != m[5] || m[2]+m[4] != map[string]string{"w1": "01", "w2": "23"}[m[3]] {
				t.Errorf("%q is not about the ranks of one worker", e.Text)
			}
		case console.Step:
			if e.Skipped != "" {
				skipped++
			}
		}
	}
	if skipped == 0 || said != 1 { // and not again in each step
		t.Errorf("%d steps were skipped, and %d lines say where it began: %v", skipped, said, c.events)
	}
}

// sluggish is a device that takes its time for each attention.
type sluggish struct {
	device.Device
	device.HostAddressable
}

func (d sluggish) Attention(s device.Stream, o, lse, q, k, v device.Tensor, docs device.Docs, a device.AttnShape, ws device.Buf) {
	d.Device.Attention(s, o, lse, q, k, v, docs, a, ws)
	time.Sleep(20 * time.Millisecond)
}

// TestASlowMachineIsNamedWithItsRank has one of three workers compute many times as long as the others, in each
// way in which ranks are computed.
func TestASlowMachineIsNamedWithItsRank(t *testing.T) {
	j := workertest.New(t)
	for _, zero := range []string{"cluster.zero=1", "cluster.zero=3"} {
		c := newCluster(t, j.Copy(t), 3, "cluster.worldSize=3", "train.globalBatch=6", "train.steps=20", "eval.every=100 steps", zero)
		c.mirror = true
		c.mustPrepare()
		var slow atomic.Int64 // devices are opened in any order, so the slow one is found by what its worker tells
		c.openDevice = func(class string) (device.Device, error) {
			path, _, _ := strings.Cut(class, " ")
			d, err := cpu.New(cpu.Options{Path: path, Threads: 1})
			if err != nil || slow.Add(1) != 2 {
				return d, err
			}
			return sluggish{d, d}, nil
		}
		var mu sync.Mutex
		named := map[string]int{}
		compute := map[string]time.Duration{}
		c.onPhases = func(name string, p worker.Phases) {
			mu.Lock()
			defer mu.Unlock()
			compute[name] += p.Compute
			if p.Straggler != nil {
				named[p.Straggles]++
				if want := fmt.Sprint("w", p.Straggler.Rank+1); p.Straggles != want || p.Straggler.Data {
					t.Errorf("%s: rank %d is said to be on %s: %+v", zero, p.Straggler.Rank, p.Straggles, p.Straggler)
				}
			}
		}
		c.mustRun(c.places)
		mu.Lock()
		slowest := ""
		for w, d := range compute {
			if d > compute[slowest] {
				slowest = w
			}
		}
		if named[slowest] == 0 {
			t.Errorf("%s: %s computes for the longest, %v, and named are %v", zero, slowest, compute, named)
		}
		mu.Unlock()
	}
}

// hanging is a device whose attention, once, does not end before it is let go on.
type hanging struct {
	device.Device
	device.HostAddressable
	now  *atomic.Bool
	gate <-chan struct{}
}

func (d hanging) Attention(s device.Stream, o, lse, q, k, v device.Tensor, docs device.Docs, a device.AttnShape, ws device.Buf) {
	if d.now.CompareAndSwap(true, false) {
		<-d.gate
	}
	d.Device.Attention(s, o, lse, q, k, v, docs, a, ws)
}

// TestAHangIsNamedInTheJobsLines lets a worker's computation hang until it has been named there: with rank, worker,
// generation, step, operation, bucket and piece. Then the job goes on, since nothing is broken.
func TestAHangIsNamedInTheJobsLines(t *testing.T) {
	j := workertest.New(t)
	settings := []string{"cluster.worldSize=6", "train.globalBatch=6", "train.steps=8", "eval.every=100 steps"}
	want := trainedHash(t, j, settings...)
	for _, zero := range []string{"cluster.zero=0", "cluster.zero=1", "cluster.zero=2", "cluster.zero=3"} {
		c := newCluster(t, j.Copy(t), 3, append(slices.Clone(settings), zero)...)
		c.mirror = true
		c.mustPrepare()
		var opened atomic.Int64
		var now atomic.Bool
		gate := make(chan struct{})
		c.openDevice = func(class string) (device.Device, error) {
			path, _, _ := strings.Cut(class, " ")
			d, err := cpu.New(cpu.Options{Path: path, Threads: 1})
			if err != nil || opened.Add(1) != 2 {
				return d, err
			}
			return hanging{d, d, &now, gate}, nil
		}
		c.onStep = func(_ string, p *skeinv1.Progress) {
			if p.Step == 3 {
				now.Store(true)
			}
		}
		said := regexp.MustCompile(`^generation 1 has waited \d\.?\d*s for \w+, step \d, bucket \d, piece \d: w(\d), for rank (\d), has not .* step \d`)
		all := make(chan struct{})
		go func() {
			defer close(all)
			c.mustRun(c.places)
		}()
		var notes []string
		for text := ""; text == ""; time.Sleep(10 * time.Millisecond) {
			select {
			case <-all:
				t.Fatalf("%s: the job is over, and nobody was named", zero)
			default:
			}
			c.mu.Lock()
			for _, e := range c.events {
				if n, ok := e.(console.Note); ok && strings.Contains(n.Text, "has waited") {
					notes = append(notes, n.Text)
					text = n.Text
				}
			}
			c.mu.Unlock()
		}
		close(gate)
		<-all
		m := said.FindStringSubmatch(notes[0])
		if m == nil || m[1] != map[string]string{"0": "1", "1": "1", "2": "2", "3": "2", "4": "3", "5": "3"}[m[2]] {
			t.Errorf("%s: %q", zero, notes)
		}
		if got := c.newest(); got.Weights != want {
			t.Errorf("%s: it ends on %s, want %s", zero, got.Weights, want)
		}
	}
}
