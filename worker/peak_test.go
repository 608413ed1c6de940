package worker_test

import (
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu"
	"github.com/skein-ml/skein/model/config"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
	"github.com/skein-ml/skein/worker"
	"github.com/skein-ml/skein/worker/workertest"
)

// gauged is a device that notes the most that it had of weights at any moment.
type gauged struct {
	device.Device
	device.HostAddressable
	mu   *sync.Mutex
	most *int64
}

func (d gauged) note() {
	d.mu.Lock()
	defer d.mu.Unlock()
	*d.most = max(*d.most, d.Info().Allocated[device.KindWeights])
}

func (d gauged) Alloc(bytes int64, k device.Kind) (device.Buf, error) {
	defer d.note()
	return d.Device.Alloc(bytes, k)
}

func (d gauged) NewWeight(src device.Tensor, forms device.Forms) (device.Weight, error) {
	defer d.note()
	return d.Device.NewWeight(src, forms)
}

// TestNoWorkerEverHasRoomForAllWeightsInStage3 looks at every worker from the job's preparation to its end: at
// its steps, evaluations and checkpoints, when a worker is lost, when its ranks move to others, and when a new one comes.
// What is packed of weights counts as if it were more of them.
func TestNoWorkerEverHasRoomForAllWeightsInStage3(t *testing.T) {
	j := workertest.New(t)
	j.Model(t, workertest.Model{Layers: 16, MLP: 192})
	settings := []string{"cluster.worldSize=4", "train.steps=14", "eval.every=4 steps"}
	want := trainedHash(t, j, settings...)
	peak := func(zero string) (most, whole int64) {
		c := newCluster(t, j.Copy(t), 4, append(settings, zero)...)
		c.mirror = true
		c.keeping(c.places...)
		c.places[1].keep = nil // what it has dies with it
		var mu sync.Mutex
		c.openDevice = func(class string) (device.Device, error) {
			path, _, _ := strings.Cut(class, " ")
			d, err := cpu.New(cpu.Options{Path: path, Threads: 1})
			if err != nil {
				return nil, err
			}
			return gauged{d, d, &mu, &most}, nil
		}
		c.mustPrepare()
		lost, cancel := context.WithCancel(t.Context())
		defer cancel()
		c.onStep = func(name string, p *skeinv1.Progress) {
			if name == "w2" && p.Step == 6 {
				cancel()
			}
		}
		errs := c.run(c.places, func(p *place) context.Context {
			if p.name == "w2" {
				return lost
			}
			return t.Context()
		})
		c.recover(c.places, errs)
		c.places[1].keep = worker.NewKeep()
		t.Cleanup(c.places[1].keep.Drop)
		c.mustRun([]*place{c.places[2], c.places[0], c.places[1], c.places[3]})
		if got := c.newest(); got.Weights != want || got.Step != 14 {
			t.Errorf("%s: step %d has weights %s, want step 14 with %s", zero, got.Step, got.Weights, want)
		}
		mu.Lock()
		defer mu.Unlock()
		return most, 2 * elements(t, j)
	}
	most, whole := peak("cluster.zero=3")
	if most <= 0 || most >= whole {
		t.Errorf("in stage 3 a worker had %d bytes of weights at once, all of them are %d", most, whole)
	}
	t.Logf("stage 3: %d bytes of weights at most, of %d", most, whole)
	if most, _ := peak("cluster.zero=2"); most < whole {
		t.Errorf("in stage 2 every worker has all weights, and %d bytes were seen of %d", most, whole)
	}
}

// elements is how many weights a job's model has.
func elements(t *testing.T, j workertest.Job) (n int64) {
	t.Helper()
	cfg, _, err := config.Parse([]byte(j.Read(t, "model/config.json")))
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range cfg.Tensors() {
		size := int64(1)
		for _, d := range x.Shape() {
			size *= d
		}
		n += size
	}
	return n
}
