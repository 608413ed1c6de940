// Command pause holds the namespaces of a pod open, and takes in the processes that
// have lost their parents.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	heard := make(chan os.Signal, 1) // one is enough: each call takes in all that have ended
	ended := make(chan os.Signal, 1)
	signal.Notify(heard, syscall.SIGTERM, syscall.SIGINT)
	signal.Notify(ended, syscall.SIGCHLD)
	for {
		select {
		case <-heard:
			return
		case <-ended:
			for pid, err := 1, error(nil); pid > 0 && err == nil; {
				pid, err = syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			}
		}
	}
}
