package config

import (
	"fmt"
	"slices"
)

// readRope resolves the rotary embedding from the three places where the versions of
// transformers keep it: rope_theta and rope_scaling (4), rope_parameters (5).
// What they say twice, they must say alike.
func (c *Config) readRope(o *object) error {
	theta := o.number("rope_theta", 0)
	thetaFrom := "rope_theta"
	rope := RopeScaling{Kind: "default"}
	ropeFrom := ""
	for _, key := range []string{"rope_parameters", "rope_scaling"} {
		in := o.inner(key)
		if o.err != nil {
			return o.err
		}
		if in == nil {
			continue
		}
		r, t, err := c.readRopeObject(o, in)
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		if ropeFrom != "" && r != rope {
			return fmt.Errorf("%s and %s differ; remove one of them", ropeFrom, key)
		}
		rope, ropeFrom = r, key
		if t != 0 && theta != 0 && t != theta {
			return fmt.Errorf("%s is %g but %s.rope_theta is %g; correct config.json", thetaFrom, theta, key, t)
		}
		if t != 0 && theta == 0 {
			theta, thetaFrom = t, key+".rope_theta"
		}
	}
	if o.err != nil {
		return o.err
	}
	if theta == 0 && o.present("rope_theta") {
		return fmt.Errorf("rope_theta is 0; it must be greater than 1")
	}
	if theta == 0 {
		theta = 10000
		o.notice("no rope_theta is given; 10,000 is used, as transformers does")
	}
	if rope.Kind == "dynamic" {
		o.notice("rope_type dynamic stretches only sequences beyond max_position_embeddings (%d), which are refused here", c.MaxPositions)
	}
	c.RopeTheta, c.Rope = theta, rope
	return nil
}

// ropeKeys lists the keys that each kind reads, beyond rope_type and rope_theta.
var ropeKeys = map[string][]string{
	"linear":  {"factor"},
	"dynamic": {"factor"},
	"llama3":  {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
	"yarn": {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor",
		"mscale", "mscale_all_dim", "truncate"},
}

// readRopeObject reads one rope dictionary; theta is 0 if it holds none.
func (c *Config) readRopeObject(top, in *object) (r RopeScaling, theta float64, err error) {
	r.Kind = in.text("rope_type", "")
	if old := in.text("type", r.Kind); r.Kind == "" {
		r.Kind = old
	} else if old != r.Kind {
		return r, 0, fmt.Errorf("rope_type is %q but type is %q; remove one of them", r.Kind, old)
	}
	if r.Kind == "" {
		r.Kind = "default"
	}
	theta = in.number("rope_theta", 0)
	if partial := in.number("partial_rotary_factor", 1); partial != 1 {
		return r, 0, fmt.Errorf("%w: partial_rotary_factor is %g, and only whole heads are rotated here", ErrUnsupported, partial)
	}
	if in.err != nil {
		return r, 0, in.err
	}
	if !slices.Contains(ropeKinds, r.Kind) {
		return r, 0, r.validate()
	}
	for _, m := range in.members {
		if !in.read[m.Key] && !isNull(m.Value) && !slices.Contains(ropeKeys[r.Kind], m.Key) {
			return r, 0, fmt.Errorf("%w: key %q is not known for rope_type %s; remove it or choose another model", ErrUnsupported, m.Key, r.Kind)
		}
	}
	if r.Kind != "default" {
		if !in.present("factor") {
			return r, 0, fmt.Errorf("factor is missing; rope_type %s needs it", r.Kind)
		}
		r.Factor = in.number("factor", 0)
	}
	switch r.Kind {
	case "llama3":
		r.LowFreqFactor = in.number("low_freq_factor", 0)
		r.HighFreqFactor = in.number("high_freq_factor", 0)
		r.OriginalMaxPositions, err = c.originalPositions(top, in)
	case "yarn":
		r.BetaFast, r.BetaSlow = in.number("beta_fast", 32), in.number("beta_slow", 1)
		r.MScale, r.MScaleAllDim = in.number("mscale", 0), in.number("mscale_all_dim", 0)
		r.AttentionFactor = in.number("attention_factor", 0)
		if in.present("attention_factor") && r.AttentionFactor <= 0 {
			in.fail("attention_factor is %g; it must be above 0", r.AttentionFactor)
		}
		r.ExactCorrectionBounds = !in.boolean("truncate", true)
		r.OriginalMaxPositions, err = c.originalPositions(top, in)
	}
	if in.err != nil {
		err = in.err
	}
	return r, theta, err
}

// originalPositions finds the length that the model was first trained on, which some
// files keep beside the rope dictionary and some leave out.
func (c *Config) originalPositions(top, in *object) (int, error) {
	const key = "original_max_position_embeddings"
	inside, outside := in.integer(key, 0), top.integer(key, 0)
	switch {
	case inside != 0 && outside != 0 && inside != outside:
		return 0, fmt.Errorf("%s is %d here but %d at the top of the file; remove one of them", key, inside, outside)
	case inside != 0:
		return inside, nil
	case outside != 0:
		return outside, nil
	}
	in.notice("%s is absent; max_position_embeddings (%d) is used, as transformers does", key, c.MaxPositions)
	return c.MaxPositions, nil
}
