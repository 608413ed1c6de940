package pki

import (
	"bytes"
	"crypto/tls"
	"maps"
	"strings"
	"testing"
	"time"
)

func TestAnAuthorityOfPartsIssuesWhatItsMembersTrust(t *testing.T) {
	made := newCA(t, "ml.lab")
	parts, err := made.Parts()
	if err != nil {
		t.Fatal(err)
	}
	ca, err := ParseCA(parts, time.Now())
	if err != nil || ca.Cluster() != "ml.lab" {
		t.Fatalf("it came back as that of %v, %v", ca, err)
	}
	own, err := ca.IssueParts(Coordinator, "c1", []string{"c1.example"}, time.Hour)
	if err != nil || len(own) != 4 {
		t.Fatalf("%d parts, %v", len(own), err)
	}
	if ends, err := Ends(own[certFile]); err != nil || time.Until(ends) > time.Hour {
		t.Errorf("it ends at %s, %v", ends, err)
	}
	pair, err := tls.X509KeyPair(own[certFile], own[keyFile])
	if err != nil {
		t.Fatal(err)
	}
	server, err := ParseFiles(own, time.Now())
	if err != nil || server.Name != "c1" || len(server.GossipKey) != gossipBytes || !bytes.Equal(server.certificate.Certificate[0], pair.Certificate[0]) {
		t.Fatalf("its parts are read as %+v, %v", server, err)
	}
	for _, name := range []string{caFile, certFile, keyFile} {
		part := own[name]
		delete(own, name)
		if _, err := ParseFiles(own, time.Now()); err == nil || err.Error() != name+" is missing" {
			t.Errorf("without %s: %v", name, err)
		}
		own[name] = part
	}
	admin, err := ca.Member(Admin, "operator", nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if serverErr, clientErr := meet(t, server.Expect(Admin), admin.Expect(Coordinator), "c1.example"); serverErr != nil || clientErr != nil {
		t.Errorf("c1 and the admin do not trust each other: %v, %v", serverErr, clientErr)
	}
	if client, err := ca.IssueParts(Client, "me", nil, time.Hour); err != nil || client[gossipFile] != nil {
		t.Errorf("a client has the key of the gossip, %v", err)
	}
}

func TestPartsThatAreNoAuthorityAreRefused(t *testing.T) {
	good, err := newCA(t, "lab").Parts()
	if err != nil {
		t.Fatal(err)
	}
	other, err := newCA(t, "lab").Parts()
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		name string
		data []byte
		want string
	}{
		"nothing":       {caFile, nil, "ca.crt: it is not one certificate in PEM"},
		"another's key": {caKeyFile, other[caKeyFile], "ca.key: the key is not that of ca.crt"},
		"no gossip":     {gossipFile, nil, "gossip.key: it is not 32 bytes in hex"},
	} {
		parts := maps.Clone(good)
		parts[c.name] = c.data
		if _, err := ParseCA(parts, time.Now()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := ParseCA(good, time.Now().Add(2*caValidity)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an authority that has expired: %v", err)
	}
}
