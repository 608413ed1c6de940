package cpu

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/skein-ml/skein/device/cpu/gemm"
	"github.com/skein-ml/skein/device/cpu/kernel"
	"github.com/skein-ml/skein/device/cpu/native"
)

// PathVariable names the environment variable that forces a path where Options leave
// the choice to the device.
const PathVariable = "SKEIN_CPU_PATH"

// path is one way to compute, and what it asks of the machine.
type path struct {
	name     string
	revision int           // goes up when its bits change
	missing  func() string // what the host lacks, "" if nothing
	behind   func() string // a path further down that is faster here, "" if none
	rate     func(native.Rates) float64
	high     bool // f32 products are three of bf16: a precision of its own, never chosen unasked
	build    func() (kernel.Table, kernel.Products, error)
}

// paths are in order of preference, as far as the machine does not tell otherwise; the
// last one runs everywhere.
var paths = []path{
	{
		name: "amx-bf16", revision: 2, missing: missingAMX, behind: emulatedTiles, build: withNative("amx-bf16"),
		rate: func(r native.Rates) float64 { return r.AMXBF16 },
	},
	{
		name: "avx512-bf16", revision: 2, missing: missingPairs, behind: slowPairs, build: withNative("avx512-bf16"),
		rate: func(r native.Rates) float64 { return r.AVX512BF16 },
	},
	{
		name: "avx512", revision: 2, missing: missingAVX512, build: withNative("avx512"),
		rate: func(r native.Rates) float64 { return r.AVX512 },
	},
	{
		name: "avx2", revision: 2, missing: missingAVX2, build: withNative("avx2"),
		rate: func(r native.Rates) float64 { return r.AVX2 },
	},
	{name: "generic", revision: 1, missing: func() string { return "" }, build: generic},
}

// highPaths are those of precision high.
var highPaths = []path{
	{
		name: "amx-bf16" + gemm.HighSuffix, revision: 2, missing: missingAMX, high: true, build: withNative("amx-bf16" + gemm.HighSuffix),
		behind: func() string { return slowHigh(native.Probe().AMXBF16) },
		rate:   func(r native.Rates) float64 { return r.AMXBF16 / 3 },
	},
	{
		name: "avx512-bf16" + gemm.HighSuffix, revision: 2, missing: missingPairs, high: true, build: withNative("avx512-bf16" + gemm.HighSuffix),
		behind: func() string { return slowHigh(native.Probe().AVX512BF16) },
		rate:   func(r native.Rates) float64 { return r.AVX512BF16 / 3 },
	},
}

func missingAVX2() string {
	if native.Features().AVX2 {
		return ""
	}
	return "AVX2 with FMA and BMI2"
}

func missingAVX512() string {
	if native.Features().AVX512 {
		return ""
	}
	return "AVX-512 (F, BW, VL, DQ) with AVX2, FMA and BMI2"
}

func missingPairs() string {
	switch have := native.Features(); {
	case !have.AVX512:
		return missingAVX512() + ", and AVX-512 with BF16"
	case !have.AVX512BF16:
		return "AVX-512 with BF16"
	case !native.PairsRound():
		return "products of bf16 pairs that round as described (a fault of this processor or its emulator)"
	}
	return ""
}

func missingAMX() string {
	switch have := native.Features(); {
	case have.AMXBF16:
		return ""
	case have.AMXRefused != "":
		return "the right to use AMX: " + have.AMXRefused
	case !have.AVX512BF16:
		return "AVX-512 with BF16, and AMX with BF16"
	}
	return "AMX with BF16"
}

func emulatedTiles() string {
	if native.Features().AMXEmulated {
		return "generic"
	}
	return ""
}

// slowPairs measures: no list of processors says which have fast bf16 pairs.
func slowPairs() string {
	if native.PairsLose() {
		return "avx512"
	}
	return ""
}

func generic() (kernel.Table, kernel.Products, error) {
	return genericTable(), newGenericProducts(), nil
}

// withNative builds a path of native kernels, which its name chooses.
func withNative(name string) func() (kernel.Table, kernel.Products, error) {
	return func() (kernel.Table, kernel.Products, error) {
		products, err := gemm.New(name)
		if err != nil {
			return kernel.Table{}, nil, err
		}
		return overlay(genericTable(), native.Table(strings.TrimSuffix(name, gemm.HighSuffix))), products, nil
	}
}

func (p path) class() string { return fmt.Sprintf("%s r%d", p.name, p.revision) }

// slowHigh: three products of that rate have to beat one of f32, which is also more precise.
func slowHigh(bf16 float64) string {
	if bf16/3 <= native.Probe().AVX512 {
		return "fp32 on avx512"
	}
	return ""
}

// PathStatus tells whether a path can run here.
type PathStatus struct {
	Name      string
	Class     string // numeric class: jobs of one class give the same bits
	Available bool
	Why       string // what the host lacks; "" if available
	Behind    string // a path that comes first here although it asks for less, because it is faster
	// Rate is what one core did in registers with the path's bf16 products, in GF/s (10⁹ flop a
	// second), when the paths were put in order; 0 where it was not measured.
	Rate float64
	High bool // of precision high
}

// Paths lists the known paths, the preferred one first.
func Paths() []PathStatus {
	return statuses(ordered())
}

// HighPaths lists the paths of precision high, whose F32 products are three of BF16: the name
// "high" opens the first of them that is available and behind no other.
func HighPaths() []PathStatus { return statuses(highPaths) }

func statuses(paths []path) []PathStatus {
	var list []PathStatus
	for _, p := range paths {
		s := PathStatus{Name: p.name, Class: p.class(), Why: p.missing(), High: p.high}
		if s.Available = s.Why == ""; s.Available && p.behind != nil {
			s.Behind = p.behind()
		}
		if s.Available && p.rate != nil {
			s.Rate = p.rate(native.Probe())
		}
		list = append(list, s)
	}
	return list
}

// ordered is paths as this machine prefers them.
func ordered() []path {
	list := slices.Clone(paths)
	for _, p := range paths {
		if p.behind == nil || p.missing() != "" {
			continue
		}
		if faster := p.behind(); faster != "" {
			list = slices.DeleteFunc(list, func(q path) bool { return q.name == p.name })
			i := slices.IndexFunc(list, func(q path) bool { return q.name == faster })
			list = slices.Insert(list, i+1, p)
		}
	}
	return list
}

// choosePath is the path called name, or the best one that the host can run.
func choosePath(name string) (path, error) {
	source := ""
	if name == "" || name == "auto" {
		if name = os.Getenv(PathVariable); name != "" {
			source = PathVariable + "="
		}
	}
	if name == gemm.HighSuffix[1:] {
		return chooseHigh()
	}
	var names, able []string
	var lacks string
	for _, p := range append(ordered(), highPaths...) {
		why := p.missing()
		switch auto := name == "" || name == "auto"; {
		case why == "" && (auto || name == p.name):
			return p, nil
		case why == "":
			able = append(able, p.name)
		case name == p.name:
			lacks = why
		}
		names = append(names, p.name)
	}
	if lacks != "" {
		return path{}, fmt.Errorf("cpu: path %s%s can not run here: this machine lacks %s; it can run %s", source, name, lacks, strings.Join(able, ", "))
	}
	return path{}, fmt.Errorf("cpu: unknown path %s%q, use auto or one of %s", source, name, strings.Join(names, ", "))
}

// chooseHigh is the best path of precision high, unless fp32 would be faster here.
func chooseHigh() (path, error) {
	var why []string
	for _, s := range HighPaths() {
		switch {
		case !s.Available:
			why = append(why, fmt.Sprintf("%s needs %s", s.Name, s.Why))
		case s.Behind != "":
			why = append(why, fmt.Sprintf("%s would do %.0f GF/s a core, where %s does %.0f", s.Name, s.Rate, s.Behind, native.Probe().AVX512))
		default:
			return choosePath(s.Name)
		}
	}
	return path{}, fmt.Errorf("cpu: precision high is of no use here: %s; use fp32 or bf16", strings.Join(why, "; "))
}
