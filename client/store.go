package client

import (
	"context"
	"fmt"

	"github.com/skein-ml/skein/checkpoint"
	"github.com/skein-ml/skein/internal/vfs"
)

// StoreOf finds a job as Find does and returns the folder of its checkpoints, as it is
// reached from here. The newest checkpoint in it is the one that the log has published.
func (c *Client) StoreOf(ctx context.Context, fsys vfs.FS, word string) (dir string, err error) {
	job, err := c.Find(ctx, word)
	if err != nil {
		return "", err
	}
	got, err := c.Get(ctx, job.GetId())
	if err != nil {
		return "", err
	}
	p := got.GetJob().GetPublished()
	if p == nil {
		return "", fmt.Errorf("job %s has published nothing yet; `skein describe %s` says where it is", job.GetId(), job.GetId())
	}
	dir = Store(got)
	there, err := vfs.Exists(fsys, dir)
	if err != nil || !there {
		return "", fmt.Errorf("job %s keeps its checkpoints in %s, which is not to be seen from here; run this where that folder is", job.GetId(), dir)
	}
	// The log has published it; the worker that was to say so in the folder may be lost.
	if err := checkpoint.Commit(fsys, dir, p.GetManifest()); err != nil {
		return "", fmt.Errorf("job %s: %w", job.GetId(), err)
	}
	return dir, nil
}
