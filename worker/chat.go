package worker

import (
	"encoding/json"
	"errors"

	"github.com/skein-ml/skein/data"
	"github.com/skein-ml/skein/tokenizer"
)

type chat struct{}

func (b *Base) loadChat() (*chat, error) { return nil, nil }

func (c *chat) train(msgs []data.Message, tools json.RawMessage) (text string, trained, literal []tokenizer.Span, err error) {
	return "", nil, nil, errors.New("no chat")
}

func (c *chat) ask(msgs []data.Message, tools json.RawMessage) (string, []tokenizer.Span, error) {
	return "", nil, errors.New("no chat")
}
