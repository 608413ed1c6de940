package fsm

import (
	"slices"
	"strings"
	"testing"
)

// TestWhoIsApartMakesWay picks who may be in a ring.
func TestWhoIsApartMakesWay(t *testing.T) {
	for name, c := range map[string]struct {
		apart       string // pairs
		there, more string
		least       int
		want        string
		without     string
	}{
		"nobody":                               {"", "a", "b c", 0, "b c", ""},
		"the later of two":                     {"b-c", "a", "b c", 0, "b", "; without c, which not all others reach"},
		"from one that is there":               {"a-b", "a", "b c", 0, "c", "; without b, which not all others reach"},
		"one from two":                         {"b-c b-d", "", "a b c d", 0, "a c d", "; without b, which not all others reach"},
		"who is there outweighs":               {"a-b b-c b-d", "a", "b c d", 0, "c d", "; without b, which not all others reach"},
		"two from each other and from others":  {"a-b c-d", "", "a b c d", 0, "a c", "; without b, d, which not all others reach"},
		"pairs of others":                      {"x-y", "a", "b c", 0, "b c", ""},
		"no more than it takes come back":      {"a-b a-c", "a", "b c", 2, "b", "; without c, which not all others reach"},
		"all come back":                        {"a-b", "", "a b", 2, "a b", ""},
		"enough without them":                  {"a-b", "", "a b c", 2, "a c", "; without b, which not all others reach"},
		"fewer than the least, come what will": {"a-b", "", "a b", 9, "a b", ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := Apart{}
			for pair := range strings.FieldsSeq(c.apart) {
				one, other, _ := strings.Cut(pair, "-")
				a.Add(one, other)
			}
			list := func(names string) (list []*Worker) {
				for n := range strings.FieldsSeq(names) {
					list = append(list, &Worker{Name: n})
				}
				return list
			}
			there, more := list(c.there), list(c.more)
			ring := a.Together(there, more, c.least)
			var got []string
			for _, w := range ring {
				got = append(got, w.Name)
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("%v, want %s", got, c.want)
			}
			if text := a.Without(slices.Concat(there, more), slices.Concat(there, ring)); text != c.without {
				t.Errorf("it says %q, want %q", text, c.without)
			}
		})
	}
}
