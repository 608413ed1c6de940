package allreduce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/skein-ml/skein/internal/crc32c"
	"github.com/skein-ml/skein/shard"
)

// Verdict is what happens to the weights in a step.
type Verdict uint8

// The verdicts. A skipped step advances the step number and the schedule, not
// Adam's count; weights and moments stay as they are.
const (
	Apply Verdict = iota
	Skip
)

// Cause is why a step is skipped.
type Cause uint8

// The causes.
const (
	CauseNone      Cause = iota
	CauseNoTokens        // no target token in the whole global batch
	CauseNotFinite       // a loss or a gradient is NaN or infinite
	causeCount
)

// NoCulprit stands in Decision.Culprit when no rank is to blame.
const NoCulprit shard.Rank = -1

// Decision is the decision record D(k) of a step: all that is needed to apply the
// reduced gradients, in bits, so that everyone who holds a piece does the same.
// Its existence implies that every piece is reduced.
type Decision struct {
	Step      int64
	Action    Verdict
	Cause     Cause
	Culprit   shard.Rank // the rank where it is not finite, by NotFinite, or NoCulprit
	Taken     int64      // steps taken so far, this one included: Adam's t if it is applied
	ScaleBits uint32     // α as fp32 bits: the factor on reduced gradients; 0 if skipped
	RateBits  uint32     // learning rate as fp32 bits
	Tokens    int64      // target tokens of the global batch
	Loss      float64    // mean loss of these
	GradNorm  float64    // norm of the mean gradient, before clipping
	Requests  Requests
}

// String is the decision in one line, for logs.
func (d Decision) String() string {
	if d.Action == Apply {
		return fmt.Sprintf("step %d applied: loss %.4f, gradient norm %.4g, %d tokens", d.Step, d.Loss, d.GradNorm, d.Tokens)
	}
	switch {
	case d.Cause == CauseNoTokens:
		return fmt.Sprintf("step %d skipped: its global batch has no target token", d.Step)
	case d.Culprit != NoCulprit:
		return fmt.Sprintf("step %d skipped: rank %d saw a loss or gradient that is not finite", d.Step, d.Culprit)
	}
	return fmt.Sprintf("step %d skipped: the gradient norm is not finite", d.Step)
}

// The encoding is described in docs/formats/decision.md.
const (
	decisionMagic   = "SKND"
	decisionVersion = 1
	decisionPayload = 52
	// DecisionSize is the length of an encoded decision record in bytes.
	DecisionSize = 8 + decisionPayload + 4
)

// ErrDecision is returned for bytes that are not a decision record.
var ErrDecision = errors.New("not a decision record")

// AppendDecision appends the encoding of d to b.
func AppendDecision(b []byte, d Decision) []byte {
	start, le := len(b), binary.LittleEndian
	b = append(b, decisionMagic...)
	b = le.AppendUint16(b, decisionVersion)
	b = le.AppendUint16(b, decisionPayload)
	b = le.AppendUint64(b, uint64(d.Step))
	b = le.AppendUint64(b, uint64(d.Taken))
	b = le.AppendUint64(b, uint64(d.Tokens))
	b = le.AppendUint64(b, math.Float64bits(d.Loss))
	b = le.AppendUint64(b, math.Float64bits(d.GradNorm))
	b = le.AppendUint32(b, d.ScaleBits)
	b = le.AppendUint32(b, d.RateBits)
	b = append(b, byte(d.Action), byte(d.Cause), byte(d.Culprit), byte(d.Requests))
	return le.AppendUint32(b, crc32c.Sum(b[start:]))
}

// DecodeDecision reads a decision record of exactly DecisionSize bytes.
func DecodeDecision(b []byte) (Decision, error) {
	le := binary.LittleEndian
	switch {
	case len(b) != DecisionSize:
		return Decision{}, fmt.Errorf("%w: %d bytes, want %d", ErrDecision, len(b), DecisionSize)
	case string(b[:4]) != decisionMagic:
		return Decision{}, fmt.Errorf("%w: magic %q", ErrDecision, b[:4])
	case le.Uint32(b[DecisionSize-4:]) != crc32c.Sum(b[:DecisionSize-4]):
		return Decision{}, fmt.Errorf("%w: checksum differs", ErrDecision)
	case le.Uint16(b[4:]) != decisionVersion || le.Uint16(b[6:]) != decisionPayload:
		return Decision{}, fmt.Errorf("%w: version %d with %d bytes; this program reads version %d",
			ErrDecision, le.Uint16(b[4:]), le.Uint16(b[6:]), decisionVersion)
	}
	p := b[8:]
	d := Decision{
		Step: int64(le.Uint64(p)), Taken: int64(le.Uint64(p[8:])), Tokens: int64(le.Uint64(p[16:])),
		Loss: math.Float64frombits(le.Uint64(p[24:])), GradNorm: math.Float64frombits(le.Uint64(p[32:])),
		ScaleBits: le.Uint32(p[40:]), RateBits: le.Uint32(p[44:]),
		Action: Verdict(p[48]), Cause: Cause(p[49]), Culprit: shard.Rank(int8(p[50])), Requests: Requests(p[51]),
	}
	if why := d.inconsistent(); why != "" {
		return Decision{}, fmt.Errorf("%w: %s", ErrDecision, why)
	}
	return d, nil
}

// inconsistent says why no Decide can have made d, or "".
func (d Decision) inconsistent() string {
	switch {
	case d.Step < 0 || d.Taken < 0 || d.Taken > d.Step || d.Tokens < 0:
		return "a count is impossible"
	case d.Action > Skip || d.Cause >= causeCount || d.Requests&^requestsAll != 0:
		return "an unknown action, cause or request"
	case (d.Action == Skip) != (d.Cause != CauseNone):
		return "action and cause contradict each other"
	case d.Culprit < NoCulprit || d.Culprit >= shard.WorldSizeMax || d.Culprit != NoCulprit && d.Cause != CauseNotFinite:
		return "an impossible culprit"
	case d.Action == Skip && d.ScaleBits != 0:
		return "a skipped step with a scale"
	}
	return ""
}
