package cpu

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/skein-ml/skein/device/cpu/kernel"
)

// spinTime is how long a worker looks for work before it parks.
const spinTime = 20 * time.Microsecond

// pool runs the pieces of one task at a time on the caller (worker 0) and on
// workers 1 to n−1, goroutines that live as long as the pool.
type pool struct {
	task  kernel.Task // current task and its pieces; written before left
	count int64
	left  atomic.Int64 // pieces nobody has taken yet; a worker takes number left−1
	open  atomic.Int64 // pieces not yet done

	workers []poolWorker // [0] is the caller
	done    chan struct{}
	waiting atomic.Bool // the caller is parked on done
	closed  atomic.Bool
	ended   sync.WaitGroup

	failure atomic.Pointer[failure] // first panic of the task
}

type poolWorker struct {
	parked atomic.Bool
	wake   chan struct{} // capacity 1: only who turns parked off sends
	_      [40]byte      // one cache line each
}

// failure is what a piece panicked with.
type failure struct{ value any }

func newPool(workers int) *pool {
	p := &pool{workers: make([]poolWorker, workers), done: make(chan struct{}, 1)}
	for i := 1; i < workers; i++ {
		p.workers[i].wake = make(chan struct{}, 1)
		p.ended.Add(1)
		go p.live(i)
	}
	return p
}

func (p *pool) Workers() int { return len(p.workers) }

// Run computes pieces [0, n) of t and returns when all are done.
func (p *pool) Run(n int, t kernel.Task) {
	if n <= 0 {
		return
	}
	if n == 1 || len(p.workers) == 1 {
		for i := range n {
			t.Piece(i, 0)
		}
		return
	}
	p.task, p.count = t, int64(n)
	p.open.Store(int64(n))
	p.left.Store(int64(n))
	p.wakeUp(n - 1)
	p.drain(0)
	p.await()
	p.task = nil
	if f := p.failure.Swap(nil); f != nil {
		panic(f.value)
	}
}

func (p *pool) wakeUp(n int) {
	for i := 1; i < len(p.workers) && n > 0; i++ {
		if w := &p.workers[i]; w.parked.CompareAndSwap(true, false) {
			w.wake <- struct{}{}
			n--
		}
	}
}

// await returns when no piece is open: by spinning, then parked. A worker that was
// slow to leave an earlier task may wake it early, so it looks again.
func (p *pool) await() {
	for {
		if spin(func() bool { return p.open.Load() == 0 }) {
			return
		}
		p.waiting.Store(true)
		if p.open.Load() == 0 && p.waiting.CompareAndSwap(true, false) {
			return
		}
		<-p.done // whoever turned waiting off has sent or will
	}
}

// drain takes pieces until there are none.
func (p *pool) drain(worker int) {
	for p.take(worker) {
	}
}

// take computes pieces and tells whether it ended by a panic, which is kept for
// Run: a piece that fails must not leave its task open.
func (p *pool) take(worker int) (again bool) {
	defer func() {
		if v := recover(); v != nil {
			p.failure.CompareAndSwap(nil, &failure{v})
			p.finish()
			again = true
		}
	}()
	for {
		n := p.left.Load()
		if n == 0 {
			return false
		}
		// Whoever takes a number holds the task open, so reading it after is safe, even
		// if n belonged to an older task when it was loaded.
		if p.left.CompareAndSwap(n, n-1) {
			p.task.Piece(int(p.count-n), worker)
			p.finish()
		}
	}
}

func (p *pool) finish() {
	if p.open.Add(-1) == 0 && p.waiting.CompareAndSwap(true, false) {
		p.done <- struct{}{}
	}
}

// live is the life of worker i.
func (p *pool) live(i int) {
	defer p.ended.Done()
	w := &p.workers[i]
	ready := func() bool { return p.left.Load() > 0 || p.closed.Load() }
	for {
		if !spin(ready) {
			w.parked.Store(true)
			if !ready() || !w.parked.CompareAndSwap(true, false) {
				<-w.wake
			}
		}
		if p.closed.Load() {
			return
		}
		p.drain(i)
	}
}

// spin waits for ready for up to spinTime and tells whether it came.
func spin(ready func() bool) bool {
	for start := time.Now(); ; {
		for range 32 {
			if ready() {
				return true
			}
		}
		if time.Since(start) > spinTime {
			return false
		}
	}
}

// close ends the workers. No task runs then or later.
func (p *pool) close() {
	p.closed.Store(true)
	p.wakeUp(len(p.workers))
	p.ended.Wait()
}
