package tokenizer

import "sort"

// addedToken is an entry of added_tokens: text that is cut out before anything else looks at it.
type addedToken struct {
	ID         int32  `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"` // only where no word touches it
	LStrip     bool   `json:"lstrip"`      // takes the spaces before it along
	RStrip     bool   `json:"rstrip"`      // takes the spaces behind it along
	Normalized bool   `json:"normalized"`  // looked for in the normalized text
	Special    bool   `json:"special"`     // left out by Decode on request
}

// matcher finds added tokens: the leftmost first, of those that start together the longest.
type matcher struct {
	tokens []addedToken
	nodes  []trieNode // nodes[0] is the root
	first  [256]bool  // bytes that a token starts with
}

type trieNode struct {
	edges []trieEdge
	token int32 // index in tokens of the token that ends here, or -1
}

type trieEdge struct {
	b  byte
	to int32
}

// newMatcher finds tokens[i] where the text patterns[i] stands.
func newMatcher(tokens []addedToken, patterns []string) *matcher {
	m := &matcher{tokens: tokens, nodes: []trieNode{{token: -1}}}
	for i, pattern := range patterns {
		at := int32(0)
		for j := range len(pattern) {
			to := m.step(at, pattern[j])
			if to < 0 {
				to = int32(len(m.nodes))
				m.nodes = append(m.nodes, trieNode{token: -1})
				m.nodes[at].edges = append(m.nodes[at].edges, trieEdge{pattern[j], to})
			}
			at = to
		}
		if m.nodes[at].token < 0 {
			m.nodes[at].token = int32(i)
		}
		m.first[pattern[0]] = true
	}
	return m
}

func (m *matcher) step(at int32, b byte) int32 {
	for _, e := range m.nodes[at].edges {
		if e.b == b {
			return e.to
		}
	}
	return -1
}

// longest returns the longest token that s starts with: its index and its length, or -1.
func (m *matcher) longest(s string) (token int32, size int) {
	token = -1
	at := int32(0)
	for i := range len(s) {
		if at = m.step(at, s[i]); at < 0 {
			break
		}
		if t := m.nodes[at].token; t >= 0 {
			token, size = t, i+1
		}
	}
	return token, size
}

// split calls text for every stretch without added tokens and found for every added token, in order. A special token
// that overlaps one of the literal spans is text.
func (m *matcher) split(s string, literal []Span, text func(start, end int), found func(id int32)) {
	done := 0
	for i := 0; i < len(s) && len(m.tokens) > 0; {
		if !m.first[s[i]] {
			i++
			continue
		}
		token, size := m.longest(s[i:])
		if token < 0 {
			i++
			continue
		}
		t := &m.tokens[token]
		start, end := i, i+size
		i = end
		if t.Special && overlaps(literal, start, end) || t.SingleWord && !alone(s, start, end) {
			continue
		}
		if t.LStrip {
			start = max(done, stripLeft(s[:start]))
		}
		if t.RStrip {
			end = skipClass(s, end, strip)
		}
		if done < start {
			text(done, start)
		}
		found(t.ID)
		done = end
	}
	if done < len(s) {
		text(done, len(s))
	}
}

// alone says whether no word touches s[start:end].
func alone(s string, start, end int) bool {
	if start > 0 && lastClass(s[:start])&word != 0 {
		return false
	}
	if end < len(s) {
		class, _ := classAt(s, end)
		return class&word == 0
	}
	return true
}

// overlaps says whether one of spans, which are in order, shares a byte with [start, end).
func overlaps(spans []Span, start, end int) bool {
	i := sort.Search(len(spans), func(i int) bool { return spans[i].End > start })
	return i < len(spans) && spans[i].Start < end
}
