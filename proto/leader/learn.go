package leader

import "slices"

// learnedMax bounds what hearsay can add.
const learnedMax = 64

// Learn adds addresses of coordinators that were heard of. They are asked in turn after
// those that were given, when nobody is known to lead.
func (c *Conn) Learn(addresses []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range addresses {
		if a == "" || slices.Contains(c.known, a) || len(c.known) >= len(c.config.Addresses)+learnedMax {
			continue
		}
		c.known = append(c.known, a)
	}
}

// Doubt has somebody else asked next, if it is this address that is believed to lead. It
// is for callers who know that nobody answers there, long before the network does.
func (c *Conn) Doubt(address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range c.known {
		if c.current != address {
			return
		}
		c.current = c.known[c.next%len(c.known)]
		c.next++
	}
}
