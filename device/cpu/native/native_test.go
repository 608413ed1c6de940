package native

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
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
	for _, src := range sources {
		want := "sha256 " + sourceHash(t, filepath.Base(src))
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

var includeRE = regexp.MustCompile(`(?m)^#include "(\w+\.h)"`)

// sourceHash is what the generator writes: of a file and, recursively, its headers.
func sourceHash(t *testing.T, file string) string {
	files, h := []string{file}, sha256.New()
	for i := 0; i < len(files); i++ {
		b, err := os.ReadFile(filepath.Join("src", files[i]))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(h, "%s %d\n", files[i], len(b))
		h.Write(b)
		for _, m := range includeRE.FindAllSubmatch(b, -1) {
			if name := string(m[1]); !slices.Contains(files, name) {
				files = append(files, name)
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
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
