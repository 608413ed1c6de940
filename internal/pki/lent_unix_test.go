//go:build unix

package pki

import (
	"os"
	"testing"
)

func TestAKeyOfRootMayBeReadByTheGroupItIsLentTo(t *testing.T) {
	info, err := os.Stat("/")
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 && !lentTo(info, 65532) || lentTo(info, 0) {
		t.Errorf("what is root's is lent to %v", info.Sys())
	}
	own, err := os.Stat(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 && lentTo(own, os.Geteuid()) {
		t.Error("what is one's own is lent")
	}
}
