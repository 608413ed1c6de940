package data

import (
	"unicode/utf8"

	"github.com/skein-ml/skein/tokenizer"
)

// marker tokenizes text and marks the tokens that begin inside given spans of it.
type marker struct {
	tok *tokenizer.Tokenizer
	// size is how many bytes of text each token stands for. A tokenizer that normalizes, or that gives white space beside
	// an added token to that token, makes texts longer or shorter; then the sizes measure what became of the text.
	size []int32
}

func newMarker(tok *tokenizer.Tokenizer) *marker {
	m := &marker{tok: tok, size: make([]int32, tok.VocabSize())}
	for id := range m.size {
		if text, ok := tok.Token(int32(id)); ok {
			m.size[id] = spelledBytes(text)
		}
	}
	return m
}

// spelledBytes is the number of bytes that a token's text spells: one for each character of the byte-level alphabet (the
// printable ones of Latin-1, and U+0100…U+0143 for the rest); a text with any other character spells itself.
func spelledBytes(text string) int32 {
	for _, r := range text {
		if r < '!' || r > '~' && r < '¡' || r == '\u00ad' || r > '\u0143' {
			return int32(len(text))
		}
	}
	return int32(utf8.RuneCountInString(text))
}

// encode gives the tokens of text and whether each begins inside one of spans, which ascend. Special tokens spelled inside
// literal, which ascends too, are the text that they are.
func (m *marker) encode(text string, spans, literal []tokenizer.Span) (ids []int32, target []bool) {
	// Texts have three to four bytes a token; room for half as many wastes little.
	ids = m.tok.AppendEncodeLiteral(make([]int32, 0, len(text)/2+2), text, literal)
	if !m.spells(ids, text) {
		spans = m.moved(text, spans, literal)
	}
	target = make([]bool, len(ids), len(ids)+2)
	at, s := 0, 0
	for i, id := range ids {
		for s < len(spans) && at >= spans[s].End {
			s++
		}
		target[i] = s < len(spans) && at >= spans[s].Start
		at += int(m.size[id])
	}
	return ids, target
}

// spells reports whether the tokens stand for the text byte by byte.
func (m *marker) spells(ids []int32, text string) bool {
	if m.length(ids) != len(text) {
		return false
	}
	for i := range len(text) {
		if text[i] >= utf8.RuneSelf {
			// Normalization may lengthen here and shorten there.
			return m.tok.Decode(ids, false) == text
		}
	}
	return true
}

func (m *marker) length(ids []int32) (n int) {
	for _, id := range ids {
		n += int(m.size[id])
	}
	return n
}

// moved gives the spans as places in what became of the text: a prefix of the text becomes a prefix of it, whatever tokens
// either is cut into.
func (m *marker) moved(text string, spans, literal []tokenizer.Span) []tokenizer.Span {
	place := func(at int) int {
		var before []tokenizer.Span
		for _, l := range literal {
			if l.Start < at {
				before = append(before, tokenizer.Span{Start: l.Start, End: min(l.End, at)})
			}
		}
		return m.length(m.tok.AppendEncodeLiteral(nil, text[:at], before))
	}
	out := make([]tokenizer.Span, len(spans))
	for i, s := range spans {
		out[i] = tokenizer.Span{Start: place(s.Start), End: place(s.End)}
	}
	return out
}
