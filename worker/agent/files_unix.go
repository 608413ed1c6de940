//go:build unix

package agent

import (
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"
)

// ensureFiles raises the limit of open files as far as this process may, and refuses a
// limit that a worker cannot live with.
func ensureFiles(log *slog.Logger) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		log.Warn("the limit of open files is unknown", "err", err)
		return nil
	}
	if limit.Cur >= filesMin {
		return nil
	}
	before := limit.Cur
	if err := enoughFiles(&limit); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("the limit of %d open files is too low and cannot be raised: %w; raise it with `ulimit -n %d`", before, err, 4*filesMin)
	}
	log.Warn("the limit of open files was low and has been raised", "from", before, "to", limit.Cur)
	return nil
}

// enoughFiles raises a limit as far as it goes, and refuses one that does not go far
// enough.
func enoughFiles(limit *unix.Rlimit) error {
	if limit.Max < filesMin {
		return fmt.Errorf("%d files may be open in one process, and a worker needs %d; raise the limit with `ulimit -n %d`, or LimitNOFILE= in its service file", limit.Max, filesMin, 4*filesMin)
	}
	limit.Cur = limit.Max
	return nil
}
