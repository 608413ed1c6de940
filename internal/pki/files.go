package pki

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/skein-ml/skein/internal/vfs"
)

// Files are what a process shows and trusts, read from its folder:
//
//	ca.crt      whom it trusts
//	tls.crt     who it is
//	tls.key     the key to that; readable by its owner alone
//	gossip.key  of coordinators and workers: 32 bytes in hex; readable by their owner alone
type Files struct {
	Identity
	GossipKey []byte    // nil if there is none
	Expires   time.Time // of the certificate or of the authority, whichever comes first

	certificate tls.Certificate
	authority   *x509.CertPool
}

// Load reads a folder and checks all that can be checked before somebody calls: that
// the key is the certificate's, that the authority signed it, that nothing has expired,
// and that nobody else can read the keys.
func Load(dir string) (*Files, error) {
	return load(dir, time.Now())
}

func load(dir string, now time.Time) (*Files, error) {
	path := func(name string) string { return filepath.Join(dir, name) }
	f, err := assemble(path, func(name string) ([]byte, error) {
		if name == keyFile {
			return readPrivate(path(name))
		}
		return read(path(name))
	}, now)
	if err != nil {
		return nil, err
	}
	f.GossipKey, err = loadGossip(path(gossipFile))
	return f, err
}

// ParseFiles is Load of parts; whoever keeps them sees to it that nobody else reads them.
func ParseFiles(p Parts, now time.Time) (*Files, error) {
	f, err := assemble(func(name string) string { return name }, func(name string) ([]byte, error) {
		if p[name] == nil {
			return nil, fmt.Errorf("%s is missing", name)
		}
		return p[name], nil
	}, now)
	if text, there := p[gossipFile]; err == nil && there {
		f.GossipKey, err = parseGossip(gossipFile, text)
	}
	return f, err
}

// assemble makes sense of all parts but the gossip key. Path is what errors call a part,
// and get reads it.
func assemble(path func(name string) string, get func(name string) ([]byte, error), now time.Time) (*Files, error) {
	b, err := get(caFile)
	if err != nil {
		return nil, err
	}
	authorities, cluster, err := parseAuthorities(path(caFile), b, now)
	if err != nil {
		return nil, err
	}
	if b, err = get(certFile); err != nil {
		return nil, err
	}
	cert, err := parseCertificate(path(certFile), b)
	if err != nil {
		return nil, err
	}
	if err := checkTime(path(certFile), cert, now); err != nil {
		return nil, err
	}
	if b, err = get(keyFile); err != nil {
		return nil, err
	}
	key, err := parseKey(path(keyFile), b)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%s: the key is not that of %s; copy both from the same place, or make new ones with `skein certs`", path(keyFile), certFile)
	}
	f := &Files{authority: x509.NewCertPool()}
	for _, c := range authorities {
		f.authority.AddCert(c)
	}
	f.certificate = tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
	options := x509.VerifyOptions{Roots: f.authority, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	chains, err := cert.Verify(options)
	if err != nil {
		return nil, fmt.Errorf("%s: %s did not sign it (%w); make both with one authority, by `skein certs`", path(certFile), caFile, err)
	}
	signer := chains[0][len(chains[0])-1]
	f.Expires = earlier(cert.NotAfter, signer.NotAfter)
	if f.Identity, err = identityOf(cert); err != nil {
		return nil, fmt.Errorf("%s: %w", path(certFile), err)
	}
	if f.Cluster != cluster {
		return nil, fmt.Errorf("%s: it is of cluster %s, and %s of %s; make both with one authority, by `skein certs`", path(certFile), f.Cluster, caFile, cluster)
	}
	return f, nil
}

// Config is for both ends of a connection: TLS 1.3, each end must show a certificate of
// this cluster. It does not look at roles.
func (f *Files) Config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{f.certificate},
		RootCAs: f.authority, ClientCAs: f.authority, ClientAuth: tls.RequireAndVerifyClientCert,
		VerifyConnection: f.verify,
	}
}

// Expect is Config for a connection whose other end must have one of these roles.
func (f *Files) Expect(roles ...Role) *tls.Config {
	c, require := f.Config(), RequireRole(roles...)
	c.VerifyConnection = func(state tls.ConnectionState) error {
		if err := f.verify(state); err != nil {
			return err
		}
		return require(state)
	}
	return c
}

// verify refuses another cluster, whose authority may be the same by mistake.
func (f *Files) verify(state tls.ConnectionState) error {
	i, err := Peer(state)
	if err != nil {
		return err
	}
	if i.Cluster != f.Cluster {
		return fmt.Errorf("%s is at the other end, and this process is of cluster %s", i, f.Cluster)
	}
	return nil
}

// certificateBytesMax bounds what is read as a certificate or a key.
const certificateBytesMax = 64 << 10

func read(path string) ([]byte, error) {
	b, err := vfs.ReadFile(vfs.OS, path, certificateBytesMax)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is missing; make it with `skein certs`", path)
	}
	return b, err
}

// readPrivate reads a file that nobody but its owner may read. One that belongs to root
// its group may read too: so Kubernetes gives a Secret to a process that is not root.
func readPrivate(path string) ([]byte, error) {
	info, err := vfs.OS.Stat(path)
	others := fs.FileMode(0o077)
	if err == nil && lent(info) {
		others = 0o037
	}
	if err == nil && info.Mode().Perm()&others != 0 {
		return nil, fmt.Errorf("%s may be read by others (%s); run: chmod 600 %s", path, info.Mode().Perm(), path)
	}
	return read(path)
}

// block reads the only PEM block of a file.
func block(path, kind string, b []byte) ([]byte, error) {
	p, rest := pem.Decode(b)
	if p == nil || p.Type != kind || strings.TrimSpace(string(rest)) != "" {
		return nil, fmt.Errorf("%s: it is not one %s in PEM; make it with `skein certs`", path, strings.ToLower(kind))
	}
	return p.Bytes, nil
}

func loadCertificate(path string) (*x509.Certificate, error) {
	b, err := read(path)
	if err != nil {
		return nil, err
	}
	return parseCertificate(path, b)
}

func loadKey(path string) (*ecdsa.PrivateKey, error) {
	b, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	return parseKey(path, b)
}

func loadGossip(path string) ([]byte, error) {
	there, err := vfs.Exists(vfs.OS, path)
	if err != nil || !there {
		return nil, err
	}
	b, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	return parseGossip(path, b)
}

func parseGossip(path string, b []byte) ([]byte, error) {
	key, err := hex.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(key) != gossipBytes {
		return nil, fmt.Errorf("%s: it is not %d bytes in hex; copy it from another member of the cluster", path, gossipBytes)
	}
	return key, nil
}

// checkTime refuses a certificate before and after its time.
func checkTime(path string, c *x509.Certificate, now time.Time) error {
	const moment = "2006-01-02 15:04 UTC"
	switch {
	case now.After(c.NotAfter):
		return fmt.Errorf("%s: it expired on %s; make a new one with `skein certs`", path, c.NotAfter.UTC().Format(moment))
	case now.Before(c.NotBefore):
		return fmt.Errorf("%s: it is valid from %s on, and this machine's clock says %s; set the clock", path, c.NotBefore.UTC().Format(moment), now.UTC().Format(moment))
	}
	return nil
}

// writeFile writes a file that is not there yet. What ends in .key is for its owner alone.
func writeFile(path string, data []byte) error {
	mode := fs.FileMode(0o644)
	if filepath.Ext(path) == ".key" {
		mode = 0o600
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}
