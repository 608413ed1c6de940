package lint

import (
	"go/ast"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// deciders are the folders where the same input must give the same bits. They
// get time and randomness as arguments, never from the air.
var deciders = []string{
	"allreduce", "checkpoint", "data", "device", "jobspec", "model", "optim", "shard", "tokenizer",
	"coordinator/fsm", "coordinator/scheduler", "coordinator/membership", "coordinator/recovery", "coordinator/hearing",
}

// decides tells whether a folder is one of the deciders or lies below one.
func decides(folder string) bool {
	return slices.ContainsFunc(deciders, func(d string) bool { return folder == d || strings.HasPrefix(folder, d+"/") })
}

// fromTheAir maps a package to its functions that make a result depend on when
// or where it ran.
var fromTheAir = map[string][]string{
	"time":          {"Now", "Since", "Until", "Sleep", "After", "Tick", "NewTimer", "NewTicker"},
	"math/rand":     {"*"},
	"math/rand/v2":  {"*"},
	"crypto/rand":   {"*"},
	"os":            {"Getenv", "LookupEnv", "Environ", "Hostname", "Getpid"},
	"hash/maphash":  {"*"},
	"runtime/debug": {"SetGCPercent"},
}

// seeded are what the random packages offer with a seed of one's own.
var seeded = []string{"New", "NewPCG", "NewChaCha8", "NewSource", "NewZipf", "Rand", "PCG", "ChaCha8", "Source", "Zipf"}

// mayAsk lists the files and folders of deciders that call such a function, and
// why it cannot reach a result.
var mayAsk = map[string]string{
	"allreduce/clock.go":                  "deadlines and pings of connections; no frame's content, place or order depends on them",
	"data/stream":                         "deadlines and retries of the network; what arrives is held against content hashes",
	"device/devicetest":                   "times out a device that hangs",
	"device/cpu/pool.go":                  "how long a barrier spins before it parks; work is cut by shape, never by time",
	"device/cpu/path.go":                  "the user may force a kernel path at start; it is part of the numeric class, which the job pins",
	"device/cpu/native/probe.go":          "which kernel path is the faster one at start; it is part of the numeric class, which the job pins",
	"data/prepare.go":                     "the name of its scratch folder, and the seconds in its report",
	"device/opaque/stream.go":             "delays operations at random, to show that no result depends on when they run",
	"tokenizer/cache.go":                  "which shard of the cache holds a piece; the ids in it are the same",
	"device/cpu/native/features_amd64.go": "the same, for tests of the lesser paths",
}

func TestWhatDecidesOrComputesAsksNeitherClockNorDice(t *testing.T) {
	used := map[string]bool{}
	for _, f := range goFiles(t) {
		if f.isTest() || f.ast.Name.Name == "main" || !decides(f.folder()) {
			continue // a main here is a tool of the build
		}
		imported := importNames(f.ast)
		ast.Inspect(f.ast, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			pkg, ok := sel.X.(*ast.Ident)
			if !ok {
				return true
			}
			banned := fromTheAir[imported[pkg.Name]]
			all := slices.Contains(banned, "*") && !slices.Contains(seeded, sel.Sel.Name)
			if !all && !slices.Contains(banned, sel.Sel.Name) {
				return true
			}
			used[f.path], used[f.folder()] = true, true
			if mayAsk[f.path] == "" && mayAsk[f.folder()] == "" {
				t.Errorf("%s: %s.%s in a package that must give the same bits every time; take the value as an argument",
					f.fset.Position(sel.Pos()), pkg.Name, sel.Sel.Name)
			}
			return true
		})
	}
	for file := range mayAsk {
		if !used[file] {
			t.Errorf("mayAsk lists %s, which asks nothing by now; remove the line", file)
		}
	}
}

// importNames maps the name that a file uses for a package to its import path.
func importNames(file *ast.File) map[string]string {
	m := map[string]string{}
	for _, spec := range file.Imports {
		p := strings.Trim(spec.Path.Value, `"`)
		name := path.Base(p)
		if name == "v2" {
			name = path.Base(path.Dir(p))
		}
		if spec.Name != nil {
			name = spec.Name.Name
		}
		m[name] = p
	}
	return m
}

// leftOver matches what must not stay in a source file. It is spelt so that it
// does not match itself.
var leftOver = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b|(?i:\bplace` + `holder\b)|/wo` + `rk/|/tmp/sk` + `ein`)

func TestNothingIsLeftOver(t *testing.T) {
	for _, path := range files(t, ".go", ".c", ".h", ".py", ".sh", ".md", ".yaml", ".yml", "Makefile", ".ci/run") {
		for i, line := range strings.Split(source(t, path), "\n") {
			if found := leftOver.FindString(line); found != "" {
				t.Errorf("%s:%d: %q: finish it or remove it", path, i+1, found)
			}
		}
	}
}
