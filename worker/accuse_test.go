package worker_test

import (
	"math"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu"
	"github.com/skein-ml/skein/internal/console"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
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
