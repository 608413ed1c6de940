// Package cpu is the device that every machine has: the host's own cores and memory.
//
// The generic path is plain Go and the specification of every operation: F32
// arithmetic, each product rounded by itself (so that no compiler fuses it with the
// addition that follows), every sum in an order that the code spells out. Its bits
// are the same on every machine. Faster paths replace entries of its
// [kernel.Table] and its [kernel.Products]; each is a numeric class of its own.
//
// Work is cut into pieces by its shape alone and computed on a pool of threads, so
// no result depends on their number. Calls return when the work is done: streams
// are always empty, and an event only carries the first error of its stream.
package cpu

import (
	"fmt"
	"runtime"
	"sync"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu/kernel"
)

// Options say how to open the device. Zero values mean the default.
type Options struct {
	// Path is a name that Paths or HighPaths lists, or "high" for the best of the latter. "" and
	// "auto" are the best of Paths that this machine can run, or what the environment
	// variable SKEIN_CPU_PATH names.
	Path string
	// Threads is the number of threads, GOMAXPROCS by default.
	Threads int
	// MemoryBytes limits what Alloc and NewWeight give out, by default to what
	// machine and control group have.
	MemoryBytes int64
}

// Device is the host's processor.
type Device struct {
	path     path
	kernels  kernel.Table
	products kernel.Products
	pool     *pool
	scratch  mapping // kernels.Scratch bytes for each worker
	streams  [2]stream

	compute sync.Mutex // held while an operation runs
	jobs    jobs       // of the operation that runs
	sums    [sqNormRound]float64

	memory    sync.Mutex
	limit     int64
	live      map[*allocation]struct{}
	allocated [len(device.Info{}.Allocated)]int64
	peak      int64
	closed    bool
}

var (
	_ device.Device          = (*Device)(nil)
	_ device.HostAddressable = (*Device)(nil)
)

// New opens the device. A path that this machine can not run is refused with what it lacks.
func New(o Options) (*Device, error) {
	p, err := choosePath(o.Path)
	if err != nil {
		return nil, err
	}
	if o.Threads < 0 || o.Threads > 4096 {
		return nil, fmt.Errorf("cpu: %d threads, want 1 to 4096, or 0 for one per core", o.Threads)
	}
	if o.Threads == 0 {
		o.Threads = runtime.GOMAXPROCS(0)
	}
	if o.MemoryBytes == 0 {
		o.MemoryBytes = systemMemory()
	}
	table, products, err := p.build()
	if err != nil {
		return nil, fmt.Errorf("cpu: path %s: %w", p.name, err)
	}
	table.Scratch = (table.Scratch + 63) &^ 63
	scratch, err := mapMemory(table.Scratch * int64(o.Threads))
	if err != nil {
		return nil, fmt.Errorf("cpu: scratch memory: %w", err)
	}
	d := &Device{path: p, kernels: table, products: products, scratch: scratch, limit: o.MemoryBytes,
		live: map[*allocation]struct{}{}}
	d.pool = newPool(o.Threads)
	for i := range d.streams {
		d.streams[i].dev = d
	}
	return d, nil
}

// Info describes the device and the memory in use.
func (d *Device) Info() device.Info {
	d.memory.Lock()
	defer d.memory.Unlock()
	info := device.Info{
		Name:        fmt.Sprintf("cpu %s, %d %s", d.path.name, d.pool.Workers(), plural(d.pool.Workers())),
		Path:        d.path.name,
		Class:       d.path.class(),
		Threads:     d.pool.Workers(),
		MemoryBytes: d.limit,
		Peak:        d.peak,
	}
	info.Allocated = d.allocated
	for dt := range info.PackedCopies {
		info.PackedCopies[dt] = d.packedCopies(device.DType(dt))
	}
	return info
}

// packedCopies is how often a weight without edges is held in both its forms.
func (d *Device) packedCopies(dt device.DType) int {
	const n = 32
	return int(d.products.PackedBytes(n, n, dt, device.FormForward|device.FormDX) / (n * n * dt.Size()))
}

func plural(threads int) string {
	if threads == 1 {
		return "thread"
	}
	return "threads"
}

// Close ends the threads and frees all memory. Nothing may run, and nothing of the
// device be used afterwards. Closing twice is harmless.
func (d *Device) Close() error {
	d.compute.Lock()
	defer d.compute.Unlock()
	d.memory.Lock()
	defer d.memory.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	d.pool.close()
	for a := range d.live {
		a.freed = true
		a.mem.unmap()
	}
	clear(d.live)
	d.scratch.unmap()
	return nil
}

// stream is always empty: its calls return when their work is done.
type stream struct {
	dev *Device
	mu  sync.Mutex
	err error // of the first operation that failed; later ones are skipped
}

// Stream is the stream of kind k.
func (d *Device) Stream(k device.StreamKind) device.Stream { return &d.streams[k] }

func (d *Device) stream(s device.Stream) *stream {
	own, ok := s.(*stream)
	if !ok || own == nil || own.dev != d {
		panic(fmt.Sprintf("cpu: a stream of another device (%T)", s))
	}
	return own
}

func (s *stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
}

func (s *stream) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// event has fired since it was recorded.
type event struct{ err error }

var fired = &event{} // the usual one, so that recording does not allocate

func (e *event) Wait() error { return e.err }

func (s *stream) Record() device.Event {
	if err := s.failed(); err != nil {
		return &event{err}
	}
	return fired
}

// After waits here and now; what came after failed work fails too.
func (s *stream) After(e device.Event) {
	if err := e.Wait(); err != nil {
		s.fail(err)
	}
}

// begin takes the device for an operation on s. It gives nil when the stream has
// failed: the operation is then skipped. Otherwise the caller defers end.
func (d *Device) begin(s device.Stream) *stream {
	own := d.stream(s)
	if own.failed() != nil {
		return nil
	}
	d.compute.Lock()
	return own
}

// end gives the device back and keeps what the operation panicked with as the
// stream's error. It must be deferred directly.
func (s *stream) end() {
	if v := recover(); v != nil {
		err, ok := v.(error)
		if !ok {
			err = fmt.Errorf("cpu: %v", v)
		}
		s.fail(err)
	}
	s.dev.compute.Unlock()
}

// Upload copies host memory in.
func (d *Device) Upload(s device.Stream, dst device.Buf, host []byte) {
	device.CheckCopy("Upload", dst.Bytes(), int64(len(host)))
	to := d.Host(dst)
	if d.stream(s).failed() == nil {
		copy(to, host)
	}
}

// Download copies out.
func (d *Device) Download(s device.Stream, host []byte, src device.Buf) {
	device.CheckCopy("Download", int64(len(host)), src.Bytes())
	from := d.Host(src)
	if d.stream(s).failed() == nil {
		copy(host, from)
	}
}

// Copy moves bytes within the device.
func (d *Device) Copy(s device.Stream, dst, src device.Buf) {
	device.CheckCopy("Copy", dst.Bytes(), src.Bytes())
	to, from := d.Host(dst), d.Host(src)
	if d.stream(s).failed() == nil {
		copy(to, from)
	}
}

// Need is the workspace of op in bytes.
func (d *Device) Need(op device.Op, sh device.Shape) int64 {
	switch op {
	case device.OpLinear, device.OpLinearDX, device.OpLinearDW:
		return d.products.Need(op, sh, d.pool.Workers())
	case device.OpAttentionGrad:
		_, _, end := gradLayout(sh.Rows, sh.Heads, sh.HeadDim)
		return end + 64
	case device.OpNormGrad:
		return int64(normChunks(sh.Rows, sh.Seq)) * int64(sh.In) * 4
	case device.OpLayerNormGrad:
		return 2 * int64(normChunks(sh.Rows, sh.Seq)) * int64(sh.In) * 4
	case device.OpEmbedGrad:
		return int64(d.pool.Workers()) * int64(sh.In) * 4
	case device.OpHeadLoss:
		return d.headNeed(sh)
	}
	return 0
}
