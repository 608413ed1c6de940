package data

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/skein-ml/skein/tokenizer"
)

// Render writes a dialogue through a chat template. trained are the bytes that are learnt: what the assistant says on turns
// that are Trained, and the token that ends each. literal are the bytes that come from the data, where the spelling of a
// special token is no special token; nil if the template does not tell them apart. Both ascend without overlap.
type Render func(msgs []Message, tools json.RawMessage) (text string, trained, literal []tokenizer.Span, err error)

// EncoderConfig is what NewEncoder cannot learn from the tokenizer.
type EncoderConfig struct {
	TokenizerHash string  // SHA-256 of tokenizer.json, in hex
	TemplateHash  string  // SHA-256 of the chat template, in hex; "" without one
	BOS           int32   // the model's bos_token_id; −1: none
	End           []int32 // ids at which generation stops (eos_token_id of generation_config.json, or config.json)
}

// NewEncoder joins a tokenizer and a chat template. render may be nil for data without dialogues.
func NewEncoder(tok *tokenizer.Tokenizer, render Render, c EncoderConfig) (Encoder, error) {
	info := EncoderInfo{TokenizerHash: c.TokenizerHash, TemplateHash: c.TemplateHash, Vocab: int32(tok.VocabSize()), BOS: c.BOS, End: c.End}
	for _, id := range append([]int32{max(c.BOS, 0)}, c.End...) {
		if id < 0 || id >= info.Vocab {
			return nil, fmt.Errorf("special token %d lies outside the tokenizer's vocabulary of %d", id, info.Vocab)
		}
	}
	around := tok.Encode("", true)
	info.AddBOS = c.BOS >= 0 && len(around) > 0 && around[0] == c.BOS
	return &textEncoder{marker: newMarker(tok), render: render, info: info}, nil
}

// textEncoder is the Encoder of a real tokenizer.
type textEncoder struct {
	marker *marker
	render Render
	info   EncoderInfo
}

func (e *textEncoder) Info() EncoderInfo { return e.info }

func (e *textEncoder) Text(text string, trained int) ([]int32, []bool, error) {
	ids, target := e.marker.encode(text, []tokenizer.Span{{Start: trained, End: len(text)}}, nil)
	return ids, target, nil
}

func (e *textEncoder) Chat(msgs []Message, tools json.RawMessage) ([]int32, []bool, error) {
	if e.render == nil {
		return nil, nil, errors.New("the model has no chat template; give prompt and completion, or text")
	}
	text, trained, literal, err := e.render(msgs, tools)
	if err != nil {
		return nil, nil, err
	}
	ids, target := e.marker.encode(text, trained, literal)
	return ids, target, nil
}
