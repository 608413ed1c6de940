package agent

import (
	"io"
	"net"
	"sync"
	"testing"
)

// cable is a TCP connection to a coordinator that can be cut and mended.
type cable struct {
	address string // of this end
	to      string
	l       net.Listener
	done    sync.WaitGroup

	mu    sync.Mutex
	down  bool
	conns map[net.Conn]bool
	flow  chan struct{} // closed while bytes get through
}

func newCable(t *testing.T, to string) *cable {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{address: l.Addr().String(), to: to, l: l, conns: map[net.Conn]bool{}, flow: make(chan struct{})}
	close(c.flow)
	c.done.Go(c.accept)
	t.Cleanup(func() {
		l.Close()
		c.cut()
		c.mend()
		c.done.Wait()
	})
	return c
}

func (c *cable) accept() {
	for {
		near, err := c.l.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", c.to)
		if err != nil {
			near.Close()
			continue
		}
		if !c.keep(near, far) {
			near.Close()
			far.Close()
			continue
		}
		for _, ends := range [][2]net.Conn{{near, far}, {far, near}} {
			c.done.Go(func() {
				_, _ = io.Copy(ends[0], slow{c, ends[1]}) // it ends with either
				near.Close()
				far.Close()
			})
		}
	}
}

func (c *cable) keep(conns ...net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down {
		return false
	}
	for _, conn := range conns {
		c.conns[conn] = true
	}
	return true
}

// cut breaks every connection, and those that come.
func (c *cable) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = true
	for conn := range c.conns {
		conn.Close()
	}
	clear(c.conns)
}

// mend lets connections through again.
func (c *cable) mend() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = false
	select {
	case <-c.flow:
	default:
		close(c.flow)
	}
}

// stall lets nothing through and breaks nothing, until it is mended.
func (c *cable) stall() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flow = make(chan struct{})
}

// slow reads what a cable lets through.
type slow struct {
	*cable
	from io.Reader
}

func (s slow) Read(b []byte) (int, error) {
	n, err := s.from.Read(b)
	s.mu.Lock()
	flow := s.flow
	s.mu.Unlock()
	<-flow
	return n, err
}
