package monitor

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skein-ml/skein/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

func get(t *testing.T, c *http.Client, url string) (int, string) {
	t.Helper()
	r, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

func TestAProcessIsSeenFromOutside(t *testing.T) {
	reg := NewRegistry()
	steps := prometheus.NewCounter(prometheus.CounterOpts{Name: "skein_steps_total", Help: "Steps."})
	reg.MustRegister(steps)
	steps.Add(3)
	var waits atomic.Bool
	s, err := Serve("127.0.0.1:0", reg, func() error {
		if waits.Load() {
			return errors.New("no leader")
		}
		return nil
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for _, c := range []struct {
		path  string
		waits bool
		code  int
		want  string
	}{
		{"/metrics", false, 200, "skein_steps_total 3"},
		{"/metrics", false, 200, "go_goroutines "},
		{"/metrics", false, 200, "process_resident_memory_bytes "},
		{"/healthz", true, 200, "ok"},
		{"/readyz", false, 200, "ready"},
		{"/readyz", true, 503, "no leader"},
		{"/", false, 404, ""},
	} {
		waits.Store(c.waits)
		code, text := get(t, client, "http://"+s.Addr()+c.path)
		if code != c.code || !strings.Contains(text, c.want) {
			t.Errorf("%s: %d %q, want %d %q", c.path, code, text, c.code, c.want)
		}
	}
	if _, err := Serve(s.Addr(), reg, nil, nil); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("two servers on one port: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", s.Addr()); err == nil {
		c.Close()
		t.Error("it is closed and answers")
	}
}
