package trainer

import (
	"testing"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/model/modeltest"
	"github.com/skein-ml/skein/shard"
)

// copying is a device that counts how often it has copied to each place of the host's memory.
type copying struct {
	device.Device
	copies map[*byte]int
}

func (d *copying) Download(s device.Stream, host []byte, src device.Buf) {
	if d.copies != nil {
		d.copies[&host[0]]++
	}
	d.Device.Download(s, host, src)
}

// TestStateThatGoesToSeveralWorkersIsFetchedOnce: while a device copies to host memory, what stands
// there is anything, and the link may be sending it to another worker.
func TestStateThatGoesToSeveralWorkersIsFetchedOnce(t *testing.T) {
	g := golden{modeltest.Load(t, "llama-tied-gqa")}
	c := g.config(4, 4)
	c.Stage = shard.StageReplicated
	hidden := &copying{Device: anyDevice(t, 0)}
	p := newTroupe(t, g, c)
	p.hire("a", hidden)
	for _, name := range []string{"b", "c", "d"} {
		p.hire(name, newDevice(t, "generic", 1))
	}
	if err := p.begin([]string{"a"}, []int{4}, nil); err != nil {
		t.Fatal(err)
	}
	if err := p.play(1, func(<-chan struct{}) {}); err != nil {
		t.Fatal(err)
	}
	p.atRest()
	plan, err := p.recover("")
	if err != nil {
		t.Fatal(err)
	}
	hidden.copies = map[*byte]int{}
	if err := p.begin([]string{"a", "b", "c", "d"}, []int{1, 1, 1, 1}, &plan); err != nil {
		t.Fatal(err)
	}
	table := p.actors["a"].tr.Table()
	if got, want := len(hidden.copies), states*table.Buckets()*table.WorldSize(); got < want {
		t.Fatalf("%d copies to the host, where %d pieces of state were sent", got, want)
	}
	for _, n := range hidden.copies {
		if n > 1 {
			t.Fatalf("a piece of state was copied %d times to the place that it is sent from", n)
		}
	}
}
