package data

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/skein-ml/skein/internal/vfs"
)

// Examples reads the rows of one side of a spec, training or validation, in the order of the files, without tokenizing them:
// for evaluation by generation. It ends when yield returns false. Bad lines are skipped as far as the spec allows.
func Examples(ctx context.Context, fsys vfs.FS, spec Spec, validation bool, yield func(Example) bool) error {
	patterns, share := spec.Train, spec.ValidationShare
	if validation && len(spec.Validation) > 0 {
		patterns, share = spec.Validation, 0
	} else if validation && share == 0 {
		return errors.New("data.validation names neither files nor a share")
	}
	paths, err := expand(fsys, patterns)
	if err != nil {
		return err
	}
	bad := 0
	for _, path := range paths {
		more, err := exampleFile(ctx, fsys, path, func(e Example, err error) (bool, error) {
			if err != nil {
				if bad++; bad > spec.MaxBadLines {
					return false, err
				}
				return true, nil
			}
			// A share sends its examples to validation, the rest to training; without one all belong to the side asked for.
			if share > 0 && e.held(share) != validation {
				return true, nil
			}
			return yield(e), nil
		})
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// exampleFile hands every row of a file, or what is wrong with it, to row, until that returns false or an error.
func exampleFile(ctx context.Context, fsys vfs.FS, path string, row func(Example, error) (bool, error)) (more bool, err error) {
	f, err := fsys.Open(path)
	if err != nil {
		return false, fmt.Errorf("data: %w", err)
	}
	defer f.Close()
	lines := newLineReader(&contextReader{ctx, f}, nil, maxLineBytes)
	for {
		text, err := lines.next()
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil && !errors.Is(err, errLineTooLong) {
			return false, fmt.Errorf("read %s: %w", path, err)
		}
		var e Example
		if err == nil {
			e, err = decodeRow(text)
		}
		e.File, e.Line = path, lines.line
		if err != nil {
			err = &RowError{path, lines.line, err}
		}
		if more, err := row(e, err); err != nil || !more {
			return false, err
		}
	}
}
