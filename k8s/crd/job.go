package crd

import (
	"fmt"
	"maps"
	"math"
	"reflect"
	"strings"

	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/k8s/api/v1alpha1"
)

// Bounds of texts and lists. Kubernetes wants everything bounded that a rule looks at.
const (
	pathBytesMax = 4096
	pathsMax     = 256
	promptsMax   = 256
	promptMax    = 8192
	textMax      = 256
)

// jobSchema is the schema of a FineTuneJob's spec: the keys of the job file, with what
// can be said of each alone, the rules that tie keys together, and Kubernetes' own keys.
func jobSchema() object {
	root := object{"type": "object", "properties": object{}}
	for _, k := range jobspec.Keys() {
		parent, name := at(root, k.Path)
		s := object{"type": "object", "properties": object{}}
		if !k.Section {
			s = keySchema(k)
		}
		parent["properties"].(object)[name] = s
	}
	for _, path := range required {
		parent, name := at(root, path)
		list, _ := parent["required"].([]any)
		parent["required"] = append(list, name)
	}
	for _, r := range Rules {
		s := root
		if r.Section != "" {
			parent, name := at(root, r.Section)
			s = parent["properties"].(object)[name].(object)
		}
		addRule(s, r.Rule, r.Message)
	}
	own := structSchema(reflect.TypeFor[v1alpha1.KubernetesFields]())["properties"].(object)
	maps.Copy(root["properties"].(object), own)
	for _, r := range immutable(root["properties"].(object)) {
		addRule(root, r.Rule, r.Message)
	}
	return root
}

func addRule(s object, rule, message string) {
	list, _ := s["x-kubernetes-validations"].([]any)
	s["x-kubernetes-validations"] = append(list, object{"rule": rule, "message": message})
}

// at finds the section that holds a path's last key.
func at(root object, path string) (parent object, name string) {
	keys := strings.Split(path, ".")
	parent = root
	for _, key := range keys[:len(keys)-1] {
		parent = parent["properties"].(object)[key].(object)
	}
	return parent, keys[len(keys)-1]
}

// required are the keys without which there is no job. What their sections miss is
// missed with the section.
var required = []string{"model", "model.base", "data", "data.train", "train", "train.optimizer", "train.optimizer.learningRate"}

// keySchema is the schema of one key of the job file.
func keySchema(k jobspec.Key) object {
	s := object{"description": k.Doc}
	switch k.Type {
	case "text":
		s["type"], s["minLength"], s["maxLength"] = "string", int64(1), int64(textMax)
		if strings.HasPrefix(k.Doc, "folder") || paths[k.Path] {
			s["maxLength"] = int64(pathBytesMax)
		}
	case "text, list or share":
		s["type"], s["minLength"], s["maxLength"] = "string", int64(1), int64(pathBytesMax)
		s["description"] = "held-out JSONL: a path, a glob, or a share of the training data such as 2%; none if left out"
	case "text or list":
		length, count := int64(pathBytesMax), int64(pathsMax)
		if k.Path == "eval.prompts" {
			length, count = promptMax, promptsMax
		}
		s["type"], s["minItems"], s["maxItems"] = "array", int64(1), count
		s["items"] = object{"type": "string", "minLength": int64(1), "maxLength": length}
		s["x-kubernetes-list-type"] = "atomic"
	case "number":
		s["type"] = "number"
	case "whole number":
		s["type"], s["format"] = "integer", "int64"
	case "true or false":
		s["type"] = "boolean"
	case "interval":
		union(s, `^[1-9][0-9]*( steps?)?$`, 1)
	case "auto or whole number":
		union(s, `^(auto|[1-9][0-9]*)$`, 1)
	case "size":
		union(s, `^[0-9]+(\.[0-9]*)? *(B|[KMGT](B|iB?))?$`, 0)
	default:
		panic(fmt.Sprintf("crd: no schema for %s, which is a %s", k.Path, k.Type))
	}
	if b, ok := Bounds[k.Path]; ok {
		b.apply(s)
	}
	if words, ok := Words[k.Path]; ok {
		list := make([]any, len(words))
		for i, w := range words {
			list[i] = w
		}
		s["enum"] = list
	}
	if p, ok := patterns[k.Path]; ok {
		s["pattern"] = p
	}
	return s
}

var paths = map[string]bool{"model.base": true, "output.export": true, "checkpoint.store": true}

// union makes a schema take a number or a text.
func union(s object, pattern string, least int64) {
	s["x-kubernetes-int-or-string"] = true
	s["anyOf"] = []any{object{"type": "integer"}, object{"type": "string"}}
	s["minimum"], s["pattern"], s["maxLength"] = least, pattern, int64(32)
}

// Bound is what a number may be.
type Bound struct {
	Min, Max         float64
	AboveMin, BelowX bool // Min, Max itself is too little, too much
}

func (b Bound) apply(s object) {
	set := func(key string, x float64) {
		if math.IsInf(x, 0) {
			return
		}
		if s["type"] == "integer" {
			s[key] = int64(x)
			return
		}
		s[key] = x
	}
	set("minimum", b.Min)
	set("maximum", b.Max)
	if b.AboveMin {
		s["exclusiveMinimum"] = true
	}
	if b.BelowX {
		s["exclusiveMaximum"] = true
	}
}
