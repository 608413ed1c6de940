//go:build unix

package worker

import "golang.org/x/sys/unix"

// lock takes an open file for this process alone; ok is false if another one has it.
// The system gives it free when the file is closed, and so when the process is killed.
func lock(fd uintptr) (ok bool) {
	return unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB) != unix.EWOULDBLOCK
}
