package cpu

import (
	"slices"
	"strings"
	"testing"

	"github.com/skein-ml/skein/device"
)

func open(t *testing.T, o Options) *Device {
	t.Helper()
	d, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func TestMemoryIsCountedByKindWithItsPeak(t *testing.T) {
	d := open(t, Options{Path: "generic", Threads: 1})
	a, err := d.Alloc(1<<20, device.KindGradients)
	if err != nil {
		t.Fatal(err)
	}
	b, err := d.Alloc(3<<20, device.KindWorkspace)
	if err != nil {
		t.Fatal(err)
	}
	w, err := d.NewWeight(device.Make(b, device.BF16, 8, 16), device.FormForward)
	if err != nil {
		t.Fatal(err)
	}
	in := d.Info()
	if in.Allocated[device.KindGradients] != 1<<20 || in.Allocated[device.KindWorkspace] != 3<<20 || in.Allocated[device.KindWeights] != 0 { // this path packs nothing
		t.Errorf("allocated %v", in.Allocated)
	}
	d.Free(a)
	d.Free(b)
	d.FreeWeight(w)
	in = d.Info()
	if in.Peak != 4<<20 || slices.Max(in.Allocated[:]) != 0 {
		t.Errorf("after freeing: peak %d, allocated %v", in.Peak, in.Allocated)
	}
}

func TestAllocIsZeroedAndAligned(t *testing.T) {
	d := open(t, Options{Threads: 1})
	for _, n := range []int64{0, 1, 64, 4097, 3 << 20} {
		b, err := d.Alloc(n, device.KindStaging)
		if err != nil {
			t.Fatal(err)
		}
		mem := d.Host(b)
		if int64(len(mem)) != n || b.Bytes() != n {
			t.Errorf("%d bytes asked, %d given", n, len(mem))
		}
		if n > 0 && addressOf(mem)%64 != 0 {
			t.Errorf("%d bytes begin at %#x", n, addressOf(mem))
		}
		if slices.ContainsFunc(mem, func(c byte) bool { return c != 0 }) {
			t.Errorf("%d bytes are not zero", n)
		}
		d.Free(b)
	}
}

func TestAllocBeyondTheLimitSaysHowMuchThereIs(t *testing.T) {
	d := open(t, Options{Threads: 1, MemoryBytes: 1000})
	if _, err := d.Alloc(600, device.KindWeights); err != nil {
		t.Fatal(err)
	}
	_, err := d.Alloc(500, device.KindOptimizer)
	if err == nil || !strings.Contains(err.Error(), "500 bytes of optimizer memory asked for, 400 of 1000 free") {
		t.Errorf("error %v", err)
	}
}

func TestAPathIsForcedByItsVariable(t *testing.T) {
	t.Setenv(PathVariable, "generic")
	if in := open(t, Options{Path: "auto", Threads: 1}).Info(); in.Path != "generic" || in.Class != "generic r1" {
		t.Errorf("path %q, class %q", in.Path, in.Class)
	}
	t.Setenv(PathVariable, "abacus")
	if _, err := New(Options{}); err == nil || !strings.Contains(err.Error(), `unknown path SKEIN_CPU_PATH="abacus"`) {
		t.Errorf("error %v", err)
	}
}

func TestAPathThatTheHostLacksIsRefusedByWhatItLacks(t *testing.T) {
	saved := paths
	defer func() { paths = saved }()
	paths = append([]path{{name: "future", missing: func() string { return "a flux capacitor" }}}, paths...)
	if _, err := New(Options{Path: "future"}); err == nil || !strings.Contains(err.Error(), "path future can not run here: this machine lacks a flux capacitor") {
		t.Errorf("error %v", err)
	}
	if s := Paths()[0]; s.Available || s.Why != "a flux capacitor" {
		t.Errorf("status %+v", s)
	}
	if in := open(t, Options{Threads: 1}).Info(); in.Path == "future" {
		t.Errorf("auto chose %q", in.Path)
	}
}

func expectPanic(t *testing.T, want string, f func()) {
	t.Helper()
	defer func() {
		t.Helper()
		if v, _ := recover().(string); !strings.Contains(v, want) {
			t.Errorf("panic %q, want %q", v, want)
		}
	}()
	f()
}

func TestMisuseOfMemoryPanics(t *testing.T) {
	d, other := open(t, Options{Threads: 1}), open(t, Options{Threads: 1})
	b, _ := d.Alloc(64, device.KindStaging)
	w, _ := d.NewWeight(device.Make(b, device.F32, 2, 2), device.FormForward)
	expectPanic(t, "buffer of another device", func() { other.Host(b) })
	expectPanic(t, "stream of another device", func() { d.Upload(other.Stream(device.StreamCopy), b, make([]byte, 64)) })
	expectPanic(t, "weight of another device", func() { other.FreeWeight(w) })
	expectPanic(t, "Free of a slice", func() { d.Free(b.Slice(0, 8)) })
	expectPanic(t, "bytes [60, 68) of a buffer of 64", func() { b.Slice(60, 8) })
	half := b.Slice(0, 32)
	d.Free(b)
	d.FreeWeight(w)
	expectPanic(t, "use of a freed buffer", func() { d.Host(half) })
	expectPanic(t, "use of a freed weight", func() { d.FreeWeight(w) })
	c, _ := d.Alloc(64, device.KindStaging)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	expectPanic(t, "use of a freed buffer", func() { d.Host(c) })
}
