package pki

import (
	"strings"
	"testing"
	"time"
)

// TestProcessesAStageApartTrustEachOther replaces an authority. A cluster whose processes
// get their new files one after the other never has two that do not trust each other, and
// two stages at once would break it: nobody may be left behind.
func TestProcessesAStageApartTrustEachOther(t *testing.T) {
	now := time.Now()
	parts, err := newCA(t, "lab").Parts()
	if err != nil {
		t.Fatal(err)
	}
	var stages []Stage
	var servers, clients []*Files
	for range 4 {
		ca, err := ParseCA(parts, now)
		if err != nil {
			t.Fatal(err)
		}
		server, err := ca.IssueParts(Coordinator, "c1", []string{"c1.example"}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		s, err := ParseFiles(server, now)
		if err != nil {
			t.Fatal(err)
		}
		c, err := ca.Member(Admin, "operator", nil, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		stages, servers, clients = append(stages, parts.Stage()), append(servers, s), append(clients, c)
		if parts, err = parts.Advance(now); err != nil {
			t.Fatal(err)
		}
	}
	if want := []Stage{Settled, Introduced, Replaced, Settled}; [4]Stage(stages) != [4]Stage(want) {
		t.Fatalf("the stages are %v", stages)
	}
	for i, s := range servers {
		for k, c := range clients {
			serverErr, clientErr := meet(t, s.Expect(Admin), c.Expect(Coordinator), "c1.example")
			trusts := serverErr == nil && clientErr == nil
			if near := i-k <= 1 && k-i <= 1; trusts != near {
				t.Errorf("a server of stage %d and a client of stage %d: %v, %v", i, k, serverErr, clientErr)
			}
		}
		if string(s.GossipKey) != string(servers[0].GossipKey) {
			t.Errorf("stage %d has another key of the gossip", i)
		}
	}
}

func TestAuthoritiesThatDoNotBelongTogetherAreRefused(t *testing.T) {
	now := time.Now()
	lab, field := newCA(t, "lab"), newCA(t, "field")
	files, err := lab.IssueParts(Worker, "w1", []string{"w1.example"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	own := files[caFile]
	for what, c := range map[string]struct {
		authorities string
		says        string
	}{
		"two clusters":      {string(own) + string(field.Certificate()), "ca.crt: it has authorities of lab and of field"},
		"no authority":      {string(own) + string(files[certFile]), "ca.crt: it is not the authority of a Skein cluster"},
		"rubbish after it":  {string(own) + "x", "ca.crt: it is not one certificate in PEM"},
		"only another's":    {string(newCA(t, "lab").Certificate()), "tls.crt: ca.crt did not sign it"},
		"nothing":           {"", "ca.crt: it is not one certificate in PEM"},
		"the second is his": {string(newCA(t, "lab").Certificate()) + string(own), ""},
	} {
		files[caFile] = []byte(c.authorities)
		_, err := ParseFiles(files, now)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", what, err)
		}
	}
	parts, err := lab.Parts()
	if err != nil {
		t.Fatal(err)
	}
	parts[lastFile] = field.Certificate()
	if _, err := ParseCA(parts, now); err == nil || !strings.Contains(err.Error(), "last.crt: it is no authority of cluster lab") {
		t.Errorf("the last authority of another cluster: %v", err)
	}
}

func TestAnAuthorityThatHasExpiredIsLeftOutBesideOneThatIsGood(t *testing.T) {
	lab := newCA(t, "lab")
	parts, err := lab.Parts()
	if err != nil {
		t.Fatal(err)
	}
	late := lab.Ends().Add(-time.Hour)
	if parts, err = parts.Advance(late); err != nil {
		t.Fatal(err)
	}
	if parts, err = parts.Advance(late); err != nil {
		t.Fatal(err)
	}
	ca, err := ParseCA(parts, late)
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.IssueParts(Worker, "w1", []string{"w1.example"}, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseFiles(files, time.Now().Add(time.Hour)); err != nil {
		t.Error(err)
	}
	if _, err := ParseFiles(files, lab.Ends().Add(time.Hour)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("all have expired: %v", err)
	}
}
