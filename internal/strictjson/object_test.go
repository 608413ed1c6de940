package strictjson

import (
	"strings"
	"testing"
)

func TestObjectKeepsOrderAndRawValues(t *testing.T) {
	got, err := Object([]byte(` {"b": [1, 2], "a": {"x": null}, "A": 3} `))
	if err != nil {
		t.Fatal(err)
	}
	var s []string
	for _, m := range got {
		s = append(s, m.Key+"="+string(m.Value))
	}
	if strings.Join(s, ";") != `b=[1, 2];a={"x": null};A=3` {
		t.Errorf("members: %q", s)
	}
}

func TestObjectRefusesWhatEncodingJSONLetsPass(t *testing.T) {
	for in, want := range map[string]string{
		`{"a":1,"a":2}`:      `key "a" appears twice`,
		`{"a":1,"\u0061":2}`: `key "a" appears twice`,
		`{"a":1} {}`:         "something follows",
		`{"a":1}x`:           "something follows",
		`[1]`:                "not a JSON object",
		``:                   "ends too early",
		`{"a":`:              "ends too early",
		`{"a":1`:             "ends too early",
		`{"a" 1}`:            "not valid JSON",
	} {
		_, err := Object([]byte(in))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Object(%q): error %v, want one with %q", in, err, want)
		}
	}
}
