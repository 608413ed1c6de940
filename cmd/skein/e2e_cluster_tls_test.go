package main

import (
	"strings"
	"testing"

	"github.com/skein-ml/skein/worker/workertest"
)

// certify makes an authority and the certificates of a cluster, as an operator would.
func certify(t *testing.T, j workertest.Job, ca string, more ...string) {
	t.Helper()
	mustRun(t, j, "certs", "init", "--cluster", "lab", "--ca", ca)
	for _, name := range []string{"c1", "c2", "c3"} {
		issue(t, j, ca, "coordinator", name, more...)
	}
	for _, name := range []string{"w1", "w2"} {
		issue(t, j, ca, "worker", name, more...)
	}
}

func issue(t *testing.T, j workertest.Job, ca, role, name string, more ...string) {
	t.Helper()
	args := []string{"certs", "issue", role, name, "--ca", ca, "--out", "certs/" + name}
	if role == "coordinator" || role == "worker" {
		args = append(args, "--hosts", "127.0.0.1,localhost")
	}
	mustRun(t, j, append(args, more...)...)
}

func TestAClusterWithCertificatesLetsNobodyElseIn(t *testing.T) {
	j := clusterJob(t)
	want, _ := alone(t, j)
	certify(t, j, "ca")
	issue(t, j, "ca", "admin", "me")
	issue(t, j, "ca", "client", "ana")
	issue(t, j, "ca", "coordinator", "elsewhere")
	if out := mustRun(t, j, "certs", "show", "certs/w1"); !strings.Contains(out, "worker w1 of cluster lab") {
		t.Errorf("certs show says %q", out)
	}
	r := &rig{T: t, job: j, processes: map[string]*process{}, addresses: freeAddresses(t, 3), secure: true}
	r.startAll(2)
	id := r.submit("cluster.workers.min=2")
	if got := r.wait(id); got != want {
		t.Errorf("it ends on %s, in one process on %s", got, want)
	}
	all := strings.Join(r.addresses, ",")
	mustRun(t, j, "jobs", "--coordinator", all, "--tls", "certs/ana")
	mustRun(t, j, "certs", "init", "--cluster", "lab", "--ca", "other-ca") // the same name, another authority
	issue(t, j, "other-ca", "client", "mallory")
	issue(t, j, "other-ca", "worker", "w9")
	issue(t, j, "ca", "client", "late", "--valid", "1m")
	for name, c := range map[string]struct {
		args   string
		status int
		says   []string
	}{
		"no certificate":             {"jobs", exitUnreachable, []string{"closes plain connections", "--tls", "skein certs"}},
		"another authority":          {"jobs --tls certs/mallory", exitUnreachable, []string{"CA", "skein certs"}},
		"a client who operates":      {"coordinator remove c3 --tls certs/ana", exitFailure, []string{"admin"}},
		"a worker who submits":       {"submit -f job.yaml --set output.export=./another --tls certs/w1", exitFailure, []string{"worker w1"}},
		"a coordinator with a name":  {"coordinator --id c9 --alone --dir c9 --listen 127.0.0.1:0 --tls certs/c1", exitUsage, []string{"c1", "c9"}},
		"a worker with another name": {"worker --name w8 --dir w8 --tls certs/w1", exitUsage, []string{"w1", "w8", "skein certs"}},
		"a client's as a worker":     {"worker --name ana --dir w8 --tls certs/ana", exitUsage, []string{"client ana", "skein certs"}},
	} {
		t.Run(name, func(t *testing.T) {
			args := strings.Fields(c.args)
			if !strings.Contains(c.args, "--alone") {
				args = append(args, "--coordinator", all)
			}
			refused(t, j, c.status, c.says, args...)
		})
	}
	t.Run("a worker of another authority", func(t *testing.T) {
		w := r.worker("w9")
		w.err.waitFor(t, "certificate")
		if out := r.must("nodes"); strings.Contains(out, "w9") {
			t.Errorf("it is in:\n%s", out)
		}
	})
	t.Run("a name that is not the address", func(t *testing.T) {
		mustRun(t, j, "certs", "issue", "coordinator", "far", "--ca", "ca", "--hosts", "far.lab", "--out", "certs/far")
		address := freeAddresses(t, 1)[0]
		p := start(t, j, "coordinator", "--id", "far", "--alone", "--dir", "far", "--listen", address, "--tls", "certs/far")
		p.err.waitFor(t, "started")
		refused(t, j, exitUnreachable, []string{"not for this address", "--hosts"}, "jobs", "--tls", "certs/me", "--coordinator", address)
	})
	for _, bad := range []string{"certs issue wizard x", "certs issue worker x", "certs issue client x --valid 0s"} {
		refused(t, j, exitUsage, nil, append(strings.Fields(bad), "--ca", "ca")...)
	}
	refused(t, j, exitFailure, []string{"ca"}, "certs", "init", "--ca", "ca")
}
