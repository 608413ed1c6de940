package allreduce

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	randv2 "math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// authority is a certificate authority for tests.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, pool: x509.NewCertPool()}
	a.key, _ = newKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

func newKey(t *testing.T) (*ecdsa.PrivateKey, *ecdsa.PublicKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key, &key.PublicKey
}

// issue makes a certificate for 127.0.0.1, or for a host of that name if it is given.
func (a *authority) issue(name string, until time.Time) tls.Certificate {
	a.t.Helper()
	return a.issueTo("worker", name, until)
}

// issueTo makes a certificate of a worker.
func (a *authority) issueTo(worker, name string, until time.Time) tls.Certificate {
	a.t.Helper()
	key, public := newKey(a.t)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: worker}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: until,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if name == "" {
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	} else {
		template.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) config(certs ...tls.Certificate) *tls.Config {
	return &tls.Config{RootCAs: a.pool, ClientCAs: a.pool, Certificates: certs}
}

// commonName is how the tests' certificates name workers.
func commonName(s tls.ConnectionState) (string, error) {
	return s.PeerCertificates[0].Subject.CommonName, nil
}

func TestTheRingOverTLSGivesTheSameBits(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	a := newAuthority(t)
	verified := make(chan string, 64)
	verify := func(s tls.ConnectionState) (string, error) {
		verified <- s.PeerCertificates[0].Subject.CommonName
		return commonName(s)
	}
	own := func(worker int) *tls.Config {
		return a.config(a.issueTo(fmt.Sprintf("w%d", worker), "", time.Now().Add(time.Hour)))
	}
	for _, wire := range []Wire{WireFP32, WireBF16} {
		ring := newRing(t, ringOptions{worldSize: 5, workers: 3, wire: wire, elem: 4, elems: []int64{300_000, 1000}, seed: 1,
			server: ListenerConfig{PeerName: verify}, serverTLS: own, change: func(l *LinkConfig) { l.TLS, l.PeerName = own(l.Worker), verify }})
		want := localSums(t, ring[0])
		each(t, ring, func(w *testWorker) error {
			r := randv2.New(randv2.NewPCG(1, uint64(w.c.Worker)))
			for step := int64(1); step <= 3; step++ {
				if _, err := w.reduce(t.Context(), step, r); err != nil {
					return err
				}
				if err := w.gather(t.Context(), step, r); err != nil {
					return err
				}
				if err := w.check(step, want); err != nil {
					return err
				}
			}
			return w.link.Close()
		})
		for _, w := range ring {
			_ = w.listener.Close()
		}
	}
	if len(verified) != 2*2*3 {
		t.Errorf("%d certificates were shown to PeerName, want one on each side of three connections, twice", len(verified))
	}
}

func TestWithoutACertificateOfTheClusterThereIsNoRing(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	a, other := newAuthority(t), newAuthority(t)
	hour := time.Now().Add(time.Hour)
	good := a.config(a.issue("", hour))
	foreign := other.config(other.issue("", hour))
	foreign.RootCAs = a.pool
	no := func(tls.ConnectionState) (string, error) { return "", errors.New("its role is client") }
	for _, c := range []struct {
		name           string
		client, server *tls.Config
		peerName       func(tls.ConnectionState) (string, error)
		text           string
	}{
		{"the dialer's certificate is of another CA", foreign, good, nil, "remote error"},
		{"the dialer has no certificate", a.config(), good, nil, "certificate required"},
		{"the dialer's certificate is expired", a.config(a.issue("", time.Now().Add(-time.Hour))), good, nil, "expired"},
		{"the listener's certificate is of another CA", good, foreign, nil, "unknown authority"},
		{"the listener's certificate is expired", good, a.config(a.issue("", time.Now().Add(-time.Hour))), nil, "expired"},
		{"the listener's certificate is for another host", good, a.config(a.issue("elsewhere.example", hour)), nil, "127.0.0.1"},
		{"the certificate has another role", good, good, no, "its role is client"},
		{"the dialer speaks plain text", nil, good, nil, ""},
		{"the listener speaks plain text", good, nil, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			workers := newWorkers(t, ringOptions{worldSize: 2, workers: 2, elem: 4, elems: []int64{300}, seed: 1,
				server: ListenerConfig{TLS: c.server}, change: func(l *LinkConfig) { l.TLS, l.PeerName = c.client, c.peerName }})
			patience := time.Minute
			if c.text == "" { // it is tried again until then
				patience = 300 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			begin := time.Now()
			_, err := Connect(ctx, workers[0].listener, workers[0].c)
			if err == nil || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("error %v", err)
			}
			if c.text != "" && !errors.Is(err, ErrRefused) {
				t.Errorf("after %v it is not for good: %v", time.Since(begin), err)
			}
			if strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "w1") {
				t.Errorf("error %q", err)
			}
			for _, w := range workers {
				_ = w.listener.Close()
			}
		})
	}
}

// TestAWorkerSpeaksForItselfOnly shows a certificate of w9 in the place of w0, which
// dials, and of w1, which is dialled.
func TestAWorkerSpeaksForItselfOnly(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	a := newAuthority(t)
	of := func(name string) *tls.Config { return a.config(a.issueTo(name, "", time.Now().Add(time.Hour))) }
	for _, c := range []struct {
		name           string
		client, server *tls.Config
		text           string
	}{
		{"the dialer is another worker", of("w9"), of("w1"), `it is that of "w9", not of "w0"`},
		{"the listener is another worker", of("w0"), of("w9"), `it is that of "w9", not of "w1"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			workers := newWorkers(t, ringOptions{worldSize: 2, workers: 2, elem: 4, chunk: 2000, elems: []int64{300}, seed: 1,
				server: ListenerConfig{TLS: c.server, PeerName: commonName}, change: func(l *LinkConfig) { l.TLS, l.PeerName = c.client, commonName }})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			s, err := workers[1].listener.expect(newLink(workers[1].c).greeting(0, 1))
			if err != nil {
				t.Fatal(err)
			}
			_, err = Connect(ctx, workers[0].listener, workers[0].c)
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %v", err)
			}
			if len(s.conn) != 0 || s.taken {
				t.Error("the place of w0 is taken")
			}
			for _, w := range workers {
				_ = w.listener.Close()
			}
		})
	}
}

// TestAKilledWorkerIsNamedOverTLS is the same fault, seen through TLS.
func TestAKilledWorkerIsNamedOverTLS(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	a := newAuthority(t)
	c := a.config(a.issue("", time.Now().Add(time.Hour)))
	ring := newRing(t, ringOptions{worldSize: 3, workers: 3, elem: 4, elems: []int64{300}, seed: 1,
		server: ListenerConfig{TLS: c}, change: func(l *LinkConfig) { l.TLS = c }})
	dead := ring[1].link
	dead.mu.Lock()
	dead.in.abort()
	dead.out.abort()
	dead.mu.Unlock()
	for _, i := range []int{0, 2} {
		_, err := ring[i].link.Exchange(t.Context(), "x", []byte(fmt.Sprint(i)))
		var broken *LinkError
		if !errors.As(err, &broken) || broken.Accused != 1 {
			t.Errorf("worker %d: %v", i, err)
		}
	}
	closeAll(ring)
	for _, w := range ring {
		_ = w.listener.Close()
	}
}

func TestReachOverTLSWantsTheWorkerThatIsMeant(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("listener", func(t *testing.T) {
		a := newAuthority(t)
		own := func(worker int) *tls.Config {
			return a.config(a.issueTo(fmt.Sprintf("w%d", worker), "", time.Now().Add(time.Hour)))
		}
		w := newWorkers(t, ringOptions{worldSize: 2, workers: 2, elem: 4, elems: []int64{300}, seed: 1,
			server: ListenerConfig{PeerName: commonName}, serverTLS: own, change: func(l *LinkConfig) { l.TLS, l.PeerName = own(l.Worker), commonName }})[1]
		right := Probe{From: "w0", Name: "w1", Addr: w.listener.Addr(), TLS: own(0), PeerName: commonName}
		if err := Reach(t.Context(), right); err != nil {
			t.Error(err)
		}
		for why, change := range map[string]func(*Probe){
			"another is meant":   func(p *Probe) { p.Name = "w7" },
			"another asks":       func(p *Probe) { p.From = "w8" },
			"a stranger asks":    func(p *Probe) { p.TLS = newAuthority(t).config() },
			"plain text is sent": func(p *Probe) { p.TLS = nil },
		} {
			wrong := right
			change(&wrong)
			if err := Reach(t.Context(), wrong); err == nil || !strings.Contains(err.Error(), wrong.Name+" at 127.0.0.1:") {
				t.Errorf("%s: %v", why, err)
			}
		}
	})
}
