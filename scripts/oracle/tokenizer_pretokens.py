"""Writes hashes of where the library cuts text and how it composes it, for every code point of Unicode in several places.

Run: .cache/oracle/bin/python scripts/oracle/tokenizer_pretokens.py tokenizer/testdata/pretokens.json
"""
import hashlib
import json
import os
import struct
import sys

from tokenizers import Regex, normalizers, pre_tokenizers

sys.path.insert(0, os.path.dirname(__file__))
from tokenizer_corpus import Chance  # noqa: E402
from tokenizer_golden import LLAMA  # noqa: E402

# Ranges full of what composition works on; tokenizer/unicode_test.go has the same.
COMPOSING = [(0x41, 0x5a), (0x300, 0x36f), (0x1100, 0x1112), (0x1161, 0x1175), (0x11a7, 0x11c2), (0x900, 0x9ff), (0xb00, 0xbff), (0xc00, 0xcff),
             (0x1e00, 0x1fff), (0x1d15e, 0x1d1c0), (0x2f800, 0x2f8ff), (0xf70, 0xfb9), (0x3040, 0x30ff), (0x110a0, 0x110bf), (0x11930, 0x11940)]
LINE = 64  # code points in one text


def lines(plane):
    """Texts with every code point of a plane at the start, behind and before letters, digits, spaces, signs and itself."""
    for first in range(plane << 16, (plane + 1) << 16, LINE):
        cps = [c for c in range(first, first + LINE) if not 0xd800 <= c <= 0xdfff]
        yield "".join("a{0}1{0}{0} {0} '{0}!{0}\n{0}'s{0}  ".format(chr(c)) for c in cps)


def compositions(plane):
    for first in range(plane << 16, (plane + 1) << 16, LINE):
        cps = [c for c in range(first, first + LINE) if not 0xd800 <= c <= 0xdfff]
        yield "".join("{0}|e{0}|{0}\u0301|\u0345{0}\u0323|q\u0334{0}\u0301\u0334|".format(chr(c)) for c in cps)


def random_compositions():
    r = Chance("skein compositions")
    for _ in range(40_000):
        out = ""
        for _ in range(r.between(1, 12)):
            low, high = r.one(COMPOSING)
            out += chr(r.between(low, high))
        yield out


def main():
    kinds = {
        "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "llama": pre_tokenizers.Split(Regex(LLAMA), "isolated"),
        "qwen": pre_tokenizers.Split(Regex(LLAMA.replace("{1,3}", "")), "isolated"),
        "digits": pre_tokenizers.Digits(individual_digits=True),
        "digitruns": pre_tokenizers.Digits(individual_digits=False),
    }
    out = {}
    for name, kind in kinds.items():
        out[name] = []
        for plane in range(17):
            h = hashlib.sha256()
            for text in lines(plane):
                for _, (start, end) in kind.pre_tokenize_str(text):
                    h.update(struct.pack("<I", end - start))  # characters
            out[name].append(h.hexdigest()[:16])
    nfc = normalizers.NFC().normalize_str
    out["nfc"] = []
    for plane in range(17):
        out["nfc"].append(hashlib.sha256("\0".join(map(nfc, compositions(plane))).encode()).hexdigest()[:16])
    out["random nfc"] = [hashlib.sha256("\0".join(map(nfc, random_compositions())).encode()).hexdigest()[:16]]
    with open(sys.argv[1], "w") as f:
        f.write(json.dumps(out, indent=1) + "\n")


main()
