package worker

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/skein-ml/skein/data"
	"github.com/skein-ml/skein/tokenizer"
)

// Language is how a model reads and writes: its tokenizer and chat template.
type Language struct {
	Tokenizer *tokenizer.Tokenizer
	Encoder   data.Encoder
	Stop      []int32 // ids that end an answer

	dialogues *dialogues // nil: the model has no template
}

// Language loads the model's tokenizer and chat template, and refuses what cannot be
// reproduced exactly.
func (b *Base) Language() (*Language, error) {
	file, ok := b.Side["tokenizer.json"]
	if !ok {
		return nil, fmt.Errorf("model %s: there is no tokenizer.json; put the model's own beside it", b.path)
	}
	tok, err := tokenizer.Load(file)
	if err != nil {
		return nil, fmt.Errorf("model %s: %w", b.path, err)
	}
	c := b.Config()
	if n := tok.VocabSize(); n > c.Vocab {
		return nil, fmt.Errorf("model %s: the tokenizer has %d tokens, the embedding has %d rows: they belong to different models", b.path, n, c.Vocab)
	}
	l := &Language{Tokenizer: tok, Stop: c.EOS}
	info := data.EncoderConfig{TokenizerHash: hexHash(file), BOS: c.BOS, End: c.EOS}
	var render data.Render
	if l.dialogues, err = b.dialogues(tok); err != nil {
		return nil, err
	}
	if l.dialogues != nil {
		render, info.TemplateHash = l.dialogues.train, l.dialogues.hash
	}
	if l.Encoder, err = data.NewEncoder(tok, render, info); err != nil {
		return nil, fmt.Errorf("model %s: %w", b.path, err)
	}
	return l, nil
}

// Text is plain text as a prompt.
func (l *Language) Text(text string) ([]int32, error) {
	ids := l.Tokenizer.Encode(text, true)
	if len(ids) == 0 {
		return nil, errors.New("an empty prompt: give at least one token")
	}
	return ids, nil
}

// Ask is a dialogue as a prompt for the assistant's next turn.
func (l *Language) Ask(msgs []data.Message, tools json.RawMessage) ([]int32, error) {
	if l.dialogues == nil {
		return nil, errors.New("the model has no chat template: ask with plain text")
	}
	text, literal, err := l.dialogues.ask(msgs, tools)
	if err != nil {
		return nil, err
	}
	return l.Tokenizer.AppendEncodeLiteral(nil, text, literal), nil
}

func hexHash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
