package console

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode/utf8"
)

// Format is how events are written.
type Format int

// The formats.
const (
	Plain    Format = iota // a line for each event
	Terminal               // the same, but the step line is redrawn in place
	JSON                   // an object on a line for each event
)

// Printer writes events. It is safe for concurrent use. What it cannot write it
// drops: a run must not die because its terminal went away.
type Printer struct {
	mu         sync.Mutex
	out        io.Writer
	format     Format
	width      func() int // columns of the terminal
	drawn      bool       // the last thing on the screen is the step line
	validation string     // "  val 1.981@16", once something was measured
}

// NewPrinter returns a printer; width is asked for the columns of a terminal
// and may be nil for the other formats.
func NewPrinter(out io.Writer, format Format, width func() int) *Printer {
	return &Printer{out: out, format: format, width: width}
}

// Emit writes an event.
func (p *Printer) Emit(e Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.format == JSON {
		p.write(encode(e))
		return
	}
	if v, ok := e.(Evaluated); ok {
		p.validation = fmt.Sprintf("  val %.3f@%d", v.Loss, v.Step)
	}
	step, isStep := e.(Step)
	if p.format == Terminal && isStep && step.Skipped == "" {
		p.draw(step)
		return
	}
	p.endLine()
	p.write(fmt.Appendf(nil, "%-11s %s\n", e.Name(), e.Line()))
}

// Close ends the step line, so that what follows starts on a line of its own.
func (p *Printer) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endLine()
}

// draw puts the step line over the one before.
func (p *Printer) draw(e Step) {
	const bar = 36
	done := 0
	if e.Steps > 0 {
		done = int(bar * e.Step / e.Steps)
	}
	done = max(0, min(done, bar))
	line := fmt.Sprintf("step %d/%d %s%s  %s", e.Step, e.Steps, strings.Repeat("━", done), strings.Repeat("─", bar-done), e.numbers(p.validation))
	if columns := p.width(); columns > 0 && utf8.RuneCountInString(line) >= columns {
		// A line that wraps cannot be redrawn: leave the bar out, then cut.
		line = fmt.Sprintf("step %d/%d  %s", e.Step, e.Steps, e.numbers(p.validation))
		if r := []rune(line); len(r) >= columns {
			line = string(r[:columns-1])
		}
	}
	p.write([]byte("\r\x1b[K" + line))
	p.drawn = true
	if e.Step == e.Steps {
		p.endLine()
	}
}

func (p *Printer) endLine() {
	if p.drawn {
		p.write([]byte("\n"))
		p.drawn = false
	}
}

func (p *Printer) write(b []byte) {
	_, _ = p.out.Write(b) // see Printer: the run matters more than its log
}

// encode returns {"event":"…", fields…} and a line feed.
func encode(e Event) []byte {
	var fields bytes.Buffer
	enc := json.NewEncoder(&fields)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil { // a loss that is NaN has no JSON
		return fmt.Appendf(nil, "{\"event\":%q,\"text\":%q}\n", e.Name(), e.Line())
	}
	body := fields.Bytes()
	separator := ","
	if body[1] == '}' {
		separator = ""
	}
	return fmt.Appendf(nil, "{\"event\":%q%s%s", e.Name(), separator, body[1:])
}
