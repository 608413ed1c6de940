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
