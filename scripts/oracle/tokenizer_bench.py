"""Compares the Go tokenizer's speed with the tokenizers library's, on one thread each, alternating in one run.

Run: .cache/oracle/bin/python scripts/oracle/tokenizer_bench.py .cache/testdata [NAME …]
Both encode the same documents, the library by encode_batch_fast, which keeps no offsets. Cold: a new tokenizer meets each document once. Warm: the same tokenizer meets them again.
Each figure is the median over rounds; ours and the library's rounds alternate. MB/s of UTF-8 text, 1 MB = 1e6 bytes.
"""
import json
import os
import statistics
import subprocess
import sys
import time

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

sys.path.insert(0, os.path.dirname(__file__))
import tokenizer_golden as golden  # noqa: E402
from tokenizer_corpus import documents  # noqa: E402

ROUNDS = 5


def measure_peer(text, docs, size):
    t = golden.Tokenizer.from_str(text)
    out, count = [], 0
    for _ in range(2):
        start = time.perf_counter()
        count = sum(len(e.ids) for e in t.encode_batch_fast(docs, add_special_tokens=False))  # its fastest way: no offsets
        out.append(size / (time.perf_counter() - start) / 1e6)
    return out + [count]


def main():
    cache, names = sys.argv[1], sys.argv[2:] or list(golden.PUBLISHED)
    root = os.path.join(os.path.dirname(__file__), "..", "..")
    helper = os.path.join(root, ".cache", "tokenizer-bench.test")
    subprocess.run(["go", "test", "-c", "-o", helper, "./tokenizer"], cwd=root, check=True)
    docs = [d for _, d in documents()]
    size = sum(len(d.encode()) for d in docs)
    for name in names:
        text = golden.PUBLISHED[name][0](cache + "/" + name).to_str()
        rounds = []
        for _ in range(ROUNDS):
            run = subprocess.run([os.path.abspath(helper), "-test.run", "^TestSpeedOfOnePass$", "-test.v"], cwd=os.path.join(root, "tokenizer"), check=True,
                                 capture_output=True, text=True, env={**os.environ, "SKEIN_TOKENIZER_BENCH": name, "GOMAXPROCS": "1"})
            line = next(x for x in run.stdout.splitlines() if x.startswith("{"))
            ours = json.loads(line)
            peer = measure_peer(text, docs, size)
            assert ours["ids"] == peer[2], (ours, peer)
            rounds.append((ours["cold"], peer[0], ours["warm"], peer[1]))
        cold, peer_cold, warm, peer_warm = (statistics.median(r[i] for r in rounds) for i in range(4))
        print(f"bench tokenizer-{name} ours={cold:.2f} peer={peer_cold:.2f} unit=MB/s ratio={cold / peer_cold:.2f}")
        print(f"bench tokenizer-{name}-warm ours={warm:.2f} peer={peer_warm:.2f} unit=MB/s ratio={warm / peer_warm:.2f}", flush=True)


main()
