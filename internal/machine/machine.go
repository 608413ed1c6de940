// Package machine says what the process may use: processor, memory, disk, and
// the limits that a container puts on them. It only looks; it changes nothing.
package machine

import (
	"bufio"
	"errors"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/cpu"
	"golang.org/x/sys/unix"
)

// Machine is what was found. A count that could not be read is 0.
type Machine struct {
	OS          string   `json:"os"`
	Arch        string   `json:"arch"`
	Processor   string   `json:"processor"`
	Features    []string `json:"features"` // those that kernels ask for
	Cores       int      `json:"cores"`    // that the scheduler lets us run on
	CoresLimit  float64  `json:"coresLimit,omitempty"`
	MemoryTotal int64    `json:"memoryTotal"`
	MemoryFree  int64    `json:"memoryFree"` // available without swapping, within the limit
	MemoryLimit int64    `json:"memoryLimit,omitempty"`
	HugePages   string   `json:"hugePages"` // transparent: always, madvise or never
	OpenFiles   uint64   `json:"openFiles"`
	DiskFolder  string   `json:"diskFolder"`
	DiskFree    int64    `json:"diskFree"`
	DiskTotal   int64    `json:"diskTotal"`
}

// Look reads the machine; disk figures are those of the file system under dir.
func Look(dir string) Machine {
	return look("/", dir)
}

// look is Look with the root under which /proc and /sys lie, for tests.
func look(root, dir string) Machine {
	m := Machine{OS: runtime.GOOS, Arch: runtime.GOARCH, Features: features(), Cores: runtime.NumCPU(), DiskFolder: dir}
	m.Processor = field(filepath.Join(root, "proc/cpuinfo"), "model name")
	m.MemoryTotal = kilobytes(field(filepath.Join(root, "proc/meminfo"), "MemTotal"))
	m.MemoryFree = kilobytes(field(filepath.Join(root, "proc/meminfo"), "MemAvailable"))
	m.limits(root)
	if modes := word(filepath.Join(root, "sys/kernel/mm/transparent_hugepage/enabled")); modes != "" {
		_, rest, _ := strings.Cut(modes, "[")
		m.HugePages, _, _ = strings.Cut(rest, "]")
	}
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) == nil {
		m.OpenFiles = files.Cur
	}
	m.disk(dir)
	return m
}

// limits reads what cgroup v2, or v1 where that is in use, allows the process.
func (m *Machine) limits(root string) {
	group := filepath.Join(root, "sys/fs/cgroup", cgroup(filepath.Join(root, "proc/self/cgroup")))
	for dir := group; strings.HasPrefix(dir, filepath.Join(root, "sys/fs/cgroup")); dir = filepath.Dir(dir) {
		m.limitMemory(word(filepath.Join(dir, "memory.max")), word(filepath.Join(dir, "memory.current")))
		quota, period, _ := strings.Cut(word(filepath.Join(dir, "cpu.max")), " ")
		m.limitCores(quota, period)
	}
	v1 := filepath.Join(root, "sys/fs/cgroup")
	m.limitMemory(word(filepath.Join(v1, "memory/memory.limit_in_bytes")), word(filepath.Join(v1, "memory/memory.usage_in_bytes")))
	m.limitCores(word(filepath.Join(v1, "cpu/cpu.cfs_quota_us")), word(filepath.Join(v1, "cpu/cpu.cfs_period_us")))
}

func (m *Machine) limitMemory(limit, used string) {
	bytes, err := strconv.ParseInt(limit, 10, 64)
	if err != nil || bytes <= 0 || bytes >= math.MaxInt64/2 { // "max", or v1's way to say so
		return
	}
	if m.MemoryLimit == 0 || bytes < m.MemoryLimit {
		m.MemoryLimit = bytes
	}
	now, err := strconv.ParseInt(used, 10, 64)
	if err == nil {
		m.MemoryFree = min(m.MemoryFree, max(0, bytes-now))
	}
}

func (m *Machine) limitCores(quota, period string) {
	q, errQ := strconv.ParseFloat(quota, 64)
	p, errP := strconv.ParseFloat(period, 64)
	if errQ != nil || errP != nil || q <= 0 || p <= 0 {
		return
	}
	if m.CoresLimit == 0 || q/p < m.CoresLimit {
		m.CoresLimit = q / p
	}
}

// Threads is how many compute threads the machine can keep busy.
func (m Machine) Threads() int {
	if m.CoresLimit > 0 {
		return max(1, min(m.Cores, int(math.Round(m.CoresLimit))))
	}
	return max(1, m.Cores)
}

// disk fills the figures of the file system that dir, or the nearest folder
// above it that exists, lies on.
func (m *Machine) disk(dir string) {
	path, err := filepath.Abs(dir)
	if err != nil {
		return
	}
	var s unix.Statfs_t
	for err = unix.Statfs(path, &s); errors.Is(err, unix.ENOENT) && path != filepath.Dir(path); err = unix.Statfs(path, &s) {
		path = filepath.Dir(path)
	}
	if err != nil {
		return
	}
	block := int64(s.Bsize) //nolint:unconvert // not an int64 on every system
	m.DiskTotal, m.DiskFree = int64(s.Blocks)*block, int64(s.Bavail)*block
}

// features names the instruction sets that decide between kernel paths.
func features() []string {
	found := []string{}
	for _, f := range []struct {
		name string
		has  bool
	}{
		{"avx2", cpu.X86.HasAVX2}, {"fma", cpu.X86.HasFMA}, {"avx512f", cpu.X86.HasAVX512F}, {"avx512bw", cpu.X86.HasAVX512BW},
		{"avx512vl", cpu.X86.HasAVX512VL}, {"avx512-bf16", cpu.X86.HasAVX512BF16}, {"amx-tile", cpu.X86.HasAMXTile},
		{"amx-bf16", cpu.X86.HasAMXBF16}, {"amx-int8", cpu.X86.HasAMXInt8}, {"asimd", cpu.ARM64.HasASIMD}, {"sve", cpu.ARM64.HasSVE},
	} {
		if f.has {
			found = append(found, f.name)
		}
	}
	return found
}

// field returns the value of the first "name : value" line of a file of /proc.
func field(path, name string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, ok := strings.Cut(lines.Text(), ":")
		if ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func kilobytes(value string) int64 {
	n, err := strconv.ParseInt(strings.TrimSuffix(value, " kB"), 10, 64)
	if err != nil {
		return 0
	}
	return n << 10
}

// word returns a small file without its final line feed; "" when it cannot be read.
func word(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// cgroup returns the v2 group of this process, from a line such as "0::/a/b".
func cgroup(path string) string {
	for line := range strings.Lines(word(path) + "\n") {
		if group, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return filepath.Clean("/" + group)
		}
	}
	return ""
}
