package data

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// Encoder is a tokenizer with its chat template, as data needs them. NewEncoder makes one from tokenizer and tokenizer/chat;
// tests have their own. It must be safe for concurrent use, and pure: the same input gives the same output.
//
// Both methods give the tokens of the whole text and, for each, whether it is to be learnt: a token is iff it begins inside
// what is. The text is never cut before it is tokenized, because tokens may reach across the cut.
type Encoder interface {
	// Text tokenizes plain text of which the bytes from trained on are learnt, without special tokens at its ends.
	Text(text string, trained int) (ids []int32, target []bool, err error)
	// Chat renders a dialogue and tokenizes it. Learnt is what the assistant says on the turns that are Trained, and the
	// token that ends each of them.
	Chat(msgs []Message, tools json.RawMessage) (ids []int32, target []bool, err error)
	// Info describes the encoder; it never changes.
	Info() EncoderInfo
}

// EncoderInfo is what identifies an encoder, and its special tokens.
type EncoderInfo struct {
	TokenizerHash string // of the tokenizer's file
	TemplateHash  string // of the chat template's source
	Vocab         int32  // ids lie in [0, Vocab)
	BOS           int32  // beginning of sequence; −1: none
	AddBOS        bool   // whether the tokenizer puts BOS before plain text
	// End are the tokens at which generation stops. The first one is put behind texts and completions.
	End []int32
}

// encoded is an example as tokens. Token i is a target, that is, something to be predicted, if target[i].
type encoded struct {
	ids    []int32
	target []bool
}

// encoder turns examples into tokens.
type encoder struct {
	enc  Encoder
	info EncoderInfo
}

func newEncoder(enc Encoder) *encoder { return &encoder{enc: enc, info: enc.Info()} }

// encode tokenizes an example.
func (c *encoder) encode(e Example) (encoded, error) {
	var x encoded
	var err error
	switch e.Schema {
	case SchemaText:
		x, err = c.plain(e.Text, 0)
	case SchemaCompletion:
		x, err = c.plain(e.Prompt+e.Completion, len(e.Prompt))
	default:
		x, err = c.chat(e)
	}
	if err != nil {
		return encoded{}, err
	}
	return x, c.check(x)
}

// pair is what an Encoder gave, if each token has its mark.
func pair(ids []int32, target []bool, err error) (encoded, error) {
	if err == nil && len(ids) != len(target) {
		err = fmt.Errorf("data: the encoder gave %d tokens and %d marks", len(ids), len(target))
	}
	return encoded{ids, target}, err
}

// chat encodes a dialogue. The template writes BOS and end tokens itself.
func (c *encoder) chat(e Example) (encoded, error) {
	x, err := pair(c.enc.Chat(e.Messages, e.Tools))
	if err != nil {
		return encoded{}, err
	}
	return x, c.checkEnds(x)
}

// plain encodes text of which the bytes from trained on are learnt, and the end token put behind it.
func (c *encoder) plain(text string, trained int) (encoded, error) {
	if len(c.info.End) == 0 {
		return encoded{}, errors.New("the tokenizer names no end token (eos_token), so the model would never learn to stop")
	}
	x, err := pair(c.enc.Text(text, trained))
	if err != nil {
		return encoded{}, err
	}
	if c.info.AddBOS && (len(x.ids) == 0 || x.ids[0] != c.info.BOS) {
		x.ids = slices.Insert(x.ids, 0, c.info.BOS)
		x.target = slices.Insert(x.target, 0, false)
	}
	if n := len(x.ids); n == 0 || !x.target[n-1] || !slices.Contains(c.info.End, x.ids[n-1]) {
		x.ids = append(x.ids, c.info.End[0])
		x.target = append(x.target, true)
	}
	return x, nil
}

// checkEnds refuses a dialogue with a learnt turn that no learnt end token ends: the model would not learn to stop.
func (c *encoder) checkEnds(x encoded) error {
	for i := 0; i < len(x.ids); i++ {
		if !x.target[i] {
			continue
		}
		from := i
		for i < len(x.ids) && x.target[i] {
			i++
		}
		// A template may count a newline behind the end token to the turn.
		tail := x.ids[max(from, i-2):i]
		if !slices.ContainsFunc(tail, func(id int32) bool { return slices.Contains(c.info.End, id) }) {
			return fmt.Errorf("an answer ends in token %d, which is no end token (%v), so the model would never learn to stop; use a chat template that ends turns with one", x.ids[i-1], c.info.End)
		}
	}
	return nil
}

// check refuses what no model can read.
func (c *encoder) check(x encoded) error {
	bos := c.info.BOS
	for i, id := range x.ids {
		if id < 0 || id >= c.info.Vocab {
			return fmt.Errorf("token %d lies outside the vocabulary of %d", id, c.info.Vocab)
		}
		// Where one token both begins and ends texts, two of them are doubled only at the start.
		if id == bos && i > 0 && x.ids[i-1] == bos && (i == 1 || !slices.Contains(c.info.End, bos)) {
			return fmt.Errorf("two beginning-of-sequence tokens (%d) in a row; template and text must not both write it", bos)
		}
	}
	return nil
}
