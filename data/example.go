// Package data turns examples into batches: JSONL rows are rendered by the chat template, tokenized, packed into sequences of
// one length, and stored as Arrow IPC files in a folder of their own; from there batches are read by index.
//
//	Prepare: lines → Example → Encoder → fit (split, truncate, drop) → pack → Arrow record batches → manifest → publish
//	Open:    manifest → Dataset.Batch(indices)
//
// The content hash of a data set depends on what is learnt and on nothing else: not on the folder, the number of threads, or
// how Arrow frames its messages. docs/formats/dataset.md describes the files.
//
// Letters in this package: T tokens in a sequence (pack).
package data

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash"
)

// Schema is the shape of a row. All rows of a data set have the same.
type Schema string

// The schemas that are read.
const (
	SchemaMessages           Schema = "messages"                        // OpenAI chat: {"messages": [...]}
	SchemaCompletion         Schema = "prompt and completion"           // {"prompt": "...", "completion": "..."}
	SchemaCompletionMessages Schema = "prompt and completion, messages" // {"prompt": [...], "completion": [...]}
	SchemaText               Schema = "text"                            // {"text": "..."}
)

// Message is one turn of a chat.
type Message struct {
	Role       string // system, developer, user, assistant or tool
	Content    string
	Name       string          // optional
	ToolCalls  json.RawMessage // optional, an array, on assistant turns
	ToolCallID string          // optional, on tool turns
	Trained    bool            // whether this turn is to be learnt: assistant turns unless their weight is 0
}

// Example is one row as it was read.
type Example struct {
	File string // as named by the caller, or as a glob found it
	Line int    // from 1

	Schema     Schema
	Messages   []Message       // of both messages schemas; of SchemaCompletionMessages the prompt's, then the completion's
	Tools      json.RawMessage // optional, an array, with Messages
	Prompt     string          // of SchemaCompletion
	Completion string          // of SchemaCompletion, leading space and all
	Text       string          // of SchemaText
}

// Question splits an example for generation: what to ask, and the answer that it holds. Of a chat the answer is the last
// turn, if the assistant speaks it; ok is false where there is none. prompt is set for SchemaCompletion only, msgs for chats.
func (e Example) Question() (msgs []Message, prompt, answer string, ok bool) {
	switch e.Schema {
	case SchemaMessages, SchemaCompletionMessages:
		last := len(e.Messages) - 1
		if last < 1 || e.Messages[last].Role != "assistant" || len(e.Messages[last].ToolCalls) > 0 {
			return nil, "", "", false
		}
		return e.Messages[:last], "", e.Messages[last].Content, true
	case SchemaCompletion:
		return nil, e.Prompt, e.Completion, true
	}
	return nil, "", "", false
}

// held reports whether a validation share takes the example. It depends on what the row says alone, so equal rows land on the
// same side, and adding or removing others moves none.
func (e Example) held(share float64) bool {
	if share <= 0 {
		return false
	}
	h := sha256.New()
	put(h, "skein validation share 1", string(e.Schema), e.Prompt, e.Completion, e.Text, string(e.Tools))
	for _, m := range e.Messages {
		put(h, m.Role, m.Content, m.Name, string(m.ToolCalls), m.ToolCallID, fmt.Sprint(m.Trained))
	}
	var sum [sha256.Size]byte
	u := binary.BigEndian.Uint64(h.Sum(sum[:0]))
	return float64(u>>11)/(1<<53) < share
}

// put feeds strings to a hash so that no two lists feed the same bytes.
func put(h hash.Hash, parts ...string) {
	var n [8]byte
	for _, p := range parts {
		binary.LittleEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write([]byte(p))
	}
}

// RowError says what is wrong with one line of a source.
type RowError struct {
	File string
	Line int
	Err  error
}

func (e *RowError) Error() string { return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err) }

// Unwrap gives the cause.
func (e *RowError) Unwrap() error { return e.Err }
