"""Recomputes the demo's prepared data by Hugging Face's tokenizers and plain Python, for the Go test to compare with.

Run: .cache/oracle/bin/python scripts/oracle/data_check.py .cache/testdata data/testdata/golden_cmudict.json

It makes the rows from the CMU dictionary, renders them by the model's own chat template (jinja2), tokenizes them, packs them
greedily to T tokens as the demo's recipe does, and computes the content hash that docs/formats/dataset.md defines. It also sees
that a row tokenized in two parts, prompt and answer, as the recipe in PyTorch does it, gives the same tokens.
"""
import hashlib
import json
import os
import re
import struct
import sys

from jinja2.sandbox import ImmutableSandboxedEnvironment

sys.path.insert(0, os.path.dirname(__file__))
from tokenizer_golden import read_gguf, smollm2  # noqa: E402

T, NO_TARGET = 512, -100
END = "<|im_end|>"


def entries(path):
    """The dictionary's words of a to z in order of their SHA-256, held-out ones apart."""
    rows = []
    with open(path, encoding="utf-8") as f:
        for line in f:
            word, rest = line.split(" ", 1)
            if re.fullmatch("[a-z]+", word):
                rows.append((hashlib.sha256(word.encode()).hexdigest(), word, rest.split("#")[0].strip()))
    rows.sort()
    return [r[1:] for r in rows if not r[0].startswith("00")], [r[1:] for r in rows if r[0].startswith("00")]


def render(template, word, phones):
    return template.render(messages=[{"role": "user", "content": "Pronounce: " + word}, {"role": "assistant", "content": phones}],
                           add_generation_prompt=False)


def encode(tok, template, rows):
    """Tokens and whether each is learnt, row by row."""
    texts = [render(template, *r) for r in rows]
    whole = tok.encode_batch(texts, add_special_tokens=False)
    for text, (word, phones), e in zip(texts, rows, whole):
        start = text.index("<|im_start|>assistant\n") + len("<|im_start|>assistant\n")
        end = text.index(END, start) + len(END)
        assert text[start:end] == phones + END and text[end:] == "\n"
        yield e.ids, [start <= a < end for a, _ in e.offsets], (text[:start], text[start:])


def packs(examples):
    """(tokens, targets, document lengths, padding) of each sequence."""
    tokens, targets, lengths = [], [], []

    def close():
        n = T - len(tokens)
        return tokens + [0] * n, targets + [NO_TARGET] * n, lengths + [n] * (n > 0), n

    for ids, learnt, _ in examples:
        assert len(ids) <= T
        if len(tokens) + len(ids) > T:
            yield close()
            tokens, targets, lengths = [], [], []
        tokens = tokens + ids
        targets = targets + [i if t else NO_TARGET for i, t in zip(ids[1:], learnt[1:])] + [NO_TARGET]
        lengths = lengths + [len(ids)]
    if tokens:
        yield close()


def content_hash(all_packs):
    """As docs/formats/dataset.md has it."""
    per_record = min(max(65536 // T, 1), 256)
    leaves = b""
    for i in range(0, len(all_packs), per_record):
        part = all_packs[i:i + per_record]
        h = hashlib.sha256(b"skein packs 1\n" + struct.pack("<II", len(part), T))
        for tokens, targets, lengths, padding in part:
            h.update(struct.pack("<II%dI%di%di" % (len(lengths), T, T), padding, len(lengths), *lengths, *tokens, *targets))
        leaves += h.digest()
    root = b"skein dataset 1\n" + struct.pack("<IQ", T, len(all_packs)) + hashlib.sha256(leaves).digest()
    return hashlib.sha256(root).hexdigest()


def summary(tok, template, rows):
    examples = list(encode(tok, template, rows))
    halves = [h for _, _, h in examples]
    first = tok.encode_batch([a for a, _ in halves], add_special_tokens=False)
    second = tok.encode_batch([b for _, b in halves], add_special_tokens=False)
    assert all(ids == a.ids + b.ids for (ids, _, _), a, b in zip(examples, first, second)), "a token reaches across the seam"
    out = list(packs(examples))
    return {
        "examples": len(rows),
        "packs": len(out),
        "tokens": sum(len(ids) for ids, _, _ in examples),
        "targets": sum(y != NO_TARGET for p in out for y in p[1]),
        "padding": sum(p[3] for p in out),
        "contentHash": content_hash(out),
    }


def main(folder, target):
    kv = read_gguf(folder + "/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    template = env.from_string(kv["tokenizer.chat_template"])
    tok = smollm2(folder + "/smollm2")
    train, held = entries(folder + "/cmudict/cmudict.dict")
    golden = {name: summary(tok, template, rows) for name, rows in [("first200", train[:200]), ("train", train), ("heldout", held)]}
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "w") as f:
        json.dump({"sequenceLength": T, **golden}, f, indent=1)
        f.write("\n")
    print(open(target).read())


if __name__ == "__main__":
    main(*sys.argv[1:])
