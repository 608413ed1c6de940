package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skein-ml/skein/worker/workertest"
)

// inNamespaces tells a test process that it runs in namespaces of its own: "probe" if it
// only has to see whether they are of use.
const (
	inNamespaces = "SKEIN_TEST_IN_NAMESPACES"
	probe        = "probe"
)

// namespaced is what TestMain does in a process that [ownNamespaces] has started.
func namespaced() {
	what := os.Getenv(inNamespaces)
	if what == "" {
		return
	}
	err := settleNamespaces()
	if err == nil && what == probe {
		err = tryNetwork()
	}
	switch {
	case err != nil:
		fmt.Println(err)
		os.Exit(1)
	case what == probe:
		os.Exit(0)
	}
}

// ownNamespaces runs the test that calls it once more, in namespaces of its own, and tells
// that process apart: there it returns true, and the test is to go on. In the first process
// it returns false once the other has ended, with its outcome. Why is empty, or the reason
// for which there can be none; then nothing has run.
func ownNamespaces(t *testing.T) (inside bool, why string) {
	t.Helper()
	if os.Getenv(inNamespaces) != "" {
		return true, ""
	}
	for _, tool := range []string{"ip", "tc", "bridge", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			return false, "this machine has no " + tool + " (iproute2, util-linux)"
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	try := exec.Command(self)
	try.Env = append(os.Environ(), inNamespaces+"="+probe)
	var said strings.Builder
	try.Stdout, try.Stderr = &said, &said
	if err := runInNamespaces(try); err != nil {
		first, _, _ := strings.Cut(strings.TrimSpace(said.String()), "\n")
		return false, strings.TrimSpace(fmt.Sprintf("no network namespaces here: %v; they need root or user namespaces, bridges and the tc classifier bpf. %s", err, first))
	}
	cmd := exec.Command(self, "-test.run", "^"+regexp.QuoteMeta(t.Name())+"$", "-test.v", "-test.count=1", "-test.timeout=0")
	cmd.Env = append(os.Environ(), inNamespaces+"=run")
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	told := make(chan struct{})
	go func() {
		defer close(told)
		passOn(r)
	}()
	err = runInNamespaces(cmd)
	_ = w.Close() // never fails
	<-told
	if err != nil {
		t.Errorf("in its own namespaces: %v", err)
	}
	return false, ""
}

// passOn prints what a test in another process says, but for what every test says.
func passOn(r io.Reader) {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		text := strings.TrimSpace(line)
		if !strings.HasPrefix(text, "=== ") && !strings.HasPrefix(text, "--- PASS") && text != "PASS" && line != "" {
			fmt.Print(line)
		}
		if err != nil {
			return
		}
	}
}

// network are hosts on a bridge, each a namespace with a link of its own. What disturbs a
// link is done at the bridge's end: the host itself sees nothing but silence.
type network struct {
	addresses map[string]string // of hosts
}

// hub is the bridge, and the address at which the test itself is on it.
const (
	hub        = "hub"
	hubAddress = "10.77.0.254"
	// dropAll is a program for packets that drops them: return TC_ACT_SHOT.
	dropAll = "1,6 0 0 2"
)

// netCommand runs ip, tc or bridge.
func netCommand(args ...string) error {
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// netCommands runs lines of words without spaces in them.
func netCommands(lines ...string) error {
	for _, line := range lines {
		if err := netCommand(strings.Fields(line)...); err != nil {
			return err
		}
	}
	return nil
}

func newNetwork() (*network, error) {
	return &network{map[string]string{}}, netCommands("ip link set lo up", "ip link add "+hub+" type bridge",
		"ip addr add "+hubAddress+"/24 dev "+hub, "ip link set "+hub+" up")
}

// host adds a host with a name of at most ten letters.
func (n *network) host(name string) error {
	n.addresses[name] = fmt.Sprintf("10.77.0.%d", len(n.addresses)+1)
	return netCommands("ip netns add "+name, "ip link add port-"+name+" type veth peer name eth0 netns "+name,
		"ip link set port-"+name+" master "+hub+" up", "ip -n "+name+" addr add "+n.addresses[name]+"/24 dev eth0",
		"ip -n "+name+" link set eth0 up", "ip -n "+name+" link set lo up", "tc qdisc add dev port-"+name+" clsact")
}

// on is how a process is started on a host.
func (n *network) on(name string) []string {
	return []string{"nsenter", "--net=/run/netns/" + name, "--"}
}

// Directions as the bridge sees them, of a host's link.
const (
	from = "ingress"
	to   = "egress"
)

// cut drops everything that comes from a host, or goes to it.
func (n *network) cut(name, direction string) error {
	return netCommand("tc", "filter", "add", "dev", "port-"+name, direction, "pref", "1", "protocol", "all", "bpf", "direct-action", "bytecode", dropAll)
}

// mend ends a cut.
func (n *network) mend(name, direction string) error {
	return netCommand("tc", "filter", "del", "dev", "port-"+name, direction)
}

// slow lets a host send and receive at a rate at most, such as 5mbit; "" ends it.
func (n *network) slow(name, rate string) error {
	if rate == "" {
		return netCommands("tc qdisc del dev port-"+name+" root", "tc -n "+name+" qdisc del dev eth0 root")
	}
	shape := " root tbf rate " + rate + " burst 16kb latency 300ms"
	return netCommands("tc qdisc add dev port-"+name+shape, "tc -n "+name+" qdisc add dev eth0"+shape)
}

// overLimit matches how often a slow link has made a packet wait.
var overLimit = regexp.MustCompile(`overlimits ([1-9]\d*)`)

// felt tells whether a slow link has made any packet wait.
func (n *network) felt(name string) bool {
	out, err := exec.Command("tc", "-s", "qdisc", "show", "dev", "port-"+name, "root").Output()
	return err == nil && overLimit.Match(out)
}

// plug pulls the plug of a host's link, or puts it in again.
func (n *network) plug(name string, in bool) error {
	state := "down"
	if in {
		state = "up"
	}
	return netCommands("ip link set port-" + name + " " + state)
}

// apart keeps two hosts from reaching each other, and no one else.
func (n *network) apart(a, b string, yes bool) error {
	state := "off"
	if yes {
		state = "on"
	}
	return netCommands("bridge link set dev port-"+a+" isolated "+state, "bridge link set dev port-"+b+" isolated "+state)
}

// reached tells whether a host answers a connection from the hub, be it with a refusal.
func (n *network) reached(name string) bool {
	conn, err := net.DialTimeout("tcp", n.addresses[name]+":9", 300*time.Millisecond)
	if err == nil {
		_ = conn.Close() // nothing was sent
	}
	return err == nil || strings.Contains(err.Error(), "refused")
}

// tryNetwork does once all that a network has to do.
func tryNetwork() error {
	n, err := newNetwork()
	if err != nil {
		return err
	}
	for _, name := range []string{"a", "b"} {
		if err := n.host(name); err != nil {
			return err
		}
	}
	up := func(what string, want bool) error {
		for end := time.Now().Add(patience); n.reached("a") != want; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				return fmt.Errorf("%s: that host a answers should be %v", what, want)
			}
		}
		return nil
	}
	if err := up("the bridge", true); err != nil {
		return err
	}
	for _, direction := range []string{from, to} {
		if err := n.cut("a", direction); err != nil {
			return err
		}
		if err := up("cut "+direction, false); err != nil {
			return err
		}
		if err := n.mend("a", direction); err != nil {
			return err
		}
	}
	for _, rate := range []string{"5mbit", ""} {
		if err := n.slow("a", rate); err != nil {
			return err
		}
	}
	for _, yes := range []bool{true, false} {
		if err := n.apart("a", "b", yes); err != nil {
			return err
		}
	}
	return up("mended", true)
}

// newNetRig is newRig with a host for every process, and certificates.
func newNetRig(t *testing.T, j workertest.Job, coordinators, workers int) *rig {
	t.Helper()
	n, err := newNetwork()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{T: t, job: j, processes: map[string]*process{}, net: n, secure: true}
	mustRun(t, j, "certs", "init", "--cluster", "lab", "--ca", "ca")
	for i, role := range append(slices.Repeat([]string{"coordinator"}, coordinators), slices.Repeat([]string{"worker"}, workers)...) {
		name := fmt.Sprint("c", i+1)
		if role == "worker" {
			name = fmt.Sprint("w", i+1-coordinators)
		}
		if err := n.host(name); err != nil {
			t.Fatal(err)
		}
		mustRun(t, j, "certs", "issue", role, name, "--ca", "ca", "--out", "certs/"+name, "--hosts", n.addresses[name])
	}
	issue(t, j, "ca", "admin", "me")
	for i := range coordinators {
		r.addresses = append(r.addresses, n.addresses[fmt.Sprint("c", i+1)]+":7401")
	}
	r.startAll(workers)
	return r
}
