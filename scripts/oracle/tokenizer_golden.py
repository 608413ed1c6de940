"""Writes what Hugging Face's tokenizers library answers, for the Go tests to compare with.

Run: .cache/oracle/bin/python scripts/oracle/tokenizer_golden.py .cache/testdata tokenizer/testdata
 - golden_NAME.json for the published vocabularies gpt2, llama3.1, qwen3, smollm2 (fetched, never committed): per document of the
   corpus the number of ids and a hash of them; per block of documents hashes of decoded texts; some ids in full.
 - small_NAME.json.gz: small vocabularies trained here on the corpus, with every setting that Load accepts, and their answers.
Run: … tokenizer_golden.py check NAME tokenizer.json tokenizer/testdata
   to see that a tokenizer.json written by the Go package gives those answers in the library, too.
"""
import copy
import gzip
import hashlib
import json
import os
import struct
import sys

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

sys.path.insert(0, os.path.dirname(__file__))
from tokenizer_corpus import CONTRACTIONS, Chance, code_point, documents  # noqa: E402

BLOCK = 32
SAMPLES = ["", "Hello world", "  two  spaces\n\n2024 don't", "naïve café 你好 🤖", "a\x00b\x7fc\x80", "<|endoftext|>x<|im_end|>\n", "I'LL it'ſ 'S\r\n\r\n  x"]


def read_gguf(path):
    """The metadata of a GGUF file."""
    with open(path, "rb") as f:
        def number(code):
            return struct.unpack("<" + code, f.read(struct.calcsize("<" + code)))[0]

        def text():
            return f.read(number("Q")).decode()

        def value(kind):
            if kind == 8:
                return text()
            if kind == 9:
                kind, n = number("I"), number("Q")
                return [value(kind) for _ in range(n)]
            return number({0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}[kind])

        assert f.read(4) == b"GGUF" and number("I") == 3
        number("Q")
        out = {}
        for _ in range(number("Q")):
            key = text()
            out[key] = value(number("I"))
        return out


def byte_level(vocab, merges, before=()):
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    t.pre_tokenizer = pre_tokenizers.Sequence([*before, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    t.decoder = decoders.ByteLevel()
    return t


def gpt2(folder):
    with open(folder + "/encoder.json") as f:
        vocab = json.load(f)
    del vocab["<|endoftext|>"]
    with open(folder + "/vocab.bpe", encoding="utf-8") as f:
        merges = [tuple(line.split(" ")) for line in f.read().split("\n")[1:] if line]
    t = byte_level(vocab, merges)
    t.add_special_tokens(["<|endoftext|>"])
    return t


def smollm2(folder):
    kv = read_gguf(folder + "/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert kv["tokenizer.ggml.pre"] == "smollm"
    tokens = kv["tokenizer.ggml.tokens"]
    t = byte_level({s: i for i, s in enumerate(tokens)}, [tuple(m.split(" ")) for m in kv["tokenizer.ggml.merges"]],
                   [pre_tokenizers.Digits(individual_digits=True)])
    t.add_special_tokens([s for s, kind in zip(tokens, kv["tokenizer.ggml.token_type"]) if kind == 3])
    return t


PUBLISHED = {
    "gpt2": (gpt2, ["encoder.json", "vocab.bpe"]),
    "llama3.1": (lambda d: Tokenizer.from_file(d + "/tokenizer.json"), ["tokenizer.json"]),
    "qwen3": (lambda d: Tokenizer.from_file(d + "/tokenizer.json"), ["tokenizer.json"]),
    "smollm2": (smollm2, ["SmolLM2-135M-Instruct.Q4_1.gguf"]),
}


def sha(data):
    return hashlib.sha256(data).hexdigest()[:16]


def pack(ids):
    return struct.pack("<%di" % len(ids), *ids)


def hash_list(parts):
    return sha(b"".join(struct.pack("<I", len(p)) + p for p in parts))


def random_ids(r, size):
    return [r.below(size) for _ in range(r.between(1, 40))]


def answers(t, texts, per_document):
    """Everything the Go package must answer alike."""
    ids = [t.encode(s, add_special_tokens=False).ids for s in texts]
    t.encode_special_tokens = True
    literal = [t.encode(s, add_special_tokens=False).ids for s in texts]
    t.encode_special_tokens = False
    size = t.get_vocab_size(with_added_tokens=True)
    r = Chance("skein random ids")
    blocks = []
    for i in range(0, len(texts), BLOCK):
        drawn = [random_ids(r, size) for _ in range(BLOCK)]
        part = ids[i:i + BLOCK]
        blocks.append({
            "ids": hash_list(map(pack, part)),
            "literal": hash_list(map(pack, literal[i:i + BLOCK])),
            "decoded": hash_list(t.decode(x, skip_special_tokens=False).encode() for x in part),
            "skipped": hash_list(t.decode(x, skip_special_tokens=True).encode() for x in part),
            "random": hash_list(t.decode(x, skip_special_tokens=False).encode() for x in drawn),
        })
    out = {"tokenizers": tokenizers.__version__, "vocab_size": size, "blocks": blocks}
    if per_document:
        out["documents"] = ["%d %s" % (len(x), sha(pack(x))) for x in ids]
    out["samples"] = [{"text": s, "ids": t.encode(s, add_special_tokens=False).ids, "with_special": t.encode(s, add_special_tokens=True).ids}
                      for s in SAMPLES]
    return out


LLAMA = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train(texts, size, initial):
    """A small vocabulary with its merges as pairs."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=initial, show_progress=False, special_tokens=["<|end|>", "<|start|>"]))
    return json.loads(t.to_str())["model"]


def small_tokenizers(texts):
    """Yields name and tokenizer: every setting that Load accepts is in one of them."""
    full = train(texts, 700, sorted(pre_tokenizers.ByteLevel.alphabet()))
    holes = copy.deepcopy(full)
    gone = {c for c in pre_tokenizers.ByteLevel.alphabet() if ord(c) > 0x120 or c in "ÐÑé"}
    holes["merges"] = [m for m in full["merges"] if not gone & set("".join(m))]
    kept = [s for s in full["vocab"] if not gone & set(s)]
    holes["vocab"] = {s: i for i, s in enumerate(kept)}

    def make(model, before=(), normalizer=None, regex=True, **settings):
        m = models.BPE(vocab=model["vocab"], merges=[tuple(x) for x in model["merges"]], **settings)
        t = Tokenizer(m)
        t.pre_tokenizer = pre_tokenizers.Sequence([*before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)])
        t.decoder = decoders.ByteLevel()
        if normalizer:
            t.normalizer = normalizer
        t.add_special_tokens(["<|end|>", "<|start|>"])
        return t

    yield "gpt2", make(full)

    t = make(full, [pre_tokenizers.Split(Regex(LLAMA), "isolated")], regex=False, ignore_merges=True)
    t.add_special_tokens(["<|begin|>", "<|done|>"])
    t.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin|> $A <|done|>", pair="<|begin|> $A <|begin|> $B", special_tokens=[
            ("<|begin|>", t.token_to_id("<|begin|>")), ("<|done|>", t.token_to_id("<|done|>"))])])
    yield "llama", t

    t = make(full, [pre_tokenizers.Split(Regex(LLAMA.replace("{1,3}", "")), "isolated")], normalizers.NFC(), regex=False)
    t.add_tokens([AddedToken("é!", normalized=True), AddedToken("e\u0301?", normalized=True), AddedToken("\u0301\u0323", normalized=True),
                  AddedToken("ñ~", normalized=False), AddedToken("<think>", normalized=False)])
    t.add_special_tokens([AddedToken("Å>", normalized=True, special=True)])
    yield "qwen", t

    yield "smollm", make(holes, [pre_tokenizers.Digits(individual_digits=True)])
    yield "digitruns", make(full, [pre_tokenizers.Digits(individual_digits=False)], normalizers.Sequence([]))
    yield "unk", make(holes, unk_token="<|end|>")
    yield "fused", make(holes, unk_token="<|end|>", fuse_unk=True)

    t = make(full)
    t.add_tokens([AddedToken("cat", single_word=True, normalized=False), AddedToken("catfish", normalized=False), AddedToken("fish", single_word=True),
                  AddedToken("<l>", lstrip=True), AddedToken("<r>", rstrip=True), AddedToken("<b>", lstrip=True, rstrip=True, normalized=False),
                  AddedToken("  ", normalized=False), AddedToken("<<l>", lstrip=True, single_word=True, normalized=False), AddedToken("好的"), AddedToken("aa"),
                  AddedToken("aaab", single_word=True), AddedToken("Ġthe", normalized=False)])
    t.add_special_tokens([AddedToken("<s>", lstrip=True, special=True), AddedToken("[MASK]", lstrip=True, normalized=True, special=True)])
    yield "flags", t


def flag_texts():
    """Texts full of the added tokens above, beside all that their settings look at."""
    r = Chance("skein added tokens")
    pieces = ["cat", "catfish", "fish", "<l>", "<r>", "<b>", "  ", "<<l>", "好的", "好", "aa", "aaab", "a", "b", " ", "\n", "\u3000", "\x85", "\u200b", "_", "é", "1",
              "\u0301", "-", "<s>", "[MASK]", "<|end|>", "<|start|>", "<", "é!", "e\u0301!", "e\u0301?", "é?", "\u0323\u0301", "\u0301\u0323", "ñ~", "n\u0303~", "<think>",
              "Å>", "A\u030a>", "\u212b>", "Ġthe", "<|begin|>", "\x00", "x y"]
    return ["".join(r.one(pieces) if r.below(8) else code_point(r) for _ in range(r.between(1, 14))) for _ in range(1200)] + CONTRACTIONS


def write(path, value):
    with open(path, "w") as f:
        f.write(json.dumps(value, ensure_ascii=True, indent=0, separators=(",", ":")) + "\n")


def main():
    if sys.argv[1] == "check":
        t = Tokenizer.from_file(sys.argv[3])
        with open(sys.argv[4] + "/golden_%s.json" % sys.argv[2]) as f:
            golden = json.load(f)
        got = answers(t, [s for _, s in documents()], True)
        wrong = [k for k in got if got[k] != golden[k]]
        print(sys.argv[2], "differs in", wrong) if wrong else print(sys.argv[2], "the library gives the same answers, too")
        sys.exit(bool(wrong))
    cache, out = sys.argv[1:]
    texts = [s for _, s in documents()]
    for name, (make, files) in PUBLISHED.items():
        golden = answers(make(cache + "/" + name), texts, True)
        golden["files"] = {f: hashlib.sha256(open("%s/%s/%s" % (cache, name, f), "rb").read()).hexdigest() for f in files}
        write("%s/golden_%s.json" % (out, name), golden)
        print(name, golden["vocab_size"])
    extra = flag_texts()
    for name, t in small_tokenizers(texts):
        t = Tokenizer.from_str(t.to_str())  # the tokenizer as read back is what counts
        small = {"tokenizer": json.loads(t.to_str()), "answers": answers(t, texts, False), "texts": extra, "text_answers": answers(t, extra, True)}
        with open("%s/small_%s.json.gz" % (out, name), "wb") as f:
            f.write(gzip.compress(json.dumps(small).encode(), 9, mtime=0))
        print("small", name, t.get_vocab_size())


if __name__ == "__main__":
    main()
