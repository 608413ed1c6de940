package data

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/skein-ml/skein/internal/vfs"
)

// chunkLines and chunkBytes bound what one thread tokenizes at a time: whichever comes first ends a chunk.
const (
	chunkLines = 256
	chunkBytes = 1 << 18
)

// keepBadLines is how many bad lines are reported in full.
const keepBadLines = 20

// chunk is some lines on their way from the reader over a tokenizing thread to the packer.
type chunk struct {
	path  string
	lines []rawLine
	bytes int64
	rows  []encodedRow  // filled by the thread
	done  chan<- *chunk // takes the chunk when it is through
}

// rawLine is a line, or what is wrong with it.
type rawLine struct {
	number int
	text   []byte
	err    error
}

// encodedRow is a line that went through the encoder, or what is wrong with it.
type encodedRow struct {
	line   int
	schema Schema
	held   bool // the validation share takes it
	x      encoded
	err    error
}

// encodeAll takes sources through decoding, tokenizing, fitting and packing. Tokenizing runs on several threads; everything
// that decides runs on this one, in the order of the lines, so the result does not depend on how many there are.
func (j *job) encodeAll(ctx context.Context, sources []Source, train, held *split, share float64) error {
	g, ctx := errgroup.WithContext(ctx)
	threads := j.spec.Threads
	work := make(chan *chunk)                  // unbuffered: a chunk in hand is enough
	order := make(chan chan *chunk, 2*threads) // bounds the chunks in memory
	g.Go(func() error {
		defer close(work)
		defer close(order)
		return readChunks(ctx, j.fsys, sources, work, order)
	})
	for range threads {
		g.Go(func() error {
			enc := newEncoder(j.enc)
			for c := range work {
				c.encode(enc, share)
				c.done <- c // has room for one, so this never blocks
			}
			return nil
		})
	}
	g.Go(func() error { return j.collect(ctx, order, train, held) })
	return g.Wait()
}

// readChunks cuts the sources into chunks, and queues each for a thread and, in order, for the packer.
func readChunks(ctx context.Context, fsys vfs.FS, sources []Source, work chan<- *chunk, order chan<- chan *chunk) error {
	send := func(c *chunk) error {
		done := make(chan *chunk, 1)
		c.done = done
		select {
		case order <- done:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case work <- c:
		case <-ctx.Done():
			return ctx.Err()
		}
		return nil
	}
	for _, s := range sources {
		if err := readSource(fsys, s, send); err != nil {
			return err
		}
	}
	return nil
}

// readSource cuts one file into chunks. A file that is not the one that was hashed before is refused: its cache key would lie.
func readSource(fsys vfs.FS, s Source, send func(*chunk) error) error {
	f, err := fsys.Open(s.path)
	if err != nil {
		return fmt.Errorf("data: %w", err)
	}
	defer f.Close()
	sum := sha256.New()
	lines := newLineReader(f, sum, maxLineBytes)
	c := &chunk{path: s.path}
	for {
		text, err := lines.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, errLineTooLong) {
			return fmt.Errorf("read %s: %w", s.path, err)
		}
		c.lines = append(c.lines, rawLine{lines.line, append([]byte(nil), text...), err})
		c.bytes += int64(len(text)) + 1
		if len(c.lines) == chunkLines || c.bytes >= chunkBytes {
			if err := send(c); err != nil {
				return err
			}
			c = &chunk{path: s.path}
		}
	}
	if hex.EncodeToString(sum.Sum(nil)) != s.SHA256 {
		return fmt.Errorf("%s changed while it was being read; run again", s.path)
	}
	if len(c.lines) == 0 {
		return nil
	}
	return send(c)
}

// encode decodes and tokenizes the lines.
func (c *chunk) encode(enc *encoder, share float64) {
	c.rows = make([]encodedRow, len(c.lines))
	for i, l := range c.lines {
		r := &c.rows[i]
		r.line, r.err = l.number, l.err
		if r.err != nil {
			continue
		}
		e, err := decodeRow(l.text)
		if r.err = err; err != nil {
			continue
		}
		r.schema, r.held = e.Schema, e.held(share)
		r.x, r.err = enc.encode(e)
	}
	c.lines = nil
}

// collect packs rows in order.
func (j *job) collect(ctx context.Context, order <-chan chan *chunk, train, held *split) error {
	k := collector{job: j, train: train, held: held}
	for done := range order {
		var c *chunk
		select {
		case c = <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
		for i := range c.rows {
			if err := k.row(c.path, &c.rows[i]); err != nil {
				return err
			}
		}
		j.read += c.bytes
		if j.spec.Progress != nil {
			j.spec.Progress(j.read, j.total)
		}
	}
	return ctx.Err()
}

// collector decides what becomes of each row.
type collector struct {
	job         *job
	train, held *split
	schema      Schema // of the first good row
	first       RowError
}

func (k *collector) row(path string, r *encodedRow) error {
	if r.err != nil {
		return k.bad(&RowError{path, r.line, r.err})
	}
	if k.schema == "" {
		k.schema, k.first = r.schema, RowError{File: path, Line: r.line}
	}
	if r.schema != k.schema {
		return &RowError{path, r.line, fmt.Errorf("the row is %s, but %s:%d is %s; all rows must have one schema", r.schema, k.first.File, k.first.Line, k.schema)}
	}
	s := k.train
	if r.held {
		s = k.held
	}
	return fit(r.x, s.m.SequenceLength, s.m.TooLong, &s.m.Report, s.packer.add)
}

// bad counts a bad line, and stops at the first one over the limit.
func (k *collector) bad(e *RowError) error {
	report, limit := &k.train.m.Report, k.job.spec.MaxBadLines
	report.BadLines++
	switch {
	case limit == 0:
		return e
	case report.BadLines > int64(limit):
		return fmt.Errorf("%w (and %d bad lines before it, the first %s; data.maxBadLines is %d)", e, limit, report.BadLineErrors[0], limit)
	}
	if len(report.BadLineErrors) < keepBadLines {
		report.BadLineErrors = append(report.BadLineErrors, e.Error())
	}
	return nil
}
