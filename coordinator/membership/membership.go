// Package membership decides which workers are given up. It never acts on silence by
// itself: a lease that has run out makes it look at what else is known, and what it
// gives up is fenced off by the next generation, so a mistake costs time and nothing
// else.
package membership

import (
	"fmt"
	"time"

	"github.com/skein-ml/skein/coordinator/fsm"
)

// Config says how long to wait. Zero means the default.
type Config struct {
	// Lease is how long a connected worker may be silent; 4 s. It must be well above
	// the heartbeat's interval, or a busy machine is taken for a dead one.
	Lease time.Duration
	// Reconnect is how long a worker whose connection broke may take to come back; half
	// the lease.
	Reconnect time.Duration
	// Silence is how long a connected worker may be silent that another one accuses; 1.2 s.
	// PingPatience of it must have passed since it was asked to say something; 250 ms.
	Silence, PingPatience time.Duration
}

// EnsureDefaults fills in what is zero.
func (c *Config) EnsureDefaults() {
	if c.Lease == 0 {
		c.Lease = 4 * time.Second
	}
	if c.Reconnect == 0 {
		c.Reconnect = c.Lease / 2
	}
	if c.Silence == 0 {
		c.Silence = 1200 * time.Millisecond
	}
	if c.PingPatience == 0 {
		c.PingPatience = 250 * time.Millisecond
	}
}

// Contact is what the leader has of one worker.
type Contact struct {
	Incarnation string    // of the process it talks or talked to
	Connected   bool      // its session stands
	Heard       time.Time // the last that it said
	Pinged      time.Time // when it was last asked to say something; zero: never
	Broke       time.Time // when the session ended, if it is not connected
}

// Accusation is a worker's report that its link to another one broke.
type Accusation struct {
	By     string
	Reason string
}

// Seen is what the leader has heard. It is not in the log, and no other coordinator
// knows it.
type Seen struct {
	// Since is when this leader began to listen without a break: when it was elected,
	// or when its process went on after it had been stopped. Silence before counts
	// against nobody.
	Since    time.Time
	Contacts map[string]Contact
	Accused  map[string]Accusation // by the name of the worker at the other end
}

// Decide gives up the workers that are gone, and says why, and how the others are.
func Decide(now time.Time, s *fsm.State, seen Seen, c Config) (entries []fsm.Entry, reason string) {
	alive, busy := 0, s.Busy()
	for _, w := range s.ByName() {
		why := gone(now, w, busy[w.Name] != "", seen, c)
		if why == "" {
			alive++
			continue
		}
		entries = append(entries, fsm.Entry{
			Reason: w.Name + " lost: " + why, Decision: &fsm.Remove{Worker: w.Name, Incarnation: w.Incarnation},
		})
	}
	return entries, fmt.Sprintf("%d of %d workers are here", alive, len(s.Workers))
}

// gone says why a worker is given up; empty if it is not. One that wants to leave and
// has work still is not released: its session may break like any other.
func gone(now time.Time, w *fsm.Worker, busy bool, seen Seen, c Config) string {
	contact, known := seen.Contacts[w.Name]
	accused := seen.Accused[w.Name]
	switch {
	case !known || contact.Incarnation != w.Incarnation:
		if silent := now.Sub(seen.Since); silent > c.Lease+c.Reconnect {
			return fmt.Sprintf("it has not been in touch with the leader for %s", seconds(silent))
		}
	case contact.Connected:
		if silent := now.Sub(later(contact.Heard, seen.Since)); silent > c.Lease {
			return fmt.Sprintf("no heartbeat for %s", seconds(silent))
		} else if accused.By != "" && silent > c.Silence && contact.Pinged.After(contact.Heard) && now.Sub(contact.Pinged) > c.PingPatience {
			return fmt.Sprintf("%s reports: %s, and it has not answered the leader for %s", accused.By, accused.Reason, seconds(silent))
		}
	case w.Draining && !busy:
		return "it drained and has left"
	case accused.By != "":
		return fmt.Sprintf("%s reports: %s, and its own connection to the leader is gone", accused.By, accused.Reason)
	default:
		if away := now.Sub(later(contact.Broke, seen.Since)); away > c.Reconnect {
			return fmt.Sprintf("its connection broke %s ago", seconds(away))
		}
	}
	return ""
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
