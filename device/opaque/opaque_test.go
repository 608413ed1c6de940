package opaque

import (
	"strings"
	"testing"
	"time"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu"
	"github.com/skein-ml/skein/device/devicetest"
	"github.com/skein-ml/skein/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

func opener(t *testing.T, o Options) func() device.Device {
	return func() device.Device {
		d, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
}

func TestOpaqueConforms(t *testing.T) {
	devicetest.Run(t, opener(t, Options{Seed: 1, DelayMax: 100 * time.Microsecond}), devicetest.Tolerance{F32: 4e-6, BF16: 1e-2})
}

func TestOpaqueGivesTheBitsOfTheGenericPath(t *testing.T) {
	devicetest.Agree(t, func() device.Device {
		d, err := cpu.New(cpu.Options{Path: "generic", Threads: 2})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}, opener(t, Options{Seed: 2}), opener(t, Options{Seed: 3, DelayMax: 200 * time.Microsecond}))
}

func TestOpaqueMemoryHasNoAddress(t *testing.T) {
	d := opener(t, Options{})()
	defer d.Close()
	if _, ok := d.(device.HostAddressable); ok {
		t.Error("the opaque device is host addressable")
	}
}

// stalled is a device whose compute stream waits for release.
func stalled(t *testing.T) (d *Device, s device.Stream, release func()) {
	d = opener(t, Options{Seed: 4})().(*Device)
	t.Cleanup(func() { _ = d.Close() })
	gate := &event{fired: make(chan struct{})}
	s = d.Stream(device.StreamCompute)
	s.After(gate)
	return d, s, func() { close(gate.fired) }
}

func alloc(t *testing.T, d *Device, n int64) device.Buf {
	t.Helper()
	b, err := d.Alloc(n, device.KindStaging)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCallsReturnBeforeTheirWorkRuns(t *testing.T) {
	d, s, release := stalled(t)
	b, host := alloc(t, d, 4), make([]byte, 4)
	d.Fill(s, device.Make(b, device.F32, 1, 1), 2)
	d.Download(s, host, b)
	done := s.Record()
	for _, v := range host {
		if v != poison {
			t.Errorf("host memory is %v before its event, want poison", host)
		}
	}
	release()
	if err := done.Wait(); err != nil || host[3] != 0x40 {
		t.Errorf("host memory is %v, error %v", host, err)
	}
}

func expectError(t *testing.T, s device.Stream, want string) {
	t.Helper()
	if err := s.Record().Wait(); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %q", err, want)
	}
}

func TestWritingToADownloadsMemoryTooEarlyIsFound(t *testing.T) {
	d, s, release := stalled(t)
	b, host := alloc(t, d, 8), make([]byte, 8)
	d.Download(s, host, b)
	host[5] = 1
	release()
	expectError(t, s, "written before its event")
}

func attend(d *Device, s device.Stream, b device.Buf, docs device.Docs) {
	x := device.Make(b, device.F32, 4, 2)
	d.Attention(s, x, device.Tensor{}, x, x, x, docs, device.AttnShape{Heads: 1, KVHeads: 1, HeadDim: 2, Scale: 1}, device.Buf{})
}

func TestChangingDocumentsTooEarlyIsFound(t *testing.T) {
	d, s, release := stalled(t)
	x, cu, host := alloc(t, d, 32), alloc(t, d, 12), []int32{0, 1, 4}
	d.Upload(s, cu, device.HostBytes(host))
	attend(d, s, x, device.Docs{Cu: device.Make(cu, device.I32, 1, 3), Host: host})
	host[1] = 2
	release()
	expectError(t, s, "Docs.Host changed")
}

func TestDocumentsThatDifferOnTheDeviceAreFound(t *testing.T) {
	d, s, release := stalled(t)
	x, cu := alloc(t, d, 32), alloc(t, d, 12)
	d.Upload(s, cu, device.HostBytes([]int32{0, 2, 4}))
	attend(d, s, x, device.Docs{Cu: device.Make(cu, device.I32, 1, 3), Host: []int32{0, 1, 4}})
	release()
	expectError(t, s, "document boundary 1 is 2 on the device and 1 on the host")
}

func TestFreeingWhatQueuedWorkUsesIsRefused(t *testing.T) {
	d, s, release := stalled(t)
	b := alloc(t, d, 4)
	d.Fill(s, device.Make(b, device.F32, 1, 1), 2)
	defer func() {
		if v, _ := recover().(string); !strings.Contains(v, "freed while 1 queued operations use it") {
			t.Errorf("panic %q", v)
		}
		release()
		if err := s.Record().Wait(); err != nil {
			t.Error(err)
		}
		d.Free(b)
	}()
	d.Free(b)
}

func TestAFailedStreamPassesItsErrorOn(t *testing.T) {
	d, s, release := stalled(t)
	release()
	ids, table, y := alloc(t, d, 4), alloc(t, d, 8), alloc(t, d, 4)
	d.Upload(s, ids, device.HostBytes([]int32{7}))
	d.Embed(s, device.Make(y, device.F32, 1, 1), device.Make(table, device.F32, 2, 1), device.Make(ids, device.I32, 1, 1))
	copies := d.Stream(device.StreamCopy)
	copies.After(s.Record())
	expectError(t, copies, "token 7 of row 0 is outside [0, 2)")
}
