package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/skein-ml/skein/internal/strictjson"
)

// object reads typed values out of a JSON object and keeps the first complaint, so
// that a resolver reads straight down and checks once. A null counts as absent.
type object struct {
	prefix  string // before every notice: "config.json: "
	members []strictjson.Member
	read    map[string]bool
	notices *[]string
	err     error
}

func (o *object) fail(format string, args ...any) {
	if o.err == nil {
		o.err = fmt.Errorf(format, args...)
	}
}

func (o *object) notice(format string, args ...any) {
	*o.notices = append(*o.notices, o.prefix+fmt.Sprintf(format, args...))
}

// take marks key as read and returns its value, null included.
func (o *object) take(key string) (json.RawMessage, bool) {
	for _, m := range o.members {
		if m.Key == key {
			o.read[key] = true
			return m.Value, true
		}
	}
	return nil, false
}

// value is take with a null counted as absent.
func (o *object) value(key string) (json.RawMessage, bool) {
	raw, ok := o.take(key)
	return raw, ok && !isNull(raw)
}

func (o *object) present(key string) bool {
	_, ok := o.value(key)
	return ok
}

// need returns a whole number that must be there.
func (o *object) need(key string) int {
	if !o.present(key) {
		o.fail("%s is missing; the folder's config.json is incomplete", key)
		return 0
	}
	return o.integer(key, 0)
}

// needEither is need of a key that transformers lets go by two names.
func (o *object) needEither(key, other string) int {
	if !o.present(key) && o.present(other) {
		return o.need(other)
	}
	n := o.need(key)
	if o.present(other) && o.integer(other, 0) != n {
		o.fail("%s is %d but %s is %d; correct config.json", key, n, other, o.integer(other, 0))
	}
	return n
}

func (o *object) integer(key string, absent int) int {
	raw, ok := o.value(key)
	if !ok {
		return absent
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(raw)), 10, 32)
	if err != nil {
		o.fail("%s is %s; it must be a whole number below 2^31", key, abbreviate(string(raw)))
	}
	return int(n)
}

func (o *object) number(key string, absent float64) float64 {
	raw, ok := o.value(key)
	if !ok {
		return absent
	}
	var x float64
	if err := json.Unmarshal(raw, &x); err != nil || math.IsInf(x, 0) {
		o.fail("%s is %s; it must be a number", key, abbreviate(string(raw)))
	}
	return x
}

func (o *object) boolean(key string, absent bool) bool {
	raw, ok := o.value(key)
	if !ok {
		return absent
	}
	var b bool
	if err := json.Unmarshal(raw, &b); err != nil {
		o.fail("%s is %s; it must be true or false", key, abbreviate(string(raw)))
	}
	return b
}

func (o *object) text(key, absent string) string {
	raw, ok := o.value(key)
	if !ok {
		return absent
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		o.fail("%s is %s; it must be a string", key, abbreviate(string(raw)))
	}
	return s
}

// ids reads a token id or a list of them. Null and -1 mean that there is none.
func (o *object) ids(key string) (ids []int32, given bool) {
	raw, given := o.take(key)
	if !given || isNull(raw) {
		return nil, given
	}
	var list []int32
	if err := json.Unmarshal(raw, &list); err != nil {
		var one int32
		if err := json.Unmarshal(raw, &one); err != nil {
			o.fail("%s is %s; it must be a token id or a list of them", key, abbreviate(string(raw)))
			return nil, true
		}
		list = []int32{one}
	}
	for _, id := range list {
		if id != -1 {
			ids = append(ids, id)
		}
	}
	return ids, true
}

// inner reads the object under key; nil if it is absent or empty.
func (o *object) inner(key string) *object {
	raw, ok := o.value(key)
	if !ok {
		return nil
	}
	members, err := strictjson.Object(raw)
	if err != nil {
		o.fail("%s: %w", key, err)
		return nil
	}
	if len(members) == 0 {
		return nil
	}
	return &object{prefix: o.prefix + key + ".", members: members, read: map[string]bool{}, notices: o.notices}
}

func isNull(raw json.RawMessage) bool { return string(bytes.TrimSpace(raw)) == "null" }

// abbreviate makes a JSON value fit on a line of an error.
func abbreviate(value string) string {
	value = strings.Join(strings.Fields(value), " ")
	if runes := []rune(value); len(runes) > 60 {
		return string(runes[:57]) + "..."
	}
	return value
}
