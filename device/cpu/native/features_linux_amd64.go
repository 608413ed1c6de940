package native

import "golang.org/x/sys/unix"

// requestTiles asks for the tile state in signal frames and context switches:
// arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA).
func requestTiles() error {
	const reqXcompPerm, xtileData = 0x1023, 18
	if _, _, errno := unix.RawSyscall(unix.SYS_ARCH_PRCTL, reqXcompPerm, xtileData, 0); errno != 0 {
		return errno
	}
	return nil
}
