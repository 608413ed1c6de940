package chat

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

type goldenCases struct {
	Tokens map[string]string `json:"tokens"`
	Cases  []struct {
		Name     string          `json:"name"`
		Messages []jsonMessage   `json:"messages"`
		Tools    json.RawMessage `json:"tools"`
		Prompt   bool            `json:"add_generation_prompt"`
		Extra    map[string]any  `json:"extra"`
	} `json:"cases"`
}

type jsonMessage struct {
	Role             string          `json:"role"`
	Content          string          `json:"content"`
	ReasoningContent string          `json:"reasoning_content"`
	ToolCalls        json.RawMessage `json:"tool_calls"`
	Name             string          `json:"name"`
	ToolCallID       string          `json:"tool_call_id"`
}

func messages(list []jsonMessage) []Message {
	var out []Message
	for _, m := range list {
		out = append(out, Message{Role: m.Role, Content: m.Content, ReasoningContent: m.ReasoningContent, ToolCalls: m.ToolCalls, Name: m.Name, ToolCallID: m.ToolCallID})
	}
	return out
}

type goldenTemplate struct {
	Name, Path, SHA256 string
	Renders            []string
}

func readJSON(t testing.TB, path string, dst any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, dst); err != nil {
		t.Fatal(err)
	}
}

func goldens(t testing.TB) (goldenCases, []goldenTemplate) {
	t.Helper()
	var cases goldenCases
	var templates []goldenTemplate
	readJSON(t, "testdata/cases.json", &cases)
	readJSON(t, "testdata/golden.json", &templates)
	return cases, templates
}

// source returns a template's source: ours, or one that is fetched and never committed.
func source(t testing.TB, g goldenTemplate) string {
	t.Helper()
	if g.Path == "" {
		return ChatML
	}
	path := filepath.Join("..", "..", ".cache", "testdata", g.Path)
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) && os.Getenv("CI") != "true" {
		t.Skipf("SKIPPED: %s is not there; scripts/fetch.sh fetches it", path)
	}
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	switch filepath.Ext(path) {
	case ".json":
		var config struct {
			Template string `json:"chat_template"`
		}
		if err := json.Unmarshal(data, &config); err != nil {
			t.Fatal(err)
		}
		text = config.Template
	case ".gguf":
		key := "tokenizer.chat_template\x08\x00\x00\x00" // the name, and the type of a string
		at := strings.Index(text, key) + len(key)
		n := int(binary.LittleEndian.Uint64(data[at:]))
		text = text[at+8 : at+8+n]
	}
	if sum := sha256.Sum256([]byte(text)); hex.EncodeToString(sum[:]) != g.SHA256 {
		t.Fatalf("the template in %s has another hash than the one whose renders are known", path)
	}
	return text
}

func TestRendersEqualThoseOfPythonsJinja(t *testing.T) {
	cases, templates := goldens(t)
	for _, g := range templates {
		t.Run(g.Name, func(t *testing.T) {
			tmpl, err := Load(source(t, g), cases.Tokens)
			if err != nil {
				t.Fatal(err)
			}
			for i, c := range cases.Cases {
				got := "refused"
				out, err := tmpl.Render(messages(c.Messages), Options{AddGenerationPrompt: c.Prompt, Tools: c.Tools, Extra: c.Extra})
				if err == nil {
					sum := sha256.Sum256([]byte(out.Text))
					got = hex.EncodeToString(sum[:8])
				}
				if got != g.Renders[i] {
					t.Errorf("%s: render %s (%v), Python's %s\n%q", c.Name, got, err, g.Renders[i], out.Text)
				}
			}
		})
	}
}

func TestEveryKnownTemplateHasGoldenRenders(t *testing.T) {
	_, templates := goldens(t)
	have := map[string]bool{}
	for _, g := range templates {
		have[g.SHA256] = true
	}
	for hash, k := range table {
		if !have[hash] {
			t.Errorf("%s (%s) is accepted without golden renders", k.name, hash)
		}
	}
	for _, g := range templates {
		if _, ok := table[g.SHA256]; !ok {
			t.Errorf("%s has golden renders and is not accepted", g.Name)
		}
	}
}

func TestAnUnknownTemplateIsRefusedWithTheKnownOnes(t *testing.T) {
	for _, source := range []string{"", "{{ messages }}", ChatML + " ", "{% for x in range(1000000000) %}{% endfor %}"} {
		_, err := Load(source, nil)
		if !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "ChatML, Llama 3, Qwen 2.5, Qwen 3, SmolLM2") {
			t.Errorf("%.20q: got %v", source, err)
		}
	}
}
