package native

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/cpu"
)

// Features detects once. On Linux it asks the kernel for the right to use tiles,
// which holds for the whole process.
var Features = sync.OnceValue(detect)

func detect() Set {
	x := &cpu.X86
	var s Set
	s.AVX2 = x.HasAVX2 && x.HasFMA && x.HasBMI2
	s.AVX512 = s.AVX2 && x.HasAVX512F && x.HasAVX512BW && x.HasAVX512VL && x.HasAVX512DQ
	s.AVX512BF16 = s.AVX512 && x.HasAVX512BF16
	if !s.AVX512BF16 {
		return s
	}
	if os.Getenv(EmulationEnv) == "1" {
		s.AMXBF16, s.AMXEmulated = true, true
		return s
	}
	if x.HasAMXTile && x.HasAMXBF16 {
		if err := requestTiles(); err != nil {
			s.AMXRefused = fmt.Sprintf("the operating system refuses AMX tiles: %v", err)
		} else {
			s.AMXBF16 = true
		}
	}
	return s
}
