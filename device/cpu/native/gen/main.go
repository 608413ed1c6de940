// Command gen turns the C kernels of device/cpu/native/src into Go assembly.
//
//	go run ./device/cpu/native/gen          # rewrite what changed
//	go run ./device/cpu/native/gen -check   # fail if anything would change
//
// It needs the pinned compiler, because another one would emit other bytes; the
// Go build never does.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The compiler that committed bytes come from.
const (
	pinnedGCC      = "12.2.0"
	pinnedBinutils = "2.40"
)

var errNoCompiler = errors.New("pinned compiler absent")

func main() {
	dir := flag.String("dir", "", "the native package (default: found from the working directory)")
	check := flag.Bool("check", false, "write nothing; fail if a file would change")
	flag.Parse()
	if err := run(*dir, *check, flag.Args()); err != nil {
		if *check && errors.Is(err, errNoCompiler) {
			fmt.Println("gen: SKIPPED:", err)
			return
		}
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

// run regenerates the sources whose base names are given, or all of them.
func run(dir string, check bool, only []string) error {
	if dir == "" {
		var err error
		if dir, err = findDir(); err != nil {
			return err
		}
	}
	cc, err := findCompiler()
	if err != nil {
		return err
	}
	sources, err := filepath.Glob(filepath.Join(dir, "src", "*.c"))
	if err != nil {
		return err
	}
	slices.Sort(sources)
	for _, src := range sources {
		name := strings.TrimSuffix(filepath.Base(src), ".c")
		if len(only) > 0 && !slices.Contains(only, name) {
			continue
		}
		if err := generate(dir, name, cc, check); err != nil {
			return fmt.Errorf("%s.c: %w", name, err)
		}
	}
	return nil
}

func generate(dir, name string, cc compiler, check bool) error {
	unit, err := parseUnit(filepath.Join(dir, "src"), name)
	if err != nil {
		return err
	}
	if err := cc.compile(&unit); err != nil {
		return err
	}
	files, err := emit(unit, cc)
	if err != nil {
		return err
	}
	for file, want := range files {
		path := filepath.Join(dir, file)
		have, _ := os.ReadFile(path)
		if bytes.Equal(have, want) {
			continue
		}
		if check {
			return fmt.Errorf("%s is not what its source compiles to: run `make generate` and commit", file)
		}
		if err := os.WriteFile(path, want, 0o644); err != nil {
			return err
		}
		fmt.Println("gen: wrote", path)
	}
	return nil
}

func findDir() (string, error) {
	for _, dir := range []string{".", "..", "device/cpu/native"} {
		if _, err := os.Stat(filepath.Join(dir, "src", "kernel.h")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("run it from the root of the repository, or name the package with -dir")
}
