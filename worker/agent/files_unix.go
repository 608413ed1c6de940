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
	limit.Cur = limit.Max
	if limit.Max >= filesMin && unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		log.Warn("the limit of open files was low and has been raised", "from", before, "to", limit.Cur)
		return nil
	}
	return fmt.Errorf("%d files may be open in one process, and a worker needs %d; raise the limit with `ulimit -n %d`, or LimitNOFILE= in its service file", before, filesMin, 4*filesMin)
}
