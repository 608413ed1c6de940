package data

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// decodeChat reads a row of OpenAI messages.
func decodeChat(row map[string]json.RawMessage) (Example, error) {
	if v, ok := row["functions"]; ok && !isNull(v) {
		return Example{}, errors.New("functions: the old form of tools is not supported; write them as tools")
	}
	msgs, err := decodeMessages("messages", row["messages"])
	if err != nil {
		return Example{}, err
	}
	tools, err := decodeTools(row["tools"])
	if err != nil {
		return Example{}, err
	}
	return Example{Schema: SchemaMessages, Messages: msgs, Tools: tools}, nil
}

// decodeCompletion reads a row of prompt and completion: both strings or both lists of messages.
func decodeCompletion(row map[string]json.RawMessage) (Example, error) {
	prompt, completion := row["prompt"], row["completion"]
	switch {
	case prompt[0] == '"' && completion[0] == '"':
		p, err := decodeString("prompt", prompt)
		if err != nil {
			return Example{}, err
		}
		c, err := decodeString("completion", completion)
		return Example{Schema: SchemaCompletion, Prompt: p, Completion: c}, err
	case prompt[0] != '[' || completion[0] != '[':
		return Example{}, fmt.Errorf("prompt is %s and completion is %s; both must be strings, or both lists of messages",
			jsonKind(prompt), jsonKind(completion))
	}
	before, err := decodeMessages("prompt", prompt)
	if err != nil {
		return Example{}, err
	}
	after, err := decodeMessages("completion", completion)
	if err != nil {
		return Example{}, err
	}
	for i := range before {
		before[i].Trained = false
	}
	tools, err := decodeTools(row["tools"])
	if err != nil {
		return Example{}, err
	}
	return Example{Schema: SchemaCompletionMessages, Messages: append(before, after...), Tools: tools}, nil
}

// decodeTools reads tools: a list, or (as TRL writes it) a string that holds one. No tools: nil.
func decodeTools(v json.RawMessage) (json.RawMessage, error) {
	if isNull(v) {
		return nil, nil
	}
	if v[0] == '"' {
		s, err := decodeString("tools", v)
		if err != nil {
			return nil, err
		}
		v = json.RawMessage(strings.TrimSpace(s))
	}
	var list []json.RawMessage
	if err := json.Unmarshal(v, &list); err != nil {
		return nil, fmt.Errorf("tools: expected a list of JSON schemas, found %s", jsonKind(v))
	}
	if len(list) == 0 {
		return nil, nil
	}
	return v, nil
}

func decodeMessages(key string, v json.RawMessage) ([]Message, error) {
	var raw []map[string]json.RawMessage
	if err := json.Unmarshal(v, &raw); err != nil {
		return nil, fmt.Errorf("%s: expected a list of messages, found %s with something else in it", key, jsonKind(v))
	}
	if len(raw) == 0 {
		return nil, fmt.Errorf("%s: the list is empty", key)
	}
	if len(raw) > maxMessages {
		return nil, fmt.Errorf("%s: %d messages, at most %d are read", key, len(raw), maxMessages)
	}
	msgs := make([]Message, len(raw))
	for i, fields := range raw {
		m, err := decodeMessage(fields)
		if err != nil {
			return nil, fmt.Errorf("%s[%d]: %w", key, i, err)
		}
		msgs[i] = m
	}
	return msgs, nil
}

func decodeMessage(fields map[string]json.RawMessage) (m Message, err error) {
	if key := unknownKey(fields); key != "" {
		return m, fmt.Errorf("unknown key %.60q; known are %s", key, strings.Join(messageKeys, ", "))
	}
	for _, s := range []struct {
		key string
		dst *string
	}{{"role", &m.Role}, {"name", &m.Name}, {"tool_call_id", &m.ToolCallID}} {
		if v := fields[s.key]; !isNull(v) {
			if *s.dst, err = decodeString(s.key, v); err != nil {
				return m, err
			}
		}
	}
	if v := fields["content"]; !isNull(v) {
		if m.Content, err = decodeContent(v); err != nil {
			return m, err
		}
	}
	if v := fields["tool_calls"]; !isNull(v) {
		if m.ToolCalls, err = decodeToolCalls(v); err != nil {
			return m, err
		}
	}
	switch m.Role {
	case "system", "developer", "user", "assistant", "tool":
	case "":
		return m, errors.New("role is missing")
	default:
		return m, fmt.Errorf("unknown role %.60q; known are system, developer, user, assistant, tool", m.Role)
	}
	if isNull(fields["content"]) && m.ToolCalls == nil {
		return m, errors.New("content is missing")
	}
	if m.ToolCalls != nil && m.Role != "assistant" {
		return m, fmt.Errorf("tool_calls on a turn of the %s; only the assistant calls tools", m.Role)
	}
	m.Trained, err = decodeWeight(m.Role, fields["weight"])
	return m, err
}

var messageKeys = []string{"role", "content", "weight", "name", "tool_calls", "tool_call_id"}

// unknownKey is the first key, by name, that is not a message's and is not null; "" if there is none.
func unknownKey(fields map[string]json.RawMessage) (unknown string) {
	for key, v := range fields {
		if !slices.Contains(messageKeys, key) && !isNull(v) && (unknown == "" || key < unknown) {
			unknown = key
		}
	}
	return unknown
}

// decodeWeight says whether a turn is learnt: by default the assistant's are. As at OpenAI a weight is 0 or 1 and belongs to
// assistant turns; 0 elsewhere says nothing new and is let pass.
func decodeWeight(role string, v json.RawMessage) (bool, error) {
	if isNull(v) {
		return role == "assistant", nil
	}
	switch string(v) {
	case "0":
		return false, nil
	case "1":
		if role != "assistant" {
			return false, fmt.Errorf("weight 1 on a turn of the %s; only the assistant's turns can be learnt", role)
		}
		return true, nil
	}
	return false, fmt.Errorf("weight must be 0 or 1, found %.40s", v)
}

// decodeContent reads a string, or a list of text parts, which are joined.
func decodeContent(v json.RawMessage) (string, error) {
	if v[0] == '"' {
		return decodeString("content", v)
	}
	var parts []map[string]json.RawMessage
	if err := json.Unmarshal(v, &parts); err != nil {
		return "", fmt.Errorf("content: expected a string or a list of text parts, found %s", jsonKind(v))
	}
	var b strings.Builder
	for i, p := range parts {
		if string(p["type"]) != `"text"` {
			return "", fmt.Errorf("content[%d]: type %.60s is not supported; only text is", i, p["type"])
		}
		s, err := decodeString("text", p["text"])
		if err != nil {
			return "", fmt.Errorf("content[%d]: %w", i, err)
		}
		b.WriteString(s)
	}
	return b.String(), nil
}

// decodeToolCalls checks that there is a list of objects and keeps it as it is, key order and all. An empty list is none.
func decodeToolCalls(v json.RawMessage) (json.RawMessage, error) {
	var calls []map[string]json.RawMessage
	if err := json.Unmarshal(v, &calls); err != nil {
		return nil, fmt.Errorf("tool_calls: expected a list of calls, found %s with something else in it", jsonKind(v))
	}
	if len(calls) == 0 {
		return nil, nil
	}
	return v, nil
}
