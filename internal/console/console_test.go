package console

import (
	"bufio"
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"
)

// run is the life of a small job.
func run() []Event {
	one, before, after := 1, 7.506, 1.6
	return []Event{
		Prepared{Parameters: 134515008, Architecture: "llama", ModelBytes: 269e6, Examples: 116986, Sequences: 9911, Padding: 0.021, NumericClass: "amx-bf16 r1"},
		Started{Steps: 3, WorldSize: 4, Workers: 1, Threads: 2, SpecHash: strings.Repeat("ab", 32)},
		Step{Step: 1, Steps: 3, Loss: 7.18, LearningRate: 6e-5, GradientNorm: 3.25, Tokens: 2048, TokensPerSecond: 912, ETASeconds: 16},
		Evaluated{Step: 1, Loss: 1.981, Targets: 5202, ExactMatch: &one, Asked: 32},
		Answered{Step: 1, Prompt: "Pronounce: \x1b[2Jskein\n", Answer: "S K EY1 N", Want: "S K EY1 N"},
		Step{Step: 2, Steps: 3, Skipped: "the gradient is not finite"},
		Step{Step: 3, Steps: 3, Loss: 5.5, LearningRate: 3e-4, GradientNorm: 1, TokensPerSecond: 1234.5},
		Published{Step: 3, Bytes: 1600e6, Seconds: 3.1, BlockedSeconds: 0.02, WeightsHash: strings.Repeat("5b", 32)},
		Note{Text: "that was it"},
		Done{Steps: 3, Tokens: 48733, Seconds: 54, LossBefore: &before, LossAfter: &after, WeightsHash: strings.Repeat("5b", 32), Exported: "./out"},
	}
}

func printed(format Format, columns int) string {
	var out bytes.Buffer
	p := NewPrinter(&out, format, func() int { return columns })
	for _, e := range run() {
		p.Emit(e)
	}
	p.Close()
	return out.String()
}

func TestInAPipeEveryEventIsAPlainLine(t *testing.T) {
	want := `preparing   model 134.5M parameters, llama, 269 MB · data 116,986 examples → 9,911 sequences, 2.1 % padding · bits: amx-bf16 r1
running     3 steps from the start · 4 ranks on 1 worker · 2 threads · spec abababababab…
step        1/3  loss 7.180  lr 6.0e-5  |g| 3.25  912 tok/s  ETA 16s
evaluated   step 1 · held-out loss 1.9810 over 5,202 targets · exact match 1 of 32
answer      step 1 · Pronounce: �[2Jskein → S K EY1 N   (is: S K EY1 N)
step        2/3  skipped: the gradient is not finite
step        3/3  loss 5.500  lr 3.0e-4  |g| 1.00  1,234 tok/s  ETA 0s
published   step 3 · 1.6 GB in 3.1 s, training blocked 0.02 s · weights 5b5b5b5b5b5b…
note        that was it
done        3 steps, 48,733 tokens in 54s · val 7.506 → 1.600 · weights 5b5b5b5b5b5b… · exported ./out
`
	if got := printed(Plain, 0); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestOnATerminalTheStepLineIsRedrawnAndNeverWraps(t *testing.T) {
	for _, columns := range []int{20, 60, 80, 200} {
		got := printed(Terminal, columns)
		if !strings.Contains(got, "\r\x1b[Kstep 3/3") {
			t.Errorf("%d columns: the step line is not redrawn in %q", columns, got)
		}
		for _, drawn := range strings.Split(got, "\r\x1b[K")[1:] {
			line, _, _ := strings.Cut(drawn, "\n")
			if n := len([]rune(line)); n >= columns {
				t.Errorf("%d columns: a step line of %d would wrap: %q", columns, n, line)
			}
		}
	}
	if got := printed(Terminal, 200); !strings.Contains(got, "━") || !strings.Contains(got, "val 1.981@1") {
		t.Errorf("a wide terminal shows no bar or no held-out loss: %q", got)
	}
}

func TestEveryEventIsOneJSONObjectWithItsName(t *testing.T) {
	lines := bufio.NewScanner(strings.NewReader(printed(JSON, 0)))
	for _, e := range run() {
		if !lines.Scan() {
			t.Fatal("too few lines")
		}
		var got map[string]any
		if err := json.Unmarshal(lines.Bytes(), &got); err != nil {
			t.Fatalf("%s: %v", lines.Text(), err)
		}
		if got["event"] != e.Name() || len(got) < 2 {
			t.Errorf("%s is not the event %s", lines.Text(), e.Name())
		}
	}
	if lines.Scan() {
		t.Errorf("one line too many: %s", lines.Text())
	}
}

func TestANumberThatJSONLacksDoesNotLoseTheEvent(t *testing.T) {
	var out bytes.Buffer
	NewPrinter(&out, JSON, nil).Emit(Step{Step: 1, Steps: 2, Loss: math.NaN()})
	var got map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got["event"] != "step" {
		t.Errorf("%q: %v", out.String(), err)
	}
}

func TestNumbersAreWrittenAsPeopleReadThem(t *testing.T) {
	for got, want := range map[string]string{
		Bytes(999): "999 B", Bytes(1600e6): "1.6 GB", Bytes(2e12): "2 TB", Count(-1234567): "-1,234,567", Count(12): "12",
		Duration(0.4): "0s", Duration(250): "4m10s", Duration(7500): "2h05m", Short("abc"): "abc", rate(1): "1.0e0", plural(1, "rank"): "1 rank",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
