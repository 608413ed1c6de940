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
}

func newCable(t *testing.T, to string) *cable {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{address: l.Addr().String(), to: to, l: l, conns: map[net.Conn]bool{}}
	c.done.Go(c.accept)
	t.Cleanup(func() {
		l.Close()
		c.cut()
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
				_, _ = io.Copy(ends[0], ends[1]) // it ends with either
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
}
