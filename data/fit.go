package data

import "fmt"

// TooLong says what becomes of an example with more than T tokens.
type TooLong string

// What may become of an example that is too long.
const (
	// Split cuts it into stretches of at most T tokens. A stretch begins with the last token of the one before, which is
	// context there: so every token but the first is predicted exactly once.
	Split TooLong = "split"
	// Truncate keeps the first T tokens.
	Truncate TooLong = "truncate"
	// Drop leaves it out.
	Drop TooLong = "drop"
)

func (t TooLong) validate() error {
	switch t {
	case Split, Truncate, Drop:
		return nil
	}
	return fmt.Errorf("tooLong is %q; known are split, truncate, drop", string(t))
}

// fit cuts an example to seqLen, counts what it does, and hands what is left to add. A stretch without a target is left out:
// nothing could be learnt from it.
func fit(x encoded, seqLen int, policy TooLong, r *Report, add func(encoded) error) error {
	r.Examples++
	if x.targets() == 0 {
		r.WithoutTarget++
		return nil
	}
	if len(x.ids) <= seqLen {
		return add(x)
	}
	switch policy {
	case Drop:
		r.Dropped++
		return nil
	case Truncate:
		r.Truncated++
		x = encoded{x.ids[:seqLen], x.target[:seqLen]}
		if x.targets() == 0 {
			r.WithoutTarget++
			return nil
		}
		return add(x)
	}
	r.Split++
	for from := 0; from < len(x.ids)-1; from += seqLen - 1 {
		to := min(from+seqLen, len(x.ids))
		part := encoded{x.ids[from:to], x.target[from:to]}
		if part.targets() == 0 {
			r.StretchesWithoutTarget++
			continue
		}
		if err := add(part); err != nil {
			return err
		}
	}
	return nil
}

// targets counts the tokens that are predicted: the first has nothing before it to be predicted from.
func (x encoded) targets() (n int64) {
	for i := 1; i < len(x.target); i++ {
		if x.target[i] {
			n++
		}
	}
	return n
}
