package bench

import (
	"context"
	"math"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/skein-ml/skein/data"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/device/cpu"
)

func newDevice(t *testing.T) *cpu.Device {
	t.Helper()
	dev, err := cpu.New(cpu.Options{Path: "generic", Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dev.Close() })
	return dev
}

// tiny is a step that takes milliseconds.
func tiny(dt device.DType) Workload {
	c := parse(`{"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
		"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 90, "max_position_embeddings": 64,
		"rms_norm_eps": 1e-5, "rope_theta": 10000, "hidden_act": "silu", "initializer_range": 0.02, "tie_word_embeddings": true}`)
	return Workload{Name: "tiny", Model: c, Precision: dt, Batch: 2, SeqLen: 16}
}

// losses are those of the first steps.
func losses(t *testing.T, dev device.Device, c Choices) []float64 {
	t.Helper()
	s, err := NewStepper(dev, tiny(device.BF16), c)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var list []float64
	for range 3 {
		r, err := s.Step(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, r.Loss)
	}
	return list
}

func TestAStepsLossIsThatOfRandomTokensAndDoesNotDependOnChoices(t *testing.T) {
	want := losses(t, newDevice(t), Choices{})
	if uniform := math.Log(90); math.Abs(want[0]-uniform) > 0.1 {
		t.Errorf("loss of the first step is %v, of random tokens it is about %v", want[0], uniform)
	}
	if got := losses(t, newDevice(t), Choices{Micro: 2}); !reflect.DeepEqual(got, want) {
		t.Errorf("losses with micro-batches of 2 are %v, want %v", got, want)
	}
	p := NewProfiler(newDevice(t))
	if got := losses(t, p, Choices{}); !reflect.DeepEqual(got, want) {
		t.Errorf("losses under the profiler are %v, want %v", got, want)
	}
	seen := map[string]int{}
	costs, wall := p.Report()
	var sum float64
	for _, c := range costs {
		seen[c.Op] += c.Calls
		sum += c.Seconds
	}
	for op, calls := range map[string]int{"Linear": 6 * 2 * 4, "LinearDX": 6 * 2 * 4, "LinearDW": 6 * 2 * 4, "HeadLoss": 6, "Attention": 6 * 2, "AttentionGrad": 6 * 2} {
		if seen[op] != calls {
			t.Errorf("%s was seen %d times, want %d", op, seen[op], calls)
		}
	}
	if sum < 0.99*wall {
		t.Errorf("operations and what is between them take %v s of %v s", sum, wall)
	}
	if table := Table(costs, wall, 3, 1e9, 1e9); strings.Count(table, "\n") != len(costs)+2 {
		t.Errorf("the table has another number of rows than %d operations, a head and a sum:\n%s", len(costs), table)
	}
}

func TestTheProfilerSeesEveryOperation(t *testing.T) {
	watched := reflect.TypeFor[*Profiler]()
	operations := []reflect.Type{reflect.TypeFor[device.Linears](), reflect.TypeFor[device.Norms](), reflect.TypeFor[device.Attentions](),
		reflect.TypeFor[device.Tokens](), reflect.TypeFor[device.Updates]()}
	names := []string{"Upload", "Download", "Copy"}
	for _, set := range operations {
		for m := range set.Methods() {
			names = append(names, m.Name)
		}
	}
	for _, name := range names {
		m, _ := watched.MethodByName(name)
		// A method that comes from the embedded device is written by the compiler.
		if file, _ := runtime.FuncForPC(m.Func.Pointer()).FileLine(m.Func.Pointer()); !strings.Contains(file, "profile") {
			t.Errorf("%s goes past the profiler; write it in profile.go or profile_rows.go", name)
		}
	}
}

func TestAStepsFlopAreThoseOfItsProductsAndAttention(t *testing.T) {
	for _, w := range Workloads(false) {
		if w.SeqLen != 512 {
			continue
		}
		var sum float64
		for _, p := range Products(false) {
			if strings.HasPrefix(p.Name, "gemm-"+w.Precision.String()+"-"+strings.Split(w.Name, "-")[0]) {
				sum += float64(p.Calls) * p.Flop()
			}
		}
		attention := w.Flop() - sum
		whole := 12 * float64(w.Batch) * 512 * 512 * float64(w.Model.Heads*w.Model.HeadDim*w.Model.Layers)
		if half := whole * 513 / 1024; math.Abs(attention-half) > 1e-6*half {
			t.Errorf("%s: %g flop, of which %g in products; half of all pairs is %g", w.Name, w.Flop(), sum, half)
		}
	}
	if gpt2, _ := Find("gpt2-bf16-step", false); math.Abs(gpt2.Flop()/1.59e12-1) > 0.02 { // 6·123.5M·2048, and half of 0.135 of attention
		t.Errorf("a step of GPT-2 is %g flop", gpt2.Flop())
	}
}

func TestRandomWeightsDoNotDependOnHowTheyAreRead(t *testing.T) {
	w := weights{tiny(device.F32).Model}
	const name = "model.layers.1.mlp.down_proj.weight"
	whole, part := make([]float32, 32*48), make([]float32, 7)
	for _, err := range []error{w.ReadRange(name, 0, whole), w.ReadRange(name, 100, part)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if !reflect.DeepEqual(whole[100:107], part) {
		t.Errorf("elements 100 to 106 are %v, alone they are %v", whole[100:107], part)
	}
	var sum, squares float64
	for _, x := range whole {
		sum += float64(x)
		squares += float64(x) * float64(x)
	}
	if n := float64(len(whole)); math.Abs(sum/n) > 0.002 || math.Abs(math.Sqrt(squares/n)-0.02) > 0.001 {
		t.Errorf("mean %v, deviation %v, want 0 and 0.02", sum/n, math.Sqrt(squares/n))
	}
}

func TestSamplesPredictTheNextToken(t *testing.T) {
	var b data.Batch
	if err := (samples{8, 90}).Batch(context.Background(), []int64{3, 5}, &b); err != nil {
		t.Fatal(err)
	}
	want := append(append(append([]int32{}, b.Tokens[1:8]...), noTarget), append(append([]int32{}, b.Tokens[9:]...), noTarget)...)
	if !reflect.DeepEqual(b.Targets, want) || b.TargetCount != 14 || !reflect.DeepEqual(b.CuDocs, []int32{0, 8, 16}) {
		t.Errorf("tokens %v, targets %v (%d), documents %v", b.Tokens, b.Targets, b.TargetCount, b.CuDocs)
	}
}

func TestProductsRunAtTheirShapes(t *testing.T) {
	dev := newDevice(t)
	for _, p := range products("tiny", tiny(device.BF16)) {
		b, err := NewBench(dev, p)
		if err != nil {
			t.Fatal(err)
		}
		b.call()
		if err := b.s.Record().Wait(); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
		b.Close()
	}
	if info := dev.Info(); info.Allocated != [len(info.Allocated)]int64{} {
		t.Errorf("memory is left in use: %v", info.Allocated)
	}
}

func TestThePeakIsMeasured(t *testing.T) {
	p, err := MeasurePeak(newDevice(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	if p.StreamBytes <= 0 {
		t.Errorf("memory is read at %v bytes a second", p.StreamBytes)
	}
	if p.Limit("avx512", device.BF16) < p.Limit("avx512", device.F32) {
		t.Errorf("bf16 has a lower limit than f32: %+v", p)
	}
}
