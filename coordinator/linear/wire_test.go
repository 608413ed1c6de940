package linear

import (
	"encoding/hex"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/skein-ml/skein/coordinator/raftlog"
)

// wire carries every connection to the coordinators, and can hold what flows from one of
// them to another: nothing is lost, as on TCP, but it comes late or never. Clients and
// workers are never held.
type wire struct {
	t    *testing.T
	done sync.WaitGroup

	mu        sync.Mutex
	ended     bool
	listeners []net.Listener
	to        map[string]string           // by id: where the coordinator listens
	held      map[[2]string]chan struct{} // by from and to: closed once it flows again
	conns     map[net.Conn]bool
}

func newWire(t *testing.T) *wire {
	w := &wire{t: t, to: map[string]string{}, held: map[[2]string]chan struct{}{}, conns: map[net.Conn]bool{}}
	t.Cleanup(func() {
		w.mu.Lock()
		w.ended = true
		for _, l := range w.listeners {
			l.Close()
		}
		w.mu.Unlock()
		w.flow()
		w.cutAll()
		w.done.Wait()
	})
	return w
}

// open makes the address at which everybody reaches a coordinator.
func (w *wire) open(id string) (address string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.listeners = append(w.listeners, l)
	w.mu.Unlock()
	w.done.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if w.keep(conn) {
				w.done.Go(func() { w.carry(id, conn) })
			}
		}
	})
	return l.Addr().String()
}

// lead says where a coordinator listens now.
func (w *wire) lead(id, address string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.to[id] = address
}

// keep remembers a connection; false if the wire has ended, and the connection too.
func (w *wire) keep(conn net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		conn.Close()
		return false
	}
	w.conns[conn] = true
	return true
}

func (w *wire) drop(conn net.Conn) {
	conn.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.conns, conn)
}

// carry moves the bytes of one connection to a coordinator, both ways.
func (w *wire) carry(id string, near net.Conn) {
	defer w.drop(near)
	from, begin, err := caller(near)
	if err != nil {
		return
	}
	w.wait(from, id)
	w.mu.Lock()
	address := w.to[id]
	w.mu.Unlock()
	far, err := net.Dial("tcp", address)
	if err != nil || !w.keep(far) {
		return
	}
	defer w.drop(far)
	if _, err := far.Write(begin); err != nil {
		return
	}
	var back sync.WaitGroup
	back.Go(func() { w.pump(id, from, near, far) })
	w.pump(from, id, far, near)
	back.Wait()
}

// pump copies what one end says to the other, when it flows.
func (w *wire) pump(from, to string, out, in net.Conn) {
	defer out.Close()
	defer in.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := in.Read(b)
		if n > 0 {
			w.wait(from, to)
			if _, err := out.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// caller reads who calls: a coordinator says so at once, everybody else is "".
func caller(conn net.Conn) (id string, begin []byte, err error) {
	begin = make([]byte, 8)
	if _, err := io.ReadFull(conn, begin); err != nil {
		return "", nil, err
	}
	if string(begin[:4]) != raftlog.Magic {
		return "", begin, nil
	}
	c, i := int(begin[6]), int(begin[7])
	rest := make([]byte, c+i)
	if _, err := io.ReadFull(conn, rest); err != nil {
		return "", nil, err
	}
	return string(rest[c:]), append(begin, rest...), nil
}

// wait waits until bytes flow from one to another.
func (w *wire) wait(from, to string) {
	w.mu.Lock()
	held := w.held[[2]string{from, to}]
	w.mu.Unlock()
	if held != nil {
		<-held
	}
}

// hold lets nothing through from one to another.
func (w *wire) hold(from, to string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if k := [2]string{from, to}; w.held[k] == nil && !w.ended {
		w.held[k] = make(chan struct{})
	}
}

// flow lets everything through again.
func (w *wire) flow() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for k, held := range w.held {
		close(held)
		delete(w.held, k)
	}
}

// cutAll breaks every connection.
func (w *wire) cutAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for conn := range w.conns {
		conn.Close()
	}
}

func TestTheWireKnowsWhoCalls(t *testing.T) {
	for said, want := range map[string]string{
		hex.EncodeToString([]byte("PRI * HTTP/2.0\r\n")):        "",
		"534b4e52020004027465737463" + "31" + "00000000":        "c1",
		hex.EncodeToString([]byte("GET /metrics HTTP/1.1\r\n")): "",
	} {
		raw, err := hex.DecodeString(said)
		if err != nil {
			t.Fatal(err)
		}
		near, far := net.Pipe()
		go func() {
			_, _ = far.Write(raw)
			far.Close()
		}()
		id, begin, err := caller(near)
		rest, _ := io.ReadAll(near)
		if err != nil || id != want || string(begin)+string(rest) != string(raw) {
			t.Errorf("%q is from %q (%v), and %q %q goes on", raw, id, err, begin, rest)
		}
	}
}
