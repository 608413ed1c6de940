package data

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// doc makes an example of n tokens counting from start, of which the last learnt ones are targets.
func doc(start, n, learnt int) encoded {
	x := encoded{make([]int32, n), make([]bool, n)}
	for i := range n {
		x.ids[i], x.target[i] = int32(start+i), i >= n-learnt
	}
	return x
}

func packAll(t interface{ Fatal(...any) }, seqLen int, packing bool, policy TooLong, docs ...encoded) ([]pack, Report) {
	var out []pack
	var r Report
	p := newPacker(seqLen, packing, &r, func(p *pack) error {
		out = append(out, pack{slices.Clone(p.tokens), slices.Clone(p.targets), slices.Clone(p.documents), p.padding})
		return nil
	})
	for _, d := range docs {
		if err := fit(d, seqLen, policy, &r, p.add); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.flush(); err != nil {
		t.Fatal(err)
	}
	return out, r
}

const no = NoTarget

func TestPackingIsGreedyInOrder(t *testing.T) {
	got, r := packAll(t, 8, true, Split, doc(10, 3, 1), doc(20, 4, 2), doc(30, 2, 2), doc(40, 6, 1), doc(50, 8, 1))
	want := []pack{
		{[]int32{10, 11, 12, 20, 21, 22, 23, 0}, []int32{no, 12, no, no, 22, 23, no, no}, []int32{3, 4, 1}, 1},
		// The first token of a document is never a target, even where it is to be learnt.
		{[]int32{30, 31, 40, 41, 42, 43, 44, 45}, []int32{31, no, no, no, no, no, 45, no}, []int32{2, 6}, 0},
		{[]int32{50, 51, 52, 53, 54, 55, 56, 57}, []int32{no, no, no, no, no, no, 57, no}, []int32{8}, 0},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("\n got %v\nwant %v", got, want)
	}
	if wantReport := (Report{Examples: 5, Documents: 5, Packs: 3, Tokens: 23, Targets: 6, Padding: 1}); !reflect.DeepEqual(r, wantReport) {
		t.Errorf("report %+v", r)
	}
}

func TestWithoutPackingEachExampleHasItsOwnSequence(t *testing.T) {
	got, _ := packAll(t, 4, false, Split, doc(10, 2, 1), doc(20, 4, 1))
	want := []pack{{[]int32{10, 11, 0, 0}, []int32{11, no, no, no}, []int32{2, 2}, 2}, {[]int32{20, 21, 22, 23}, []int32{no, no, 23, no}, []int32{4}, 0}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("\n got %v\nwant %v", got, want)
	}
}

func TestTooLongExamplesAreSplitTruncatedOrDropped(t *testing.T) {
	long := doc(10, 7, 4) // 10…16, learnt 13…16
	for _, c := range []struct {
		policy TooLong
		tokens [][]int32
		report Report
	}{
		{Split, [][]int32{{10, 11, 12, 13}, {13, 14, 15, 16}}, Report{Examples: 1, Documents: 2, Packs: 2, Tokens: 8, Targets: 4, Split: 1}},
		{Truncate, [][]int32{{10, 11, 12, 13}}, Report{Examples: 1, Documents: 1, Packs: 1, Tokens: 4, Targets: 1, Truncated: 1}},
		{Drop, nil, Report{Examples: 1, Dropped: 1}},
	} {
		got, r := packAll(t, 4, true, c.policy, long)
		var tokens [][]int32
		for _, p := range got {
			tokens = append(tokens, p.tokens)
		}
		if !reflect.DeepEqual(tokens, c.tokens) || !reflect.DeepEqual(r, c.report) {
			t.Errorf("%s: %v, %+v", c.policy, tokens, r)
		}
	}
}

func TestWhatHoldsNoTargetIsLeftOutAndCounted(t *testing.T) {
	got, r := packAll(t, 4, true, Split, doc(10, 3, 0), doc(20, 1, 1), doc(30, 10, 2))
	if len(got) != 1 || r.WithoutTarget != 2 || r.StretchesWithoutTarget != 2 || r.Split != 1 || r.Documents != 1 {
		t.Errorf("%d packs, %+v", len(got), r)
	}
	_, r = packAll(t, 4, true, Truncate, doc(30, 10, 2))
	if r.Truncated != 1 || r.WithoutTarget != 1 || r.Packs != 0 {
		t.Errorf("%+v", r)
	}
}

// Whatever the lengths: split neither loses nor doubles a target, every pack is cut by its documents, and each target is the token
// behind it.
func TestPackingKeepsEveryTargetOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seqLen := rapid.IntRange(2, 40).Draw(t, "T")
		packing := rapid.Bool().Draw(t, "packing")
		lengths := rapid.SliceOfN(rapid.IntRange(1, 100), 1, 30).Draw(t, "lengths")
		var docs []encoded
		want := map[int32]int{}
		next := 1
		for _, n := range lengths {
			d := doc(next, n, 0)
			for i := range n {
				if d.target[i] = rapid.Bool().Draw(t, "target"); d.target[i] && i > 0 {
					want[d.ids[i]]++
				}
			}
			next += n
			docs = append(docs, d)
		}
		packs, r := packAll(t, seqLen, packing, Split, docs...)
		got := map[int32]int{}
		for _, p := range packs {
			view := packsOf(seqLen, p)
			if err := view.check(1 << 20); err != nil {
				t.Fatal(err)
			}
			for _, y := range p.targets {
				if y != NoTarget {
					got[y]++
				}
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("targets %v, want %v", got, want)
		}
		if r.Tokens+r.Padding != r.Packs*int64(seqLen) || r.Targets != int64(len(want)) {
			t.Fatalf("report %+v does not add up", r)
		}
	})
}

// packsOf views one pack as a record.
func packsOf(seqLen int, p pack) packs {
	return packs{rows: 1, seqLen: seqLen, tokens: p.tokens, targets: p.targets, offsets: []int32{0, int32(len(p.documents))},
		documents: p.documents, padding: []int32{p.padding}}
}

func TestEncodingMarksWhatIsLearnt(t *testing.T) {
	msg := func(role, content string) Message {
		return Message{Role: role, Content: content, Trained: role == "assistant"}
	}
	silent := msg("assistant", "x")
	silent.Trained = false
	for _, c := range []struct {
		name   string
		e      Example
		addBOS bool
		ids    []int32
		learnt string // a mark for each token
	}{
		{"text", Example{Schema: SchemaText, Text: "ab"}, false, []int32{'a', 'b', fakeEnd}, "111"},
		{"text with BOS", Example{Schema: SchemaText, Text: "ab"}, true, []int32{fakeBOS, 'a', 'b', fakeEnd}, "0111"},
		{"empty text", Example{Schema: SchemaText}, true, []int32{fakeBOS, fakeEnd}, "01"},
		{"completion", Example{Schema: SchemaCompletion, Prompt: "ab", Completion: " c"}, false, []int32{'a', 'b', ' ', 'c', fakeEnd}, "00111"},
		{"chat", Example{Schema: SchemaMessages, Messages: []Message{msg("user", "a"), msg("assistant", "b"), msg("user", "c"), silent}}, true,
			[]int32{fakeBOS, fakeOf + 1, 'a', fakeEnd, fakeOf + 2, 'b', fakeEnd, fakeOf + 1, 'c', fakeEnd, fakeOf + 2, 'x', fakeEnd}, "0000011000000"},
	} {
		x, err := newEncoder(byteEncoder{c.addBOS}).encode(c.e)
		learnt := ""
		for _, y := range x.target {
			learnt += string('0' + map[bool]rune{true: 1}[y])
		}
		if err != nil || !slices.Equal(x.ids, c.ids) || learnt != c.learnt {
			t.Errorf("%s: %v %s, %v; want %v %s", c.name, x.ids, learnt, err, c.ids, c.learnt)
		}
	}
}

func TestEncodingRefusesWhatNoModelShouldLearn(t *testing.T) {
	chat := func(content string) Example {
		return Example{Schema: SchemaMessages, Messages: []Message{{Role: "assistant", Content: content, Trained: true}}}
	}
	for _, c := range []struct{ content, want string }{
		{"@noend", "never learn to stop"}, {"@bos", "two beginning-of-sequence tokens"}, {"@fail", "roles must alternate"},
	} {
		_, err := newEncoder(byteEncoder{}).encode(chat(c.content))
		wantError(t, err, c.want)
	}
	c := newEncoder(byteEncoder{})
	c.info.Vocab = 'b'
	_, err := c.encode(Example{Schema: SchemaText, Text: "ab"})
	wantError(t, err, "outside the vocabulary")
	c = newEncoder(byteEncoder{})
	c.info.End = nil
	_, err = c.encode(Example{Schema: SchemaText, Text: "ab"})
	wantError(t, err, "eos_token")
	// One token that both begins and ends texts may stand twice inside.
	c = newEncoder(byteEncoder{})
	c.info.BOS, c.info.End = 'a', []int32{'a'}
	if _, err = c.encode(Example{Schema: SchemaText, Text: "baab"}); err != nil {
		t.Error(err)
	}
	_, err = c.encode(Example{Schema: SchemaText, Text: "aab"})
	wantError(t, err, "two beginning-of-sequence tokens")
}

func TestQuestionIsTheDialogueBeforeTheLastAnswer(t *testing.T) {
	user, said := Message{Role: "user", Content: "q"}, Message{Role: "assistant", Content: "a"}
	msgs, _, answer, ok := Example{Schema: SchemaMessages, Messages: []Message{user, said}}.Question()
	if !ok || answer != "a" || len(msgs) != 1 {
		t.Errorf("chat: %v %q %v", msgs, answer, ok)
	}
	_, prompt, answer, ok := Example{Schema: SchemaCompletion, Prompt: "p", Completion: " c"}.Question()
	if !ok || prompt != "p" || answer != " c" {
		t.Errorf("completion: %q %q %v", prompt, answer, ok)
	}
	for name, e := range map[string]Example{"text": {Schema: SchemaText}, "user last": {Schema: SchemaMessages, Messages: []Message{said, user}},
		"answer alone": {Schema: SchemaMessages, Messages: []Message{said}}} {
		if _, _, _, ok := e.Question(); ok {
			t.Errorf("%s has a question", name)
		}
	}
}

func TestReportIsOneLine(t *testing.T) {
	r := Report{Examples: 116986, Packs: 9911, Tokens: 979, Padding: 21, Targets: 1234567, Split: 3}
	if got, want := r.String(), "116,986 examples → 9,911 packs, 2.1 % padding, 1,234,567 targets, 3 split"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if strings.Contains((Report{}).String(), "NaN") {
		t.Error("an empty report divides by zero")
	}
	if err := r.CheckGlobalBatch(9911); err != nil {
		t.Error(err)
	}
	wantError(t, r.CheckGlobalBatch(9912), "9,911 packs", "9,912")
}
