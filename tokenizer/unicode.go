package tokenizer

import "unicode/utf8"

// Classes of a code point, one bit each.
const (
	letter  = 1 << iota // \p{L} of the regex engine
	number              // \p{N} of the regex engine
	space               // \s of the regex engine
	numeric             // what the Digits pre-tokenizer cuts out
	word                // what may not stand beside a single_word token
	strip               // what lstrip and rstrip swallow
	nfcLook             // NFC may change the code point or what stands before it

	kindMask = letter | number | space // at most one of these is set
	other    = 0                       // kind of what is none of them
)

// classBlocks[classIndex[r>>8]][r&255] is the class of r; equal blocks are shared.
var classIndex, classBlocks = buildClasses()

func buildClasses() (index [0x1100]uint16, blocks [][256]uint8) {
	shared := make(map[[256]uint8]uint16)
	run := 0
	for b := range index {
		var block [256]uint8
		for i := range block {
			cp := uint32(b<<8 | i)
			for run+1 < len(classRuns) && classRuns[run+1]>>8 <= cp {
				run++
			}
			block[i] = uint8(classRuns[run])
		}
		at, ok := shared[block]
		if !ok {
			at = uint16(len(blocks))
			shared[block] = at
			blocks = append(blocks, block)
		}
		index[b] = at
	}
	return index, blocks
}

func classOf(r rune) uint8 { return classBlocks[classIndex[r>>8]][r&255] }

// asciiClass is the first half of the first block, in the place where the loops below find it fastest.
var asciiClass = func() (t [utf8.RuneSelf]uint8) {
	copy(t[:], classBlocks[classIndex[0]][:])
	return t
}()

// classAt returns the class and the length in bytes of the code point at s[i:]. s is valid UTF-8 and i < len(s).
func classAt(s string, i int) (class uint8, size int) {
	if c := s[i]; c < utf8.RuneSelf {
		return asciiClass[c], 1
	}
	r, size := utf8.DecodeRuneInString(s[i:])
	return classOf(r), size
}

// skipKind returns the end of the run of code points of one kind (letter, number, space or other) that starts at s[i:].
func skipKind(s string, i int, kind uint8) int {
	for i < len(s) {
		class, size := classAt(s, i)
		if class&kindMask != kind {
			break
		}
		i += size
	}
	return i
}

// skipClass returns the end of the run of code points at s[i:] that have one of the bits of mask.
func skipClass(s string, i int, mask uint8) int {
	for i < len(s) {
		class, size := classAt(s, i)
		if class&mask == 0 {
			break
		}
		i += size
	}
	return i
}

// lossyUTF8 replaces every longest part of s that starts no code point by U+FFFD, as Rust's from_utf8_lossy and the
// WHATWG decoder do. (strings.ToValidUTF8 makes one replacement of a whole run, a range loop one per byte.)
func lossyUTF8(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	out := make([]byte, 0, len(s)+8)
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		if r != utf8.RuneError || size != 1 {
			out = append(out, s[i:i+size]...)
			i += size
			continue
		}
		out = append(out, "\uFFFD"...)
		i += max(1, begun(s[i:]))
	}
	return string(out)
}

// begun returns how many leading bytes of s (not a whole code point) could begin one: the length of the maximal subpart.
func begun(s string) int {
	var want int
	lo, hi := byte(0x80), byte(0xBF)
	switch c := s[0]; {
	case c >= 0xC2 && c <= 0xDF:
		want = 2
	case c >= 0xE0 && c <= 0xEF:
		want = 3
		switch c {
		case 0xE0:
			lo = 0xA0
		case 0xED:
			hi = 0x9F
		}
	case c >= 0xF0 && c <= 0xF4:
		want = 4
		switch c {
		case 0xF0:
			lo = 0x90
		case 0xF4:
			hi = 0x8F
		}
	default:
		return 0
	}
	n := 1
	for n < want && n < len(s) && s[n] >= lo && s[n] <= hi {
		lo, hi = 0x80, 0xBF
		n++
	}
	return n
}

// unfinished returns how many bytes at the end of s may still become a code point when more bytes follow.
func unfinished(s string) int {
	for n := 1; n <= 3 && n <= len(s); n++ {
		tail := s[len(s)-n:]
		if utf8.RuneStart(tail[0]) {
			if b := begun(tail); b == n && !utf8.FullRuneInString(tail) {
				return n
			}
			return 0
		}
	}
	return 0
}

// lastClass returns the class of the last code point of s, which is not empty.
func lastClass(s string) uint8 {
	r, _ := utf8.DecodeLastRuneInString(s)
	return classOf(r)
}

// stripLeft returns the length of s without the spaces at its end.
func stripLeft(s string) int {
	for len(s) > 0 && lastClass(s)&strip != 0 {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return len(s)
}
