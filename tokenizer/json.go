package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// The reading here is stricter than encoding/json: a key that is unknown or stands twice, a string that is no Unicode
// text and a number that is no token id are errors, where encoding/json would guess.

// object holds the values of a JSON object by key, and remembers what it is for error messages.
type object struct {
	what   string
	values map[string]json.RawMessage
}

// parseObject reads raw, called what in errors, whose keys must be among known.
func parseObject(raw []byte, what string, known ...string) (object, error) {
	o := object{what, map[string]json.RawMessage{}}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if tok, err := dec.Token(); err != nil {
		return o, fmt.Errorf("%s: %w", what, err)
	} else if tok != json.Delim('{') {
		return o, fmt.Errorf("%s must be a JSON object", what)
	}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return o, fmt.Errorf("%s: %w", what, err)
		}
		key := tok.(string) // the decoder allows no other key
		if !slices.Contains(known, key) {
			return o, fmt.Errorf("%s has the key %q, which is not known", what, key)
		}
		if _, twice := o.values[key]; twice {
			return o, fmt.Errorf("%s has the key %q twice", what, key)
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return o, fmt.Errorf("%s: %q: %w", what, key, err)
		}
		o.values[key] = value
	}
	if _, err := dec.Token(); err != nil {
		return o, fmt.Errorf("%s: %w", what, err)
	}
	if dec.More() {
		return o, fmt.Errorf("%s: more follows after its end", what)
	}
	return o, nil
}

// typeOf returns the "type" of a component, or "" for null.
func typeOf(raw json.RawMessage, what string) (string, error) {
	if isNull(raw) {
		return "", nil
	}
	var head struct{ Type *string }
	if err := json.Unmarshal(raw, &head); err != nil || head.Type == nil {
		return "", fmt.Errorf("%s has no type", what)
	}
	return *head.Type, nil
}

func isNull(raw json.RawMessage) bool { return raw == nil || string(raw) == "null" }

// read decodes the value of key into dst, which stays as it is where the key is missing or null.
func (o object) read(key string, dst any) error {
	if isNull(o.values[key]) {
		return nil
	}
	if err := json.Unmarshal(o.values[key], dst); err != nil {
		return fmt.Errorf("%s: %q: %w", o.what, key, err)
	}
	return nil
}

// bool returns the value of key, or missing where there is none.
func (o object) bool(key string, missing bool) (bool, error) {
	err := o.read(key, &missing)
	return missing, err
}

// list returns the elements of the array under key.
func (o object) list(key string) ([]json.RawMessage, error) {
	var out []json.RawMessage
	err := o.read(key, &out)
	return out, err
}

// checkText refuses what Go's decoder would repair: bytes that are no UTF-8, and escapes of half a code point. Back
// slashes stand only inside strings, so there is no need to know where those are.
func checkText(data []byte) error {
	if !utf8.Valid(data) {
		return errors.New("the file is not UTF-8")
	}
	for {
		i := bytes.IndexByte(data, '\\')
		if i < 0 || i+1 >= len(data) {
			return nil
		}
		if data[i+1] != 'u' {
			data = data[i+2:]
			continue
		}
		unit := hex4(data[i+2:])
		data = data[min(len(data), i+6):]
		if unit < 0xD800 || unit > 0xDFFF {
			continue
		}
		low := -1
		if len(data) >= 6 && data[0] == '\\' && data[1] == 'u' {
			low = hex4(data[2:])
		}
		if unit > 0xDBFF || low < 0xDC00 || low > 0xDFFF {
			return fmt.Errorf(`the file holds half a code point (\u%04x)`, unit)
		}
		data = data[6:]
	}
}

// hex4 returns the value of four hexadecimal digits, or -1.
func hex4(data []byte) int {
	if len(data) < 4 {
		return -1
	}
	v, err := strconv.ParseUint(string(data[:4]), 16, 16)
	if err != nil {
		return -1
	}
	return int(v)
}

// cursor walks through valid JSON: vocabularies and merges hold hundreds of thousands of strings, and the general
// decoder takes seconds for them.
type cursor struct {
	data []byte
	at   int
}

// next skips spaces, commas and colons and returns the byte there, or 0 at the end.
func (c *cursor) next() byte {
	for c.at < len(c.data) && strings.IndexByte(" \t\r\n,:", c.data[c.at]) >= 0 {
		c.at++
	}
	if c.at == len(c.data) {
		return 0
	}
	return c.data[c.at]
}

// string reads the string that starts here. The result is good until the next change of the data.
func (c *cursor) string() ([]byte, error) {
	if c.next() != '"' {
		return nil, errors.New("a string is missing")
	}
	start := c.at
	for c.at++; c.at < len(c.data) && c.data[c.at] != '"'; c.at++ {
		if c.data[c.at] == '\\' {
			c.at++
		}
	}
	if c.at >= len(c.data) {
		return nil, errors.New("a string has no end")
	}
	c.at++
	quoted := c.data[start:c.at]
	if bytes.IndexByte(quoted, '\\') < 0 {
		return quoted[1 : len(quoted)-1], nil
	}
	var s string
	err := json.Unmarshal(quoted, &s)
	return []byte(s), err
}

// eachVocab calls f for every entry of a vocabulary object.
func eachVocab(raw []byte, f func(token []byte, id int32) error) error {
	c := cursor{data: raw}
	if c.next() != '{' {
		return errors.New("it must be a JSON object")
	}
	c.at++
	for c.next() != '}' {
		token, err := c.string()
		if err != nil {
			return err
		}
		c.next()
		start := c.at
		for c.at < len(c.data) && c.data[c.at] >= '0' && c.data[c.at] <= '9' {
			c.at++
		}
		id, err := strconv.ParseInt(string(c.data[start:c.at]), 10, 32)
		if err != nil || strings.IndexByte(".eE", c.data[c.at]) >= 0 {
			return fmt.Errorf("the id of %q is no token id", token)
		}
		if err := f(token, int32(id)); err != nil {
			return err
		}
	}
	return nil
}

// eachMerge calls f for every merge of an array of "left right" strings or of [left, right] pairs.
func eachMerge(raw []byte, f func(left, right []byte) error) error {
	c := cursor{data: raw}
	if c.next() != '[' {
		return errors.New("they must be a JSON array")
	}
	c.at++
	form := c.next()
	for c.next() != ']' {
		if c.next() != form {
			return errors.New("some are strings and some are pairs")
		}
		left, right, err := c.merge()
		if err != nil {
			return err
		}
		if left == nil {
			continue
		}
		if err := f(left, right); err != nil {
			return err
		}
	}
	return nil
}

// merge reads one merge; of a comment line it returns nil.
func (c *cursor) merge() (left, right []byte, err error) {
	if c.next() == '[' {
		c.at++
		if left, err = c.string(); err != nil {
			return nil, nil, err
		}
		if right, err = c.string(); err != nil {
			return nil, nil, err
		}
		if c.next() != ']' {
			return nil, nil, errors.New("a pair must have two strings")
		}
		c.at++
		if left == nil {
			left = []byte{}
		}
		return left, right, nil
	}
	line, err := c.string()
	if err != nil || bytes.HasPrefix(line, []byte("#version")) {
		return nil, nil, err
	}
	left, right, ok := bytes.Cut(line, []byte(" "))
	if !ok || bytes.IndexByte(right, ' ') >= 0 {
		return nil, nil, fmt.Errorf("%q is not two tokens with a space between", line)
	}
	return left, right, nil
}
