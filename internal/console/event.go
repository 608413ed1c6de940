// Package console tells people and machines what a run is doing: one event, one
// line. On a terminal the step line is redrawn in place, in a pipe every event
// is a line of its own, and with -o json it is an object on a line.
package console

import (
	"fmt"
	"strings"
	"time"
)

// Event is something that happened in a run. The fields of the implementation
// are its JSON; Line is its text, without the name in front.
type Event interface {
	Name() string
	Line() string
}

// Note is a sentence for the reader: a warning, a choice that was made.
type Note struct {
	Text string `json:"text"`
}

// Name implements Event.
func (Note) Name() string { return "note" }

// Line implements Event.
func (e Note) Line() string { return e.Text }

// Prepared says what the job will train on, once model and data are open.
type Prepared struct {
	Parameters   int64   `json:"parameters"`
	Architecture string  `json:"architecture"`
	ModelBytes   int64   `json:"modelBytes"`
	Examples     int64   `json:"examples"`
	Sequences    int64   `json:"sequences"`
	Padding      float64 `json:"padding"` // share of tokens that are padding
	NumericClass string  `json:"numericClass"`
	DataHash     string  `json:"dataHash"`
}

// Name implements Event.
func (Prepared) Name() string { return "preparing" }

// Line implements Event.
func (e Prepared) Line() string {
	return fmt.Sprintf("model %.1fM parameters, %s, %s · data %s examples → %s sequences, %.1f %% padding · bits: %s",
		float64(e.Parameters)/1e6, e.Architecture, Bytes(e.ModelBytes), Count(e.Examples), Count(e.Sequences), 100*e.Padding, e.NumericClass)
}

// Started says that training begins, or goes on from a checkpoint.
type Started struct {
	Steps     int64  `json:"steps"`
	From      int64  `json:"from"` // the step of the checkpoint; 0: from the model
	WorldSize int    `json:"worldSize"`
	Workers   int    `json:"workers"`
	Threads   int    `json:"threads"`
	SpecHash  string `json:"specHash"`
}

// Name implements Event.
func (Started) Name() string { return "running" }

// Line implements Event.
func (e Started) Line() string {
	from := "from the start"
	if e.From > 0 {
		from = "from the checkpoint of step " + Count(e.From)
	}
	return fmt.Sprintf("%s steps %s · %d ranks on %s · %s · spec %s",
		Count(e.Steps), from, e.WorldSize, plural(e.Workers, "worker"), plural(e.Threads, "thread"), Short(e.SpecHash))
}

// Step is one optimizer step taken or skipped.
type Step struct {
	Step            int64   `json:"step"`
	Steps           int64   `json:"steps"`
	Loss            float64 `json:"loss"` // mean over the step's target tokens, in nats
	LearningRate    float64 `json:"learningRate"`
	GradientNorm    float64 `json:"gradientNorm"`
	Targets         int64   `json:"targets"`
	Tokens          int64   `json:"tokens"` // read, targets or not
	TokensPerSecond float64 `json:"tokensPerSecond"`
	Seconds         float64 `json:"seconds"` // of this step
	ETASeconds      float64 `json:"etaSeconds"`
	Skipped         string  `json:"skipped,omitempty"` // why the weights were left alone
}

// Name implements Event.
func (Step) Name() string { return "step" }

// Line implements Event.
func (e Step) Line() string {
	return fmt.Sprintf("%d/%d  %s", e.Step, e.Steps, e.numbers(""))
}

func (e Step) numbers(validation string) string {
	if e.Skipped != "" {
		return "skipped: " + e.Skipped
	}
	return fmt.Sprintf("loss %.3f%s  lr %s  |g| %.2f  %s tok/s  ETA %s",
		e.Loss, validation, rate(e.LearningRate), e.GradientNorm, Count(int64(e.TokensPerSecond)), Duration(e.ETASeconds))
}

// Evaluated is the loss on the held-out data.
type Evaluated struct {
	Step       int64   `json:"step"`
	Loss       float64 `json:"loss"`
	Targets    int64   `json:"targets"`
	ExactMatch *int    `json:"exactMatch,omitempty"` // of Asked answers; nil: not asked
	Asked      int     `json:"asked,omitempty"`
}

// Name implements Event.
func (Evaluated) Name() string { return "evaluated" }

// Line implements Event.
func (e Evaluated) Line() string {
	line := fmt.Sprintf("step %d · held-out loss %.4f over %s targets", e.Step, e.Loss, Count(e.Targets))
	if e.ExactMatch != nil {
		line += fmt.Sprintf(" · exact match %d of %d", *e.ExactMatch, e.Asked)
	}
	return line
}

// Answered is what the model says to a prompt.
type Answered struct {
	Step   int64  `json:"step"`
	Prompt string `json:"prompt"`
	Answer string `json:"answer"`
	Want   string `json:"want,omitempty"`
}

// Name implements Event.
func (Answered) Name() string { return "answer" }

// Line implements Event.
func (e Answered) Line() string {
	line := fmt.Sprintf("step %d · %s → %s", e.Step, oneLine(e.Prompt), oneLine(e.Answer))
	if e.Want != "" {
		line += fmt.Sprintf("   (is: %s)", oneLine(e.Want))
	}
	return line
}

// Published says that a checkpoint is complete and can be gone on from.
type Published struct {
	Step           int64   `json:"step"`
	Bytes          int64   `json:"bytes"`
	Seconds        float64 `json:"seconds"`
	BlockedSeconds float64 `json:"blockedSeconds"` // for which training stood still
	WeightsHash    string  `json:"weightsHash"`
	Path           string  `json:"path"`
}

// Name implements Event.
func (Published) Name() string { return "published" }

// Line implements Event.
func (e Published) Line() string {
	return fmt.Sprintf("step %d · %s in %.1f s, training blocked %.2f s · weights %s", e.Step, Bytes(e.Bytes), e.Seconds, e.BlockedSeconds, Short(e.WeightsHash))
}

// Done is the end of a run that succeeded.
type Done struct {
	Steps       int64    `json:"steps"`
	Targets     int64    `json:"targets"`
	Tokens      int64    `json:"tokens"`
	Seconds     float64  `json:"seconds"`
	LossBefore  *float64 `json:"lossBefore,omitempty"` // held-out; nil: none
	LossAfter   *float64 `json:"lossAfter,omitempty"`
	WeightsHash string   `json:"weightsHash"`
	Exported    string   `json:"exported,omitempty"`
	Lineage     string   `json:"lineage,omitempty"`
}

// Name implements Event.
func (Done) Name() string { return "done" }

// Line implements Event.
func (e Done) Line() string {
	parts := []string{fmt.Sprintf("%s steps, %s tokens in %s", Count(e.Steps), Count(e.Tokens), Duration(e.Seconds))}
	if e.LossBefore != nil && e.LossAfter != nil {
		parts = append(parts, fmt.Sprintf("val %.3f → %.3f", *e.LossBefore, *e.LossAfter))
	}
	parts = append(parts, "weights "+Short(e.WeightsHash))
	if e.Exported != "" {
		parts = append(parts, "exported "+e.Exported)
	}
	return strings.Join(parts, " · ")
}

// Bytes writes a size in decimal units, as disks and models are spoken of.
func Bytes(n int64) string {
	for _, u := range []struct {
		size float64
		name string
	}{{1e12, "TB"}, {1e9, "GB"}, {1e6, "MB"}, {1e3, "kB"}} {
		if x := float64(n) / u.size; x >= 1 {
			return fmt.Sprintf("%.3g %s", x, u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

// Count writes n with commas between thousands.
func Count(n int64) string {
	digits := fmt.Sprint(n)
	sign := ""
	if n < 0 {
		sign, digits = "-", digits[1:]
	}
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return sign + digits
}

// Duration writes seconds as people read them: 16s, 4m10s, 2h05m.
func Duration(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second)).Round(time.Second)
	if d < time.Hour {
		return d.String()
	}
	return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
}

// Short is the beginning of a hash, enough to tell two apart by eye.
func Short(hash string) string {
	if len(hash) <= 12 {
		return hash
	}
	return hash[:12] + "…"
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// rate writes a learning rate as recipes do: 3.0e-4, not 3.0e-04.
func rate(x float64) string {
	return strings.NewReplacer("e-0", "e-", "e+0", "e").Replace(fmt.Sprintf("%.1e", x))
}

// oneLine keeps what a model or a user wrote from breaking the one-line rule or
// steering the terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case r < ' ' || r >= 0x7f && r < 0xa0:
			return '�'
		}
		return r
	}, strings.TrimSpace(s))
}
