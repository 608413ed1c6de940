package membership

import (
	"testing"

	"github.com/skein-ml/skein/coordinator/fsm"
	"github.com/skein-ml/skein/coordinator/fsm/fsmtest"
)

// Commands: connected w1 … heard=1s · broke w1 … at=2s · accused w1 by=w2 reason=… ·
// since at=5s · pinged w1 … at=3s · answered w1 … at=3s · prepared a by=w1 (it does so still) · decide at=6s.
func TestTranscripts(t *testing.T) {
	stories := map[*fsmtest.Story]*Seen{}
	var c Config
	c.EnsureDefaults()
	fsmtest.Run(t, func(t *testing.T, s *fsmtest.Story, cmd fsmtest.Command) string {
		seen := stories[s]
		if seen == nil {
			seen = &Seen{Since: fsmtest.Start, Contacts: map[string]Contact{}, Accused: map[string]Accusation{}}
			stories[s] = seen
		}
		switch cmd.Word {
		case "connected":
			for _, w := range cmd.Args {
				seen.Contacts[w] = Contact{Incarnation: s.State.Workers[w].Incarnation, Connected: true, Heard: fsmtest.Start.Add(cmd.Duration("heard"))}
			}
		case "broke":
			for _, w := range cmd.Args {
				contact := seen.Contacts[w]
				contact.Connected, contact.Broke = false, cmd.At()
				seen.Contacts[w] = contact
			}
		case "accused":
			seen.Accused[cmd.Args[0]] = Accusation{By: cmd.Keys["by"], Reason: cmd.Keys["reason"]}
		case "pinged", "answered":
			for _, w := range cmd.Args {
				contact := seen.Contacts[w]
				if cmd.Word == "pinged" {
					contact.Pinged = cmd.At()
				} else {
					contact.Heard = cmd.At()
				}
				seen.Contacts[w] = contact
			}
		case "prepared":
			w := s.State.Workers[cmd.Keys["by"]]
			s.Apply(t, &fsm.Prepare{Job: s.ID(cmd.Args[0]), Number: 1, Worker: w.Name, Incarnation: w.Incarnation})
		case "since":
			seen.Since = cmd.At()
		case "decide":
			entries, reason := Decide(cmd.At(), s.State, *seen, c)
			return s.Carry(t, entries) + reason
		default:
			t.Fatalf("no command %q", cmd.Word)
		}
		return ""
	})
}
