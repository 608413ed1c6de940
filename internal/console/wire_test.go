package console

import (
	"bytes"
	"encoding/json"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestEventsComeOutOfTheirJSONAsTheyWentIn(t *testing.T) {
	for _, e := range run() {
		if diff := cmp.Diff(e, Unmarshal(e.Name(), Marshal(e))); diff != "" {
			t.Errorf("%s: %s", e.Name(), diff)
		}
	}
}

func TestAnEventThatJSONCannotHoldTravelsAsItsLine(t *testing.T) {
	e := Step{Step: 3, Steps: 9, Loss: math.NaN()}
	if got := Unmarshal(e.Name(), Marshal(e)); got.Name() != "step" || got.Line() != e.Line() {
		t.Errorf("%q %q, want %q", got.Name(), got.Line(), e.Line())
	}
}

func TestEventsOfOtherVersionsAndDamagedOnesAreStillLinesAndJSON(t *testing.T) {
	for _, c := range []struct{ name, json string }{
		{"levitated", `{"height":3}`}, {"step", `{"step":"three"}`}, {"step", "\x1b[2J{"}, {"note", `["a"]`}, {"x\ny", ""}, {"null", "null"}, {"step", "\xff"},
	} {
		e := Unmarshal(c.name, []byte(c.json))
		var out bytes.Buffer
		NewPrinter(&out, Plain, nil).Emit(e)
		if bytes.Count(out.Bytes(), []byte("\n")) != 1 || bytes.Contains(out.Bytes(), []byte("\x1b")) {
			t.Errorf("%v is printed as %q", c, out.String())
		}
		out.Reset()
		NewPrinter(&out, JSON, nil).Emit(e)
		var fields map[string]any
		if err := json.Unmarshal(out.Bytes(), &fields); err != nil {
			t.Errorf("%v is printed as %q: %v", c, out.String(), err)
		}
	}
}
