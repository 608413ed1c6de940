package chat

import (
	"errors"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/skein-ml/skein/tokenizer"
)

// guard keeps special tokens that messages spell apart from those that the template writes.
type guard struct {
	texts []string // the longest first
}

func newGuard(texts []string) guard {
	texts = slices.DeleteFunc(slices.Clone(texts), func(s string) bool { return s == "" })
	slices.SortFunc(texts, func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	})
	return guard{slices.Compact(texts)}
}

// signs stand for special tokens in one render: each for one private character that no message uses.
type signs struct {
	texts    map[rune]string
	replacer *strings.Replacer
}

// The private planes of Unicode.
const firstPrivate, lastPrivate = 0xF0000, 0x10FFFD

// signs returns nil if the input spells no special token.
func (g guard) signs(in *input) (*signs, error) {
	spelled := make([]bool, len(g.texts))
	in.texts(func(text string) {
		for i, special := range g.texts {
			spelled[i] = spelled[i] || strings.Contains(text, special)
		}
	})
	if !slices.Contains(spelled, true) {
		return nil, nil
	}
	used := map[rune]bool{}
	in.texts(func(text string) {
		for _, r := range text {
			if r >= firstPrivate {
				used[r] = true
			}
		}
	})
	s := &signs{texts: map[rune]string{}}
	var pairs []string
	next := rune(firstPrivate)
	for i, special := range g.texts {
		if !spelled[i] {
			continue
		}
		for used[next] {
			next++
		}
		if next > lastPrivate {
			return nil, errors.New("chat: the messages use every private character of Unicode and spell special tokens; remove one of the two")
		}
		s.texts[next] = special
		pairs = append(pairs, special, string(next))
		next++
	}
	s.replacer = strings.NewReplacer(pairs...)
	return s, nil
}

// replace puts signs for special tokens; nil signs replace nothing.
func (s *signs) replace(text string) string {
	if s == nil {
		return text
	}
	return s.replacer.Replace(text)
}

// marked is a render with signs, and where its bytes are without them.
type marked struct {
	text  string
	moves []move
}

// move says that places from at on in the marked text are by bytes further behind without signs.
type move struct{ at, by int }

// restore puts the special tokens' texts back. literal are their places.
func (s *signs) restore(text string) (m marked, restored string, literal []tokenizer.Span) {
	m.text = text
	out := make([]byte, 0, len(text)+64)
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRuneInString(text[i:])
		if special, ok := s.texts[r]; ok {
			start := len(out)
			out = append(out, special...)
			literal = append(literal, tokenizer.Span{Start: start, End: len(out)})
			m.moves = append(m.moves, move{i + size, len(out) - (i + size)})
		} else {
			out = append(out, text[i:i+size]...)
		}
		i += size
	}
	return m, string(out), literal
}

// place returns where the byte at i of the marked text is in the restored one.
func (m *marked) place(i int) int {
	n, found := slices.BinarySearchFunc(m.moves, i, func(v move, i int) int { return v.at - i })
	if found {
		n++
	}
	if n == 0 {
		return i
	}
	return i + m.moves[n-1].by
}
