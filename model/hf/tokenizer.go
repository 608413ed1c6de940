package hf

import (
	"encoding/json"
	"fmt"

	"github.com/skein-ml/skein/internal/strictjson"
)

// checkTokenizer refuses a tokenizer that can produce an id beyond the embedding.
// Whether the tokenizer itself can be reproduced is for package tokenizer to say.
func (f *Folder) checkTokenizer() error {
	data, ok := f.side["tokenizer.json"]
	if !ok {
		return nil
	}
	last, err := lastTokenID(data)
	if err != nil {
		return fmt.Errorf("tokenizer.json: %w", err)
	}
	if last >= int64(f.config.Vocab) {
		return fmt.Errorf("tokenizer.json has token id %d, but the embedding has only %d rows (vocab_size); use the tokenizer that belongs to the model",
			last, f.config.Vocab)
	}
	return nil
}

// lastTokenID is the greatest id that a tokenizer.json mentions, -1 if none.
func lastTokenID(data []byte) (int64, error) {
	var file struct {
		Model struct {
			Vocab json.RawMessage `json:"vocab"`
		} `json:"model"`
		AddedTokens []struct {
			ID int64 `json:"id"`
		} `json:"added_tokens"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return 0, fmt.Errorf("not a tokenizer: %w", err)
	}
	last := int64(-1)
	for _, t := range file.AddedTokens {
		last = max(last, t.ID)
	}
	if len(file.Model.Vocab) == 0 {
		return last, nil
	}
	var ids map[string]int64
	if err := json.Unmarshal(file.Model.Vocab, &ids); err == nil {
		for _, id := range ids {
			last = max(last, id)
		}
		return last, nil
	}
	var pieces []json.RawMessage // Unigram: a list, whose ids are its indices
	if err := json.Unmarshal(file.Model.Vocab, &pieces); err != nil {
		return 0, fmt.Errorf("model.vocab is neither a map of tokens to ids nor a list")
	}
	return max(last, int64(len(pieces))-1), nil
}

// ChatTemplate is the template that renders dialogues, "" if the model has none.
// chat_template.jinja wins over tokenizer_config.json, as in transformers; of a list
// of named templates the one called "default" is taken.
func (f *Folder) ChatTemplate() (string, error) {
	template, err := ChatTemplate(f.side)
	if err != nil {
		err = fmt.Errorf("model %s: %w", f.dir, err)
	}
	return template, err
}

// ChatTemplate is the template among the side files of a model.
func ChatTemplate(side map[string][]byte) (string, error) {
	if data, ok := side["chat_template.jinja"]; ok {
		return string(data), nil
	}
	for _, name := range []string{"chat_template.json", "tokenizer_config.json"} {
		data, ok := side[name]
		if !ok {
			continue
		}
		template, err := templateIn(data)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		if template != "" {
			return template, nil
		}
	}
	return "", nil
}

func templateIn(data []byte) (string, error) {
	members, err := strictjson.Object(data)
	if err != nil {
		return "", err
	}
	for _, m := range members {
		if m.Key != "chat_template" {
			continue
		}
		var template string // stays empty for null
		if err := json.Unmarshal(m.Value, &template); err == nil {
			return template, nil
		}
		var named []struct{ Name, Template string }
		if err := json.Unmarshal(m.Value, &named); err != nil {
			return "", fmt.Errorf("chat_template is neither a template nor a list of named ones")
		}
		for _, n := range named {
			if n.Name == "default" {
				return n.Template, nil
			}
		}
		return "", fmt.Errorf(`chat_template lists %d templates, none of them named "default"`, len(named))
	}
	return "", nil
}
