package worker

import (
	"encoding/json"
	"fmt"

	"github.com/skein-ml/skein/data"
	"github.com/skein-ml/skein/tokenizer"
	"github.com/skein-ml/skein/tokenizer/chat"
)

// dialogues renders dialogues with a model's own template, for training and for asking alike.
type dialogues struct{ template *chat.Template }

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
	return &dialogues{t.Protect(tok.SpecialTokens())}, nil
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
