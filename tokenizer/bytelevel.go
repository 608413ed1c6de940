package tokenizer

// Byte-level vocabularies spell every byte as one printable character, so that tokens are text: the printable bytes of
// Latin-1 stand for themselves, the others for U+0100 and up in order of value.

const byteRunes = 0x100 + 68 // one more than the highest such character

var byteToRune, runeToByte = byteAlphabet()

func byteAlphabet() (toRune [256]rune, toByte [byteRunes]int16) {
	for r := range toByte {
		toByte[r] = -1
	}
	next := rune(0x100)
	for b := range toRune {
		r := rune(b)
		printable := b >= '!' && b <= '~' || b >= 0xA1 && b <= 0xAC || b >= 0xAE
		if !printable {
			r = next
			next++
		}
		toRune[b] = r
		toByte[r] = int16(b)
	}
	return toRune, toByte
}

// appendTokenBytes appends the bytes that a token's text spells. A text with a character outside the alphabet (an added
// token) spells itself.
func appendTokenBytes(dst []byte, text string) []byte {
	start := len(dst)
	for _, r := range text {
		if r >= byteRunes || runeToByte[r] < 0 {
			return append(dst[:start], text...)
		}
		dst = append(dst, byte(runeToByte[r]))
	}
	return dst
}

// isByteLevel says whether every character of text spells a byte.
func isByteLevel(text string) bool {
	for _, r := range text {
		if r >= byteRunes || runeToByte[r] < 0 {
			return false
		}
	}
	return true
}
