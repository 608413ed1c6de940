package coordinator

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/skein-ml/skein/proto/leader"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// authority is a small CA.
type authority struct {
	*testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t, cert, key}
}

// config is what a process with a certificate of this authority uses on both ends.
func (a *authority) config(change func(*x509.Certificate)) *tls.Config {
	a.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "node"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(template)
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{raw}, PrivateKey: key}}, RootCAs: pool, ClientCAs: pool}
}

func TestThreeCoordinatorsAndAWorkerSpeakTLSToEachOther(t *testing.T) {
	r := newRig(t, 3, newAuthority(t).config(nil))
	r.worker("w1", "p1", nil)
	id := r.submit("one", nil)
	r.eventually(id, "the job is done", inPhase(skeinv1.Phase_PHASE_DONE))
}

func TestWhoHasNoCertificateOfTheClusterGetsNothing(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	r := newRig(t, 1, ours.config(nil))
	r.submit("one", nil)
	address := r.members[0].Address
	trusting := func(c *tls.Config) *tls.Config { // trusts our server, whatever it shows itself
		c.RootCAs = ours.config(nil).RootCAs
		return c
	}
	for what, secure := range map[string]*tls.Config{
		"plain text":         nil,
		"no certificate":     trusting(&tls.Config{}),
		"another authority":  trusting(theirs.config(nil)),
		"expired":            ours.config(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }),
		"not for clients":    ours.config(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }),
		"distrusts ours":     theirs.config(nil),
		"expects other name": named(ours.config(nil), "elsewhere.example"),
	} {
		conn, err := leader.New(leader.Config{Addresses: []string{address}, TLS: secure, Build: "test"})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		if s, err := skeinv1.NewClusterClient(conn).Status(ctx, &skeinv1.StatusRequest{}); err == nil {
			t.Errorf("%s: was told %v", what, s)
		}
		cancel()
		conn.Close()
	}
	// The log's protocol is behind the same door.
	raw, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if _, err := raw.Write([]byte("SKNR\x01\x00\x04\x02testc9....")); err != nil {
		t.Fatal(err)
	}
	if err := raw.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if answer, _ := io.ReadAll(raw); strings.Contains(string(answer), "test") || len(answer) == 2 {
		t.Errorf("the log answered in plain text: %q", answer)
	}
}

func named(c *tls.Config, name string) *tls.Config {
	c.ServerName = name
	return c
}

func TestACoordinatorWithACertificateForAnotherNameIsNotTalkedTo(t *testing.T) {
	a := newAuthority(t)
	r := newRig(t, 1, a.config(func(c *x509.Certificate) { c.IPAddresses = nil; c.DNSNames = []string{"elsewhere.example"} }))
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if s, err := r.ops.Status(ctx, &skeinv1.StatusRequest{}); err == nil {
		t.Fatalf("it was believed: %v", s)
	}
}
