package chat

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"
)

// Message is a turn of a dialogue, as in OpenAI's chat format.
type Message struct {
	Role             string // system, developer, user, assistant or tool
	Content          string
	ReasoningContent string          // optional; of assistants that think before they speak
	ToolCalls        json.RawMessage // optional; the array as it stands in the data, on assistant turns
	Name             string          // optional
	ToolCallID       string          // optional, on tool turns
	Weight           *float64        // 0: the turn is not trained on; nil or 1: it is. On assistant turns
}

// Options of a render. The zero value renders a whole dialogue.
type Options struct {
	AddGenerationPrompt bool            // end with what opens the assistant's next turn
	Tools               json.RawMessage // optional; array of tool schemas, written in the order of keys that it has
	Now                 time.Time       // the day of templates that name one
	Extra               map[string]any  // what some templates take beside that: enable_thinking. Booleans, numbers, strings
}

// Bounds on one dialogue.
const (
	messagesMax  = 100_000
	contentMax   = 64 << 20 // bytes of all messages and tools
	roleLenMax   = 32
	jsonDepthMax = 100
)

// reservedNames are values and functions that templates find under these names.
var reservedNames = []string{"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now", "namespace", "range", "dict"}

// input is a checked dialogue.
type input struct {
	msgs  []Message
	opts  Options
	calls []any // ToolCalls of each message, nil where it has none
	tools any   // nil without tools
}

func newInput(msgs []Message, opts Options) (*input, error) {
	if len(msgs) == 0 {
		return nil, errors.New("chat: the dialogue has no messages")
	}
	if len(msgs) > messagesMax {
		return nil, fmt.Errorf("chat: %d messages in one dialogue, at most %d are possible", len(msgs), messagesMax)
	}
	in := &input{msgs: msgs, opts: opts, calls: make([]any, len(msgs))}
	size := len(opts.Tools)
	for i := range msgs {
		m := &msgs[i]
		if err := m.check(); err != nil {
			return nil, fmt.Errorf("chat: message %d: %w", i+1, err)
		}
		size += len(m.Content) + len(m.ReasoningContent) + len(m.ToolCalls)
		var err error
		if in.calls[i], err = parseArray(m.ToolCalls); err != nil {
			return nil, fmt.Errorf("chat: message %d: tool_calls: %w", i+1, err)
		}
	}
	if size > contentMax {
		return nil, fmt.Errorf("chat: %d bytes in one dialogue, at most %d are possible", size, contentMax)
	}
	var err error
	if in.tools, err = parseArray(opts.Tools); err != nil {
		return nil, fmt.Errorf("chat: tools: %w", err)
	}
	return in, opts.checkExtra()
}

func (m *Message) check() error {
	if m.Role == "" || len(m.Role) > roleLenMax {
		return fmt.Errorf("the role %.40q is none", m.Role)
	}
	for _, c := range m.Role { // nothing that could be read as a token
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return fmt.Errorf("the role %.40q is none", m.Role)
		}
	}
	for _, text := range []string{m.Content, m.ReasoningContent, m.Name, m.ToolCallID} {
		if !utf8.ValidString(text) {
			return errors.New("it is not UTF-8")
		}
	}
	if m.Weight != nil && *m.Weight != 0 && *m.Weight != 1 {
		return fmt.Errorf("the weight %v is neither 0 nor 1", *m.Weight)
	}
	if m.Weight != nil && m.Role != "assistant" {
		return fmt.Errorf("a weight on a turn of the %s; only the assistant's turns have one", m.Role)
	}
	return nil
}

func (o Options) checkExtra() error {
	for name, value := range o.Extra {
		if slices.Contains(reservedNames, name) {
			return fmt.Errorf("chat: the extra value %q has a name that templates use for something else", name)
		}
		switch value.(type) {
		case nil, bool, string, int, float64:
		default:
			return fmt.Errorf("chat: the extra value %q is neither truth value, number nor text", name)
		}
	}
	return nil
}

// values enters what templates see. signs, if not nil, replace special tokens in all that comes from outside.
func (in *input) values(data map[string]any, signs *signs) {
	msgs := make(list, len(in.msgs))
	for i := range in.msgs {
		m := &in.msgs[i]
		entry := map[string]any{"role": m.Role, "content": signs.replace(m.Content)}
		for key, text := range map[string]string{"name": m.Name, "tool_call_id": m.ToolCallID, "reasoning_content": m.ReasoningContent} {
			if text != "" {
				entry[key] = signs.replace(text)
			}
		}
		if in.calls[i] != nil {
			entry["tool_calls"] = toTemplate(in.calls[i], signs)
		}
		msgs[i] = entry
	}
	data["messages"] = msgs
	data["add_generation_prompt"] = in.opts.AddGenerationPrompt
	data["tools"], data["documents"] = nil, nil
	if in.tools != nil {
		data["tools"] = toTemplate(in.tools, signs)
	}
	for name, value := range in.opts.Extra {
		if text, ok := value.(string); ok {
			value = signs.replace(text)
		}
		data[name] = value
	}
}

// texts calls f with every text from outside.
func (in *input) texts(f func(text string)) {
	for i := range in.msgs {
		m := &in.msgs[i]
		f(m.Content)
		f(m.ReasoningContent)
		f(m.Name)
		f(m.ToolCallID)
		eachText(in.calls[i], f)
	}
	eachText(in.tools, f)
	for _, value := range in.opts.Extra {
		if text, ok := value.(string); ok {
			f(text)
		}
	}
}
