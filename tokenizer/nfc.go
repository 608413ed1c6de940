package tokenizer

import (
	"sync"
	"unicode/utf8"
)

// Unicode's canonical composition (UAX #15), with the tables of the library that is reproduced. The package
// golang.org/x/text does not serve: it knows newer characters, and it breaks runs of more than thirty marks apart.

type markRun struct {
	first, last rune
	class       uint8
}

type nfcTables struct {
	decomposed map[rune]string // full canonical decomposition, without Hangul syllables
	composed   map[[2]rune]rune
	class      map[rune]uint8 // canonical combining class where it is not 0
}

var nfcData = sync.OnceValue(func() *nfcTables {
	t := &nfcTables{map[rune]string{}, map[[2]rune]rune{}, map[rune]uint8{}}
	for _, m := range markRuns {
		for r := m.first; r <= m.last; r++ {
			t.class[r] = m.class
		}
	}
	for rest := decompositions; rest != ""; {
		r, size := utf8.DecodeRuneInString(rest)
		end := size
		for rest[end] != 0 {
			end++
		}
		t.decomposed[r] = rest[size:end]
		rest = rest[end+1:]
	}
	never := make(map[rune]bool, len(excluded))
	for _, r := range excluded {
		never[r] = true
	}
	// A composable code point is made of its last part and whatever the parts before it compose to, which in turn is a
	// shorter decomposition: so the shortest come first.
	whole := make(map[string]rune, len(t.decomposed))
	for r, parts := range t.decomposed {
		if !never[r] {
			whole[parts] = r
		}
	}
	for parts, r := range whole {
		last, size := utf8.DecodeLastRuneInString(parts)
		head := parts[:len(parts)-size]
		first, ok := whole[head]
		if !ok {
			first, _ = utf8.DecodeRuneInString(head)
		}
		t.composed[[2]rune{first, last}] = r
	}
	return t
})

const (
	hangulBase, hangulEnd = 0xAC00, 0xD7A4
	leadBase, leadCount   = 0x1100, 19
	vowelBase, vowelCount = 0x1161, 21
	tailBase, tailCount   = 0x11A7, 28 // tailBase itself means no tail
)

// nfc returns the canonical composition of s, which is valid UTF-8; s itself when there is nothing to do.
func nfc(s string) string {
	look := -1 // first code point that composition may touch
	for i := 0; i < len(s); {
		class, size := classAt(s, i)
		if class&nfcLook != 0 {
			look = i
			break
		}
		i += size
	}
	if look < 0 {
		return s
	}
	t := nfcData()
	out := make([]byte, 0, len(s)+16)
	var runes []rune
	// A segment starts at a code point that composition leaves alone and takes in all that is not so behind it.
	_, size := utf8.DecodeLastRuneInString(s[:look])
	done := look - size
	out = append(out, s[:done]...)
	for done < len(s) {
		_, size := utf8.DecodeRuneInString(s[done:])
		end := skipClass(s, done+size, nfcLook)
		if class, _ := classAt(s, done); end == done+size && class&nfcLook == 0 {
			out = append(out, s[done:end]...)
		} else {
			runes = t.compose(t.decompose(runes[:0], s[done:end]))
			for _, r := range runes {
				out = utf8.AppendRune(out, r)
			}
		}
		done = end
	}
	return string(out)
}

// decompose appends the canonical decomposition of s to dst, marks in canonical order.
func (t *nfcTables) decompose(dst []rune, s string) []rune {
	for _, r := range s {
		if r >= hangulBase && r < hangulEnd {
			i := r - hangulBase
			dst = append(dst, leadBase+i/(vowelCount*tailCount), vowelBase+i/tailCount%vowelCount)
			if tail := i % tailCount; tail != 0 {
				dst = append(dst, tailBase+tail)
			}
		} else if parts, ok := t.decomposed[r]; ok {
			for _, p := range parts {
				dst = append(dst, p)
			}
		} else {
			dst = append(dst, r)
		}
	}
	for i := 0; i < len(dst); {
		if t.class[dst[i]] == 0 {
			i++
			continue
		}
		end := i + 1
		for end < len(dst) && t.class[dst[end]] != 0 {
			end++
		}
		t.order(dst[i:end])
		i = end
	}
	return dst
}

// order sorts marks by class and leaves those of one class as they stand. Counting, because a run may be as long as
// the text.
func (t *nfcTables) order(marks []rune) {
	if len(marks) < 2 {
		return
	}
	var start [257]int
	for _, r := range marks {
		start[int(t.class[r])+1]++
	}
	for i := 1; i < len(start); i++ {
		start[i] += start[i-1]
	}
	sorted := make([]rune, len(marks))
	for _, r := range marks {
		c := t.class[r]
		sorted[start[c]] = r
		start[c]++
	}
	copy(marks, sorted)
}

// compose joins, in place, every starter with the marks and starters behind it that nothing blocks.
func (t *nfcTables) compose(runes []rune) []rune {
	out := runes[:0]
	starter := -1 // index in out of the last starter
	blocked := -1 // class of the last code point kept since; -1 when there is none
	for _, r := range runes {
		class := int(t.class[r])
		if starter >= 0 && blocked < class {
			if whole, ok := t.pair(out[starter], r); ok {
				out[starter] = whole
				continue
			}
		}
		if class == 0 {
			starter, blocked = len(out), -1
		} else {
			blocked = class
		}
		out = append(out, r)
	}
	return out
}

func (t *nfcTables) pair(a, b rune) (rune, bool) {
	if l, v := a-leadBase, b-vowelBase; l >= 0 && l < leadCount && v >= 0 && v < vowelCount {
		return hangulBase + (l*vowelCount+v)*tailCount, true
	}
	if i, tail := a-hangulBase, b-tailBase; a >= hangulBase && a < hangulEnd && i%tailCount == 0 && tail > 0 && tail < tailCount {
		return a + tail, true
	}
	whole, ok := t.composed[[2]rune{a, b}]
	return whole, ok
}
