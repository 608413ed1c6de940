//go:build !(linux && amd64)

// Command amxemu emulates AMX tiles on Linux for amd64 only.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "amxemu: it needs Linux on amd64")
	os.Exit(125)
}
