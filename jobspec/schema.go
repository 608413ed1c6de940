package jobspec

import (
	"reflect"
	"strings"
	"sync"
)

// Key is one key of the job file, or one section of it.
type Key struct {
	Path    string // "train.optimizer.learningRate"
	Section bool   // holds keys, no value
	Type    string // as the reference prints it: "number", "text", …
	Doc     string
}

// Keys lists every key of the job file in its order, sections before what they hold.
func Keys() []Key { return allKeys() }

var allKeys = sync.OnceValue(func() []Key { return keysOf(reflect.TypeFor[Job](), "") })

func keysOf(t reflect.Type, prefix string) []Key {
	var keys []Key
	for _, f := range fieldsOf(t) {
		path := join(prefix, f.key)
		if isSection(f.typ) {
			keys = append(keys, Key{Path: path, Section: true})
			keys = append(keys, keysOf(f.typ, path)...)
			continue
		}
		keys = append(keys, Key{Path: path, Type: typeName(f.typ), Doc: f.doc})
	}
	return keys
}

// field is a struct field that a key of the file fills.
type field struct {
	index int
	key   string
	doc   string
	typ   reflect.Type // the type of the value, pointers removed
}

func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		f := t.Field(i)
		key, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || key == "" || key == "-" {
			continue
		}
		typ := f.Type
		if typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		fields = append(fields, field{i, key, f.Tag.Get("doc"), typ})
	}
	return fields
}

var (
	textType       = reflect.TypeFor[text]()
	validationType = reflect.TypeFor[Validation]()
)

func isSection(t reflect.Type) bool { return t.Kind() == reflect.Struct && t != validationType }

func typeName(t reflect.Type) string {
	switch {
	case t == validationType:
		return "text, list or share"
	case t == reflect.TypeFor[ByteSize]():
		return "size"
	case t == reflect.TypeFor[Steps]():
		return "interval"
	case t == reflect.TypeFor[MicroBatch]():
		return "auto or whole number"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Float64:
		return "number"
	case reflect.Slice:
		return "text or list"
	case reflect.String:
		return "text"
	default:
		return "whole number"
	}
}

func join(prefix, key string) string {
	if prefix == "" {
		return key
	}
	return prefix + "." + key
}

// elsewhere maps what other trainers call a setting to our path. Edit distance
// cannot know these.
var elsewhere = map[string]string{
	"lr": "train.optimizer.learningRate", "batchsize": "train.globalBatch", "numtrainepochs": "train.epochs",
	"perdevicetrainbatchsize": "train.microBatch", "maxsteps": "train.steps", "maxseqlength": "data.sequenceLength",
	"maxlength": "data.sequenceLength", "gradientcheckpointing": "train.activationCheckpointing", "gradientclip": "train.optimizer.clip",
	"maxgradnorm": "train.optimizer.clip", "dtype": "train.precision", "bf16": "train.precision", "outputdir": "output.export",
	"basemodel": "model.base", "dataset": "data.train", "savesteps": "checkpoint.every", "evalsteps": "eval.every",
	"savetotallimit": "checkpoint.keep", "warmup": "train.schedule.warmupSteps", "lrschedulertype": "train.schedule.kind",
	"samplepacking": "data.packing", "zerostage": "cluster.zero", "gpus": "cluster.worldSize", "nprocpernode": "cluster.worldSize",
	"adamepsilon": "train.optimizer.epsilon", "eps": "train.optimizer.epsilon",
}

// nearest returns the known path that the user most likely meant by the unknown
// one, or "" when nothing is near. The last segment counts most: people know the
// name of a setting better than the section it lives in.
func nearest(unknown string) string {
	section, name := split(unknown)
	squashed := squash(name)
	path, foreign := elsewhere[squashed]
	best, bestCost := "", 1<<30
	for _, k := range allKeys() {
		parent, last := split(k.Path)
		letters := editDistance(squashed, squash(last))
		if letters == 0 && parent == section {
			return k.Path // learning_rate in the right section
		}
		if letters > max(1, min(len(squashed), len(last))/3) {
			continue
		}
		// One wrong letter in the name outweighs a wrong section; the section
		// decides between keys whose names are equally near.
		cost := letters*100 + editDistance(strings.ToLower(section), strings.ToLower(parent))
		if cost < bestCost {
			best, bestCost = k.Path, cost
		}
	}
	if foreign {
		return path
	}
	return best
}

func split(path string) (section, name string) {
	i := strings.LastIndexByte(path, '.')
	if i < 0 {
		return "", path
	}
	return path[:i], path[i+1:]
}

// squash removes what separates learning_rate from learningRate.
func squash(name string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(name))
}

// editDistance counts insertions, deletions, substitutions and swaps of two
// neighbours (Damerau's, restricted) between a and b, which are cut at 64 bytes.
func editDistance(a, b string) int {
	a, b = a[:min(len(a), 64)], b[:min(len(b), 64)]
	previous, row, next := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		next[0] = i
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			next[j] = min(row[j]+1, next[j-1]+1, row[j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				next[j] = min(next[j], previous[j-2]+1)
			}
		}
		previous, row, next = row, next, previous
	}
	return row[len(b)]
}
