package stream

import (
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/skein-ml/skein/data"
	"github.com/skein-ml/skein/shard"
)

// wire forwards connections to a server, until it is cut or frozen: what a machine does that dies or hangs.
type wire struct {
	l       net.Listener
	to      string
	running sync.WaitGroup

	mu     sync.Mutex
	conns  []*net.TCPConn
	frozen chan struct{} // nil while bytes flow; closed when they may again
	delay  time.Duration // before each read is passed on
	cut    bool
}

func newWire(t testing.TB, to string) *wire {
	w := &wire{l: listen(t), to: to}
	w.running.Go(func() {
		for {
			c, err := w.l.Accept()
			if err != nil {
				return
			}
			w.running.Go(func() { w.forward(c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() { w.thaw(); w.kill(); w.running.Wait() })
	return w
}

func (w *wire) addr() string { return w.l.Addr().String() }

func (w *wire) forward(c *net.TCPConn) {
	defer c.Close()
	far, err := net.Dial("tcp", w.to)
	if err != nil {
		return
	}
	s := far.(*net.TCPConn)
	w.mu.Lock()
	w.conns = append(w.conns, c, s)
	cut := w.cut
	w.mu.Unlock()
	if cut {
		s.Close()
		return
	}
	var both sync.WaitGroup
	both.Go(func() { w.copy(c, s) })
	both.Go(func() { w.copy(s, c) })
	both.Wait()
}

func (w *wire) copy(to, from *net.TCPConn) {
	defer to.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		w.mu.Lock()
		frozen, delay := w.frozen, w.delay
		w.mu.Unlock()
		if frozen != nil {
			<-frozen
		}
		time.Sleep(delay)
		if _, werr := to.Write(b[:n]); err != nil || werr != nil {
			return
		}
	}
}

// kill closes the listener and resets every connection.
func (w *wire) kill() {
	w.l.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = true
	for _, c := range w.conns {
		c.SetLinger(0)
		c.Close()
	}
}

// freeze lets nothing through, not even the news that the connection is gone.
func (w *wire) freeze() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.frozen = make(chan struct{})
}

func (w *wire) thaw() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.frozen != nil {
		close(w.frozen)
		w.frozen = nil
	}
}

// stepDelayMax tells a step that goes on at another server from one that waits for the lost
// one. Two seconds are promised, and some tenths usual; the machine may be busy with other things.
const stepDelayMax = 30 * time.Second

// calm is a patience with servers that are slow because the machine is.
const calm = 20 * time.Second

// loseOne runs steps over two servers with little memory, so that every step reads from them; in the middle it does something
// to one. It gives the longest step.
func loseOne(t *testing.T, follow bool, patience time.Duration, lose func(*wire)) (longest time.Duration, c *Client) {
	d := large()
	addr, _ := serve(t, plainText, d)
	a, b := newWire(t, addr), newWire(t, addr)
	c = open(t, Config{Servers: []string{a.addr(), b.addr()}, ContentHash: hashOf(d), MemoryBytes: 1, Patience: patience})
	o := shard.Order{Seed: 11, Samples: d.Len(), GlobalBatch: 8}
	if follow {
		must(t, c.Follow(Plan{Order: o, Places: []Places{{0, 8}}}, 1))
	}
	lost := make(chan struct{})
	for k := int64(1); k < 30; k++ {
		if k == 10 {
			// In the middle of a stream: of this step's records, or of those that are fetched ahead.
			time.AfterFunc(2*time.Millisecond, func() { lose(a); close(lost) })
		}
		if k == 20 {
			<-lost
		}
		if follow {
			c.Step(k)
		}
		var indices []int64
		for j := range o.GlobalBatch {
			index, _ := o.Sample(k, j)
			indices = append(indices, index)
		}
		var got, want data.Batch
		start := time.Now()
		must(t, c.Batch(t.Context(), indices, &got))
		longest = max(longest, time.Since(start))
		if must(t, d.Batch(t.Context(), indices, &want)); !slices.Equal(got.Tokens, want.Tokens) {
			t.Fatalf("step %d differs", k)
		}
	}
	return longest, c
}

func TestAKilledServerDelaysNoStep(t *testing.T) {
	for name, follow := range map[string]bool{"with a plan": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			longest, c := loseOne(t, follow, calm, (*wire).kill)
			t.Logf("longest step %v", longest)
			if longest > stepDelayMax {
				t.Errorf("a step took %v, at most %v are promised", longest, stepDelayMax)
			}
			if s := c.Stats(); s.Failures == 0 || s.Servers[0].Working || !s.Servers[1].Working {
				t.Errorf("nothing failed: %+v", s)
			}
		})
	}
}

func TestAServerThatHangsDelaysNoStep(t *testing.T) {
	for name, follow := range map[string]bool{"with a plan": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			longest, c := loseOne(t, follow, time.Second, (*wire).freeze)
			t.Logf("longest step %v", longest)
			if longest > stepDelayMax {
				t.Errorf("a step took %v, at most %v are promised", longest, stepDelayMax)
			}
			if s := c.Stats(); s.Failures == 0 || s.Servers[0].Reason != errStalled.Error() {
				t.Errorf("nothing stalled: %+v", s)
			}
		})
	}
}

func TestAServerThatComesBackIsUsedAgain(t *testing.T) {
	d := large()
	addr, _ := serve(t, plainText, d)
	a, b := newWire(t, addr), newWire(t, addr)
	c := open(t, Config{Servers: []string{a.addr(), b.addr()}, ContentHash: hashOf(d), MemoryBytes: 1, Patience: 50 * time.Millisecond})
	o := shard.Order{Seed: 11, Samples: d.Len(), GlobalBatch: 8}
	step, working := int64(1), func() bool { return c.Stats().Servers[0].Working }
	turn := func(until func() bool) func() bool {
		return func() bool {
			steps(t, d, c, o, []shard.Rank{0}, 1, step, step+1, nil)
			step++
			return until()
		}
	}
	a.freeze()
	waitFor(t, "the server to fail", turn(func() bool { return !working() }))
	a.thaw()
	waitFor(t, "the server to be tried again", turn(working))
}

func TestAllServersBackFromTheDeadServeTheWaitingBatch(t *testing.T) {
	d := small()
	addr, _ := serve(t, plainText, d)
	w := newWire(t, addr)
	c := open(t, Config{Servers: []string{w.addr()}, ContentHash: hashOf(d), Patience: 100 * time.Millisecond})
	w.freeze()
	thawed := make(chan struct{})
	go func() {
		defer close(thawed)
		for c.Stats().Failures == 0 && t.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
		w.thaw()
	}()
	samePacks(t, d, c, []int64{3, 900, 400})
	<-thawed
	if s := c.Stats(); s.Failures == 0 || s.Wait == 0 {
		t.Errorf("the batch did not wait: %+v", s)
	}
}

func TestASlowServerAloneIsWaitedFor(t *testing.T) {
	d := small()
	addr, _ := serve(t, plainText, d)
	w := newWire(t, addr)
	c := open(t, Config{Servers: []string{w.addr()}, ContentHash: hashOf(d), Patience: 60 * time.Millisecond})
	w.mu.Lock()
	w.delay = 100 * time.Millisecond // more than patience, for one message and the next
	w.mu.Unlock()
	samePacks(t, d, c, []int64{3, 900, 400})
}

func TestASlowServerIsLeftForAFastOne(t *testing.T) {
	d := large()
	addr, _ := serve(t, plainText, d)
	slow := newWire(t, addr)
	c := open(t, Config{Servers: []string{slow.addr(), addr}, ContentHash: hashOf(d), Patience: 200 * time.Millisecond})
	slow.mu.Lock()
	slow.delay = 2 * time.Second
	slow.mu.Unlock()
	start := time.Now()
	for i := range int64(20) {
		samePacks(t, d, c, []int64{i * 256})
	}
	if took := time.Since(start); took > stepDelayMax {
		t.Errorf("20 records took %v beside a server that takes seconds for each", took)
	}
}

func TestAResetConnectionIsMadeAgain(t *testing.T) {
	// A reset while the client is idle costs nothing either: the next batch connects again.
	d := small()
	addr, _ := serve(t, plainText, d)
	w := newWire(t, addr)
	c := open(t, Config{Servers: []string{w.addr()}, ContentHash: hashOf(d)})
	samePacks(t, d, c, []int64{3})
	w.mu.Lock()
	for _, conn := range w.conns {
		conn.SetLinger(0)
		conn.Close()
	}
	w.conns = nil
	w.mu.Unlock()
	start := time.Now()
	var b data.Batch
	if err := c.Batch(t.Context(), []int64{2000}, &b); err != nil || time.Since(start) > stepDelayMax {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}
