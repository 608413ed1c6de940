package protocol

// packer writes small numbers one after the other into words.
type packer struct {
	words [3]uint64
	at    int
}

func (p *packer) put(v uint8, width int) {
	if p.at/64 != (p.at+width-1)/64 {
		p.at = (p.at/64 + 1) * 64 // a number lies in one word
	}
	p.words[p.at/64] |= uint64(v) << (p.at % 64)
	p.at += width
}

func (p *packer) flag(b bool) {
	if b {
		p.put(1, 1)
	} else {
		p.put(0, 1)
	}
}

// key is the whole state in a few words: two states with one key are the same.
func (s *state) key() [3]uint64 {
	var p packer
	for i := range s.w {
		w := &s.w[i]
		for _, b := range []bool{w.up, w.lost, w.voted, w.fresh, w.ahead} {
			p.flag(b)
		}
		p.put(w.gen, 2)
		p.put(w.seal, 2)
		p.put(w.step, 2)
		for _, m := range w.m {
			p.put(m, 4)
		}
		p.put(w.r, 3)
		for _, o := range w.past {
			v := o.step
			for k, b := range []bool{o.was, o.voted, o.fresh} {
				if b {
					v |= 4 << k
				}
			}
			p.put(v, 5)
		}
	}
	p.put(s.gen, 2)
	for g := 1; g <= gensMax; g++ {
		for _, o := range s.owner[g] {
			p.put(o, 2)
		}
		p.put(s.target[g], 2)
	}
	for _, safe := range s.safe {
		p.put(safe, 3)
	}
	p.put(s.faults, 3)
	p.put(s.joins, 2)
	p.flag(s.over)
	if p.at > 64*len(p.words) {
		panic("the state does not fit its key")
	}
	return p.words
}
