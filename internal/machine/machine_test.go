package machine

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// root writes a tree of files as /proc and /sys have them.
func root(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestThisMachineHasWhatEveryMachineHas(t *testing.T) {
	m := Look(t.TempDir())
	if m.Cores < 1 || m.Threads() < 1 || m.DiskTotal <= 0 || m.OpenFiles == 0 {
		t.Errorf("found %+v", m)
	}
	if runtime.GOOS == "linux" && (m.MemoryTotal <= 0 || m.MemoryFree <= 0 || m.MemoryFree > m.MemoryTotal) {
		t.Errorf("memory %d of %d", m.MemoryFree, m.MemoryTotal)
	}
}

func TestAContainersLimitsBoundWhatIsFree(t *testing.T) {
	m := look(root(t, map[string]string{
		"proc/cpuinfo":     "processor\t: 0\nmodel name\t: A Fine CPU\n",
		"proc/meminfo":     "MemTotal:       25000000 kB\nMemFree: 1 kB\nMemAvailable:   20000000 kB\n",
		"proc/self/cgroup": "0::/pod/box\n",
		"sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
		"sys/fs/cgroup/pod/memory.max":               "8589934592\n",
		"sys/fs/cgroup/pod/memory.current":           "1073741824\n",
		"sys/fs/cgroup/pod/box/memory.max":           "max\n",
		"sys/fs/cgroup/pod/box/cpu.max":              "150000 100000\n",
		"sys/fs/cgroup/pod/cpu.max":                  "max 100000\n",
	}), t.TempDir())
	if m.Processor != "A Fine CPU" || m.HugePages != "madvise" {
		t.Errorf("found %+v", m)
	}
	if m.MemoryTotal != 25000000<<10 || m.MemoryLimit != 8<<30 || m.MemoryFree != 7<<30 {
		t.Errorf("memory: total %d, limit %d, free %d", m.MemoryTotal, m.MemoryLimit, m.MemoryFree)
	}
	if m.CoresLimit != 1.5 {
		t.Errorf("cores limited to %g, want 1.5", m.CoresLimit)
	}
}

func TestCgroupV1LimitsAreReadToo(t *testing.T) {
	m := look(root(t, map[string]string{
		"proc/meminfo": "MemTotal: 4000000 kB\nMemAvailable: 3000000 kB\n",
		"sys/fs/cgroup/memory/memory.limit_in_bytes": "1000000000\n",
		"sys/fs/cgroup/memory/memory.usage_in_bytes": "400000000\n",
		"sys/fs/cgroup/cpu/cpu.cfs_quota_us":         "-1\n",
		"sys/fs/cgroup/cpu/cpu.cfs_period_us":        "100000\n",
	}), t.TempDir())
	if m.MemoryLimit != 1e9 || m.MemoryFree != 6e8 || m.CoresLimit != 0 {
		t.Errorf("limit %d, free %d, cores %g", m.MemoryLimit, m.MemoryFree, m.CoresLimit)
	}
}

func TestAMachineThatTellsNothingIsNoError(t *testing.T) {
	m := look(t.TempDir(), filepath.Join(t.TempDir(), "not", "there"))
	if m.MemoryTotal != 0 || m.Processor != "" || m.HugePages != "" || m.DiskTotal == 0 {
		t.Errorf("found %+v", m)
	}
}
