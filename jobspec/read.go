package jobspec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// fileBytesMax bounds a job file. A real one has two kilobytes.
const fileBytesMax = 1 << 20

// ReadFile reads the job file name, lays settings of the form "train.steps=8", as
// the --set flag gives them, on top of it, completes and validates it. Problems
// name file, line and key; the error is an *Invalid unless the file cannot be read.
func ReadFile(name string, settings ...string) (*Job, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("job file: %w", err)
	}
	defer f.Close()
	j, err := Read(name, f, settings...)
	if err != nil {
		return nil, err
	}
	j.dir = filepath.Dir(name)
	return j, nil
}

// Read is ReadFile for an open file; name is what errors call it. Paths in the
// job stay as written.
func Read(name string, r io.Reader, settings ...string) (*Job, error) {
	src, err := io.ReadAll(io.LimitReader(r, fileBytesMax+1))
	if err != nil {
		return nil, fmt.Errorf("job file %s: %w", name, err)
	}
	if len(src) > fileBytesMax {
		return nil, &Invalid{[]Problem{{Source: name, Message: "is larger than 1 MiB; that is not a job file"}}}
	}
	d := decoder{sources: map[string]string{}}
	job := &Job{}
	d.document(name, src, job)
	for _, s := range settings {
		d.setting(s, job)
	}
	if len(d.problems) > 0 {
		return nil, &Invalid{d.problems}
	}
	job.EnsureDefaults()
	if err := job.Validate(); err != nil {
		return nil, d.locate(name, err)
	}
	return job, nil
}

// decoder turns YAML nodes into a Job. It walks the node tree itself, because
// the yaml package's strict mode knows neither paths nor neighbours.
type decoder struct {
	source   string            // file, or "--set …"
	lines    bool              // whether the source has line numbers worth printing
	sources  map[string]string // path → "file:line" where it was given
	problems []Problem
}

func (d *decoder) fail(n *yaml.Node, path, format string, args ...any) {
	d.problems = append(d.problems, Problem{Path: path, Message: fmt.Sprintf(format, args...), Source: d.at(n)})
}

func (d *decoder) at(n *yaml.Node) string {
	if !d.lines || n == nil || n.Line == 0 {
		return d.source
	}
	return d.source + ":" + strconv.Itoa(n.Line)
}

// document decodes the one YAML document of a job file.
func (d *decoder) document(name string, src []byte, job *Job) {
	d.source, d.lines = name, true
	dec := yaml.NewDecoder(bytes.NewReader(src))
	var doc, second yaml.Node
	switch err := decodeNode(dec, &doc); {
	case errors.Is(err, io.EOF):
		d.fail(nil, "", "is empty; `skein train --help` shows a job file")
		return
	case err != nil:
		line, message := yamlError(err)
		d.fail(&yaml.Node{Line: line}, "", "is not YAML: %s", message)
		return
	}
	if err := decodeNode(dec, &second); !errors.Is(err, io.EOF) {
		d.fail(&second, "", "holds more than one YAML document; a job file has one")
		return
	}
	d.section(doc.Content[0], "", reflect.ValueOf(job).Elem())
}

// decodeNode parses one document into the node tree. Nothing is expanded here:
// an alias stays an alias, and section refuses it, so a file of nested aliases
// costs no more than its own bytes.
func decodeNode(dec *yaml.Decoder, n *yaml.Node) (err error) {
	defer func() {
		if r := recover(); r != nil { // the parser's own bug must not be the user's stack trace
			err = fmt.Errorf("the parser gave up: %v", r)
		}
	}()
	return dec.Decode(n)
}

// yamlError takes the line out of the parser's message; 0 if there is none.
func yamlError(err error) (line int, message string) {
	message = strings.TrimPrefix(err.Error(), "yaml: ")
	if number, rest, ok := strings.Cut(strings.TrimPrefix(message, "line "), ": "); ok {
		if line, err := strconv.Atoi(number); err == nil {
			return line, rest
		}
	}
	return 0, message
}

// setting decodes "a.b.c=value" over what the file said.
func (d *decoder) setting(s string, job *Job) {
	d.source, d.lines = "--set "+s, false
	path, value, ok := strings.Cut(s, "=")
	if !ok || path == "" {
		d.fail(nil, "", "has no value; write --set train.steps=8")
		return
	}
	var doc yaml.Node
	if err := decodeNode(yaml.NewDecoder(strings.NewReader(value)), &doc); err != nil {
		d.fail(nil, path, "has no value that is YAML; write --set train.steps=8")
		return
	}
	node := doc.Content[0]
	keys := strings.Split(path, ".")
	for _, key := range slices.Backward(keys) {
		name := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key}
		node = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Content: []*yaml.Node{name, node}}
	}
	d.section(node, "", reflect.ValueOf(job).Elem())
}

// section decodes a mapping into the struct v, whose keys begin with prefix.
func (d *decoder) section(n *yaml.Node, prefix string, v reflect.Value) {
	if !d.plain(n, prefix) {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.fail(n, prefix, "must be a section of keys, not %s", describe(n))
		return
	}
	fields := fieldsOf(v.Type())
	first := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		if !d.plain(name, prefix) {
			continue
		}
		path := join(prefix, name.Value)
		f := slices.IndexFunc(fields, func(f field) bool { return f.key == name.Value })
		if name.Kind != yaml.ScalarNode || f < 0 {
			d.unknown(name, prefix, fields)
			continue
		}
		if before, again := first[name.Value]; again {
			d.fail(name, path, "is given twice, first on line %d; remove one", before.Line)
			continue
		}
		first[name.Value] = name
		d.sources[path] = d.at(name)
		target := v.Field(fields[f].index)
		if isSection(fields[f].typ) {
			d.section(value, path, target)
			continue
		}
		d.value(value, path, target)
	}
}

// plain refuses what a job file has no use for and what hides meaning from its
// reader: anchors, aliases, merge keys, custom tags.
func (d *decoder) plain(n *yaml.Node, path string) bool {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.fail(n, path, "uses a YAML anchor or alias, which a job file may not; write the value out")
	case n.Tag == "!!merge":
		d.fail(n, path, "uses a YAML merge key, which a job file may not; write the keys out")
	case n.Style&yaml.TaggedStyle != 0:
		d.fail(n, path, "carries the YAML tag %s, which a job file may not; remove it", n.Tag)
	default:
		return true
	}
	return false
}

func (d *decoder) unknown(name *yaml.Node, prefix string, fields []field) {
	if name.Kind != yaml.ScalarNode {
		d.fail(name, prefix, "a key must be a word, not %s", describe(name))
		return
	}
	path := join(prefix, clip(name.Value))
	if near := nearest(join(prefix, name.Value)); near != "" {
		d.fail(name, path, "unknown key; did you mean %s?", near)
		return
	}
	known := make([]string, len(fields))
	for i, f := range fields {
		known[i] = f.key
	}
	d.fail(name, path, "unknown key; known here: %s", strings.Join(known, ", "))
}

// value decodes a scalar or a list of texts into target.
func (d *decoder) value(n *yaml.Node, path string, target reflect.Value) {
	if !d.plain(n, path) {
		return
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		d.fail(n, path, "has no value; give one or remove the key")
		return
	}
	if target.Kind() == reflect.Pointer {
		target.Set(reflect.New(target.Type().Elem()))
		target = target.Elem()
	}
	want, ok := d.assign(n, path, target)
	if !ok && want != "" {
		d.fail(n, path, "must be %s, not %s", want, describe(n))
	}
}

// assign stores n in target. When it cannot, want says what it takes; an empty
// want means that the problem has been reported.
func (d *decoder) assign(n *yaml.Node, path string, target reflect.Value) (want string, ok bool) {
	if target.Type() == validationType {
		return d.validation(n, path, target.Addr().Interface().(*Validation))
	}
	if target.Kind() == reflect.Slice {
		var list []string
		want, ok = d.texts(n, path, &list)
		target.Set(reflect.ValueOf(list).Convert(target.Type()))
		return want, ok
	}
	scalar := n.Kind == yaml.ScalarNode
	if target.Addr().Type().Implements(textType) {
		t := target.Addr().Interface().(text)
		return t.want(), scalar && t.UnmarshalText([]byte(n.Value)) == nil
	}
	switch target.Kind() {
	case reflect.String:
		target.SetString(n.Value)
		return "text (in quotes, if it looks like a number)", scalar && n.Tag == "!!str"
	case reflect.Bool:
		target.SetBool(n.Value == "true")
		return "true or false", scalar && n.Tag == "!!bool" && (n.Value == "true" || n.Value == "false")
	case reflect.Float64:
		x, err := parseFloat(n.Value)
		target.SetFloat(x)
		return "a number", scalar && (n.Tag == "!!float" || n.Tag == "!!int") && err == nil
	case reflect.Uint64:
		u, err := strconv.ParseUint(n.Value, 10, 64)
		target.SetUint(u)
		return "a whole number from 0 up", scalar && n.Tag == "!!int" && err == nil
	default:
		i, err := parseInt(n.Value)
		fits := err == nil && i >= math.MinInt32 && i <= math.MaxInt32
		target.SetInt(i)
		return "a whole number", scalar && n.Tag == "!!int" && fits
	}
}

// parseFloat reads YAML's numbers. NaN and infinity are read as such, so that
// Validate can say what they would do.
func parseFloat(s string) (float64, error) {
	switch strings.ToLower(strings.TrimPrefix(s, "+")) {
	case ".nan":
		return math.NaN(), nil
	case ".inf":
		return math.Inf(1), nil
	case "-.inf":
		return math.Inf(-1), nil
	}
	if strings.ContainsAny(s, "_xXpPoObB") {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseFloat(s, 64)
}

func (d *decoder) texts(n *yaml.Node, path string, list *[]string) (want string, ok bool) {
	const wanted = "text or a list of texts"
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag == "!!str":
		*list = []string{n.Value}
		return "", true
	case n.Kind != yaml.SequenceNode:
		return wanted, false
	case len(n.Content) == 0:
		d.fail(n, path, "is an empty list; give a value or remove the key")
		return "", false
	}
	for _, item := range n.Content {
		if !d.plain(item, path) {
			return "", false
		}
		if item.Kind != yaml.ScalarNode || item.Tag != "!!str" {
			d.fail(item, path, "must be a list of texts, and this item is %s", describe(item))
			return "", false
		}
		*list = append(*list, item.Value)
	}
	return "", true
}

func (d *decoder) validation(n *yaml.Node, path string, v *Validation) (want string, ok bool) {
	if n.Kind == yaml.ScalarNode {
		if share, is, err := parseShare(n.Value); is {
			*v = Validation{Share: share}
			return "a share such as 2%", err == nil && share > 0
		}
	}
	var list []string
	want, ok = d.texts(n, path, &list)
	*v = Validation{Paths: list}
	if want != "" {
		want = "a path, a glob, a list of them, or a share such as 2%"
	}
	return want, ok
}

// locate gives the problems that Validate found the line where their key, or
// the nearest section above it, stands in the file.
func (d *decoder) locate(name string, err error) error {
	var invalid *Invalid
	if !errors.As(err, &invalid) {
		return err
	}
	for i := range invalid.Problems {
		p := &invalid.Problems[i]
		p.Source = name
		for path := p.Path; path != ""; path, _ = split(path) {
			if source, ok := d.sources[path]; ok {
				p.Source = source
				break
			}
		}
	}
	return invalid
}

// describe says what a node is, in the user's words.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a section"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.Tag {
	case "!!null":
		return "nothing"
	case "!!str":
		return fmt.Sprintf("the text %q", clip(n.Value))
	}
	return clip(n.Value)
}

// clip keeps a message to one readable line.
func clip(s string) string {
	if len(s) > 60 {
		s = strings.ToValidUTF8(s[:60], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}
