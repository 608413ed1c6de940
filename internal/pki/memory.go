package pki

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// Parts are files by their names, for those who keep them elsewhere than in a folder.
type Parts map[string][]byte

// Parts are what Save writes: ca.crt, ca.key and gossip.key.
func (ca *CA) Parts() (Parts, error) {
	key, err := keyPEM(ca.key)
	if err != nil {
		return nil, err
	}
	return Parts{caFile: certPEM(ca.cert), caKeyFile: key, gossipFile: ca.gossipHex()}, nil
}

// ParseCA is LoadCA of parts.
func ParseCA(p Parts, now time.Time) (*CA, error) {
	cert, err := parseCertificate(caFile, p[caFile])
	if err != nil {
		return nil, err
	}
	if err := checkTime(caFile, cert, now); err != nil {
		return nil, err
	}
	key, err := parseKey(caKeyFile, p[caKeyFile])
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%s: the key is not that of %s", caKeyFile, caFile)
	}
	gossip, err := parseGossip(gossipFile, p[gossipFile])
	if err != nil {
		return nil, err
	}
	ca := &CA{cert: cert, key: key, gossip: gossip}
	if ca.cluster, err = clusterOf(cert); err != nil {
		return nil, err
	}
	ca.others, err = companions(p, ca.cluster)
	return ca, err
}

// IssueParts is IssueTo into parts: ca.crt, tls.crt, tls.key and, for coordinators and
// workers, gossip.key.
func (ca *CA) IssueParts(role Role, name string, hosts []string, validity time.Duration) (Parts, error) {
	cert, key, err := ca.Issue(role, name, hosts, validity)
	if err != nil {
		return nil, err
	}
	p := Parts{caFile: ca.Certificate(), certFile: cert, keyFile: key}
	if role == Coordinator || role == Worker {
		p[gossipFile] = ca.gossipHex()
	}
	return p, nil
}

// Member issues a certificate for the process that holds the authority.
func (ca *CA) Member(role Role, name string, hosts []string, validity time.Duration) (*Files, error) {
	cert, key, err := ca.Issue(role, name, hosts, validity)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	if pair.Leaf == nil {
		return nil, errors.New("a certificate that was just made has no leaf")
	}
	f := &Files{Identity: Identity{ca.cluster, role, name}, Expires: earlier(pair.Leaf.NotAfter, ca.cert.NotAfter), certificate: pair, authority: x509.NewCertPool()}
	for _, c := range append([]*x509.Certificate{ca.cert}, ca.others...) {
		f.authority.AddCert(c)
	}
	return f, nil
}

// Ends is when a certificate in PEM expires.
func Ends(certificate []byte) (time.Time, error) {
	c, err := parseCertificate(certFile, certificate)
	if err != nil {
		return time.Time{}, err
	}
	return c.NotAfter, nil
}

func parseCertificate(name string, b []byte) (*x509.Certificate, error) {
	raw, err := block(name, "CERTIFICATE", b)
	if err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

func parseKey(name string, b []byte) (*ecdsa.PrivateKey, error) {
	raw, err := block(name, "PRIVATE KEY", b)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	private, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: a %T, where an ECDSA key is needed; make it with `skein certs`", name, key)
	}
	return private, nil
}
