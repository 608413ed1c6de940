//go:build unix

package pki

import (
	"io/fs"
	"os"
	"syscall"
)

// lent tells whether a file is root's and this process is not: what it reads, it reads by
// its group, and it could not change the file's mode.
func lent(info fs.FileInfo) bool { return lentTo(info, os.Geteuid()) }

func lentTo(info fs.FileInfo, user int) bool {
	s, ok := info.Sys().(*syscall.Stat_t)
	return ok && s.Uid == 0 && user != 0
}
