package data

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
)

func TestDecodeRowReadsEverySchema(t *testing.T) {
	user, said := Message{Role: "user", Content: "hi"}, Message{Role: "assistant", Content: "ho", Trained: true}
	silent := said
	silent.Trained = false
	for _, c := range []struct {
		line string
		want Example
	}{
		{`{"text":"a b"}`, Example{Schema: SchemaText, Text: "a b"}},
		{`{"text":"","id":7,"meta":{"x":[1]}}`, Example{Schema: SchemaText}},
		{`{"text":"nul \u0000 and \ud83e\udd16 \\ud800"}`, Example{Schema: SchemaText, Text: "nul \x00 and 🤖 \\ud800"}},
		{`{"prompt":"p","completion":" c"}`, Example{Schema: SchemaCompletion, Prompt: "p", Completion: " c"}},
		{`{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"ho"}]}`,
			Example{Schema: SchemaMessages, Messages: []Message{user, said}}},
		{`{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"ho","weight":0}],"tools":[],"prompt":"x"}`,
			Example{Schema: SchemaMessages, Messages: []Message{user, silent}}},
		{`{"messages":[{"role":"assistant","content":[{"type":"text","text":"h"},{"type":"text","text":"o"}],"weight":1,"name":null}]}`,
			Example{Schema: SchemaMessages, Messages: []Message{said}}},
		{`{"prompt":[{"role":"user","content":"hi"},{"role":"assistant","content":"ho"}],"completion":[{"role":"assistant","content":"ho"}]}`,
			Example{Schema: SchemaCompletionMessages, Messages: []Message{user, silent, said}}},
		{`{"messages":[{"role":"assistant","content":null,"tool_calls":[{"type":"function"}]},{"role":"tool","content":"4","tool_call_id":"a"}],"tools":"[{\"a\":1}]"}`,
			Example{Schema: SchemaMessages, Tools: []byte(`[{"a":1}]`), Messages: []Message{
				{Role: "assistant", ToolCalls: []byte(`[{"type":"function"}]`), Trained: true}, {Role: "tool", Content: "4", ToolCallID: "a"}}}},
	} {
		got, err := decodeRow([]byte(c.line))
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s\n got %+v, %v\nwant %+v", c.line, got, err, c.want)
		}
	}
}

func TestDecodeRowSaysWhatIsWrong(t *testing.T) {
	chat := func(message string) string { return `{"messages":[` + message + `]}` }
	for _, c := range []struct{ line, want string }{
		{`{"text":"a"`, "column 11"},
		{`{"text":"a"} x`, "column 14"},
		{`[{"text":"a"}]`, "JSONL"},
		{`null`, "null"},
		{`{}`, "empty"},
		{`{"a":1,"b":2}`, `keys are ["a" "b"]`},
		{"{\"text\":\"a\x00\"}", "NUL byte at column 11"},
		{"{\"text\":\"a\xff\"}", "invalid UTF-8 at column 11"},
		{`{"text":"\ud800"}`, `half a surrogate pair (\ud800) at column 10`},
		{`{"text":"\udc00\ud800"}`, `(\udc00)`},
		{`{"text":"\ud800A"}`, `(\ud800)`},
		{`{"text":7}`, "text: expected a string, found a number"},
		{`{"text":"a","messages":[]}`, "more than one schema"},
		{`{"instruction":"a","output":"b"}`, "Alpaca"},
		{`{"conversations":[]}`, "ShareGPT"},
		{`{"prompt":"a","chosen":"b","rejected":"c"}`, "preference"},
		{`{"prompt":"a"}`, "no completion"},
		{`{"prompt":"a","completion":[]}`, "both must be strings"},
		{`{"prompt":1,"completion":2}`, "a number"},
		{`{"prompt":[],"completion":[]}`, "prompt: the list is empty"},
		{`{"messages":[]}`, "messages: the list is empty"},
		{`{"messages":"hi"}`, "found a string"},
		{chat(`"hi"`), "list of messages"},
		{chat(`{"content":"x"}`), "messages[0]: role is missing"},
		{chat(`{"role":"gpt","content":"x"}`), `unknown role "gpt"`},
		{chat(`{"role":"user"}`), "content is missing"},
		{chat(`{"role":"user","content":5}`), "found a number"},
		{chat(`{"role":"user","content":"x","weight":1}`), "only the assistant"},
		{chat(`{"role":"assistant","content":"x","weight":0.5}`), "weight must be 0 or 1, found 0.5"},
		{chat(`{"role":"assistant","content":"x","loss_weight":1}`), `unknown key "loss_weight"`},
		{chat(`{"role":"user","content":[{"type":"image_url"}]}`), `content[0]: type "image_url"`},
		{chat(`{"role":"user","content":[{"type":"text"}]}`), "content[0]"},
		{chat(`{"role":"user","tool_calls":[{}]}`), "only the assistant calls tools"},
		{chat(`{"role":"assistant","tool_calls":[]}`), "content is missing"},
		{chat(`{"role":"assistant","tool_calls":{}}`), "list of calls"},
		{`{"messages":[{"role":"user","content":"x"}],"tools":{}}`, "tools: expected a list"},
		{`{"messages":[{"role":"user","content":"x"}],"functions":[1]}`, "functions"},
		{strings.Repeat("[", 100000), "depth"},
		{`{"text":` + strings.Repeat("[", 100000) + strings.Repeat("]", 100000) + `}`, "depth"},
	} {
		_, err := decodeRow([]byte(c.line))
		if len(c.line) > 200 {
			c.line = c.line[:200]
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 400 {
			t.Errorf("%s\n got %v\nwant %q in it", c.line, err, c.want)
		}
	}
}

func TestLinesAreCutAndNumbered(t *testing.T) {
	long := strings.Repeat("x", 200_000)
	in := "\xef\xbb\xbfa\r\n\n  b \n" + long + "\n\xef\xbb\xbfc\n" + strings.Repeat("y", 99_999)
	l := newLineReader(strings.NewReader(in), nil, 100_000)
	type got struct {
		line int
		text string
		long bool
	}
	var all []got
	for {
		text, err := l.next()
		if errors.Is(err, io.EOF) {
			break
		}
		all = append(all, got{l.line, string(text), errors.Is(err, errLineTooLong)})
	}
	want := []got{{1, "a", false}, {3, "b", false}, {4, "", true}, {5, "\xef\xbb\xbfc", false}, {6, strings.Repeat("y", 99_999), false}}
	if !reflect.DeepEqual(all, want) {
		t.Errorf("got %.300v", all)
	}
}

func TestALineAtTheLimitIsRead(t *testing.T) {
	for _, n := range []int{65535, 65536, 65537, 1 << 17} {
		l := newLineReader(strings.NewReader(strings.Repeat("x", n)+"\nnext"), nil, n+1)
		text, err := l.next()
		if err != nil || len(text) != n {
			t.Errorf("line of %d: %d bytes, %v", n, len(text), err)
		}
		l = newLineReader(strings.NewReader(strings.Repeat("x", n)+"\nnext"), nil, n)
		if _, err = l.next(); !errors.Is(err, errLineTooLong) {
			t.Errorf("line of %d with its end over the limit: %v", n, err)
		}
		if text, err = l.next(); string(text) != "next" || err != nil {
			t.Errorf("the line after a long one: %q, %v", text, err)
		}
	}
}

func FuzzRow(f *testing.F) {
	for _, s := range []string{`{"text":"a\u0000\ud83e\udd16"}`, `{"prompt":"p","completion":" c"}`,
		`{"messages":[{"role":"assistant","content":[{"type":"text","text":"x"}],"weight":1,"tool_calls":[{"type":"function"}]}],"tools":"[{}]"}`,
		`{"prompt":[{"role":"user","content":"hi"}],"completion":[{"role":"assistant","content":"ho"}]}`, `{"messages":[null]}`, "\x00", `[[`, `{"text":"\ud800"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = bytes.ReplaceAll(b, []byte("\n"), []byte(" ")) // a line has none
		e, err := decodeRow(b)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n") {
				t.Errorf("error of several lines: %q", err)
			}
			return
		}
		again, err := decodeRow(bytes.TrimSpace(b))
		if err != nil || !reflect.DeepEqual(e, again) || e.held(0.5) != again.held(0.5) {
			t.Errorf("decoding twice differs: %+v, %+v, %v", e, again, err)
		}
		for _, m := range e.Messages {
			if m.Trained && m.Role != "assistant" {
				t.Errorf("a turn of the %s is learnt", m.Role)
			}
		}
		if _, err := newEncoder(byteEncoder{}).encode(e); err == nil && e.Schema == "" {
			t.Error("an example without a schema")
		}
	})
}
