//go:build amd64 && !linux

package native

import "errors"

func requestTiles() error { return errors.New("only known on Linux") }
