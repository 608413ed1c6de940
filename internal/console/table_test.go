package console

import (
	"testing"
	"time"
)

func TestTablesAreAlignedByCharactersAndHaveNoEmptyCells(t *testing.T) {
	got := Table([]string{"JOB", "PHASE", "WHY"}, [][]string{{"größe-7f3a", "running", ""}, {"a", "queued", "waits\nfor w4"}})
	want := "JOB          PHASE     WHY\ngröße-7f3a   running   -\na            queued    waits for w4\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestAgesAndClippedTextsAreShort(t *testing.T) {
	for got, want := range map[string]string{
		Age(-time.Second): "0s", Age(119 * time.Second): "119s", Age(2 * time.Minute): "2m", Age(3 * time.Hour): "3h", Age(72 * time.Hour): "3d",
		Clip("abc", 3): "abc", Clip("größer", 4): "grö…",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestYAMLQuotesWhatWouldMeanSomethingElse(t *testing.T) {
	type object = map[string]any
	got, err := YAML(object{
		"name": "tiny-7f3a", "step": 17, "loss": 1.5, "on": "on", "empty": []int{}, "none": nil, "text": "a: b\n\"c\"", "path": "/data/x.jsonl",
		"workers": []any{object{"name": "w1", "ranks": []int{0, 1}}, "2", object{}}, "deep": object{"yes": true, "date": "2026-11-23"},
	})
	want := `deep:
  date: "2026-11-23"
  "yes": true
empty: []
loss: 1.5
name: tiny-7f3a
none: null
"on": "on"
path: /data/x.jsonl
step: 17
text: "a: b\n\"c\""
workers:
- name: w1
  ranks:
  - 0
  - 1
- "2"
- {}
`
	if err != nil || got != want {
		t.Errorf("%v, got\n%s\nwant\n%s", err, got, want)
	}
}
