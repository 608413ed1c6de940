// Package chat renders dialogues through the chat templates that models come with, and says which bytes of the result
// the assistant speaks.
//
// A template is a Jinja program, and no Jinja in Go behaves like Python's in every corner: some templates lose a block
// without an error. So a template is accepted only if it is in the table of known ones, by the SHA-256 of its source, and
// a template is in that table only because its renders of the test cases equal those of Python's Jinja (testdata,
// scripts/oracle/chat_golden.py). Any other source is refused before it is parsed.
//
// What a user writes is not what the template writes. transformers reads the text <|im_end|> inside a message as the
// token that ends the message; here it stays text: Rendered.Literal holds such places, and
// tokenizer.AppendEncodeLiteral encodes them as ordinary text. Messages without such text get the ids that
// transformers gives them.
package chat

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/nikolalohinski/gonja/v2/exec"
	"github.com/nikolalohinski/gonja/v2/loaders"

	"github.com/skein-ml/skein/tokenizer"
)

// Template is a loaded chat template. It never changes and may be used by many goroutines.
type Template struct {
	known   known
	program *exec.Template
	tokens  map[string]any // special tokens by the names that templates use
	guard   guard
}

// ErrUnknown says that a template is not among the known ones.
var ErrUnknown = errors.New("the chat template is not one whose renders are verified")

// Load returns the template with the given source. tokens are the texts of special tokens by the names that templates
// use: bos_token, eos_token, pad_token, unk_token. A source that is not known is refused with ErrUnknown.
func Load(source string, tokens map[string]string) (*Template, error) {
	sum := sha256.Sum256([]byte(source))
	hash := hex.EncodeToString(sum[:])
	k, ok := table[hash]
	if !ok {
		return nil, fmt.Errorf("%w (SHA-256 %s); known are %s: put the source of one of them that fits the model into its chat_template.jinja",
			ErrUnknown, hash[:12], strings.Join(Names(), ", "))
	}
	return load(source, k, tokens)
}

// Names returns the names of the known templates.
func Names() []string {
	var names []string
	for _, k := range table {
		names = append(names, k.name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func load(source string, k known, tokens map[string]string) (*Template, error) {
	const root = "/chat_template"
	loader, err := loaders.NewMemoryLoader(map[string]string{root: source})
	if err != nil {
		return nil, fmt.Errorf("chat template %s: %w", k.name, err)
	}
	program, err := exec.NewTemplate(root, config(), loader, environment())
	if err != nil {
		return nil, fmt.Errorf("chat template %s: %w", k.name, err)
	}
	t := &Template{known: k, program: program, tokens: map[string]any{}}
	for name, text := range tokens {
		t.tokens[name] = text
	}
	return t.Protect(nil), nil
}

// Protect returns the template with more texts that are no special tokens when they stand in a message: all those that
// the tokenizer takes for special ones (tokenizer.SpecialTokens). Those that the template itself writes around messages
// are always protected.
func (t *Template) Protect(special []string) *Template {
	out := *t
	out.guard = newGuard(slices.Concat(t.guard.texts, t.known.control, special))
	return &out
}

// Name returns the name of the template's kind: "ChatML", "Llama 3", …
func (t *Template) Name() string { return t.known.name }

// Rendered is a dialogue as text.
type Rendered struct {
	Text string
	// Trained is what the assistant says, each turn with the token that ends it, without turns of weight 0.
	// Only from RenderTraining.
	Trained []tokenizer.Span
	// Literal are the places where a message spells a special token, which is to stay text. nil for nearly every dialogue.
	Literal []tokenizer.Span
}

// Render renders a dialogue, as a prompt if opts.AddGenerationPrompt is set.
func (t *Template) Render(msgs []Message, opts Options) (Rendered, error) {
	out, _, err := t.render(msgs, opts)
	return out, err
}

// RenderTraining renders a whole dialogue and says which bytes the assistant speaks. They are found on this one render,
// because the render of a shorter dialogue need not be a prefix of it: Qwen 3 changes a turn when others follow.
func (t *Template) RenderTraining(msgs []Message, opts Options) (Rendered, error) {
	if opts.AddGenerationPrompt {
		return Rendered{}, errors.New("chat: a dialogue to train on ends with what was said, not with a generation prompt")
	}
	out, marked, err := t.render(msgs, opts)
	if err != nil {
		return Rendered{}, err
	}
	turns := t.known.turns(marked.text)
	next := 0
	for _, m := range msgs {
		if m.Role != "assistant" {
			continue
		}
		if next == len(turns) {
			return Rendered{}, fmt.Errorf("chat template %s: it leaves out a turn of the assistant", t.known.name)
		}
		turn := turns[next]
		next++
		if m.Weight == nil || *m.Weight != 0 {
			out.Trained = append(out.Trained, tokenizer.Span{Start: marked.place(turn.Start), End: marked.place(turn.End)})
		}
	}
	if next != len(turns) {
		return Rendered{}, fmt.Errorf("chat template %s: it writes %d turns of the assistant, the dialogue has %d", t.known.name, len(turns), next)
	}
	return out, nil
}

// render renders a dialogue once if no message spells a special token, and twice if one does: as it is, and with every
// such text replaced by one private character, which the template cannot take for anything. Both must be the same text
// but for that, or the template looks into messages in a way that makes it unsafe to tell text from tokens.
func (t *Template) render(msgs []Message, opts Options) (Rendered, marked, error) {
	in, err := newInput(msgs, opts)
	if err != nil {
		return Rendered{}, marked{}, err
	}
	plain, err := t.execute(in, nil)
	if err != nil {
		return Rendered{}, marked{}, err
	}
	signs, err := t.guard.signs(in)
	if err != nil {
		return Rendered{}, marked{}, err
	}
	if signs == nil {
		return Rendered{Text: plain}, marked{text: plain}, nil
	}
	text, err := t.execute(in, signs)
	if err != nil {
		return Rendered{}, marked{}, err
	}
	m, restored, literal := signs.restore(text)
	if restored != plain {
		return Rendered{}, marked{}, fmt.Errorf("chat template %s: a message spells a special token in a place where the template looks for one; remove it from the message", t.known.name)
	}
	return Rendered{Text: plain, Literal: literal}, m, nil
}

// renderBytesMax bounds what one dialogue may become: known templates write each message a few times at most.
const renderBytesMax = 256 << 20

// execute runs the template. signs, if not nil, replace the special tokens spelled in messages.
func (t *Template) execute(in *input, signs *signs) (text string, err error) {
	var refused *string // what raise_exception was given
	defer func() {
		if r := recover(); r != nil {
			text, err = "", fmt.Errorf("chat template %s: it cannot render these messages (%.100q)", t.known.name, fmt.Sprint(r))
		}
	}()
	data := map[string]any{}
	maps.Copy(data, t.tokens)
	in.values(data, signs)
	data["raise_exception"] = func(message string) (string, error) {
		if refused == nil {
			refused = &message
		}
		return "", errors.New(message)
	}
	data["strftime_now"] = func(format string) (string, error) { return strftime(in.opts.Now, format) }
	out := limitedBuffer{left: renderBytesMax}
	err = t.program.Execute(&out, exec.NewContext(data))
	switch {
	case refused != nil:
		return "", fmt.Errorf("chat template %s refuses the messages: %.200q", t.known.name, *refused)
	case err != nil:
		return "", fmt.Errorf("chat template %s: it cannot render these messages (%.100q)", t.known.name, cause(err))
	}
	return out.String(), nil
}

// cause returns the innermost message; those around it quote half the template.
func cause(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err.Error()
		}
		err = inner
	}
}

// limitedBuffer is a bytes.Buffer that takes no more than left bytes.
type limitedBuffer struct {
	bytes.Buffer
	left int
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, errors.New("the dialogue is too long")
	}
	return b.Buffer.Write(p)
}
