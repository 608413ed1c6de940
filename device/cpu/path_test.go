package cpu

import (
	"slices"
	"strings"
	"testing"

	"github.com/skein-ml/skein/device/cpu/native"
)

func able() string  { return "" }
func never() string { return "luck" }

func named(list []path) (names []string) {
	for _, p := range list {
		names = append(names, p.name)
	}
	return names
}

func TestAPathThatIsSlowerHereComesBehindTheFasterOne(t *testing.T) {
	saved, high := paths, highPaths
	defer func() { paths, highPaths = saved, high }()
	highPaths = nil
	behind := func(name string) func() string { return func() string { return name } }
	paths = []path{
		{name: "a", missing: able, behind: behind("d")},
		{name: "b", missing: able, behind: behind("c")},
		{name: "c", missing: able, behind: behind("")},
		{name: "d", missing: able},
		{name: "e", missing: never, behind: behind("d")}, // what cannot run is not measured
	}
	if got, want := named(ordered()), []string{"c", "b", "d", "a", "e"}; !slices.Equal(got, want) {
		t.Errorf("order %v, want %v", got, want)
	}
	if p, err := choosePath("auto"); err != nil || p.name != "c" {
		t.Errorf("auto is %q, error %v", p.name, err)
	}
	if p, err := choosePath("b"); err != nil || p.name != "b" {
		t.Errorf("a slower path by its name is %q, error %v", p.name, err)
	}
	if _, err := choosePath("e"); err == nil || !strings.HasSuffix(err.Error(), "this machine lacks luck; it can run c, b, d, a") {
		t.Errorf("error %v", err)
	}
}

func TestPairsAreChosenOnlyWhereTheyAreFaster(t *testing.T) {
	if missingPairs() != "" {
		t.Skipf("SKIPPED: this machine lacks %s", missingPairs())
	}
	names := named(ordered())
	r := native.Probe()
	t.Logf("%+v: %v", r, names)
	if first := slices.Index(names, "avx512-bf16") < slices.Index(names, "avx512"); first && r.AVX512BF16 < r.AVX512 || !first && r.AVX512BF16 > 1.8*r.AVX512 {
		t.Errorf("rates %+v, order %v", r, names)
	}
}

func TestHighIsOnlyOpenedWhereItBeatsFP32(t *testing.T) {
	saved := highPaths
	defer func() { highPaths = saved }()
	slow := func() string { return "fp32 on avx512" }
	highPaths = []path{
		{name: "x-high", high: true, missing: never},
		{name: "y-high", high: true, missing: able, behind: slow, rate: func(native.Rates) float64 { return 30 }},
	}
	_, err := choosePath("high")
	if err == nil || !strings.Contains(err.Error(), "x-high needs luck; y-high would do 30 GF/s a core, where fp32 on avx512 does") {
		t.Errorf("error %v", err)
	}
	if p, err := choosePath("y-high"); err != nil || p.name != "y-high" {
		t.Errorf("by its name: %q, error %v", p.name, err)
	}
	highPaths = append(highPaths, path{name: "z-high", high: true, missing: able})
	if p, err := choosePath("high"); err != nil || p.name != "z-high" {
		t.Errorf("got %q, error %v", p.name, err)
	}
	if p, err := choosePath("auto"); err != nil || p.high {
		t.Errorf("auto is %q, error %v", p.name, err)
	}
}
