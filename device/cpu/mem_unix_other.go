//go:build unix && !linux

package cpu

func adviseHugePages([]byte) {}

// systemMemory is 0: unknown.
func systemMemory() int64 { return 0 }
