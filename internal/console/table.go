package console

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Table writes rows under a header, columns aligned, without borders. An empty cell is
// shown as a dash. Every row has a cell for each column.
func Table(header []string, rows [][]string) string {
	all := append([][]string{header}, rows...)
	widths := make([]int, len(header))
	for _, row := range all {
		for i, text := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(shown(text)))
		}
	}
	var b strings.Builder
	for _, row := range all {
		var line strings.Builder
		for i, text := range row {
			text = shown(text)
			line.WriteString(text)
			line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text)+3))
		}
		b.WriteString(strings.TrimRight(line.String(), " "))
		b.WriteByte('\n')
	}
	return b.String()
}

func shown(text string) string {
	if text = oneLine(text); text == "" {
		return "-"
	}
	return text
}

// Clip cuts a text to so many characters, and shows that it did.
func Clip(text string, most int) string {
	if r := []rune(text); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return text
}

// Age writes how long something has been, as people read it: 41s, 12m, 5h, 3d.
func Age(d time.Duration) string {
	switch {
	case d < 0:
		return "0s" // clocks differ a little
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// YAML writes what JSON can hold as block YAML, keys in the order of the alphabet.
func YAML(v any) (string, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var tree any
	if err := d.Decode(&tree); err != nil {
		return "", err
	}
	var b strings.Builder
	writeYAML(&b, tree, "", false)
	return b.String(), nil
}

// writeYAML writes a value. Its first line is indented unless it follows a dash.
func writeYAML(b *strings.Builder, v any, indent string, afterDash bool) {
	lead := func(i int) string {
		if i == 0 && afterDash {
			return ""
		}
		return indent
	}
	switch v := v.(type) {
	case map[string]any:
		for i, key := range slices.Sorted(maps.Keys(v)) {
			fmt.Fprintf(b, "%s%s:", lead(i), scalarYAML(key))
			childYAML(b, v[key], indent)
		}
	case []any:
		for i, item := range v {
			b.WriteString(lead(i) + "-")
			if isLeaf(item) {
				b.WriteString(" " + scalarYAML(item) + "\n")
				continue
			}
			b.WriteString(" ")
			writeYAML(b, item, indent+"  ", true)
		}
	default:
		b.WriteString(lead(0) + scalarYAML(v) + "\n")
	}
}

// childYAML writes what follows a key. Lists stand under their key without indentation.
func childYAML(b *strings.Builder, v any, indent string) {
	if isLeaf(v) {
		b.WriteString(" " + scalarYAML(v) + "\n")
		return
	}
	b.WriteString("\n")
	if _, list := v.([]any); !list {
		indent += "  "
	}
	writeYAML(b, v, indent, false)
}

// isLeaf tells whether a value fits on the line of its key.
func isLeaf(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		return len(v) == 0
	case []any:
		return len(v) == 0
	}
	return true
}

// bareYAML are texts that need no quotes: nothing that YAML 1.1 or 1.2 takes for something else.
var bareYAML = regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9_./-]*$`)

var wordsYAML = []string{"true", "false", "yes", "no", "on", "off", "null", "y", "n"}

func scalarYAML(v any) string {
	switch v := v.(type) {
	case string:
		if bareYAML.MatchString(v) && !slices.Contains(wordsYAML, strings.ToLower(v)) {
			return v
		}
		var quoted bytes.Buffer
		enc := json.NewEncoder(&quoted) // a JSON string is a YAML string
		enc.SetEscapeHTML(false)
		if err := enc.Encode(v); err != nil {
			panic("console: a string has no JSON: " + err.Error())
		}
		return strings.TrimSpace(quoted.String())
	case map[string]any:
		return "{}"
	case []any:
		return "[]"
	case nil:
		return "null"
	}
	return fmt.Sprint(v) // numbers and truth values
}
