package main

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestBenchListsWhatItCanTime(t *testing.T) {
	status, out, errs := skein(t, &notes{}, "", "bench")
	for _, want := range []string{"gpt2-bf16-step", "smollm2-f32-step", "smollm2-bf16-long", "products", "allocations", "peak"} {
		if !strings.Contains(out, want) {
			t.Errorf("skein bench does not list %s:\n%s", want, out)
		}
	}
	if status != exitOK || errs != "" {
		t.Errorf("status %d, errors %q", status, errs)
	}
	_, out, _ = skein(t, &notes{}, "", "bench", "-o", "json")
	var list struct {
		Workloads []struct{ Name string }
		Products  []struct{ Name string }
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list.Workloads) < 5 || len(list.Products) != 52 {
		t.Errorf("as JSON: %v, %d workloads, %d products", err, len(list.Workloads), len(list.Products))
	}
}

func TestBenchRefusesWhatItCannotTime(t *testing.T) {
	for line, want := range map[string]string{
		"bench smollm3-bf16-step":                    "there are gpt2-bf16-step",
		"bench peak products":                        "takes one workload",
		"bench peak --steps 0":                       "--steps is 0",
		"bench peak --path abacus":                   `unknown path "abacus"`,
		"bench smollm2-f32-step --checkpointing all": "one of none, selective, full",
	} {
		status, out, errs := skein(t, &notes{}, "", strings.Fields(line)...)
		if status != exitUsage || out != "" || !strings.Contains(errs, want) || strings.Count(errs, "\n") != 1 {
			t.Errorf("%s: status %d, printed %q, errors %q; want %q", line, status, out, errs, want)
		}
	}
}

func TestBenchPeakMeasuresMemory(t *testing.T) {
	status, out, errs := skein(t, &notes{}, "", "bench", "peak", "--threads", "1")
	if status != exitOK || !strings.Contains(out, "memory read") {
		t.Errorf("status %d, printed %q, errors %q", status, out, errs)
	}
}
