package trainer

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/model"
	"github.com/skein-ml/skein/model/config"
	"github.com/skein-ml/skein/model/modeltest"
	"github.com/skein-ml/skein/optim"
	"github.com/skein-ml/skein/shard"
)

func envInt(name string, d int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return d
}

func rss() string {
	b, _ := os.ReadFile("/proc/self/status")
	var out []string
	for _, l := range strings.Split(string(b), "\n") {
		if strings.HasPrefix(l, "VmHWM") || strings.HasPrefix(l, "VmRSS") {
			out = append(out, strings.Join(strings.Fields(l), " "))
		}
	}
	return strings.Join(out, " ")
}

func BenchmarkH4(b *testing.B) {
	c, _, err := config.Parse([]byte(`{"model_type":"llama","architectures":["LlamaForCausalLM"],"vocab_size":49152,"hidden_size":576,"intermediate_size":1536,
		"num_hidden_layers":30,"num_attention_heads":9,"num_key_value_heads":3,"rms_norm_eps":1e-5,"rope_theta":10000,
		"max_position_embeddings":8192,"tie_word_embeddings":true,"hidden_act":"silu"}`))
	if err != nil {
		b.Fatal(err)
	}
	ws, bs, T, micro := envInt("WS", 1), envInt("B", 4), envInt("T", 512), envInt("MICRO", 4)
	cfg := Config{
		Model: c, WorldSize: ws, Precision: device.BF16, Stage: shard.StageOptimizer,
		Batch:         Batching{Global: bs, Micro: micro, SeqLen: T},
		Optimizer:     optim.AdamW{Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, WeightDecay: 0.1, Clip: 1},
		Schedule:      optim.Schedule{Kind: optim.Constant, Peak: 3e-4},
		Order:         shard.Order{Samples: 1 << 20, GlobalBatch: int64(bs)},
		Checkpointing: model.Checkpointing(envInt("CKPT", 0)),
	}
	if os.Getenv("F32") != "" {
		cfg.Precision = device.F32
	}
	dev := newDevice(b, os.Getenv("PATHNAME"), envInt("THREADS", 2))
	fmt.Println("start", rss())
	tr, err := New(dev, cfg, random{T, c.Vocab})
	if err != nil {
		b.Fatal(err)
	}
	defer tr.Close()
	if err := tr.Import(modeltest.Weights{Model: c}); err != nil {
		b.Fatal(err)
	}
	fmt.Println("imported", rss())
	for i := range envInt("N", 2) {
		began := time.Now()
		res, err := tr.Step(context.Background())
		if err != nil {
			b.Fatal(err)
		}
		fmt.Printf("step %d %.2fs loss %.5f %+v\n", i, time.Since(began).Seconds(), res.Decision.Loss, res.Timing)
	}
	fmt.Println("done", rss())
	info := dev.Info()
	for _, k := range device.Kinds() {
		fmt.Printf("  %-12v %8.1f MB\n", k, float64(info.Allocated[k])/1e6)
	}
	fmt.Printf("  %-12s %8.1f MB\n", "peak", float64(info.Peak)/1e6)
	h, _ := tr.WeightsHash()
	fmt.Println("hash", h.Short())
}
