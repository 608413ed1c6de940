package jobspec

import (
	"fmt"
	"strings"
)

// Reference renders docs/JOBFILE.md from the type itself, so that it cannot
// drift from what Read takes.
func Reference() string {
	var b strings.Builder
	b.WriteString(`# The job file

Generated from package jobspec by ` + "`make generate`" + `; do not edit.

Read strictly: an unknown key, a value of the wrong type, a key given twice, an
anchor or an alias is an error with its line. All problems are reported at once.
Relative paths start from the folder of the job file. ` + "`--set key=value`" + ` on the
command line overrides any key, for example ` + "`--set train.steps=8`" + `. A cluster takes a
job of at most 128 KiB with paths of at most 4 KiB: of a great many data files, make few.

| key | value | default | meaning |
|---|---|---|---|
`)
	defaults := defaultValues()
	for _, k := range Keys() {
		if k.Section {
			continue
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", k.Path, k.Type, defaults[k.Path], k.Doc)
	}
	return b.String()
}

// defaultValues maps each path to its default as the reference prints it.
func defaultValues() map[string]string {
	values := map[string]string{
		"name": "required", "model.base": "required", "data.train": "required",
		"train.optimizer.learningRate": "required", "train.steps": "this or epochs", "train.epochs": "this or steps",
		"train.globalBatch": "`worldSize`", "cluster.workers.max": "`worldSize`", "output.export": "`./NAME`",
		"train.schedule.warmupSteps": "`0`", "train.seed": "`0`", "data.maxBadLines": "`0`", "eval.exactMatch": "`0`",
		"train.schedule.floor": "`0`",
	}
	job := Job{}
	job.EnsureDefaults()
	var tree map[string]any
	mustUnmarshal(mustJSON(job), &tree)
	flatten("", tree, func(path string, v any) {
		if _, ok := values[path]; !ok && v != nil && fmt.Sprint(v) != "" && fmt.Sprint(v) != "0" {
			values[path] = fmt.Sprintf("`%v`", v)
		}
	})
	return values
}

// flatten calls leaf for every value of a JSON tree that is not an object.
func flatten(prefix string, tree map[string]any, leaf func(path string, v any)) {
	for key, v := range tree {
		path := join(prefix, key)
		if sub, ok := v.(map[string]any); ok {
			flatten(path, sub, leaf)
			continue
		}
		leaf(path, v)
	}
}
