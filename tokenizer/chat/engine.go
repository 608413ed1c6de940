package chat

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/nikolalohinski/gonja/v2"
	"github.com/nikolalohinski/gonja/v2/builtins"
	gonjaconfig "github.com/nikolalohinski/gonja/v2/config"
	"github.com/nikolalohinski/gonja/v2/exec"
	"github.com/nikolalohinski/gonja/v2/parser"
)

// config sets what transformers sets.
func config() *gonjaconfig.Config {
	c := gonjaconfig.New()
	c.TrimBlocks, c.LeftStripBlocks = true, true
	return c
}

// environment holds what the known templates use, and no more: what is not here cannot go wrong, and a template that
// wants it does not load. Filters and methods on text are our own, because the library's differ from Python's: trim
// and strip know other spaces, lstrip cuts characters apart, a list has no item -1 when it has one item.
var environment = sync.OnceValue(func() *exec.Environment {
	gonja.SetLoggerOutput(io.Discard)
	filters := map[string]exec.FilterFunction{"tojson": toJSON, "trim": trim}
	for _, name := range []string{"length", "selectattr", "map", "join"} {
		filters[name], _ = builtins.Filters.Get(name)
	}
	blocks := map[string]parser.ControlStructureParser{}
	for _, name := range []string{"for", "if", "set"} {
		blocks[name], _ = builtins.ControlStructures.Get(name)
	}
	namespace, _ := builtins.GlobalFunctions.Get("namespace")
	return &exec.Environment{
		Context:           exec.NewContext(map[string]any{"namespace": namespace}),
		Filters:           exec.NewFilterSet(filters),
		Tests:             builtins.Tests,
		ControlStructures: exec.NewControlStructureSet(blocks),
		Methods: exec.Methods{
			Bool:  exec.NewMethodSet(map[string]exec.Method[bool]{}),
			Int:   exec.NewMethodSet(map[string]exec.Method[int]{}),
			Float: exec.NewMethodSet(map[string]exec.Method[float64]{}),
			Dict:  exec.NewMethodSet(map[string]exec.Method[map[string]any]{}),
			List:  exec.NewMethodSet(map[string]exec.Method[[]any]{}),
			Str:   exec.NewMethodSet(textMethods),
		},
	}
})

// list is a Python list: its last item is also number -1.
type list []any

// GetItem implements exec.ItemGetter.
func (l list) GetItem(key any) (*exec.Value, bool) {
	i, ok := key.(int)
	if ok && i < 0 {
		i += len(l)
	}
	if !ok || i < 0 || i >= len(l) {
		return exec.AsValue(nil), false
	}
	return exec.ToValue(l[i]), true
}

// isSpace is Python's str.isspace of one character.
func isSpace(r rune) bool { return unicode.IsSpace(r) || r >= 0x1C && r <= 0x1F }

// trim is the filter of that name without arguments.
func trim(_ *exec.Evaluator, in *exec.Value, params *exec.VarArgs) *exec.Value {
	if in.IsError() {
		return in
	}
	if !in.IsString() || len(params.Args) > 0 || len(params.KwArgs) > 0 {
		return exec.AsValue(errors.New("trim of what is no text, or with arguments, is not supported"))
	}
	return exec.AsValue(strings.TrimFunc(in.String(), isSpace))
}

var textMethods = map[string]exec.Method[string]{
	"strip":      stripMethod(strings.TrimFunc),
	"lstrip":     stripMethod(strings.TrimLeftFunc),
	"rstrip":     stripMethod(strings.TrimRightFunc),
	"startswith": textMethod(func(self, start string) any { return strings.HasPrefix(self, start) }),
	"endswith":   textMethod(func(self, end string) any { return strings.HasSuffix(self, end) }),
	"split": textMethod(func(self, separator string) any {
		var out list
		for part := range strings.SplitSeq(self, separator) {
			out = append(out, part)
		}
		return out
	}),
}

// textMethod is a method that takes one text.
func textMethod(f func(self, argument string) any) exec.Method[string] {
	return func(self string, _ *exec.Value, params *exec.VarArgs) (any, error) {
		if len(params.Args) != 1 || len(params.KwArgs) > 0 || !params.Args[0].IsString() || params.Args[0].String() == "" {
			return nil, errors.New("a method of text with other arguments than one text is not supported")
		}
		return f(self, params.Args[0].String()), nil
	}
}

// stripMethod cuts the characters given off, or spaces.
func stripMethod(cut func(string, func(rune) bool) string) exec.Method[string] {
	return func(self string, _ *exec.Value, params *exec.VarArgs) (any, error) {
		if len(params.Args) == 0 && len(params.KwArgs) == 0 {
			return cut(self, isSpace), nil
		}
		if len(params.Args) != 1 || len(params.KwArgs) > 0 || !params.Args[0].IsString() {
			return nil, errors.New("a method of text with other arguments than one text is not supported")
		}
		set := params.Args[0].String()
		return cut(self, func(r rune) bool { return strings.ContainsRune(set, r) }), nil
	}
}

// strftimeLayouts are the directives that templates use, as layouts of package time.
var strftimeLayouts = map[byte]string{
	'Y': "2006", 'y': "06", 'm': "01", 'd': "02", 'B': "January", 'b': "Jan", 'A': "Monday", 'a': "Mon", 'H': "15", 'I': "03", 'M': "04", 'S': "05",
	'p': "PM", 'j': "002", '%': "%",
}

// strftime is Python's in the C locale. Time is an argument of the render, so that renders can be repeated.
func strftime(now time.Time, format string) (string, error) {
	if now.IsZero() {
		return "", errors.New("the template asks for the date, and none was given")
	}
	var out strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			out.WriteByte(format[i])
			continue
		}
		i++
		if i == len(format) {
			return "", errors.New("a date format ends in %")
		}
		layout, ok := strftimeLayouts[format[i]]
		if !ok {
			return "", fmt.Errorf("the date format %%%c is not known", format[i])
		}
		out.WriteString(now.Format(layout))
	}
	return out.String(), nil
}
