package jobspec

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// The words a key may hold. Each type lists its words in validate.go.
type (
	// Method is how the weights are changed.
	Method string
	// TooLong is what happens to an example longer than a sequence.
	TooLong string
	// Precision is the type of weights and activations in the compute.
	Precision string
	// ActivationCheckpointing is what forward keeps for backward.
	ActivationCheckpointing string
	// ScheduleKind is the shape of the learning rate after the warm-up.
	ScheduleKind string
	// Protect is what holds a job's state when a worker dies.
	Protect string
	// Wire is the type in which gradients travel between ranks.
	Wire string
	// DType is the type of exported weights.
	DType string
)

// The words of this release.
const (
	MethodFull Method = "full"

	TooLongSplit    TooLong = "split"
	TooLongTruncate TooLong = "truncate"
	TooLongDrop     TooLong = "drop"

	PrecisionBF16 Precision = "bf16"
	PrecisionFP32 Precision = "fp32"
	PrecisionHigh Precision = "high"

	ActivationCheckpointingNone      ActivationCheckpointing = "none"
	ActivationCheckpointingSelective ActivationCheckpointing = "selective"
	ActivationCheckpointingFull      ActivationCheckpointing = "full"

	ScheduleConstant ScheduleKind = "constant"
	ScheduleLinear   ScheduleKind = "linear"
	ScheduleCosine   ScheduleKind = "cosine"

	ProtectCheckpoint Protect = "checkpoint"
	ProtectMirror     Protect = "mirror"

	WireFP32 Wire = "fp32"
	WireBF16 Wire = "bf16"

	DTypeBF16 DType = "bf16"
	DTypeFP32 DType = "fp32"

	// Auto is the word for "decide at admission".
	Auto = "auto"
)

// text is a scalar with a notation of its own. want completes "must be …".
type text interface {
	UnmarshalText(b []byte) error
	want() string
}

// ByteSize is a count of bytes; in text "8GiB", "500 MB" or plain bytes.
type ByteSize int64

var byteUnits = []struct {
	name string
	size int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40},
	{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
}

func (ByteSize) want() string { return "a size such as 8GiB, 500MB or a count of bytes" }

// UnmarshalText reads a number with an optional unit of 1000s (KB MB GB TB) or
// 1024s (KiB MiB GiB TiB, or as Kubernetes writes them Ki Mi Gi Ti).
func (s *ByteSize) UnmarshalText(b []byte) error {
	digits, unit := strings.TrimSpace(string(b)), int64(1)
	for _, u := range byteUnits {
		if d, ok := strings.CutSuffix(digits, u.name); ok {
			digits, unit = strings.TrimSpace(d), u.size
			break
		}
	}
	if !isDecimal(digits) {
		return fmt.Errorf("%q is not a size", b)
	}
	f, err := strconv.ParseFloat(digits, 64)
	if n := f * float64(unit); err == nil && n < math.MaxInt64/2 {
		*s = ByteSize(math.Round(n))
		return nil
	}
	return fmt.Errorf("%q is too large", b)
}

// MarshalText writes the largest binary unit that divides the size.
func (s ByteSize) MarshalText() ([]byte, error) {
	for _, u := range []int{3, 2, 1, 0} {
		if size := byteUnits[u].size; s != 0 && int64(s)%size == 0 {
			return fmt.Appendf(nil, "%d%s", int64(s)/size, byteUnits[u].name), nil
		}
	}
	return strconv.AppendInt(nil, int64(s), 10), nil
}

func (s ByteSize) String() string {
	b, _ := s.MarshalText()
	return string(b)
}

// MicroBatch is a count of sequences; 0 is auto.
type MicroBatch int

func (MicroBatch) want() string { return "auto or a whole number" }

// UnmarshalText reads "auto" or a positive number.
func (m *MicroBatch) UnmarshalText(b []byte) error {
	if string(b) == Auto {
		*m = 0
		return nil
	}
	n, err := parseInt(string(b))
	if err != nil || n < 1 || n > math.MaxInt32 {
		return fmt.Errorf("%q is neither auto nor a number of sequences from 1 up", b)
	}
	*m = MicroBatch(n)
	return nil
}

// MarshalText is the inverse of UnmarshalText.
func (m MicroBatch) MarshalText() ([]byte, error) {
	if m == 0 {
		return []byte(Auto), nil
	}
	return strconv.AppendInt(nil, int64(m), 10), nil
}

// Steps is an interval; 0 is never.
type Steps int

func (Steps) want() string { return "an interval such as 8 steps" }

// UnmarshalText reads "8 steps", "1 step" or "8".
func (s *Steps) UnmarshalText(b []byte) error {
	number, unit, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
	n, err := parseInt(number)
	if unit = strings.TrimSpace(unit); err != nil || n < 1 || n > math.MaxInt32 || unit != "" && unit != "step" && unit != "steps" {
		return fmt.Errorf("%q is not an interval in steps", b)
	}
	*s = Steps(n)
	return nil
}

// MarshalText is the inverse of UnmarshalText.
func (s Steps) MarshalText() ([]byte, error) {
	if s == 1 {
		return []byte("1 step"), nil
	}
	return fmt.Appendf(nil, "%d steps", int(s)), nil
}

// Paths is one path or glob, or a list of them.
type Paths []string

// Validation is held-out data: files of its own, or a share of the training
// examples. Zero is none.
type Validation struct {
	Paths Paths
	Share float64 // 0 < Share < 1
}

// IsZero tells whether the job holds nothing out.
func (v Validation) IsZero() bool { return len(v.Paths) == 0 && v.Share == 0 }

// parseShare reads "2%"; ok tells whether s is meant as a share at all.
func parseShare(s string) (share float64, ok bool, err error) {
	digits, ok := strings.CutSuffix(strings.TrimSpace(s), "%")
	if digits = strings.TrimSpace(digits); !ok || !isDecimal(digits) {
		return 0, false, nil
	}
	if share, err = strconv.ParseFloat(digits, 64); err != nil {
		return 0, true, err
	}
	return share / 100, true, nil
}

// MarshalJSON writes the form that the job file has.
func (v Validation) MarshalJSON() ([]byte, error) {
	switch {
	case v.Share != 0:
		return json.Marshal(strconv.FormatFloat(v.Share*100, 'g', 12, 64) + "%")
	case len(v.Paths) == 1:
		return json.Marshal(v.Paths[0])
	}
	return json.Marshal([]string(v.Paths))
}

// UnmarshalJSON is the inverse of MarshalJSON.
func (v *Validation) UnmarshalJSON(b []byte) error {
	if err := json.Unmarshal(b, (*[]string)(&v.Paths)); err == nil {
		return nil
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	share, ok, err := parseShare(s)
	if ok {
		*v = Validation{Share: share}
		return err
	}
	*v = Validation{Paths: Paths{s}}
	return nil
}

// isDecimal tells whether s is digits with at most one point, as people write
// sizes and shares: no sign, no exponent, no hexadecimal.
func isDecimal(s string) bool {
	whole, frac, _ := strings.Cut(s, ".")
	for _, c := range whole + frac {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(whole) > 0 && len(s) < 32
}

// parseInt reads a plain decimal number. YAML's octal, hexadecimal and
// underscored notations are refused: 010 must not silently be eight.
func parseInt(s string) (int64, error) {
	digits := strings.TrimPrefix(s, "-")
	if !isDecimal(digits) || strings.Contains(digits, ".") || len(digits) > 1 && digits[0] == '0' {
		return 0, fmt.Errorf("%q is not a whole number", s)
	}
	return strconv.ParseInt(s, 10, 64)
}
