package opaque

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"time"

	"github.com/skein-ml/skein/device"
)

// stream runs its queue on a goroutine of its own.
type stream struct {
	dev   *Device
	inner device.Stream
	delay time.Duration
	rng   *rand.Rand // the goroutine's

	mu    sync.Mutex
	more  *sync.Cond
	queue []func() // without limit: a call must not block
	ended bool
	done  chan struct{}
}

func newStream(d *Device, inner device.Stream, o Options, id uint64) *stream {
	s := &stream{dev: d, inner: inner, delay: o.DelayMax, rng: rand.New(rand.NewPCG(o.Seed, id)), done: make(chan struct{})}
	s.more = sync.NewCond(&s.mu)
	go s.live()
	return s
}

func (s *stream) live() {
	defer close(s.done)
	for {
		s.mu.Lock()
		for len(s.queue) == 0 && !s.ended {
			s.more.Wait()
		}
		if len(s.queue) == 0 {
			s.mu.Unlock()
			return
		}
		next := s.queue[0]
		s.queue = s.queue[1:]
		s.mu.Unlock()
		s.linger()
		s.guarded(next)
	}
}

// linger lets the host run ahead, sometimes far.
func (s *stream) linger() {
	switch n := s.rng.IntN(8); {
	case n == 0 && s.delay > 0:
		time.Sleep(time.Duration(s.rng.Int64N(int64(s.delay))))
	case n < 4:
		runtime.Gosched()
	}
}

// guarded runs f; a panic becomes the stream's error.
func (s *stream) guarded(f func()) {
	defer func() {
		if v := recover(); v != nil {
			s.fail(fmt.Errorf("opaque: %v", v))
		}
	}()
	f()
}

// fail makes err the error of the stream, if it has none: the hidden stream keeps it.
func (s *stream) fail(err error) { s.inner.After(failed{err}) }

func (s *stream) failed() bool { return s.inner.Record().Wait() != nil }

// failed is an event of work that failed.
type failed struct{ err error }

func (f failed) Wait() error { return f.err }

func (s *stream) push(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		panic("opaque: use of a closed device")
	}
	s.queue = append(s.queue, f)
	s.more.Signal()
}

func (s *stream) close() {
	s.mu.Lock()
	s.ended = true
	s.more.Signal()
	s.mu.Unlock()
	<-s.done
}

// event fires when its stream comes to it.
type event struct {
	fired chan struct{}
	err   error // set before fired is closed
}

func (e *event) Wait() error {
	<-e.fired
	return e.err
}

// Record returns an event that fires when everything called so far has run.
func (s *stream) Record() device.Event {
	e := &event{fired: make(chan struct{})}
	s.push(func() {
		e.err = s.inner.Record().Wait()
		close(e.fired)
	})
	return e
}

// After makes what is called from now on wait for e.
func (s *stream) After(e device.Event) { s.push(func() { s.inner.After(e) }) }

// Stream is the stream of kind k.
func (d *Device) Stream(k device.StreamKind) device.Stream { return d.streams[k] }

// call is an operation on its way into a queue: handles are resolved here, in the
// caller's goroutine, so that misuse panics where it happens.
type call struct {
	d    *Device
	s    *stream
	uses []*memory
	docs []func() error // conditions that have to hold when the operation runs
}

func (d *Device) begin(s device.Stream) *call {
	own, ok := s.(*stream)
	if !ok || own == nil || own.dev != d {
		panic(fmt.Sprintf("opaque: a stream of another device (%T)", s))
	}
	return &call{d: d, s: own}
}

// use finds a handle's memory and remembers that the call uses it.
func (c *call) use(h handle) *memory {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	m := c.d.lookup(h)
	c.uses = append(c.uses, m)
	return m
}

// buf is the hidden buffer behind b, none for none.
func (c *call) buf(b device.Buf) device.Buf {
	if b.IsZero() {
		return b
	}
	own, off := c.d.own(b)
	return c.use(own.h).buf.Slice(off, b.Bytes())
}

// workspace is the hidden buffer behind ws, which has at least need bytes.
func (c *call) workspace(ws device.Buf, need int64) device.Buf {
	if have := ws.Bytes(); have < need {
		panic(fmt.Sprintf("opaque: %d bytes of workspace are needed, %d were given", need, have))
	}
	return c.buf(ws)
}

func (c *call) tensor(t device.Tensor) device.Tensor {
	if !t.IsZero() {
		t.Buf = c.buf(t.Buf)
	}
	return t
}

func (c *call) weight(w device.Weight) device.Weight {
	own := c.d.ownWeight(w)
	c.buf(own.src.Buf) // is read in place, perhaps
	return c.use(own.h).weight
}

func (c *call) epilogue(e device.Epilogue) device.Epilogue {
	return device.Epilogue{Bias: c.tensor(e.Bias), Add: c.tensor(e.Add)}
}

var errHostChanged = errors.New("opaque: Docs.Host changed before the operation ran")

// documents keeps a copy of the boundaries and compares with it, and with those on the
// device, when the operation runs.
func (c *call) documents(docs device.Docs) device.Docs {
	mine := append([]int32(nil), docs.Host...)
	inner := device.Docs{Cu: c.tensor(docs.Cu), Host: mine}
	c.docs = append(c.docs, func() error {
		cu := make([]int32, len(mine))
		c.d.inner.Download(c.s.inner, device.HostBytes(cu), inner.Cu.Buf.Slice(0, int64(4*len(cu))))
		for i, v := range mine {
			if docs.Host[i] != v {
				return errHostChanged
			}
			if cu[i] != v {
				return fmt.Errorf("opaque: document boundary %d is %d on the device and %d on the host", i, cu[i], v)
			}
		}
		return nil
	})
	return inner
}

// run queues f. What the call uses can not be freed before f has run.
func (c *call) run(f func()) {
	c.d.mu.Lock()
	for _, m := range c.uses {
		m.queued++
	}
	c.d.mu.Unlock()
	c.s.push(func() {
		defer c.release()
		for _, holds := range c.docs {
			if c.s.failed() {
				return
			}
			if err := holds(); err != nil {
				c.s.fail(err)
			}
		}
		f()
	})
}

func (c *call) release() {
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	for _, m := range c.uses {
		m.queued--
	}
}
