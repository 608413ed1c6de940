package chat

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/nikolalohinski/gonja/v2/exec"
)

// JSON values keep the order of their keys, and are written as Python's json.dumps writes them.

// pair is an entry of an object; object is an ordered one.
type (
	pair struct {
		key   string
		value any
	}
	object []pair
)

// parseArray reads an array; of nothing, null and an empty one it returns nil.
func parseArray(raw json.RawMessage) (any, error) {
	if len(bytes.TrimSpace(raw)) == 0 {
		return nil, nil
	}
	if !utf8.Valid(raw) {
		return nil, errors.New("it is not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	v, err := parseValue(dec, 0)
	if err != nil {
		return nil, err
	}
	if dec.More() {
		return nil, errors.New("more follows after its end")
	}
	switch v := v.(type) {
	case nil:
		return nil, nil
	case []any:
		if len(v) == 0 {
			return nil, nil
		}
		return v, nil
	}
	return nil, errors.New("it must be a JSON array")
}

// parseValue reads one value: nil, bool, string, int, float64, *big.Int, []any or object.
func parseValue(dec *json.Decoder, depth int) (any, error) {
	if depth > jsonDepthMax {
		return nil, fmt.Errorf("it is nested more than %d deep", jsonDepthMax)
	}
	tok, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch tok := tok.(type) {
	case json.Number:
		return parseNumber(tok)
	case json.Delim:
		if tok == '{' {
			return parseObject(dec, depth)
		}
		out := []any{}
		for dec.More() {
			v, err := parseValue(dec, depth+1)
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
		_, err := dec.Token()
		return out, err
	}
	return tok, nil
}

// parseObject keeps the last value of a key that stands twice, in its first place, as Python does.
func parseObject(dec *json.Decoder, depth int) (any, error) {
	out := object{}
	at := map[string]int{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, err
		}
		key := tok.(string) // the decoder allows no other key
		v, err := parseValue(dec, depth+1)
		if err != nil {
			return nil, err
		}
		if i, twice := at[key]; twice {
			out[i].value = v
			continue
		}
		at[key] = len(out)
		out = append(out, pair{key, v})
	}
	_, err := dec.Token()
	return out, err
}

const digitsMax = 4000 // Python reads no longer integers

func parseNumber(n json.Number) (any, error) {
	if strings.ContainsAny(n.String(), ".eE") {
		f, err := n.Float64()
		if err != nil && math.IsInf(f, 0) { // Python reads infinity, and writes what is no JSON
			return nil, fmt.Errorf("the number %.40s is too large", n)
		}
		return f, nil
	}
	if i, err := strconv.Atoi(n.String()); err == nil {
		return i, nil
	}
	if len(n) > digitsMax {
		return nil, errors.New("a number has too many digits")
	}
	i, _ := new(big.Int).SetString(n.String(), 10)
	return i, nil
}

// eachText calls f with every string and key of a value.
func eachText(v any, f func(text string)) {
	switch v := v.(type) {
	case string:
		f(v)
	case []any:
		for _, e := range v {
			eachText(e, f)
		}
	case object:
		for _, e := range v {
			f(e.key)
			eachText(e.value, f)
		}
	}
}

// toTemplate turns a value into what the template engine works on.
func toTemplate(v any, signs *signs) any {
	switch v := v.(type) {
	case string:
		return signs.replace(v)
	case []any:
		out := make(list, len(v))
		for i, e := range v {
			out[i] = toTemplate(e, signs)
		}
		return out
	case object:
		d := exec.NewDict()
		for _, e := range v {
			d.Pairs = append(d.Pairs, &exec.Pair{Key: exec.AsValue(signs.replace(e.key)), Value: exec.AsValue(toTemplate(e.value, signs))})
		}
		return d
	}
	return v
}

// toJSON is the filter tojson as transformers defines it: json.dumps(x, ensure_ascii=False).
func toJSON(_ *exec.Evaluator, in *exec.Value, params *exec.VarArgs) *exec.Value {
	if in.IsError() {
		return in
	}
	if len(params.Args) > 0 || len(params.KwArgs) > 0 {
		return exec.AsValue(errors.New("tojson with arguments is not supported"))
	}
	out, err := appendJSON(nil, in.Interface(), 0)
	if err != nil {
		return exec.AsValue(err)
	}
	return exec.AsValue(string(out))
}

func appendJSON(out []byte, v any, depth int) ([]byte, error) {
	if depth > 2*jsonDepthMax {
		return nil, errors.New("tojson of a value that is nested too deep")
	}
	switch v := v.(type) {
	case nil:
		return append(out, "null"...), nil
	case bool:
		return strconv.AppendBool(out, v), nil
	case int:
		return strconv.AppendInt(out, int64(v), 10), nil
	case *big.Int:
		return v.Append(out, 10), nil
	case float64:
		return appendPythonFloat(out, v), nil
	case string:
		return appendPythonString(out, v), nil
	case *exec.Value:
		return appendJSON(out, v.Interface(), depth)
	case list:
		return appendList(out, len(v), depth, func(i int) any { return v[i] })
	case exec.ValuesList:
		return appendList(out, len(v), depth, func(i int) any { return v[i] })
	case *exec.Dict:
		out = append(out, '{')
		for i, p := range v.Pairs {
			if i > 0 {
				out = append(out, ", "...)
			}
			if !p.Key.IsString() {
				return nil, errors.New("tojson of an object with a key that is no text")
			}
			out = append(appendPythonString(out, p.Key.String()), ": "...)
			var err error
			if out, err = appendJSON(out, p.Value, depth+1); err != nil {
				return nil, err
			}
		}
		return append(out, '}'), nil
	}
	return nil, fmt.Errorf("tojson of a %T is not supported", v)
}

func appendList(out []byte, n, depth int, at func(i int) any) ([]byte, error) {
	out = append(out, '[')
	for i := range n {
		if i > 0 {
			out = append(out, ", "...)
		}
		var err error
		if out, err = appendJSON(out, at(i), depth+1); err != nil {
			return nil, err
		}
	}
	return append(out, ']'), nil
}

// appendPythonFloat writes the shortest digits that give f back; an exponent where it is below -4 or above 15.
func appendPythonFloat(out []byte, f float64) []byte {
	if a := math.Abs(f); a != 0 && (a < 1e-4 || a >= 1e16) {
		return strconv.AppendFloat(out, f, 'e', -1, 64)
	}
	start := len(out)
	out = strconv.AppendFloat(out, f, 'f', -1, 64)
	if bytes.IndexByte(out[start:], '.') < 0 {
		out = append(out, ".0"...)
	}
	return out
}

func appendPythonString(out []byte, s string) []byte {
	out = append(out, '"')
	for i := range len(s) {
		switch c := s[i]; c {
		case '"', '\\':
			out = append(out, '\\', c)
		case '\n':
			out = append(out, `\n`...)
		case '\r':
			out = append(out, `\r`...)
		case '\t':
			out = append(out, `\t`...)
		case '\b':
			out = append(out, `\b`...)
		case '\f':
			out = append(out, `\f`...)
		default:
			if c < 0x20 {
				out = fmt.Appendf(out, `\u%04x`, c)
			} else {
				out = append(out, c)
			}
		}
	}
	return append(out, '"')
}
