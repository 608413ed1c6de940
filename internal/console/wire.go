package console

import (
	"encoding/json"
	"reflect"
)

// known are the events by name, for reading.
var known = map[string]reflect.Type{}

func init() {
	for _, e := range []Event{Note{}, Prepared{}, Started{}, Step{}, Evaluated{}, Answered{}, Published{}, Done{}} {
		known[e.Name()] = reflect.TypeOf(e)
	}
}

// Marshal is an event as JSON, for [Unmarshal] somewhere else; the name travels beside
// it. What JSON cannot hold, such as a loss that is NaN, travels as text.
func Marshal(e Event) []byte {
	if b, err := json.Marshal(e); err == nil {
		return b
	}
	b, err := json.Marshal(plain{Text: e.Line()})
	if err != nil {
		panic("console: a string has no JSON: " + err.Error())
	}
	return b
}

// Unmarshal reads an event. One that this version does not know, or cannot read, still
// has a line and JSON.
func Unmarshal(name string, b []byte) Event {
	var p plain
	if t := known[name]; t != nil && (json.Unmarshal(b, &p) != nil || p.Text == "" || t == reflect.TypeFor[Note]()) {
		v := reflect.New(t)
		if err := json.Unmarshal(b, v.Interface()); err == nil {
			return v.Elem().Interface().(Event)
		}
	}
	return foreign{name: name, json: b, text: p.Text}
}

// plain is an event of which only the line could be sent.
type plain struct {
	Text string `json:"text"`
}

// foreign is an event of another version.
type foreign struct {
	name string
	json []byte
	text string
}

// Name implements Event.
func (e foreign) Name() string { return oneLine(e.name) }

// Line implements Event.
func (e foreign) Line() string {
	if e.text != "" {
		return oneLine(e.text)
	}
	return oneLine(string(e.json))
}

// MarshalJSON implements json.Marshaler. Printers put the name in front of an object's
// fields, so anything else becomes a field.
func (e foreign) MarshalJSON() ([]byte, error) {
	var fields map[string]any
	if json.Unmarshal(e.json, &fields) == nil && fields != nil {
		return e.json, nil
	}
	return json.Marshal(plain{Text: e.Line()})
}
