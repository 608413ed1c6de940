package pki

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"maps"
	"time"
)

// An authority is replaced in three steps, between which every process of the cluster gets
// new files: first all trust the next one beside the one that signs, then the next one
// signs and the last one is trusted still, then that is forgotten. Processes that are one
// step apart trust each other, so none of them has to stop.

// Names of the parts of an authority that is being replaced.
const (
	nextFile    = "next.crt"
	nextKeyFile = "next.key"
	lastFile    = "last.crt"
)

// Stage is how far an authority's replacement is.
type Stage int

// The stages.
const (
	Settled    Stage = iota // one authority signs, and it alone is trusted
	Introduced              // the next one is trusted too
	Replaced                // the next one signs, and the last one is trusted too
)

// Stage tells how far the replacement of the authority in p is.
func (p Parts) Stage() Stage {
	switch {
	case p[nextFile] != nil:
		return Introduced
	case p[lastFile] != nil:
		return Replaced
	}
	return Settled
}

// Advance returns the parts of an authority one stage on. The secret of the gossip stays.
func (p Parts) Advance(now time.Time) (Parts, error) {
	ca, err := ParseCA(p, now)
	if err != nil {
		return nil, err
	}
	out := maps.Clone(p)
	switch p.Stage() {
	case Settled:
		next, err := NewCA(ca.cluster)
		if err != nil {
			return nil, err
		}
		key, err := keyPEM(next.key)
		if err != nil {
			return nil, err
		}
		out[nextFile], out[nextKeyFile] = certPEM(next.cert), key
	case Introduced:
		out[lastFile], out[caFile], out[caKeyFile] = certPEM(ca.cert), p[nextFile], p[nextKeyFile]
		delete(out, nextFile)
		delete(out, nextKeyFile)
	default:
		delete(out, lastFile)
	}
	_, err = ParseCA(out, now)
	return out, err
}

// Ends is when the authority expires.
func (ca *CA) Ends() time.Time { return ca.cert.NotAfter }

// companions are the other authorities that members trust meanwhile.
func companions(p Parts, cluster string) ([]*x509.Certificate, error) {
	var list []*x509.Certificate
	for _, name := range []string{nextFile, lastFile} {
		if p[name] == nil {
			continue
		}
		c, err := parseCertificate(name, p[name])
		if err != nil {
			return nil, err
		}
		if of, err := clusterOf(c); err != nil || of != cluster {
			return nil, fmt.Errorf("%s: it is no authority of cluster %s", name, cluster)
		}
		list = append(list, c)
	}
	return list, nil
}

// parseAuthorities reads the authorities of ca.crt, of which all are of one cluster and one
// at least is valid now. What has expired is left out.
func parseAuthorities(path string, b []byte, now time.Time) (list []*x509.Certificate, cluster string, err error) {
	var expired error
	for part := range bytes.SplitAfterSeq(b, []byte("-----END CERTIFICATE-----")) {
		if len(bytes.TrimSpace(part)) == 0 && (len(list) > 0 || expired != nil) {
			continue
		}
		c, err := parseCertificate(path, part)
		if err != nil {
			return nil, "", err
		}
		of, err := clusterOf(c)
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", path, err)
		}
		if cluster != "" && of != cluster {
			return nil, "", fmt.Errorf("%s: it has authorities of %s and of %s; a process is of one cluster", path, cluster, of)
		}
		cluster = of
		if err := checkTime(path, c, now); err != nil {
			expired = err
			continue
		}
		list = append(list, c)
	}
	if len(list) == 0 {
		return nil, "", expired
	}
	return list, cluster, nil
}
