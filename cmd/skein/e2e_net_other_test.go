//go:build !linux

package main

import (
	"errors"
	"os/exec"
	"testing"
)

var errNoNamespaces = errors.New("only Linux has namespaces")

func runInNamespaces(*exec.Cmd) error      { return errNoNamespaces }
func settleNamespaces() error              { return errNoNamespaces }
func mountSmall(t *testing.T, _, _ string) { t.Fatal(errNoNamespaces) }
