package pki

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newCA(t *testing.T, cluster string) *CA {
	t.Helper()
	ca, err := NewCA(cluster)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// issued is the folder of a process.
func issued(t *testing.T, ca *CA, role Role, name string, hosts ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := ca.IssueTo(dir, role, name, hosts, time.Hour); err != nil {
		t.Fatal(err)
	}
	return dir
}

func loaded(t *testing.T, dir string) *Files {
	t.Helper()
	f, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestAnAuthorityIsReadBackAndIssuesWhatItsMembersTrust(t *testing.T) {
	dir := t.TempDir()
	made := newCA(t, "lab")
	if err := made.Save(dir); err != nil {
		t.Fatal(err)
	}
	ca, err := LoadCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	if ca.Cluster() != "lab" || string(ca.Certificate()) != string(made.Certificate()) {
		t.Errorf("it came back as that of %q", ca.Cluster())
	}
	old := loaded(t, issued(t, made, Worker, "w1", "127.0.0.1"))
	f := loaded(t, issued(t, ca, Coordinator, "c1", "127.0.0.1", "c1.example"))
	if f.Cluster != "lab" || f.Role != Coordinator || f.Name != "c1" || string(f.GossipKey) != string(old.GossipKey) || len(f.GossipKey) != 32 {
		t.Errorf("c1 is %v with a gossip key of %d bytes", f.Identity, len(f.GossipKey))
	}
	if left := time.Until(f.Expires); left < 50*time.Minute || left > time.Hour {
		t.Errorf("it expires in %s", left)
	}
	if c := loaded(t, issued(t, ca, Client, "alice")); c.GossipKey != nil {
		t.Error("a client has the key of the gossip")
	}
	if serverErr, clientErr := meet(t, old.Config(), f.Config(), "127.0.0.1"); serverErr != nil || clientErr != nil {
		t.Errorf("w1 and c1 do not trust each other: %v, %v", serverErr, clientErr)
	}
}

// meet shakes hands over a pipe: what each end says.
func meet(t *testing.T, server, client *tls.Config, name string) (serverErr, clientErr error) {
	t.Helper()
	a, b := net.Pipe()
	deadline := time.Now().Add(time.Minute)
	for _, c := range []net.Conn{a, b} {
		if err := c.SetDeadline(deadline); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() {
		s := tls.Server(a, server)
		err := s.HandshakeContext(context.Background())
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		done <- err
		a.Close()
	}()
	client = client.Clone()
	client.ServerName = name
	c := tls.Client(b, client)
	clientErr = c.HandshakeContext(t.Context())
	if clientErr == nil { // a server's refusal of the client's certificate comes after its handshake
		_, clientErr = io.ReadFull(c, make([]byte, 1))
	}
	b.Close()
	return <-done, clientErr
}

func TestOnlyCertificatesOfTheClusterAreTrusted(t *testing.T) {
	ca := newCA(t, "lab")
	c1 := loaded(t, issued(t, ca, Coordinator, "c1", "127.0.0.1"))
	w1 := loaded(t, issued(t, ca, Worker, "w1", "127.0.0.1"))
	alice := loaded(t, issued(t, ca, Client, "alice", "127.0.0.1"))
	stranger := loaded(t, issued(t, newCA(t, "lab"), Worker, "w1", "127.0.0.1"))
	other := *ca
	other.cluster = "field" // the same key, used for two clusters by mistake
	field := *w1
	field.certificate, field.Cluster = certificate(t, &other, Worker, "w1", time.Hour), "field"
	expired := *w1
	expired.certificate = certificate(t, ca, Worker, "w1", time.Nanosecond)
	time.Sleep(2 * time.Millisecond)
	nobody := *w1
	nobody.certificate = tls.Certificate{}
	trusting := stranger.Config() // takes any server, shows a certificate of another authority
	trusting.RootCAs, trusting.VerifyConnection = c1.authority, nil
	for what, c := range map[string]struct {
		server, client *tls.Config
		name           string
		want           string // in what either end says; empty: they meet
	}{
		"member":            {c1.Config(), w1.Config(), "127.0.0.1", ""},
		"client":            {c1.Config(), alice.Config(), "127.0.0.1", ""},
		"expected role":     {c1.Expect(Worker), w1.Expect(Coordinator), "127.0.0.1", ""},
		"unexpected caller": {c1.Expect(Worker), alice.Config(), "127.0.0.1", "client alice of cluster lab is at the other end, where a worker should be"},
		"unexpected server": {w1.Config(), alice.Expect(Coordinator), "127.0.0.1", "where a coordinator should be"},
		"a client serves":   {alice.Config(), w1.Config(), "127.0.0.1", "incompatible key usage"},
		"wrong host":        {c1.Config(), w1.Config(), "10.0.0.1", "not 10.0.0.1"},
		"wrong authority":   {c1.Config(), trusting, "127.0.0.1", "unknown authority"},
		"wrong server":      {stranger.Config(), w1.Config(), "127.0.0.1", "unknown authority"},
		"expired":           {c1.Config(), expired.Config(), "127.0.0.1", "expired"},
		"expired server":    {expired.Config(), w1.Config(), "127.0.0.1", "expired"},
		"no certificate":    {c1.Config(), nobody.Config(), "127.0.0.1", "didn't provide a certificate"},
		"other cluster":     {c1.Config(), field.Config(), "127.0.0.1", "cluster field"},
	} {
		server, client := meet(t, c.server, c.client, c.name)
		said := errors.Join(server, client)
		if c.want == "" && said != nil || c.want != "" && (said == nil || !strings.Contains(said.Error(), c.want)) {
			t.Errorf("%s: the server says %v, the client %v; want %q", what, server, client, c.want)
		}
	}
	if _, _, err := PeerRole(tls.ConnectionState{}); !errors.Is(err, ErrPlain) {
		t.Errorf("nobody has a role: %v", err)
	}
}

func certificate(t *testing.T, ca *CA, role Role, name string, validity time.Duration) tls.Certificate {
	t.Helper()
	cert, key, err := ca.Issue(role, name, []string{"127.0.0.1"}, validity)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func TestFilesThatCannotBeUsedAreNamed(t *testing.T) {
	ca := newCA(t, "lab")
	stranger := issued(t, newCA(t, "lab"), Worker, "w1", "127.0.0.1")
	copied := func(name, from string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			b, err := os.ReadFile(filepath.Join(from, name))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	written := func(name, text string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	removed := func(name string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	mode := func(name string, m os.FileMode) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.Chmod(filepath.Join(dir, name), m); err != nil {
				t.Fatal(err)
			}
		}
	}
	day := 24 * time.Hour
	for what, c := range map[string]struct {
		change func(t *testing.T, dir string)
		later  time.Duration
		want   string
	}{
		"expired":           {nil, day, "tls.crt: it expired on "},
		"too early":         {nil, -day, "set the clock"},
		"no authority":      {removed(caFile), 0, "ca.crt is missing; make it with `skein certs`"},
		"no certificate":    {removed(certFile), 0, "tls.crt is missing"},
		"no key":            {removed(keyFile), 0, "tls.key is missing"},
		"another's key":     {copied(keyFile, stranger), 0, "the key is not that of tls.crt"},
		"another's CA":      {copied(caFile, stranger), 0, "ca.crt did not sign it"},
		"key for the group": {mode(keyFile, 0o640), 0, "chmod 600 "},
		"key for the world": {mode(keyFile, 0o604), 0, "chmod 600 "},
		"gossip for all":    {mode(gossipFile, 0o644), 0, "chmod 600 "},
		"short gossip":      {written(gossipFile, "abcd"), 0, "32 bytes in hex"},
		"garbage":           {written(certFile, "hello"), 0, "it is not one certificate in PEM"},
		"key as certificate": {func(t *testing.T, dir string) {
			if err := os.Rename(filepath.Join(dir, keyFile), filepath.Join(dir, certFile)); err != nil {
				t.Fatal(err)
			}
		}, 0, "it is not one certificate in PEM"},
	} {
		t.Run(what, func(t *testing.T) {
			dir := issued(t, ca, Worker, "w1", "127.0.0.1")
			if c.change != nil {
				c.change(t, dir)
			}
			_, err := load(dir, time.Now().Add(c.later))
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, want one line with %q", err, c.want)
			}
		})
	}
}

func TestNothingIsOverwritten(t *testing.T) {
	ca := newCA(t, "lab")
	dir := issued(t, ca, Worker, "w1", "127.0.0.1")
	before, err := os.ReadFile(filepath.Join(dir, certFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.IssueTo(dir, Worker, "w2", []string{"127.0.0.1"}, time.Hour); err == nil || !strings.Contains(err.Error(), "not replaced") {
		t.Errorf("it was written over: %v", err)
	}
	if after, err := os.ReadFile(filepath.Join(dir, certFile)); err != nil || string(after) != string(before) {
		t.Errorf("the certificate changed, %v", err)
	}
	for _, name := range []string{keyFile, gossipFile} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

func TestBadRequestsForCertificatesAreRefused(t *testing.T) {
	if _, err := NewCA("two words"); err == nil {
		t.Error("a cluster of two words")
	}
	ca := newCA(t, "lab")
	for what, c := range map[string]struct {
		role     Role
		name     string
		hosts    []string
		validity time.Duration
	}{
		"no such role":      {"king", "a", []string{"h"}, time.Hour},
		"no name":           {Worker, "", []string{"h"}, time.Hour},
		"a path for a name": {Worker, "a/b", []string{"h"}, time.Hour},
		"no host":           {Worker, "a", nil, time.Hour},
		"a port":            {Worker, "a", []string{"h:7401"}, time.Hour},
		"no time":           {Worker, "a", []string{"h"}, 0},
	} {
		if _, _, err := ca.Issue(c.role, c.name, c.hosts, c.validity); err == nil {
			t.Errorf("%s: it was issued", what)
		}
	}
}
