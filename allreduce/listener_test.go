package allreduce

import (
	"fmt"
	"net"
	"slices"
	"testing"
	"time"
)

// testListener is the listener of w1 in a ring of two. settle, if given, is called when
// a connection is about to be handed over: its deadline is lifted just before.
func testListener(t *testing.T, settle func()) (l *Listener, own hello) {
	t.Helper()
	o := ringOptions{worldSize: 2, workers: 2, elem: 4, chunk: 2000, elems: []int64{300}, seed: 1}
	o.listen = func(_ int, l net.Listener) net.Listener { return settling{l, settle} }
	w := newWorkers(t, o)[1]
	return w.listener, newLink(w.c).greeting(0, 1)
}

type settling struct {
	net.Listener
	settle func()
}

func (s settling) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	return settlingConn{c, s.settle}, err
}

type settlingConn struct {
	net.Conn
	settle func()
}

func (c settlingConn) SetDeadline(at time.Time) error {
	if at.IsZero() && c.settle != nil {
		c.settle()
	}
	return c.Conn.SetDeadline(at)
}

// dial connects to a listener and says something.
func dial(t *testing.T, l *Listener, say []byte) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := c.Write(say); err != nil {
		t.Fatal(err)
	}
	return c
}

// stages are how far the connections of a listener have come, oldest first.
func stages(l *Listener) (all []stage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, v := range l.pending {
		all = append(all, v.stage)
	}
	return all
}

// until waits, at most 20 s.
func until(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not happen")
		}
	}
}

// TestStrangersDoNotEndAnAcceptedConnection lets more than enough of them come just
// before a connection is handed over, and looks at it as soon as it is.
func TestStrangersDoNotEndAnAcceptedConnection(t *testing.T) {
	var l *Listener
	l, own := testListener(t, func() {
		for range 2 * pendingMax {
			_, c := net.Pipe()
			v := l.begin(c)
			l.mu.Lock()
			v.stage = held
			l.mu.Unlock()
		}
	})
	s, err := l.expect(own)
	if err != nil {
		t.Fatal(err)
	}
	s.conn = make(chan net.Conn) // without room, so that the hand-over waits for the test
	dialled := dial(t, l, own.append(nil))
	if a, err := readAnswer(dialled); err != nil || a.Verdict != accepted {
		t.Fatalf("answer %v, %v", a, err)
	}
	if _, err := dialled.Write([]byte{7}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // until the hand-over waits
	var conn net.Conn
	select {
	case conn = <-s.conn:
	case <-time.After(time.Minute):
		l.mu.Lock()
		s.gone = true
		l.mu.Unlock()
		t.Fatal("it is not handed over")
	}
	if slices.ContainsFunc(l.pending, func(v *visitor) bool { return v.stage == admitted }) {
		t.Error("a connection is handed over, and may still be ended")
	}
	got := make([]byte, 1)
	if _, err := conn.Read(got); err != nil || got[0] != 7 {
		t.Errorf("read %v, %v", got, err)
	}
}

func TestSilentStrangersDoNotEndAWorkerThatIsHeld(t *testing.T) {
	l, own := testListener(t, nil)
	worker := dial(t, l, own.append(nil))
	until(t, func() bool { return slices.Equal(stages(l), []stage{held}) })
	var strangers []net.Conn
	for range 2 * pendingMax {
		strangers = append(strangers, dial(t, l, nil))
	}
	if _, err := strangers[pendingMax].Read(make([]byte, 1)); err == nil { // until it is ended: as many have come after it
		t.Fatal("a stranger is answered")
	}
	if _, err := l.expect(own); err != nil {
		t.Fatal(err)
	}
	if a, err := readAnswer(worker); err != nil || a.Verdict != accepted {
		t.Errorf("answer %v, %v", a, err)
	}
}

func TestAListenerRemembersTheNewestJobs(t *testing.T) {
	l, own := testListener(t, nil)
	for i := range jobsMax + 2 {
		for _, job := range []string{"often", fmt.Sprint("once ", i)} {
			own.Key.Job = job
			own.Key.Generation++
			if _, err := l.expect(own); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, first := l.jobs["once 0"]
	_, last := l.jobs[fmt.Sprint("once ", jobsMax+1)]
	if often := l.jobs["often"]; len(l.jobs) != jobsMax || first || !last || often == nil {
		t.Errorf("%d jobs; the first: %t, the last: %t, the one that comes often: %v", len(l.jobs), first, last, often)
	}
}
