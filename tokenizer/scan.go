package tokenizer

import (
	"strings"
	"unicode/utf8"
)

// scanner returns the length of the first pre-token of s, which is valid UTF-8 and not empty. Scanners are written by
// hand because the published patterns look ahead, which Go's regexp cannot.
type scanner func(s string) int

// Patterns for which there is a scanner. Each alternative is tried in order at every place, the first that fits wins.
const (
	patternGPT2  = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
	patternLlama = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	patternQwen  = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
)

var scanners = map[string]scanner{
	patternGPT2:  scanGPT2,
	patternLlama: func(s string) int { return scanLlama(s, 3) },
	patternQwen:  func(s string) int { return scanLlama(s, 1) },
}

// scanGPT2 is patternGPT2.
func scanGPT2(s string) int {
	i := 0
	switch s[0] {
	case '\'':
		if n := contraction(s); n > 0 {
			return n
		}
	case ' ':
		if len(s) > 1 {
			i = 1
		}
	}
	class, size := classAt(s, i)
	if kind := class & kindMask; kind != space {
		return skipKind(s, i+size, kind)
	}
	return scanSpaces(s, skipKind(s, 0, space))
}

// scanLlama is patternLlama and patternQwen: they differ in how many digits stay together.
func scanLlama(s string, digits int) int {
	c := s[0]
	if c == '\'' {
		if n := anyCaseContraction(s); n > 0 {
			return n
		}
	}
	class, size := classAt(s, 0)
	kind := class & kindMask
	if kind == letter {
		return skipKind(s, size, letter)
	}
	if kind == number {
		i := size
		for n := 1; n < digits && i < len(s); n++ {
			class, size := classAt(s, i)
			if class&kindMask != number {
				break
			}
			i += size
		}
		return i
	}
	next, nextSize := uint8(space), 0
	if size < len(s) {
		next, nextSize = classAt(s, size)
		next &= kindMask
	}
	if next == letter && c != '\r' && c != '\n' { // any one sign or space goes with the word behind it
		return skipKind(s, size+nextSize, letter)
	}
	if kind == other || c == ' ' && next == other {
		i := skipKind(s, size, other)
		for i < len(s) && (s[i] == '\r' || s[i] == '\n') {
			i++
		}
		return i
	}
	end := skipKind(s, 0, space)
	if i := strings.LastIndexAny(s[:end], "\r\n"); i >= 0 {
		return i + 1
	}
	return scanSpaces(s, end)
}

// scanSpaces is `\s+(?!\S)|\s+` where s[:end] are spaces and s[end:] starts with none: the last space is left for what
// follows, unless there is no other or nothing follows.
func scanSpaces(s string, end int) int {
	if end == len(s) {
		return end
	}
	_, last := utf8.DecodeLastRuneInString(s[:end])
	if end > last {
		return end - last
	}
	return end
}

// contraction returns the length of 's, 't, 're, 've, 'm, 'll or 'd at the start of s, or 0.
func contraction(s string) int {
	if len(s) < 2 {
		return 0
	}
	switch s[1] {
	case 's', 't', 'm', 'd':
		return 2
	case 'r', 'v':
		if len(s) > 2 && s[2] == 'e' {
			return 3
		}
	case 'l':
		if len(s) > 2 && s[2] == 'l' {
			return 3
		}
	}
	return 0
}

// anyCaseContraction is contraction in any case; case folding takes ſ (U+017F) for s.
func anyCaseContraction(s string) int {
	if strings.HasPrefix(s[1:], "ſ") {
		return 1 + len("ſ")
	}
	low := [3]byte{'\''}
	for i := 1; i < len(s) && i < 3; i++ {
		low[i] = s[i]
		if 'A' <= s[i] && s[i] <= 'Z' {
			low[i] += 'a' - 'A'
		}
	}
	return contraction(string(low[:min(3, len(s))]))
}

// scanDigits is the Digits pre-tokenizer with individual_digits: every number alone, all else together.
func scanDigits(s string) int {
	class, size := classAt(s, 0)
	if class&numeric != 0 {
		return size
	}
	return skipNonNumeric(s, size)
}

// scanDigitRuns is the Digits pre-tokenizer without individual_digits: runs of numbers, and all else together.
func scanDigitRuns(s string) int {
	class, size := classAt(s, 0)
	if class&numeric != 0 {
		return skipClass(s, size, numeric)
	}
	return skipNonNumeric(s, size)
}

func skipNonNumeric(s string, i int) int {
	for i < len(s) {
		class, size := classAt(s, i)
		if class&numeric != 0 {
			break
		}
		i += size
	}
	return i
}
