// Package weights opens a model wherever its weights are stored: a Hugging Face
// folder or a GGUF file.
package weights

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/skein-ml/skein/model/config"
	"github.com/skein-ml/skein/model/gguf"
	"github.com/skein-ml/skein/model/hf"
)

// Model is an opened model: a *hf.Folder or a *gguf.File, which know more of it,
// such as its tokenizer.
type Model interface {
	config.Weights
	// Notices are lines for the user about what was ignored or assumed.
	Notices() []string
}

// Open opens the model at path, telling the formats apart by content, not by name.
// The error is one line that names the path and what to do.
func Open(path string) (Model, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("model %s: there is no such folder or file; check the path", path)
	} else if err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if info.IsDir() {
		folder, err := hf.Open(path)
		if err != nil {
			return nil, err // not a nil *Folder inside an interface
		}
		return folder, nil
	}
	if !info.Mode().IsRegular() || !beginsWith(path, "GGUF") {
		return nil, fmt.Errorf("model %s: this is neither a folder nor a GGUF file; name a Hugging Face folder or a .gguf file", path)
	}
	file, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	return file, nil
}

// beginsWith tells whether the file begins with magic; no if it cannot be read.
func beginsWith(path, magic string) bool {
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	first := make([]byte, len(magic))
	_, err = io.ReadFull(file, first)
	return err == nil && string(first) == magic
}
