package gossip

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skein-ml/skein/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

const patience = time.Minute

// heard collects what a member hears.
type heard struct {
	mu   sync.Mutex
	list []string
	wake chan struct{}
}

func newHeard() *heard { return &heard{wake: make(chan struct{}, 1)} }

func (h *heard) changed(m Member, up bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	word := "-"
	if up {
		word = "+"
	}
	h.list = append(h.list, word+m.Name+"="+m.Address)
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// wait waits until something was heard.
func (h *heard) wait(t *testing.T, what string) {
	t.Helper()
	late := time.After(patience)
	for {
		h.mu.Lock()
		found := slices.Contains(h.list, what)
		h.mu.Unlock()
		if found {
			return
		}
		select {
		case <-h.wake:
		case <-late:
			t.Fatalf("%s was never heard; what was: %v", what, h.list)
		}
	}
}

// warnings are what a member's logger has written.
type warnings struct {
	mu   sync.Mutex
	text strings.Builder
}

func (w *warnings) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(b)
}

func (w *warnings) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

func start(t *testing.T, role Role, name, address string, change func(*Config)) *Gossip {
	t.Helper()
	c := Config{Cluster: "test", Role: role, Name: name, Address: address, Listen: "127.0.0.1:0"}
	if change != nil {
		change(&c)
	}
	g, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func key(b byte) []byte { return bytes.Repeat([]byte{b}, keyBytes) }

func TestMembersHearOfCoordinatorsThatNobodyNamed(t *testing.T) {
	c1 := start(t, Coordinator, "c1", "127.0.0.1:7001", func(c *Config) { c.Key = key(1) })
	h := newHeard()
	w1 := start(t, Worker, "w1", "127.0.0.1:7501", func(c *Config) { c.Key, c.Join, c.Changed = key(1), []string{c1.Address()}, h.changed })
	h.wait(t, "+c1=127.0.0.1:7001")
	// c2 knows w1 alone, and is heard of by all.
	c2, err := Start(Config{Cluster: "test", Role: Coordinator, Name: "c2", Address: "127.0.0.1:7002", Listen: "127.0.0.1:0", Key: key(1), Join: []string{w1.Address()}})
	if err != nil {
		t.Fatal(err)
	}
	h.wait(t, "+c2=127.0.0.1:7002")
	if got := w1.Coordinators(); !slices.Equal(got, []string{"127.0.0.1:7001", "127.0.0.1:7002"}) {
		t.Errorf("w1 knows the coordinators %v", got)
	}
	if n := len(w1.Members()); n != 3 {
		t.Errorf("w1 knows %d members", n)
	}
	if err := c2.Close(); err != nil {
		t.Fatal(err)
	}
	h.wait(t, "-c2=127.0.0.1:7002")
	if got := w1.Coordinators(); !slices.Equal(got, []string{"127.0.0.1:7001"}) {
		t.Errorf("w1 knows the coordinators %v after c2 left", got)
	}
}

func TestWhoHasAnotherKeyNoKeyOrAnotherClusterIsNotHeard(t *testing.T) {
	inside := newHeard()
	var log warnings
	c1 := start(t, Coordinator, "c1", "127.0.0.1:7001", func(c *Config) {
		c.Key, c.Changed, c.Logger = key(1), inside.changed, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	})
	for name, change := range map[string]func(*Config){
		"wrong-key": func(c *Config) { c.Key = key(2) },
		"no-key":    func(c *Config) {},
		"elsewhere": func(c *Config) { c.Key, c.Cluster = key(1), "other" },
	} {
		outside := newHeard()
		g := start(t, Worker, name, "127.0.0.1:1", func(c *Config) { c.Changed = outside.changed; change(c) })
		if _, err := g.list.Join([]string{c1.Address()}); err == nil {
			t.Errorf("%s: it was let in", name)
		}
		if got := g.Coordinators(); len(got) != 0 {
			t.Errorf("%s: it was told of %v", name, got)
		}
		if _, err := c1.list.Join([]string{g.Address()}); err == nil {
			t.Errorf("%s: the cluster joined it", name)
		}
		if len(outside.list) != 0 {
			t.Errorf("%s: it heard %v", name, outside.list)
		}
	}
	// Whose cluster it is that uses this one's port is said by name, and with its address.
	if text := log.String(); !strings.Contains(text, `unacceptable label \"other\"`) || !strings.Contains(text, "127.0.0.1:") {
		t.Errorf("the coordinator warns only of this:\n%s", text)
	}
	// Who has the key is let in after all that.
	start(t, Worker, "w1", "127.0.0.1:7501", func(c *Config) { c.Key, c.Join = key(1), []string{c1.Address()} })
	inside.wait(t, "+w1=127.0.0.1:7501")
	if len(inside.list) != 1 || len(c1.Members()) != 2 {
		t.Errorf("c1 heard %v", inside.list)
	}
}

func TestAMemberJoinsWhenTheFirstComesLater(t *testing.T) {
	first := start(t, Worker, "w1", "127.0.0.1:7501", nil)
	address := first.Address()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	h := newHeard()
	start(t, Worker, "w2", "127.0.0.1:7502", func(c *Config) { c.Join, c.Changed = []string{address}, h.changed })
	start(t, Coordinator, "c1", "127.0.0.1:7001", func(c *Config) { c.Listen = address })
	h.wait(t, "+c1=127.0.0.1:7001")
}

func TestWhatIsNotSafeIsRefused(t *testing.T) {
	for want, c := range map[string]Config{
		"give --tls DIR":     {Listen: "0.0.0.0:0", Advertise: "10.0.0.1"},
		"32 are needed":      {Listen: "127.0.0.1:0", Key: []byte("short")},
		"every address":      {Listen: "0.0.0.0:0", Key: key(1)},
		"no host:port":       {Listen: "nonsense"},
		"a role and a name":  {Listen: "127.0.0.1:0"},
		"with a number":      {Listen: "127.0.0.1:http", Name: "w1", Role: Worker},
		"is another process": {Listen: start(t, Worker, "w0", "127.0.0.1:1", nil).Address(), Name: "w1", Role: Worker},
	} {
		g, err := Start(c)
		if err == nil {
			g.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want it refused with %q", c, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"role":"worker","name":"w1","address":"127.0.0.1:1"}`))
	f.Add([]byte(`{"role":"king","name":"w1","address":"127.0.0.1:1"}`))
	f.Add([]byte(`{"role":"worker","name":"w1","address":"1"}`))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err == nil && (m.Name == "" || m.Address == "" || m.Role != Worker && m.Role != Coordinator) {
			t.Errorf("%q was read as %+v", b, m)
		}
	})
}
