package raftlog

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/internal/leak"
)

// childEnv makes the test program a coordinator's log in a process of its own, to be
// killed: "dir|id|address|id=address,id=address,…".
const childEnv = "SKEIN_RAFTLOG_CHILD"

func TestMain(m *testing.M) {
	if spec := os.Getenv(childEnv); spec != "" {
		if err := child(spec); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		return
	}
	leak.Main(m)
}

// child answers "submit REQUEST" with "ok JOB" or "no WHY", and "list" with the
// requests of all jobs.
func child(spec string) error {
	f := strings.Split(spec, "|")
	var servers []Server
	for s := range strings.SplitSeq(f[3], ",") {
		id, address, _ := strings.Cut(s, "=")
		servers = append(servers, Server{id, address})
	}
	listener, err := net.Listen("tcp", f[2])
	if err != nil {
		return err
	}
	n, err := Open(Config{
		Cluster: "test", ID: f[1], Dir: f[0], Address: f[2], Listener: listener, Dial: dialTCP, Bootstrap: servers,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Println(answer(n, in.Text()))
	}
	return n.Close()
}

func answer(n *Node, line string) string {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	command, request, _ := strings.Cut(line, " ")
	if command == "submit" {
		r, err := n.Propose(ctx, fsm.Entry{Reason: "test", Decision: submission(request)})
		if err != nil || r.Err != nil {
			return fmt.Sprint("no ", err, r.Err)
		}
		return "ok " + r.Job
	}
	s, err := n.Read(ctx)
	if err != nil {
		return "no " + err.Error()
	}
	var requests []string
	for _, j := range s.InOrder() {
		requests = append(requests, j.Request)
	}
	return "ok " + strings.Join(requests, " ")
}

func submission(request string) *fsm.Submit {
	return &fsm.Submit{Request: request, Name: "job", Spec: []byte("{}"), WorldSize: 4, WorkersMin: 1, WorkersMax: 4}
}

func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", address)
}
