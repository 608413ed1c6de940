package cpu

import (
	"fmt"
	"os"
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
	slow     func() bool   // it runs, but only who asks for it by name should get it
	build    func() (kernel.Table, kernel.Products, error)
}

// paths are in order of preference; the last one runs everywhere.
var paths = []path{
	{
		name: "amx-bf16", revision: 1, missing: missingAMX, build: native512("amx-bf16"),
		slow: func() bool { return native.Features().AMXEmulated },
	},
	{name: "avx512", revision: 1, missing: missingAVX512, build: native512("avx512")},
	{name: "generic", revision: 1, missing: func() string { return "" }, build: generic},
}

func missingAVX512() string {
	if native.Features().AVX512 {
		return ""
	}
	return "AVX-512 (F, BW, VL, DQ) with AVX2, FMA and BMI2"
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

func generic() (kernel.Table, kernel.Products, error) {
	return genericTable(), newGenericProducts(), nil
}

// native512 builds a path of the AVX-512 kernels, whose products are chosen by its name.
func native512(name string) func() (kernel.Table, kernel.Products, error) {
	return func() (kernel.Table, kernel.Products, error) {
		products, err := gemm.New(name)
		if err != nil {
			return kernel.Table{}, nil, err
		}
		return overlay(genericTable(), native.Table(name)), products, nil
	}
}

func (p path) class() string { return fmt.Sprintf("%s r%d", p.name, p.revision) }

// PathStatus tells whether a path can run here.
type PathStatus struct {
	Name      string
	Class     string // numeric class: jobs of one class give the same bits
	Available bool
	Why       string // what the host lacks; "" if available
}

// Paths lists the known paths, the preferred one first.
func Paths() []PathStatus {
	list := make([]PathStatus, len(paths))
	for i, p := range paths {
		why := p.missing()
		list[i] = PathStatus{Name: p.name, Class: p.class(), Available: why == "", Why: why}
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
	var names []string
	for _, p := range paths {
		why := p.missing()
		if (name == "" || name == "auto") && why == "" && (p.slow == nil || !p.slow()) {
			return p, nil
		}
		if p.name == name && why != "" {
			return path{}, fmt.Errorf("cpu: path %s%s can not run here: this machine lacks %s", source, name, why)
		}
		if p.name == name {
			return p, nil
		}
		names = append(names, p.name)
	}
	return path{}, fmt.Errorf("cpu: unknown path %s%q, use auto or one of %s", source, name, strings.Join(names, ", "))
}
