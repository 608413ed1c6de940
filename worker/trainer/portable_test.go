package trainer

import (
	"crypto/sha256"
	"fmt"
	"math"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/model"
	"github.com/skein-ml/skein/model/modeltest"
	"github.com/skein-ml/skein/optim"
)

// portable are weights and decisions of the generic path after twelve steps, by golden and
// precision: written down once, the same on every architecture and at every GOAMD64.
// Who changes one changes the arithmetic of all jobs and raises the path's revision.
var portable = []struct {
	golden    string
	precision device.DType
	wire      allreduce.Wire
	hash      string
}{
	{"llama-tied-gqa", device.F32, allreduce.WireFP32, "6889dfa66161684c9dbe7c26"},
	{"llama-tied-gqa", device.BF16, allreduce.WireBF16, "e205e5f284728c9f886a5438"},
	{"qwen2-yarn", device.F32, allreduce.WireBF16, "0356ef695c2c77ac29e3e11d"},
	{"mistral-window", device.BF16, allreduce.WireFP32, "c68a70a786122f3c69b9f461"},
	{"gpt2-tanh", device.F32, allreduce.WireFP32, "2e5d93a08b73d04f29f1e9e1"},
	{"gpt2-erf-untied", device.BF16, allreduce.WireFP32, "5b5259f3ba8a200c96380285"},
}

// The hash takes in all that decides bits outside the device too: the schedule, clipping,
// the corrections of AdamW, the angles of rotary embeddings, votes and decisions.
func TestTheGenericPathHasOneHashOnAllMachines(t *testing.T) {
	for _, x := range portable {
		t.Run(fmt.Sprintf("%s/%v", x.golden, x.precision), func(t *testing.T) {
			g := golden{modeltest.Load(t, x.golden)}
			c := g.config(2, 2)
			c.Precision, c.Wire, c.Checkpointing = x.precision, x.wire, model.CheckpointFull
			c.Schedule = optim.Schedule{Kind: optim.Cosine, Peak: 1e-3, WarmupSteps: 3, Steps: 11, Floor: 0.1}
			c.Optimizer.Clip = 0.5
			tr := newTrainer(t, newDevice(t, "generic", 2), g, c)
			sum := sha256.New()
			for range 12 {
				d := steps(t, tr, 1).Decision
				fmt.Fprintln(sum, d.ScaleBits, d.RateBits, math.Float64bits(d.Loss), math.Float64bits(d.GradNorm))
			}
			weights := hash(t, tr)
			sum.Write(weights[:])
			if got := fmt.Sprintf("%x", sum.Sum(nil)[:12]); got != x.hash {
				t.Errorf("hash %s, want %s (weights %v)", got, x.hash, weights)
			}
		})
	}
}

// A compiler for arm64 may fuse a product with the addition that follows, which rounds once
// instead of twice; so may one for GOAMD64=v3. An explicit conversion forbids it. This finds
// where one was forgotten, in any package that a step goes through.
func TestNoProductOnTheWayOfAStepIsFused(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: -short")
	}
	build := exec.Command("go", "build", "-gcflags=github.com/skein-ml/skein/...=-S", ".", "../../device/cpu")
	build.Env = append(os.Environ(), "GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	listing := string(out)
	for _, file := range []string{"/device/cpu/math.go:", "/internal/exact/exact.go:", "/optim/adamw.go:", "/allreduce/vote.go:"} {
		if !regexp.MustCompile(regexp.QuoteMeta(file) + `\d+\)\s+FMUL[SD]\s`).MatchString(listing) {
			t.Errorf("the listing has no product of %s", file)
		}
	}
	for _, line := range regexp.MustCompile(`.*\sFN?M(ADD|SUB)[SD]\s.*`).FindAllString(listing, -1) {
		if !strings.Contains(line, "/device/cpu/native/probe.go:") { // takes times
			t.Errorf("a fused product: %s", strings.TrimSpace(line))
		}
	}
}
