package data

import (
	"fmt"
	"strings"
)

// Report counts what became of the rows of one data set.
type Report struct {
	Examples      int64 `json:"examples"`      // rows read, but for bad ones
	Documents     int64 `json:"documents"`     // what was packed; more than one for a split example
	Packs         int64 `json:"packs"`         // sequences of T
	Tokens        int64 `json:"tokens"`        // without padding
	Targets       int64 `json:"targets"`       // tokens to be learnt
	Padding       int64 `json:"padding"`       // tokens of padding
	Split         int64 `json:"split"`         // examples that were too long, by what became of them
	Truncated     int64 `json:"truncated"`     //
	Dropped       int64 `json:"dropped"`       //
	WithoutTarget int64 `json:"withoutTarget"` // examples left out because nothing could be learnt from them
	// StretchesWithoutTarget counts such parts of split examples.
	StretchesWithoutTarget int64 `json:"stretchesWithoutTarget"`
	BadLines               int64 `json:"badLines"` // skipped, as the limit allowed
	// BadLineErrors are the first few of them, as "file:line: what is wrong".
	BadLineErrors []string `json:"badLineErrors,omitempty"`
}

// PaddingShare is the share of padding in all tokens, 0…1.
func (r Report) PaddingShare() float64 {
	if r.Tokens+r.Padding == 0 {
		return 0
	}
	return float64(r.Padding) / float64(r.Tokens+r.Padding)
}

// String is the one line a user reads, such as
// "116,986 examples → 9,911 packs, 2.1 % padding, 522,913 targets, 3 split".
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s examples → %s packs, %.1f %% padding, %s targets",
		group(r.Examples), group(r.Packs), 100*r.PaddingShare(), group(r.Targets))
	for _, c := range []struct {
		n    int64
		what string
	}{{r.Split, "split"}, {r.Truncated, "truncated"}, {r.Dropped, "too long and dropped"},
		{r.WithoutTarget, "without a target and dropped"}, {r.BadLines, "bad lines skipped"}} {
		if c.n > 0 {
			fmt.Fprintf(&b, ", %s %s", group(c.n), c.what)
		}
	}
	return b.String()
}

// group writes a count with commas between thousands.
func group(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// CheckGlobalBatch refuses a data set that does not fill a single step: the step would repeat its own samples.
func (r Report) CheckGlobalBatch(globalBatch int64) error {
	if r.Packs >= globalBatch {
		return nil
	}
	return fmt.Errorf("the training data makes %s packs, but one step takes %s (train.globalBatch); lower globalBatch, shorten data.sequenceLength or add data",
		group(r.Packs), group(globalBatch))
}
