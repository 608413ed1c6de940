package worker

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/internal/vfs"
	"github.com/skein-ml/skein/model/hf"
)

// finish exports from the last checkpoint, and ends the job.
func (h *hosting) finish(ctx context.Context) error {
	if err := h.store.writeLineage(); err != nil {
		return err
	}
	if err := h.exportModel(ctx); err != nil {
		return adviseOnSpace(err)
	}
	done := h.summary()
	if n, ok := h.store.value(tokensName, true); ok {
		done.Tokens = int64(n)
	}
	done.Seconds += h.before.Seconds
	h.spent.lap(&h.spent.evaluation)
	if err := h.Complete(ctx, console.Marshal(done), h.spent.message()); err != nil {
		return err
	}
	h.emit(done)
	return nil
}

// exportModel writes the last checkpoint as a Hugging Face folder. The folder may be there
// already: an earlier generation wrote it and did not get as far as to say so, or it is
// another job's. So what is there is compared.
func (h *hosting) exportModel(ctx context.Context) error {
	opt := exportOptions(&h.Spec.Job)
	_, err := ExportCheckpoint(ctx, h.FS, h.dir, h.Steps, h.export, opt)
	if !errors.Is(err, hf.ErrExists) {
		return err
	}
	again := filepath.Join(h.dir, "export-"+vfs.Unique())
	defer func() { _ = h.FS.RemoveAll(again) }() // best effort: it is in the way of nothing
	if _, err := ExportCheckpoint(ctx, h.FS, h.dir, h.Steps, again, opt); err != nil {
		return err
	}
	same, err := sameFolder(h.FS, again, h.export)
	if err == nil && !same {
		err = fmt.Errorf("output.export: %s holds another model, written since the job was prepared; `skein export` writes this one to a folder of its own", h.export)
	}
	return err
}
