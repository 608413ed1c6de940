package tokenizer

// Decode returns the text of ids, without special tokens when skipSpecial is set. Bytes that form no UTF-8 become
// U+FFFD; ids that no token has are left out.
func (t *Tokenizer) Decode(ids []int32, skipSpecial bool) string {
	out := make([]byte, 0, 4*len(ids))
	for _, id := range ids {
		out = t.appendToken(out, id, skipSpecial)
	}
	return lossyUTF8(string(out))
}

func (t *Tokenizer) appendToken(dst []byte, id int32, skipSpecial bool) []byte {
	text, ok := t.Token(id)
	if !ok || skipSpecial && t.tokens[id].special {
		return dst
	}
	return appendTokenBytes(dst, text)
}

// Stream decodes ids as they come, and never gives out half a character. All that Push and Flush return is together
// what Decode returns for all ids.
type Stream struct {
	t           *Tokenizer
	skipSpecial bool
	pending     []byte // the start of a character, at most three bytes
}

// NewStream starts a decoding; skipSpecial as for Decode.
func (t *Tokenizer) NewStream(skipSpecial bool) *Stream {
	return &Stream{t: t, skipSpecial: skipSpecial}
}

// Push returns the text that id completes, "" when there is none yet.
func (s *Stream) Push(id int32) string {
	s.pending = s.t.appendToken(s.pending, id, s.skipSpecial)
	ready := string(s.pending)
	ready = ready[:len(ready)-unfinished(ready)]
	s.pending = s.pending[:copy(s.pending, s.pending[len(ready):])]
	return lossyUTF8(ready)
}

// Flush returns what is left at the end: U+FFFD where a character stayed unfinished.
func (s *Stream) Flush() string {
	rest := lossyUTF8(string(s.pending))
	s.pending = s.pending[:0]
	return rest
}
