package tokenizer

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"unicode/utf8"
)

// eachLine calls f with the texts of scripts/oracle/tokenizer_pretokens.py: format over every code point of a plane, 64
// to a text.
func eachLine(plane int, format string, f func(text string)) {
	for first := plane << 16; first < (plane+1)<<16; first += 64 {
		var b strings.Builder
		for r := rune(first); r < rune(first)+64; r++ {
			if r < 0xD800 || r > 0xDFFF {
				b.WriteString(strings.ReplaceAll(format, "{0}", string(r)))
			}
		}
		f(b.String())
	}
}

func pretokens(t *testing.T) map[string][]string {
	t.Helper()
	data, err := os.ReadFile("testdata/pretokens.json")
	if err != nil {
		t.Fatal(err)
	}
	var want map[string][]string
	if err := json.Unmarshal(data, &want); err != nil {
		t.Fatal(err)
	}
	return want
}

func TestScannersCutEveryCodePointAsTheLibraryDoes(t *testing.T) {
	want := pretokens(t)
	for name, scan := range map[string]scanner{
		"gpt2": scanGPT2, "llama": scanners[patternLlama], "qwen": scanners[patternQwen], "digits": scanDigits, "digitruns": scanDigitRuns,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for plane := range 17 {
				h := sha256.New()
				var size [4]byte
				eachLine(plane, "a{0}1{0}{0} {0} '{0}!{0}\n{0}'s{0}  ", func(text string) {
					for text != "" {
						n := scan(text)
						binary.LittleEndian.PutUint32(size[:], uint32(utf8.RuneCountInString(text[:n])))
						h.Write(size[:])
						text = text[n:]
					}
				})
				if got := hex.EncodeToString(h.Sum(nil)[:8]); got != want[name][plane] {
					t.Errorf("plane %d: hash of the cuts %s, the library's %s", plane, got, want[name][plane])
				}
			}
		})
	}
}

func TestNFCComposesEveryCodePointAsTheLibraryDoes(t *testing.T) {
	want := pretokens(t)
	for plane := range 17 {
		h := sha256.New()
		separator := ""
		eachLine(plane, "{0}|e{0}|{0}\u0301|\u0345{0}\u0323|q\u0334{0}\u0301\u0334|", func(text string) {
			fmt.Fprint(h, separator, nfc(text))
			separator = "\x00"
		})
		if got := hex.EncodeToString(h.Sum(nil)[:8]); got != want["nfc"][plane] {
			t.Errorf("plane %d: hash of the compositions %s, the library's %s", plane, got, want["nfc"][plane])
		}
	}
}

func TestNFCComposesRandomSequencesAsTheLibraryDoes(t *testing.T) {
	ranges := [][2]int{{0x41, 0x5a}, {0x300, 0x36f}, {0x1100, 0x1112}, {0x1161, 0x1175}, {0x11a7, 0x11c2}, {0x900, 0x9ff}, {0xb00, 0xbff},
		{0xc00, 0xcff}, {0x1e00, 0x1fff}, {0x1d15e, 0x1d1c0}, {0x2f800, 0x2f8ff}, {0xf70, 0xfb9}, {0x3040, 0x30ff}, {0x110a0, 0x110bf}, {0x11930, 0x11940}}
	r := chance{seed: "skein compositions"}
	h := sha256.New()
	separator := ""
	for range 40_000 {
		var text []rune
		for range r.between(1, 12) {
			in := ranges[r.below(len(ranges))]
			text = append(text, rune(r.between(in[0], in[1])))
		}
		composed := nfc(string(text))
		if again := nfc(composed); again != composed {
			t.Fatalf("%+q composes to %+q, and that to %+q", string(text), composed, again)
		}
		fmt.Fprint(h, separator, composed)
		separator = "\x00"
	}
	if got, want := hex.EncodeToString(h.Sum(nil)[:8]), pretokens(t)["random nfc"][0]; got != want {
		t.Errorf("hash of the compositions %s, the library's %s", got, want)
	}
}

func TestInvalidBytesBecomeOneReplacementPerMaximalSubpart(t *testing.T) {
	for in, want := range map[string]string{
		"":                         "",
		"plain":                    "plain",
		"\x80":                     "\uFFFD",
		"a\xFFb\xFE":               "a\uFFFDb\uFFFD",
		"\xE4\xBD":                 "\uFFFD",             // two of three bytes
		"\xE4\xBDa":                "\uFFFDa",            // and then something else
		"\xE0\x80\x80":             "\uFFFD\uFFFD\uFFFD", // overlong: no byte may follow E0 but A0 and up
		"\xED\xA0\x80":             "\uFFFD\uFFFD\uFFFD", // half a surrogate pair
		"\xF0\x9F\x98\xF0\x9F\x98": "\uFFFD\uFFFD",
		"\xF4\x90\x80\x80":         "\uFFFD\uFFFD\uFFFD\uFFFD", // beyond U+10FFFF
		"\uFFFD\xC3":               "\uFFFD\uFFFD",
	} {
		if got := lossyUTF8(in); got != want {
			t.Errorf("%+q becomes %+q, want %+q", in, got, want)
		}
	}
}
