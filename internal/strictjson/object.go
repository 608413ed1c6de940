// Package strictjson reads JSON objects that come from elsewhere more strictly than
// encoding/json does: keys are compared byte for byte, a key given twice is an
// error instead of a silent overwrite, and nothing may follow the object.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Member is one key and its undecoded value.
type Member struct {
	Key   string
	Value json.RawMessage
}

// Object splits the JSON object in data into its members, in file order. It
// returns an error if data is not exactly one object, or if a key appears twice.
func Object(data []byte) ([]Member, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	if tok, err := dec.Token(); err != nil {
		return nil, clean(err)
	} else if tok != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	var members []Member
	seen := make(map[string]struct{})
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, clean(err)
		}
		key, ok := tok.(string)
		if !ok {
			return nil, errors.New("not a JSON object")
		}
		if _, twice := seen[key]; twice {
			return nil, fmt.Errorf("key %q appears twice", key)
		}
		seen[key] = struct{}{}
		m := Member{Key: key}
		if err := dec.Decode(&m.Value); err != nil {
			return nil, clean(err)
		}
		members = append(members, m)
	}
	if _, err := dec.Token(); err != nil {
		return nil, clean(err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("something follows the JSON object")
	}
	return members, nil
}

// clean words a decoder's end of input as what it means to the reader of a file.
func clean(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the JSON ends too early")
	}
	return fmt.Errorf("not valid JSON: %w", err)
}
