// Package crd makes the CustomResourceDefinitions of the API out of its Go types: a job's
// keys come from package jobspec, so that `kubectl explain` shows what docs/JOBFILE.md
// does, and what the API server refuses is what the command line refuses.
package crd

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// object is a schema, or anything else that is written as YAML.
type object = map[string]any

// structSchema is the schema of a Go struct. Each field's doc tag is its description; its
// crd tag is a list of key=value that the schema gets:
//
//	min, max, minLength, maxLength, minItems, maxItems, maxProperties   numbers
//	enum      words with | between them       pattern    a regular expression
//	default   the API server fills it in      immutable  it cannot be changed
//	listMapKey   elements of the list are told apart by this field
//	conditions   a list of conditions, told apart by type
func structSchema(t reflect.Type) object {
	properties, required := object{}, []any{}
	addFields(t, properties, &required)
	s := object{"type": "object", "properties": properties}
	if len(required) > 0 {
		s["required"] = required
	}
	return s
}

func addFields(t reflect.Type, properties object, required *[]any) {
	for f := range t.Fields() {
		key, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && key == "" { // inlined
			addFields(f.Type, properties, required)
			continue
		}
		if key == "" || key == "-" {
			continue
		}
		s := typeSchema(f.Type)
		if doc := f.Tag.Get("doc"); doc != "" {
			s["description"] = doc
		}
		applyTag(f, s)
		if !strings.Contains(options, "omitempty") && !strings.Contains(options, "omitzero") {
			*required = append(*required, key)
		}
		properties[key] = s
	}
}

func typeSchema(t reflect.Type) object {
	switch t {
	case reflect.TypeFor[resource.Quantity]():
		return object{"anyOf": []any{object{"type": "integer"}, object{"type": "string"}}, "x-kubernetes-int-or-string": true,
			"pattern": `^([0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)(([KMGTPE]i)|[numkMGTPE]|([eE][+-]?[0-9]+))?$`}
	case reflect.TypeFor[intstr.IntOrString]():
		return object{"anyOf": []any{object{"type": "integer"}, object{"type": "string"}}, "x-kubernetes-int-or-string": true}
	case reflect.TypeFor[metav1.Time]():
		return object{"type": "string", "format": "date-time"}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return typeSchema(t.Elem())
	case reflect.Struct:
		return structSchema(t)
	case reflect.Slice:
		return object{"type": "array", "items": typeSchema(t.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": typeSchema(t.Elem())}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int32:
		return object{"type": "integer", "format": "int32"}
	case reflect.Int64:
		return object{"type": "integer", "format": "int64"}
	case reflect.String:
		return object{"type": "string"}
	}
	panic(fmt.Sprintf("crd: no schema for %s", t))
}

// applyTag adds what the crd tag of a field says.
func applyTag(f reflect.StructField, s object) {
	tag := f.Tag.Get("crd")
	for tag != "" {
		item := ""
		if strings.HasPrefix(tag, "pattern=") { // a pattern may hold commas up to the next key
			item, tag = cutPattern(tag)
		} else {
			item, tag, _ = strings.Cut(tag, ",")
		}
		key, value, _ := strings.Cut(item, "=")
		switch key {
		case "min":
			s["minimum"] = number(value)
		case "max":
			s["maximum"] = number(value)
		case "minLength", "maxLength", "minItems", "maxItems", "maxProperties":
			s[key] = number(value)
		case "pattern":
			s["pattern"] = value
		case "default":
			s["default"] = scalar(s, value)
		case "enum":
			var words []any
			for w := range strings.SplitSeq(value, "|") {
				words = append(words, scalar(s, w))
			}
			s["enum"] = words
		case "immutable":
			s["x-kubernetes-validations"] = []any{object{"rule": "self == oldSelf", "message": f.Tag.Get("json")[:strings.IndexAny(f.Tag.Get("json")+",", ",")] + " cannot be changed; make a new object"}}
		case "listMapKey":
			s["x-kubernetes-list-type"], s["x-kubernetes-list-map-keys"] = "map", []any{value}
		case "conditions":
			conditions(s)
		default:
			panic(fmt.Sprintf("crd: %s has an unknown tag %q", f.Name, item))
		}
	}
}

// cutPattern takes a pattern off a tag: it ends at a comma that a known key follows.
func cutPattern(tag string) (item, rest string) {
	for i := range tag {
		if tag[i] != ',' {
			continue
		}
		for _, key := range []string{"maxLength=", "minLength=", "default=", "immutable"} {
			if strings.HasPrefix(tag[i+1:], key) {
				return tag[:i], tag[i+1:]
			}
		}
	}
	return tag, ""
}

func number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		panic(fmt.Sprintf("crd: %q is no number", s))
	}
	return n
}

// scalar is a value of the type that the schema says.
func scalar(s object, value string) any {
	if s["type"] == "integer" {
		return number(value)
	}
	return value
}

// conditions makes the list of conditions one that several writers can share, with the
// bounds that Kubernetes' own have.
func conditions(s object) {
	s["x-kubernetes-list-type"], s["x-kubernetes-list-map-keys"] = "map", []any{"type"}
	items := s["items"].(object)
	p := items["properties"].(object)
	p["type"].(object)["maxLength"] = int64(316)
	p["status"].(object)["enum"] = []any{"True", "False", "Unknown"}
	p["reason"].(object)["maxLength"], p["reason"].(object)["minLength"] = int64(1024), int64(1)
	p["message"].(object)["maxLength"] = int64(32768)
	p["observedGeneration"].(object)["minimum"] = int64(0)
	items["required"] = []any{"lastTransitionTime", "message", "reason", "status", "type"}
}
