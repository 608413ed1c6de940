// Package pki is the small certificate authority of a cluster, and the files that its
// processes show each other. A certificate says in a URI what its holder is:
//
//	skein://CLUSTER/ROLE/NAME
//
// What a role may do is for those who check it to say; this package checks that the
// certificate is of the cluster's authority, in time, and of the cluster's name.
package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Role is what the holder of a certificate is.
type Role string

// The roles.
const (
	Coordinator Role = "coordinator" // takes part in the log
	Worker      Role = "worker"      // reports as the worker that its certificate names
	Client      Role = "client"      // submits, watches and cancels jobs; sees the cluster
	Admin       Role = "admin"       // a client that may also change and back up the coordinators
)

// Roles lists all roles.
var Roles = []Role{Coordinator, Worker, Client, Admin}

// Identity is what a certificate says of its holder.
type Identity struct {
	Cluster string
	Role    Role
	Name    string
}

// String writes the identity as people read it: worker w1 of cluster skein.
func (i Identity) String() string {
	return fmt.Sprintf("%s %s of cluster %s", i.Role, i.Name, i.Cluster)
}

// uri writes the identity as a certificate has it.
func (i Identity) uri() *url.URL {
	return &url.URL{Scheme: "skein", Host: i.Cluster, Path: "/" + string(i.Role) + "/" + i.Name}
}

// Check refuses an identity that could not be read back.
func (i Identity) Check() error {
	if !isName(i.Cluster) {
		return fmt.Errorf("cluster %q: a name of 1 to %d letters, digits, dashes, dots and underscores is needed", i.Cluster, nameBytesMax)
	}
	if !isName(i.Name) {
		return fmt.Errorf("name %q: 1 to %d letters, digits, dashes, dots and underscores are needed", i.Name, nameBytesMax)
	}
	if !slices.Contains(Roles, i.Role) {
		return fmt.Errorf("role %q: the roles are coordinator, worker, client and admin", i.Role)
	}
	return nil
}

const nameBytesMax = 64

func isName(s string) bool {
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_' {
			return false
		}
	}
	return s != "" && len(s) <= nameBytesMax
}

// identityOf reads the identity of a certificate. A certificate has exactly one.
func identityOf(c *x509.Certificate) (Identity, error) {
	var found []Identity
	for _, u := range c.URIs {
		if u.Scheme != "skein" {
			continue
		}
		role, name, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
		i := Identity{Cluster: u.Host, Role: Role(role), Name: name}
		if err := i.Check(); !ok || err != nil || i.uri().String() != u.String() {
			return Identity{}, fmt.Errorf("the certificate of %q says it is %q, which is no identity", c.Subject.CommonName, u)
		}
		found = append(found, i)
	}
	if len(found) != 1 {
		return Identity{}, fmt.Errorf("the certificate of %q has %d identities of a Skein cluster, where 1 is needed; make one with `skein certs`", c.Subject.CommonName, len(found))
	}
	return found[0], nil
}

// ErrPlain is the error of a connection whose other end showed no certificate.
var ErrPlain = errors.New("the connection has no certificate of its other end")

// Peer is who the other end of a connection is. The connection must have been verified,
// as Config does.
func Peer(state tls.ConnectionState) (Identity, error) {
	if len(state.PeerCertificates) == 0 {
		return Identity{}, ErrPlain
	}
	return identityOf(state.PeerCertificates[0])
}

// PeerRole is the role and the name of the other end of a connection.
func PeerRole(state tls.ConnectionState) (Role, string, error) {
	i, err := Peer(state)
	return i.Role, i.Name, err
}

// RequireRole makes a check that lets only some roles through.
func RequireRole(roles ...Role) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		i, err := Peer(state)
		if err != nil {
			return err
		}
		if !slices.Contains(roles, i.Role) {
			return fmt.Errorf("%s is at the other end, where a %s should be", i, join(roles))
		}
		return nil
	}
}

func join(roles []Role) string {
	var b strings.Builder
	for k, r := range roles {
		if k > 0 {
			b.WriteString(" or ")
		}
		b.WriteString(string(r))
	}
	return b.String()
}
