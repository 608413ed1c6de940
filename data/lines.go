package data

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash"
	"io"
)

// maxLineBytes bounds one line of JSONL: far above a long conversation, far below what memory holds.
const maxLineBytes = 16 << 20

// utf8BOM is what some editors put before the first line; it is no content.
var utf8BOM = []byte("\xef\xbb\xbf")

// lineReader cuts a source into lines, numbered from 1, and hashes its bytes on the way.
type lineReader struct {
	r     *bufio.Reader
	limit int
	line  int
	buf   []byte
}

// newLineReader reads r. sum, if not nil, is fed every byte; it is complete once next has said io.EOF.
func newLineReader(r io.Reader, sum hash.Hash, limit int) *lineReader {
	if sum != nil {
		r = io.TeeReader(r, sum)
	}
	return &lineReader{r: bufio.NewReaderSize(r, 1<<16), limit: limit}
}

// errLineTooLong is next's error for a line over the limit; the line has been skipped and reading can go on.
var errLineTooLong = errors.New("the line is too long")

// next gives the next line that is not blank, without surrounding white space, valid until the following call. The error is io.EOF at the
// end, errLineTooLong (wrapped), or the file's.
func (l *lineReader) next() ([]byte, error) {
	for {
		line, err := l.raw()
		if l.line == 1 && err == nil {
			line = bytes.TrimPrefix(line, utf8BOM)
		}
		// Only JSON's own white space goes: the error for anything else should show what is there.
		line = bytes.Trim(line, " \t\r\n")
		if err != nil || len(line) > 0 {
			return line, err
		}
	}
}

// raw gives the next line, with its end.
func (l *lineReader) raw() ([]byte, error) {
	l.buf = l.buf[:0]
	long := false
	for {
		part, err := l.r.ReadSlice('\n')
		if len(part) > 0 && len(l.buf) == 0 && !long {
			l.line++
		}
		if long = long || len(l.buf)+len(part) > l.limit; !long {
			l.buf = append(l.buf, part...)
		} else {
			l.buf = l.buf[:0]
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil && !errors.Is(err, io.EOF):
			return nil, err
		case long:
			return nil, fmt.Errorf("%w: over %d MiB; is this JSONL, one row a line?", errLineTooLong, l.limit>>20)
		case errors.Is(err, io.EOF) && len(l.buf) == 0:
			return nil, io.EOF
		}
		return l.buf, nil
	}
}
