package data

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxMessages bounds the turns of one chat.
const maxMessages = 1 << 16

// decodeRow reads one line of JSONL. Keys that belong to no schema are ignored in a row, because data sets carry ids and
// sources along; inside a message every key may change what the model sees, so an unknown one is refused.
func decodeRow(line []byte) (Example, error) {
	if err := checkBytes(line); err != nil {
		return Example{}, err
	}
	var row map[string]json.RawMessage
	if err := json.Unmarshal(line, &row); err != nil {
		return Example{}, explainJSON(err)
	}
	if row == nil {
		return Example{}, errors.New("the row is null, expected a JSON object")
	}
	has := func(key string) bool { v, ok := row[key]; return ok && !isNull(v) }
	messages, completion, text := has("messages"), has("prompt") && has("completion"), has("text")
	switch {
	case messages && !completion && !text:
		return decodeChat(row)
	case completion && !messages && !text:
		return decodeCompletion(row)
	case text && !messages && !completion:
		s, err := decodeString("text", row["text"])
		return Example{Schema: SchemaText, Text: s}, err
	case messages || completion || text:
		return Example{}, errors.New("the row fits more than one schema; keep one of messages, prompt with completion, text")
	}
	return Example{}, explainSchema(row)
}

// checkBytes refuses what the JSON decoder would repair silently.
func checkBytes(line []byte) error {
	if i := bytes.IndexByte(line, 0); i >= 0 {
		return fmt.Errorf("NUL byte at column %d: the file is binary, damaged or UTF-16; save it as UTF-8", i+1)
	}
	if !utf8.Valid(line) {
		i := 0
		for i < len(line) {
			r, n := utf8.DecodeRune(line[i:])
			if r == utf8.RuneError && n <= 1 {
				break
			}
			i += n
		}
		return fmt.Errorf("invalid UTF-8 at column %d; save the file as UTF-8", i+1)
	}
	if i := loneSurrogate(line); i >= 0 {
		return fmt.Errorf("half a surrogate pair (%s) at column %d; write the character itself or both halves", line[i:i+6], i+1)
	}
	return nil
}

// loneSurrogate finds an escape \ud800…\udfff that is not one of a pair: encoding/json turns it into U+FFFD. −1: none.
func loneSurrogate(line []byte) int {
	for i := 0; i+1 < len(line); i++ {
		if line[i] != '\\' {
			continue
		}
		switch r := escapedUnit(line[i:]); {
		case r >= 0xd800 && r < 0xdc00:
			if low := escapedUnit(line[i+6:]); low < 0xdc00 || low > 0xdfff {
				return i
			}
			i += 11
		case r >= 0xdc00 && r <= 0xdfff:
			return i
		default:
			i++ // the escaped character, so that \\u is not taken for \u
		}
	}
	return -1
}

// escapedUnit is the UTF-16 unit that an escape at the start of b stands for, which is \u and four
// hexadecimal digits; −1 if there is none.
func escapedUnit(b []byte) int {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return -1
	}
	v := 0
	for _, c := range b[2:6] {
		d := strings.IndexByte("0123456789abcdef", c|0x20)
		if d < 0 || (c|0x20 < 'a' && (c < '0' || c > '9')) {
			return -1
		}
		v = v<<4 | d
	}
	return v
}

func explainJSON(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("not valid JSON at column %d: %w", syntax.Offset, err)
	case errors.As(err, &kind):
		return fmt.Errorf("expected a JSON object on each line, found %s; a file that is one JSON array must be rewritten as JSONL", kind.Value)
	}
	return err
}

// explainSchema names the schema a row seems to have, for rows of none that is read.
func explainSchema(row map[string]json.RawMessage) error {
	const want = "expected messages, prompt with completion, or text"
	has := func(keys ...string) bool {
		for _, k := range keys {
			if _, ok := row[k]; !ok {
				return false
			}
		}
		return true
	}
	switch {
	case has("instruction", "output"):
		return fmt.Errorf("%s; this looks like Alpaca (instruction, output): rewrite it as messages", want)
	case has("conversations"):
		return fmt.Errorf("%s; this looks like ShareGPT (conversations): rewrite it as messages", want)
	case has("chosen", "rejected"), has("preferred_output"):
		return fmt.Errorf("%s; this looks like preference data, which fine-tuning on examples cannot use", want)
	case has("prompt"):
		return fmt.Errorf("%s; the row has a prompt and no completion", want)
	}
	keys := slices.Sorted(maps.Keys(row))
	if len(keys) == 0 {
		return fmt.Errorf("%s; the row is empty", want)
	}
	return fmt.Errorf("%s; the row's keys are %.200s", want, fmt.Sprintf("%q", keys[:min(len(keys), 6)]))
}

func isNull(v json.RawMessage) bool { return len(v) == 0 || string(v) == "null" }

// decodeString reads a string.
func decodeString(key string, v json.RawMessage) (s string, err error) {
	if err := json.Unmarshal(v, &s); err != nil || isNull(v) {
		return "", fmt.Errorf("%s: expected a string, found %s", key, jsonKind(v))
	}
	return s, nil
}

// jsonKind names the kind of a value that was found in the wrong place.
func jsonKind(v json.RawMessage) string {
	if len(v) == 0 {
		return "nothing"
	}
	switch v[0] {
	case '"':
		return "a string"
	case '[':
		return "an array"
	case '{':
		return "an object"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	}
	return "a number"
}
