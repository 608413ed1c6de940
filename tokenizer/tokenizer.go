package tokenizer

import (
	"slices"
	"sort"
	"unicode/utf8"
)

// Tokenizer turns text into token ids and back.
type Tokenizer struct {
	tokens    []token          // by id
	ids       map[string]int32 // by text
	modelSize int              // tokens of the model itself, without added ones

	added, addedNormal *matcher  // those looked for before and after normalization
	nfc                bool      // normalize to NFC
	scanners           []scanner // each cuts what the one before left
	bpe                bpe
	before, behind     []int32 // ids that Encode puts around a text
}

type token struct {
	text           string
	known, special bool
}

// Span is the part [Start, End) of a text, in bytes.
type Span struct{ Start, End int }

// Encode returns the ids of text, with the special tokens that the file asks for around it (Llama 3: one at the start)
// when addSpecial is set. Bytes that are not UTF-8 are read as U+FFFD. Text that spells an added token becomes that
// token; see AppendEncodeLiteral for the text of strangers.
func (t *Tokenizer) Encode(text string, addSpecial bool) []int32 {
	if !addSpecial {
		return t.AppendEncode(nil, text)
	}
	dst := slices.Clone(t.before)
	return append(t.AppendEncode(dst, text), t.behind...)
}

// AppendEncode appends the ids of text to dst, without special tokens around it.
func (t *Tokenizer) AppendEncode(dst []int32, text string) []int32 {
	return t.AppendEncodeLiteral(dst, text, nil)
}

// AppendEncodeLiteral is AppendEncode, but special tokens that overlap one of the literal spans (in order of place) are
// not special there: they are encoded as the text they are. So a user who writes <|im_end|> does not end a message.
// It gives the ids that the library gives with encode_special_tokens, restricted to those spans.
func (t *Tokenizer) AppendEncodeLiteral(dst []int32, text string, literal []Span) []int32 {
	if !utf8.ValidString(text) {
		text, literal = rewrite(text, literal, lossyUTF8)
	}
	t.added.split(text, literal, func(start, end int) {
		dst = t.appendNormal(dst, text[start:end], within(literal, start, end))
	}, func(id int32) { dst = append(dst, id) })
	return dst
}

// rewrite returns f of text, and where the spans then are. f must work on parts as on the whole.
func rewrite(text string, spans []Span, f func(string) string) (string, []Span) {
	moved := make([]Span, len(spans))
	last, length := 0, 0
	advance := func(to int) int {
		length += len(f(text[last:to]))
		last = to
		return length
	}
	for i, sp := range spans {
		moved[i].Start = advance(sp.Start)
		moved[i].End = advance(sp.End)
	}
	return f(text), moved
}

// within returns the parts of spans, which are in order, inside [start, end), as seen from start.
func within(spans []Span, start, end int) []Span {
	var out []Span
	first := sort.Search(len(spans), func(i int) bool { return spans[i].End > start })
	for _, sp := range spans[first:] {
		if sp.Start >= end {
			break
		}
		out = append(out, Span{max(sp.Start, start) - start, min(sp.End, end) - start})
	}
	return out
}

// appendNormal encodes text that holds no added token of those looked for before normalization.
func (t *Tokenizer) appendNormal(dst []int32, text string, literal []Span) []int32 {
	if t.nfc {
		text, literal = rewrite(text, literal, nfc)
	}
	if len(t.addedNormal.tokens) == 0 {
		return t.appendPieces(dst, text, t.scanners)
	}
	t.addedNormal.split(text, literal, func(start, end int) {
		dst = t.appendPieces(dst, text[start:end], t.scanners)
	}, func(id int32) { dst = append(dst, id) })
	return dst
}

// appendPieces cuts text by the scanners, one inside the other, and encodes the pieces.
func (t *Tokenizer) appendPieces(dst []int32, text string, scanners []scanner) []int32 {
	if len(scanners) == 0 {
		return t.bpe.append(dst, text)
	}
	scan := scanners[0]
	for len(text) > 0 {
		n := scan(text)
		if len(scanners) == 1 {
			dst = t.bpe.append(dst, text[:n])
		} else {
			dst = t.appendPieces(dst, text[:n], scanners[1:])
		}
		text = text[n:]
	}
	return dst
}

// VocabSize returns one more than the highest id: the rows that an embedding needs.
func (t *Tokenizer) VocabSize() int { return len(t.tokens) }

// TokenID returns the id of a token given as the file spells it.
func (t *Tokenizer) TokenID(text string) (int32, bool) {
	id, ok := t.ids[text]
	return id, ok
}

// Token returns a token as the file spells it: byte-level characters, or the plain text of an added token.
func (t *Tokenizer) Token(id int32) (string, bool) {
	if id < 0 || int(id) >= len(t.tokens) || !t.tokens[id].known {
		return "", false
	}
	return t.tokens[id].text, true
}

// IsSpecial says whether Decode leaves the token out on request.
func (t *Tokenizer) IsSpecial(id int32) bool {
	return id >= 0 && int(id) < len(t.tokens) && t.tokens[id].special
}

// SpecialTokens returns the texts of all special tokens in order of id.
func (t *Tokenizer) SpecialTokens() []string {
	var out []string
	for _, tok := range t.tokens {
		if tok.special {
			out = append(out, tok.text)
		}
	}
	return out
}
