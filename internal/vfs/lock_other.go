//go:build !unix

package vfs

import "errors"

func flock(uintptr) (held bool, err error) { return false, errors.ErrUnsupported }
