package native

import "strings"

// Set is what this process may use, by the CPU's feature bits and the operating
// system's leave. The model number of a CPU decides nothing.
type Set struct {
	AVX2       bool // with FMA, F16C and BMI2
	AVX512     bool // F, BW, VL and DQ, with AVX2
	AVX512BF16 bool // with AVX512
	AMXBF16    bool // tiles and their bf16 products, with AVX512BF16

	AMXEmulated bool   // device/cpu/amxemu runs the tile instructions; slow
	AMXRefused  string // why a CPU with AMX may not use it, if so
}

// String lists the features, for people.
func (s Set) String() string {
	var names []string
	for _, f := range []struct {
		has  bool
		name string
	}{{s.AVX2, "avx2"}, {s.AVX512, "avx512"}, {s.AVX512BF16, "avx512-bf16"}, {s.AMXBF16, "amx-bf16"}} {
		if f.has {
			names = append(names, f.name)
		}
	}
	if s.AMXEmulated {
		names = append(names, "(amx emulated)")
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, " ")
}

// EmulationEnv is the environment variable by which device/cpu/amxemu, and nothing
// else, says that it catches tile instructions.
const EmulationEnv = "SKEIN_AMX_EMULATED"
