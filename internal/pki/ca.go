package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/skein-ml/skein/internal/vfs"
)

// Names of the files in a folder.
const (
	caFile     = "ca.crt"
	caKeyFile  = "ca.key" // of the authority alone; it stays on one machine
	certFile   = "tls.crt"
	keyFile    = "tls.key"
	gossipFile = "gossip.key"
)

const (
	caValidity  = 10 * 365 * 24 * time.Hour
	backdate    = 5 * time.Minute // clocks of machines differ
	gossipBytes = 32
)

// CA is the certificate authority of one cluster.
type CA struct {
	cluster string
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
	gossip  []byte
	others  []*x509.Certificate // that members trust beside it, while one takes the place of another
}

// NewCA makes an authority, valid for ten years, and the key of the cluster's gossip.
func NewCA(cluster string) (*CA, error) {
	if err := (Identity{cluster, Coordinator, "ca"}).Check(); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: "Skein cluster " + cluster, Organization: []string{cluster}},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(caValidity),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		URIs: []*url.URL{{Scheme: "skein", Host: cluster, Path: "/ca"}},
	}
	cert, err := sign(template, template, key, key)
	if err != nil {
		return nil, err
	}
	gossip := make([]byte, gossipBytes)
	if _, err := rand.Read(gossip); err != nil {
		return nil, err
	}
	return &CA{cluster: cluster, cert: cert, key: key, gossip: gossip}, nil
}

// sign gives a template a random serial number and a signature.
func sign(template, parent *x509.Certificate, of, by *ecdsa.PrivateKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1))
	raw, err := x509.CreateCertificate(rand.Reader, template, parent, &of.PublicKey, by)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(raw)
}

// Cluster is the name of the cluster.
func (ca *CA) Cluster() string { return ca.cluster }

// Certificate is the authority's own, in PEM, with those that stand beside it while one is
// replaced: what everybody trusts.
func (ca *CA) Certificate() []byte {
	b := certPEM(ca.cert)
	for _, c := range ca.others {
		b = append(b, certPEM(c)...)
	}
	return b
}

// Issue makes a certificate and its key, in PEM. Hosts are the names and addresses at
// which others reach the process; a client, which nobody calls, needs none.
func (ca *CA) Issue(role Role, name string, hosts []string, validity time.Duration) (certificate, key []byte, err error) {
	who := Identity{ca.cluster, role, name}
	if err := who.Check(); err != nil {
		return nil, nil, err
	}
	if validity <= 0 {
		return nil, nil, fmt.Errorf("validity %s: a certificate must be valid for some time", validity)
	}
	if (role == Coordinator || role == Worker) && len(hosts) == 0 {
		return nil, nil, fmt.Errorf("%s %s: give the names and addresses at which others reach it", role, name)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: name, Organization: []string{ca.cluster}, OrganizationalUnit: []string{string(role)}},
		NotBefore: now.Add(-backdate), NotAfter: earlier(now.Add(validity), ca.cert.NotAfter),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, URIs: []*url.URL{who.uri()},
		// Every process but a client's is called and calls.
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if role == Client || role == Admin {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	for _, h := range hosts {
		if ip := net.ParseIP(strings.Trim(h, "[]")); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if isHost(h) {
			template.DNSNames = append(template.DNSNames, h)
		} else {
			return nil, nil, fmt.Errorf("host %q: a name or an IP address without port is needed", h)
		}
	}
	cert, err := sign(template, ca.cert, private, ca.key)
	if err != nil {
		return nil, nil, err
	}
	if key, err = keyPEM(private); err != nil {
		return nil, nil, err
	}
	return certPEM(cert), key, nil
}

func isHost(h string) bool {
	for _, r := range h {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_' && r != '*' {
			return false
		}
	}
	return h != "" && len(h) <= 253
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func certPEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func keyPEM(k *ecdsa.PrivateKey) ([]byte, error) {
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), nil
}

// Save writes the authority into a folder of its own, which must not have one yet:
// ca.crt, ca.key and gossip.key.
func (ca *CA) Save(dir string) error {
	key, err := keyPEM(ca.key)
	if err != nil {
		return err
	}
	return write(dir, []file{{caFile, certPEM(ca.cert)}, {gossipFile, ca.gossipHex()}, {caKeyFile, key}})
}

// IssueTo makes a certificate and writes what its holder needs into a folder, which
// must not have one yet: ca.crt, tls.crt, tls.key and, for coordinators and workers,
// gossip.key.
func (ca *CA) IssueTo(dir string, role Role, name string, hosts []string, validity time.Duration) error {
	cert, key, err := ca.Issue(role, name, hosts, validity)
	if err != nil {
		return err
	}
	files := []file{{caFile, ca.Certificate()}, {certFile, cert}}
	if role == Coordinator || role == Worker {
		files = append(files, file{gossipFile, ca.gossipHex()})
	}
	return write(dir, append(files, file{keyFile, key}))
}

func (ca *CA) gossipHex() []byte { return []byte(hex.EncodeToString(ca.gossip) + "\n") }

// LoadCA reads what Save wrote.
func LoadCA(dir string) (*CA, error) {
	cert, err := loadCertificate(filepath.Join(dir, caFile))
	if err != nil {
		return nil, err
	}
	if err := checkTime(filepath.Join(dir, caFile), cert, time.Now()); err != nil {
		return nil, err
	}
	key, err := loadKey(filepath.Join(dir, caKeyFile))
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%s: the key is not that of %s; copy both from the same place", filepath.Join(dir, caKeyFile), caFile)
	}
	gossip, err := loadGossip(filepath.Join(dir, gossipFile))
	if err != nil {
		return nil, err
	}
	ca := &CA{cert: cert, key: key, gossip: gossip}
	if ca.cluster, err = clusterOf(cert); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, caFile), err)
	}
	return ca, nil
}

// clusterOf reads the cluster from the certificate of an authority.
func clusterOf(ca *x509.Certificate) (string, error) {
	for _, u := range ca.URIs {
		if u.Scheme == "skein" && u.Path == "/ca" && isName(u.Host) {
			return u.Host, nil
		}
	}
	return "", errors.New("it is not the authority of a Skein cluster; make one with `skein certs`")
}

// file is one to be written. Those that end in .key are for their owner alone.
type file struct {
	name string
	data []byte
}

// write writes files that must not be there yet; the last one, the key, completes them.
func write(dir string, files []file) error {
	if err := vfs.OS.MkdirAll(dir); err != nil {
		return err
	}
	for _, f := range files {
		there, err := vfs.Exists(vfs.OS, filepath.Join(dir, f.name))
		if err != nil {
			return err
		}
		if there {
			return fmt.Errorf("%s is there already; it is not replaced: move it away, or choose another folder", filepath.Join(dir, f.name))
		}
	}
	for _, f := range files {
		if err := writeFile(filepath.Join(dir, f.name), f.data); err != nil {
			return err
		}
	}
	return vfs.OS.SyncDir(dir)
}
