package config

import (
	"fmt"
	"slices"
)

// AddGeneration adds to c.EOS the ids that only generation_config.json names: chat
// models list there every token that ends an answer. Its other keys are about sampling
// and are left alone.
func (c *Config) AddGeneration(generationJSON []byte) error {
	const file = "generation_config.json"
	if len(generationJSON) > fileBytesMax {
		return fmt.Errorf("%s has %d bytes, more than %d", file, len(generationJSON), fileBytesMax)
	}
	o, err := newObject(file, generationJSON)
	if err != nil {
		return err
	}
	ids, _ := o.ids("eos_token_id")
	if o.err != nil {
		return fmt.Errorf("%s: %w", file, o.err)
	}
	eos := slices.Clone(c.EOS)
	for _, id := range ids {
		if !slices.Contains(eos, id) {
			eos = append(eos, id)
		}
	}
	with := *c
	with.EOS = eos
	if err := with.Validate(); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	c.EOS = eos
	return nil
}

// GenerationJSON returns the generation_config.json that a model without one gets:
// its special tokens and nothing about sampling.
func (c Config) GenerationJSON() ([]byte, error) {
	w := writer{}
	w.put("_from_model_config", true)
	for key, id := range map[string]int32{"bos_token_id": c.BOS, "pad_token_id": c.Pad} {
		if id >= 0 {
			w.put(key, id)
		}
	}
	if len(c.EOS) > 0 {
		w.put("eos_token_id", eosValue(c.EOS))
	}
	return w.bytes()
}
