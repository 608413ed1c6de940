// Package modeltest gives tests the tiny, loud models whose logits, gradients and
// training losses were computed by PyTorch (scripts/oracle/model_golden.py).
package modeltest

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/skein-ml/skein/model/config"
)

// Golden is one tiny model, one batch, and what PyTorch made of them.
type Golden struct {
	Name    string
	Config  config.Config
	SeqLen  int
	IDs     []int32   // [N]
	Targets []int32   // [N], -100: none
	CuDocs  []int32   // where documents begin
	Logits  []float32 // [N, V]
	Losses  []float64 // of ten AdamW steps on this batch

	raw   json.RawMessage
	index map[string]struct {
		Shape  []int64
		Offset int64
	}
	blob []byte
}

// Names lists the goldens.
func Names(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(folder(), "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no goldens in %s: %v", folder(), err)
	}
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = strings.TrimSuffix(filepath.Base(f), ".json")
	}
	return names
}

func folder() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "testdata", "parity")
}

// Load reads a golden.
func Load(t testing.TB, name string) Golden {
	t.Helper()
	g := Golden{Name: name}
	var file struct {
		Config    json.RawMessage
		Documents [][]int32
		Sequence  int
		Losses    []float64
		Tensors   map[string]struct {
			Shape  []int64
			Offset int64
		}
	}
	text, err := os.ReadFile(filepath.Join(folder(), name+".json"))
	if err == nil {
		err = json.Unmarshal(text, &file)
	}
	if err == nil {
		g.blob, err = os.ReadFile(filepath.Join(folder(), name+".bin"))
	}
	if err == nil {
		g.Config, _, err = config.Parse(file.Config)
	}
	if err != nil {
		t.Fatalf("golden %s: %v", name, err)
	}
	g.raw, g.index, g.SeqLen, g.Losses = file.Config, file.Tensors, file.Sequence, file.Losses
	g.CuDocs = []int32{0}
	for _, lens := range file.Documents {
		for _, n := range lens {
			g.CuDocs = append(g.CuDocs, g.CuDocs[len(g.CuDocs)-1]+n)
		}
	}
	g.IDs, g.Targets = g.ints(t, "ids"), g.ints(t, "targets")
	g.Logits = g.floats(t, "logits")
	return g
}

// Mutate parses the golden's config.json with some keys changed.
func (g Golden) Mutate(t testing.TB, change map[string]any) config.Config {
	t.Helper()
	var keys map[string]any
	if err := json.Unmarshal(g.raw, &keys); err != nil {
		t.Fatal(err)
	}
	maps.Copy(keys, change)
	text, err := json.Marshal(keys)
	if err != nil {
		t.Fatal(err)
	}
	c, _, err := config.Parse(text)
	if err != nil {
		t.Fatalf("golden %s with %v: %v", g.Name, change, err)
	}
	return c
}

// Grad is PyTorch's gradient of the mean loss for a tensor.
func (g Golden) Grad(t testing.TB, tensor string) []float32 {
	t.Helper()
	return g.floats(t, "grad."+tensor)
}

func (g Golden) span(t testing.TB, name string) []byte {
	t.Helper()
	e, ok := g.index[name]
	if !ok {
		t.Fatalf("golden %s has no %s", g.Name, name)
	}
	n := int64(4)
	for _, d := range e.Shape {
		n *= d
	}
	return g.blob[e.Offset : e.Offset+n]
}

func (g Golden) ints(t testing.TB, name string) []int32 {
	b := g.span(t, name)
	out := make([]int32, len(b)/4)
	for i := range out {
		out[i] = int32(binary.LittleEndian.Uint32(b[i*4:]))
	}
	return out
}

func (g Golden) floats(t testing.TB, name string) []float32 {
	b := g.span(t, name)
	out := make([]float32, len(b)/4)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[i*4:]))
	}
	return out
}

// Weights are the loud weights of a configuration: a [config.Weights] that draws
// every tensor from its name. All values are exact in BF16.
type Weights struct{ Model config.Config }

// Config is the model's configuration.
func (w Weights) Config() config.Config { return w.Model }

// Shape is a tensor's shape in the configuration, nil if it has none of that name.
func (w Weights) Shape(name string) []int64 {
	for _, t := range w.Model.Tensors() {
		if t.Name == name {
			return t.Shape()
		}
	}
	return nil
}

// Close does nothing.
func (w Weights) Close() error { return nil }

// ReadRange draws a tensor and copies a range of it.
func (w Weights) ReadRange(name string, elemOff int64, dst []float32) error {
	for _, t := range w.Model.Tensors() {
		if t.Name == name {
			copy(dst, Draw(name, int(t.Elements()))[elemOff:])
			return nil
		}
	}
	return fmt.Errorf("no tensor %s", name)
}

// Draw makes n numbers for a tensor: the sum of twelve 16-bit draws is close to
// normal and exact, so that Python draws the same.
func Draw(name string, n int) []float32 {
	state := uint64(0xCBF29CE484222325)
	for i := range len(name) {
		state = (state ^ uint64(name[i])) * 0x100000001B3
	}
	out := make([]float32, n)
	for i := range out {
		sum := 0
		for range 3 {
			state += 0x9E3779B97F4A7C15
			z := state
			z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
			z = (z ^ (z >> 27)) * 0x94D049BB133111EB
			z ^= z >> 31
			sum += int(z&0xFFFF) + int(z>>16&0xFFFF) + int(z>>32&0xFFFF) + int(z>>48)
		}
		out[i] = roundBF16(value(name, sum))
	}
	return out
}

func value(name string, sum int) float32 {
	switch {
	case isNorm(name):
		return 0.5 + float32(sum%65536)/65536
	case strings.HasSuffix(name, "bias"):
		return float32(sum-393210) / 65536 * 0.2
	}
	return float32(sum-393210) / 65536 * 0.15
}

func isNorm(name string) bool {
	for _, suffix := range []string{"norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight"} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

func roundBF16(x float32) float32 {
	u := math.Float32bits(x)
	return math.Float32frombits((u + 0x7FFF + u>>16&1) &^ 0xFFFF)
}
