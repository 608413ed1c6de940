package cpu

import (
	"fmt"
	"os"
	"strings"

	"github.com/skein-ml/skein/device/cpu/kernel"
)

// PathVariable names the environment variable that forces a path where Options leave
// the choice to the device.
const PathVariable = "SKEIN_CPU_PATH"

// path is one way to compute, and what it asks of the machine.
type path struct {
	name     string
	revision int           // goes up when its bits change
	missing  func() string // what the host lacks, "" if nothing
	build    func() (kernel.Table, kernel.Products, error)
}

// paths are in order of preference; the last one runs everywhere.
var paths = []path{
	{
		name: "generic", revision: 1,
		missing: func() string { return "" },
		build: func() (kernel.Table, kernel.Products, error) {
			return genericTable(), newGenericProducts(), nil
		},
	},
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
		if (name == "" || name == "auto") && why == "" {
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
