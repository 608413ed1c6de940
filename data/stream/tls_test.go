package stream

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"testing"
	"time"
)

// authority makes certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{pool: x509.NewCertPool()}
	a.cert, a.key = sign(t, nil, func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	})
	a.pool.AddCert(a.cert)
	return a
}

func sign(t *testing.T, by *authority, change func(*x509.Certificate)) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "skein test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	change(c)
	parent, parentKey := c, key
	if by != nil {
		parent, parentKey = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, parentKey)
	must(t, err)
	c, err = x509.ParseCertificate(der)
	must(t, err)
	return c, key
}

// issue makes a configuration for both ends of mutual TLS that trusts the authority ca.
func (a *authority) issue(t *testing.T, ca *authority, change func(*x509.Certificate)) Security {
	t.Helper()
	cert, key := sign(t, a, change)
	return Security{TLS: &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}},
		RootCAs:      ca.pool, ClientCAs: ca.pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}}
}

func TestMutualTLSLetsInWhoBelongs(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	fine := func(*x509.Certificate) {}
	expired := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	elsewhere := func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, []string{"other.example"} }
	good := ca.issue(t, ca, fine)
	bare := Security{TLS: &tls.Config{RootCAs: ca.pool}}
	for name, test := range map[string]struct {
		server, client Security
		want           string // "" to be let in
	}{
		"both belong":                            {good, ca.issue(t, ca, fine), ""},
		"a server of another CA":                 {stranger.issue(t, ca, fine), good, "unknown authority"},
		"a server whose certificate is over":     {ca.issue(t, ca, expired), good, "expired"},
		"a server of another name":               {ca.issue(t, ca, elsewhere), good, "127.0.0.1"},
		"a client of another CA":                 {good, stranger.issue(t, ca, fine), "remote error: tls: unknown certificate authority"},
		"a client whose certificate is over":     {good, ca.issue(t, ca, expired), "remote error: tls: expired certificate"},
		"a client without a certificate":         {good, bare, "remote error: tls: certificate required"},
		"a client that speaks plain text":        {good, plainText, "nothing came"},
		"a client that speaks TLS to plain text": {plainText, good, "first record does not look like a TLS handshake"},
	} {
		t.Run(name, func(t *testing.T) {
			d := small()
			addr, _ := serve(t, test.server, d)
			c := Config{Security: test.client, Servers: []string{addr}, ContentHash: hashOf(d)}
			if test.client.PlainText {
				c.WaitMax = 300 * time.Millisecond // it cannot know, so it goes on trying
			}
			cl, err := openConfig(t, c)
			if test.want != "" {
				wantError(t, err, test.want, addr)
				return
			}
			must(t, err)
			samePacks(t, d, cl, []int64{5, 500})
			must(t, cl.Close())
		})
	}
}

func TestAStrangeServerBesideAGoodOneIsLeft(t *testing.T) {
	d := small()
	ca, stranger := newAuthority(t), newAuthority(t)
	fine := func(*x509.Certificate) {}
	mine := ca.issue(t, ca, fine)
	strange, _ := serve(t, stranger.issue(t, ca, fine), d)
	good, _ := serve(t, mine, d)
	c := open(t, Config{Security: mine, Servers: []string{strange, good}, ContentHash: hashOf(d)})
	samePacks(t, d, c, []int64{5, 500, 1000, 2000, 4000})
	wantError(t, c.lastReason(0), "unknown authority")
}

func TestAServerRefusesToGuessItsSecurity(t *testing.T) {
	_, err := NewServer(ServerConfig{})
	wantError(t, err, "no TLS configuration")
	_, err = NewServer(ServerConfig{Security: Security{TLS: &tls.Config{}, PlainText: true}})
	wantError(t, err, "choose one")
}
