package worker

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/skein-ml/skein/data"
	"github.com/skein-ml/skein/tokenizer"
	"github.com/skein-ml/skein/tokenizer/chat"
)

// dialogues renders dialogues with a model's own template, for training and for asking alike.
type dialogues struct {
	template *chat.Template
	hash     string // of the template's source and the special tokens that it is given
}

// dialogues loads the model's chat template; nil if it has none.
func (b *Base) dialogues(tok *tokenizer.Tokenizer) (*dialogues, error) {
	if b.Template == "" {
		return nil, nil
	}
	special, err := b.special()
	if err != nil {
		return nil, err
	}
	t, err := chat.Load(b.Template, special)
	if err != nil {
		return nil, fmt.Errorf("model %s: %w", b.path, err)
	}
	return &dialogues{t.Protect(tok.SpecialTokens()), dialogueHash(b.Template, special)}, nil
}

// dialogueHash is of all that renders depend on, so that prepared data is not taken for
// that of another template, or of the same one with other tokens.
func dialogueHash(source string, special map[string]string) string {
	text := []byte(source)
	for _, name := range slices.Sorted(maps.Keys(special)) {
		text = append(text, "\x00"+name+"\x00"+special[name]...)
	}
	return hexHash(text)
}

// train implements [data.Render].
func (d *dialogues) train(msgs []data.Message, tools json.RawMessage) (text string, trained, literal []tokenizer.Span, err error) {
	r, err := d.template.RenderTraining(turns(msgs), chat.Options{Tools: tools})
	return r.Text, r.Trained, r.Literal, err
}

// ask renders a dialogue that the assistant is to go on with.
func (d *dialogues) ask(msgs []data.Message, tools json.RawMessage) (string, []tokenizer.Span, error) {
	r, err := d.template.Render(turns(msgs), chat.Options{AddGenerationPrompt: true, Tools: tools})
	return r.Text, r.Literal, err
}

func turns(msgs []data.Message) []chat.Message {
	list := make([]chat.Message, len(msgs))
	for i, m := range msgs {
		list[i] = chat.Message{Role: m.Role, Content: m.Content, Name: m.Name, ToolCalls: m.ToolCalls, ToolCallID: m.ToolCallID}
		if m.Role == "assistant" && !m.Trained {
			list[i].Weight = new(float64)
		}
	}
	return list
}
