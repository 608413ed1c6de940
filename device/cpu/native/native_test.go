package native

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"
)

// The generator's check needs a C compiler, this one does not.
func TestCommittedAssemblyNamesTheHashOfItsSource(t *testing.T) {
	sources, err := filepath.Glob("src/*.c")
	if err != nil || len(sources) == 0 {
		t.Fatal("no sources", err)
	}
	headers, _ := filepath.Glob("src/*.h")
	for _, src := range sources {
		h := sha256.New()
		for _, path := range append([]string{src}, headers...) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(h, "%s %d\n", filepath.Base(path), len(b))
			h.Write(b)
		}
		want := "sha256 " + hex.EncodeToString(h.Sum(nil))[:16]
		name := strings.TrimSuffix(filepath.Base(src), ".c")
		for _, suffix := range []string{"_amd64.s", "_amd64.go", "_other.go", "_kernels.go"} {
			b, err := os.ReadFile(name + suffix)
			if err != nil {
				t.Fatal(err)
			}
			first, _, _ := bytes.Cut(b, []byte("\n"))
			if !bytes.Contains(first, []byte(want)) {
				t.Errorf("%s%s is stale: %s.c has %s; run go generate ./device/cpu/native", name, suffix, name, want)
			}
		}
	}
}

// A kernel must survive stack growth, other goroutines and collection around it.
func TestKernelsRunOnGrowingStacks(t *testing.T) {
	if !Features().AVX512 {
		t.Skip("SKIPPED: no AVX-512 on this machine")
	}
	want := peakOnce()
	var deep func(n int) [16]float32
	deep = func(n int) [16]float32 {
		var pad [256]byte
		if n > 0 {
			got := deep(n - 1)
			runtime.KeepAlive(&pad)
			return got
		}
		return peakOnce()
	}
	done := make(chan [16]float32)
	for i := range 32 {
		go func() { done <- deep(i * 20) }()
	}
	for range 32 {
		runtime.GC()
		if got := <-done; got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

func peakOnce() (out [16]float32) {
	PeakFMA(&PeakFMAArgs{Rounds: 1000, Out: unsafe.Pointer(&out)})
	return out
}

func TestKernelCallsAllocateNothing(t *testing.T) {
	if !Features().AVX512 {
		t.Skip("SKIPPED: no AVX-512 on this machine")
	}
	out := make([]float32, 16)
	if n := testing.AllocsPerRun(100, func() {
		PeakFMA(&PeakFMAArgs{Rounds: 1, Out: unsafe.Pointer(&out[0])})
	}); n != 0 {
		t.Errorf("%v allocations per call", n)
	}
}

func BenchmarkPeakFMA(b *testing.B) {
	if !Features().AVX512 {
		b.Skip("SKIPPED: no AVX-512 on this machine")
	}
	const rounds = 100_000
	out := make([]float32, 16)
	for b.Loop() {
		PeakFMA(&PeakFMAArgs{Rounds: rounds, Out: unsafe.Pointer(&out[0])})
	}
	b.ReportMetric(float64(b.N)*rounds*512/b.Elapsed().Seconds()/1e9, "GF/s")
}
