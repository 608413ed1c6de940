"""cluster-smollm2 of `make bench`: four workers on one machine, world size 4, ZeRO-1, one
sequence of 512 tokens each, bf16; `skein train --workers 4` beside DDP and ZeroRedundancyOptimizer
under torchrun, autocast, Gloo. They run one after the other, in turns. Needs the fetched SmolLM2.

    bench_cluster.py SKEIN [ROUNDS]

Speed is that of the fastest step, memory that of the process with the most. Ours counts
tokens that are not padding, theirs has none.
"""
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile

from bench import ROOT, alone, say

HERE = os.path.dirname(os.path.abspath(__file__))
WORKERS = 4
TOKENS = 512
STEPS = 4  # of a run; the first one warms up
GGUF = os.path.join(ROOT, ".cache", "testdata", "smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")

JOB = f"""kind: FineTune
name: bench
model: {{base: ./model}}
data: {{train: text.jsonl, sequenceLength: {TOKENS}}}
train: {{steps: {STEPS}, globalBatch: {WORKERS}, precision: bf16, optimizer: {{learningRate: 1e-5}}}}
cluster: {{worldSize: {WORKERS}, zero: 1}}
checkpoint: {{every: 1000 steps}}
"""


def resident_peaks(parent):
    """The most memory that each child of a process has had, in bytes."""
    peaks = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/status") as f:
                fields = dict(line.split(":", 1) for line in f if ":" in line)
        except OSError:  # it has ended
            continue
        if int(fields["PPid"]) == parent and "VmHWM" in fields:
            peaks.append(int(fields["VmHWM"].split()[0]) << 10)
    return peaks


def ours(skein, folder):
    """Tokens a second and bytes of the largest worker."""
    work = tempfile.mkdtemp(dir=folder)
    for name in ["model", "text.jsonl"]:
        os.symlink(os.path.join(folder, name), os.path.join(work, name))
    with open(os.path.join(work, "job.yaml"), "w") as f:
        f.write(JOB)
    run = subprocess.Popen([skein, "train", "-f", os.path.join(work, "job.yaml"), "--workers", str(WORKERS), "--cache", os.path.join(work, "cache"), "-o", "json"],
                           stdout=subprocess.PIPE, text=True)
    speed, peak = 0, 0
    for line in run.stdout:
        event = json.loads(line)
        if "tokens" not in event or "gradientNorm" not in event:
            continue
        if event["step"] > 1:
            speed = max(speed, event["tokens"] / event["seconds"])
        peak = max([peak] + resident_peaks(run.pid))
    if run.wait() or not speed:
        sys.exit(f"bench: {skein} train --workers {WORKERS} ended with status {run.returncode}")
    shutil.rmtree(work)
    return speed, peak


def theirs(kind):
    out = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(WORKERS), "--master-port", str(random.randrange(20000, 30000)),
                          os.path.join(HERE, "bench_ddp.py"), kind, str(STEPS)], stdout=subprocess.PIPE, text=True, check=True).stdout
    steps = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return WORKERS * TOKENS / min(s["seconds"] for s in steps[1:]), steps[-1]["residentBytes"]


def prepare(skein, folder):
    """A model folder and text enough for the steps, of words that the tokenizer knows well."""
    subprocess.run([skein, "import", GGUF, os.path.join(folder, "model")], check=True, stdout=subprocess.DEVNULL)
    draw = random.Random(1)
    words = ["time", "river", "paper", "seven", "window", "light", "under", "people", "green", "answer", "music", "winter"]
    with open(os.path.join(folder, "text.jsonl"), "w") as f:
        for _ in range(WORKERS * STEPS * 2):
            f.write(json.dumps({"text": " ".join(draw.choices(words, k=TOKENS - 2))}) + "\n")


def main():
    skein, rounds = os.path.abspath(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2
    if not os.path.exists(GGUF):
        sys.exit("bench: cluster-smollm2 needs the model that `make fetch` brings")
    with tempfile.TemporaryDirectory() as folder:
        prepare(skein, folder)
        mine, peers = [], {"ddp": [], "zero": []}
        for _ in range(rounds):
            for kind, results in peers.items():
                with alone():
                    results.append(theirs(kind))
                with alone():
                    mine.append(ours(skein, folder))
    speed, size = max(s for s, _ in mine), max(b for _, b in mine)
    best = {kind: max(s for s, _ in r) for kind, r in peers.items()}
    least = {kind: max(b for _, b in r) for kind, r in peers.items()}
    fastest, smallest = max(best, key=best.get), min(least, key=least.get)
    say("cluster-smollm2", speed, best[fastest], "tok/s", speed / best[fastest], None, f"mode={fastest}", "all=" + ",".join(f"{k}:{v:.1f}" for k, v in best.items()))
    say("mem-cluster-smollm2", size / 2**30, least[smallest] / 2**30, "GiB", size / least[smallest], None, f"mode={smallest}",
        "all=" + ",".join(f"{k}:{v / 2**30:.2f}" for k, v in least.items()), digits=2)


if __name__ == "__main__":
    main()
