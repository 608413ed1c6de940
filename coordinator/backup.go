package coordinator

import (
	"io"

	"github.com/skein-ml/skein/coordinator/raftlog"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// Restore makes the folder of a coordinator out of a backup; see raftlog.Restore.
func Restore(dir, id, advertise string, backup io.Reader) (raftlog.BackupHead, error) {
	return raftlog.Restore(dir, id, advertise, backup)
}

// chunkBytes is how a backup travels.
const chunkBytes = 256 << 10

// Backup implements skeinv1.ClusterServer.
func (s cluster) Backup(_ *skeinv1.BackupRequest, stream skeinv1.Cluster_BackupServer) error {
	w := &chunks{to: stream}
	if err := s.node.Backup(stream.Context(), w); err != nil {
		return err
	}
	return w.flush()
}

// chunks is a writer that cuts what it gets into messages.
type chunks struct {
	to  skeinv1.Cluster_BackupServer
	buf []byte
}

// Write implements io.Writer.
func (c *chunks) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		k := min(len(b), chunkBytes-len(c.buf))
		c.buf, b = append(c.buf, b[:k]...), b[k:]
		if len(c.buf) == chunkBytes {
			if err := c.flush(); err != nil {
				return n - len(b), err
			}
		}
	}
	return n, nil
}

func (c *chunks) flush() error {
	if len(c.buf) == 0 {
		return nil
	}
	err := c.to.Send(&skeinv1.BackupResponse{Chunk: c.buf})
	c.buf = nil // the message keeps it
	return err
}
