"""`make bench`: Skein and PyTorch take turns, step by step and product by product, in one run.

    bench.py SKEIN [PREFIX] [--rounds N] [--threads N] [--path PATH] [--modes MODE,…]

SKEIN is the program. Each figure is one line,

    bench NAME ours=… peer=… unit=… ratio=… limit_share=… …

ours and peer being the best of all rounds, ratio how much better ours is, and limit_share
what ours is of the machine's own limit, measured in the same run (`skein bench peak`):
arithmetic in registers, with the fastest instructions that the path may use. After these
come the ratio of each round (rounds), PyTorch's fastest mode (mode) and all its modes.

With --path Skein is forced to a path, and PyTorch's libraries are held to the same instructions.
The environment variable BENCH_LOCK may name files, separated by colons, that are locked
while something is timed, so that builds on the machine can wait for that; the last one is
shared while PyTorch compiles.
"""
import argparse
import contextlib
import fcntl
import json
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..")
INDUCTOR_CACHE = os.path.join(ROOT, ".cache", "bench", "inductor")

BF16_MODES = ["autocast", "bf16", "autocast-compile", "bf16-compile"]
FP32_MODES = ["fp32", "fp32-compile"]
NUMERICAL_PEER = "autocast-compile"  # keeps fp32 parameters and moments, as we do; its ratio is printed beside

# What PyTorch's libraries may use when a path of ours is forced: oneDNN, MKL and PyTorch's own kernels.
HELD = {
    "amx-bf16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"},
    "avx512-bf16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}


class Lockstep:
    """A process that does one round for each line that it is sent and answers with a line of JSON."""

    def __init__(self, command, env=None):
        self.command = command
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **(env or {})})

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"bench: {' '.join(self.command)} ended with status {self.process.wait()}")
        return json.loads(line)

    def ask(self, line=""):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()


@contextlib.contextmanager
def machine(alone):
    """Holds the last lock of BENCH_LOCK, alone or beside others, having passed through those before it."""
    names = list(filter(None, os.environ.get("BENCH_LOCK", "").split(":")))
    with contextlib.ExitStack() as held:
        gates = contextlib.ExitStack()
        for name in names:
            last = name == names[-1]
            file = (held if last or alone else gates).enter_context(open(name, "a"))
            fcntl.flock(file, fcntl.LOCK_SH if last and not alone else fcntl.LOCK_EX)
        gates.close()
        yield


def alone():
    """Nothing else runs meanwhile, as far as it asks for the locks."""
    return machine(alone=True)


def beside_others():
    """For what takes time and is not timed: no one else times something meanwhile."""
    return machine(alone=False)


class Bench:
    def __init__(self, arguments):
        self.a = arguments
        self.common = ["--threads", str(arguments.threads)] + (["--path", arguments.path] if arguments.path else [])
        listed = self.skein()
        self.workloads = {w["name"]: w for w in listed["workloads"]}
        self.products = listed["products"]

    def skein(self, *words):
        """The answer of `skein bench`, as JSON."""
        run = subprocess.run([self.a.skein, "bench", *words, "-o", "json", *self.common], capture_output=True, text=True)
        if run.returncode:
            sys.exit(run.stderr.strip())
        return json.loads(run.stdout)

    def peak(self):
        with alone():
            return self.skein("peak")

    def ours(self, *words):
        return Lockstep([self.a.skein, "bench", *words, "--lockstep", *self.common])

    def peer(self, *words):
        env = {"TORCHINDUCTOR_CACHE_DIR": INDUCTOR_CACHE, "OMP_NUM_THREADS": str(self.a.threads), **HELD.get(self.a.path, {})}
        return Lockstep([sys.executable, os.path.join(HERE, "bench_peer.py"), *words, str(self.a.threads)], env)

    def modes(self, precision):
        known = BF16_MODES if precision == "bf16" else FP32_MODES
        return [m for m in known if not self.a.modes or m in self.a.modes]

    def limit(self, peak, path, precision):
        """Flop a second of the fastest instructions that a path may use, as Peak.Limit in package bench."""
        base, high = path.removesuffix("-high"), path.endswith("-high")
        bf16 = peak["tileFlops"] if base == "amx-bf16" else max(peak["f32Flops"], peak["pairFlops"])
        if high:
            return max(peak["f32Flops"], bf16 / 3)
        return bf16 if precision == "bf16" else peak["f32Flops"]

    def step(self, name):
        """A training step against each of PyTorch's modes; speed and memory."""
        w = self.workloads[name]
        if w["precision"] == "high":
            tried = subprocess.run([self.a.skein, "bench", name, "--quick", "--steps", "1", *self.common], capture_output=True, text=True)
            if tried.returncode:
                print(f"bench {name} SKIPPED: {tried.stderr.strip()}", flush=True)
                return
        model, tokens = name.split("-")[0], w["batch"] * w["seqLen"]
        ours, theirs, memory, rounds, losses = [], {}, {}, {}, {}
        peak = self.peak()
        with self.ours(name) as mine:
            with beside_others():
                mine.ask()  # faults pages in
            for mode in self.modes(w["precision"]):
                with beside_others():
                    peer = self.peer("step", model, mode, str(w["batch"]), str(w["seqLen"]))
                    peer.read()
                with peer, alone():
                    for _ in range(self.a.rounds):
                        y, x = peer.ask(), mine.ask()
                        theirs.setdefault(mode, []).append(y["seconds"][0])
                        ours.append(x["seconds"][0])
                        rounds.setdefault(mode, []).append(y["seconds"][0] / x["seconds"][0])
                        print(f"  {name} {mode}: ours {x['seconds'][0]:.2f} s, theirs {y['seconds'][0]:.2f} s", file=sys.stderr, flush=True)
                memory[mode], losses[mode], last = y["residentBytes"], y["loss"], x
        speed = {mode: tokens / min(s) for mode, s in theirs.items()}
        best, mode = tokens / min(ours), max(speed, key=speed.get)
        share = w["flop"] / min(ours) / self.limit(peak, last["path"], w["precision"])
        extra = [f"mode={mode}", "rounds=" + "/".join(f"{r:.2f}" for r in rounds[mode])]
        if NUMERICAL_PEER in speed:
            extra.append(f"ratio_{NUMERICAL_PEER}={best / speed[NUMERICAL_PEER]:.2f}")
        extra += ["all=" + ",".join(f"{m}:{s:.1f}" for m, s in speed.items()), f"loss={last['loss']:.3f}", f"peer_loss={losses[mode]:.3f}", "class=" + last["class"].replace(" ", "-")]
        say(name, best, speed[mode], "tok/s", best / speed[mode], share, *extra)
        self.memory(name, last["residentBytes"], memory)

    def memory(self, name, ours, theirs):
        """What the same processes had resident at most: against the smaller of eager and compiled."""
        for kind in ["fp32", "autocast", "bf16"]:
            those = {m: b for m, b in theirs.items() if m.split("-")[0] == kind}
            if those:
                mode = min(those, key=those.get)
                say(f"mem-{name}-{kind}", ours / 2**30, those[mode] / 2**30, "GiB", ours / those[mode], None, f"mode={mode}",
                    "all=" + ",".join(f"{m}:{b / 2**30:.2f}" for m, b in those.items()), digits=2)

    def gemm(self, prefix):
        """The products of the steps, one by one, and weighted by their share of a step."""
        peak = self.peak()
        ours, theirs = {}, {}
        chosen = [p for p in self.products if p["name"].startswith(prefix)]
        with self.ours("products") as mine, self.peer("products") as peer, alone():
            peer.read()
            for p in chosen:
                name = p["name"]
                for i in range(self.a.rounds + 1):
                    y, x = peer.ask(json.dumps(p))["seconds"][0], mine.ask(name)["seconds"][0]
                    if i:  # the first round warms up
                        ours.setdefault(name, []).append(x)
                        theirs.setdefault(name, []).append(y)
                flop = 2 * p["rows"] * p["in"] * p["out"] * (3 if p["kind"] == "head" else 1)
                x, y = min(ours[name]), min(theirs[name])
                say(name, flop / x / 1e9, flop / y / 1e9, "GF/s", y / x, flop / x / self.limit(peak, self.a.path, p["precision"]),
                    "rounds=" + "/".join(f"{b / a:.2f}" for a, b in zip(ours[name], theirs[name])))
        for group in dict.fromkeys(p["name"].rsplit("-", 2 if p["kind"] != "head" else 1)[0] for p in chosen):
            members = [p for p in chosen if p["name"].startswith(group + "-")]
            x, y = (sum(p["calls"] * min(t[p["name"]]) for p in members) for t in (ours, theirs))
            say(group + "-weighted", x * 1e3, y * 1e3, "ms", y / x, None)

    def allocations(self):
        a = self.skein("allocations")
        print(f"bench alloc-step ours={a['allocations']:.0f} peer=- unit=allocations/step ratio=- limit_share=- bytes={a['bytes']:.0f}", flush=True)


def say(name, ours, peer, unit, ratio, share, *extra, digits=1):
    share = "-" if share is None else f"{share:.2f}"
    print(f"bench {name} ours={ours:.{digits}f} peer={peer:.{digits}f} unit={unit} ratio={ratio:.2f} limit_share={share}", *extra, flush=True)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("skein")
    p.add_argument("prefix", nargs="?", default="")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--path", default="")
    p.add_argument("--modes", type=lambda s: s.split(","), default=[])
    a = p.parse_args()
    b = Bench(a)
    ran = 0
    for name in b.workloads:
        # The memory of a step is measured with it, so its name selects it too.
        if name.startswith(a.prefix) or a.prefix.startswith("mem-" + name) or a.prefix in ("mem", "mem-"):
            b.step(name)
            ran += 1
    if any(q["name"].startswith(a.prefix) for q in b.products):
        b.gemm(a.prefix)
        ran += 1
    if "alloc-step".startswith(a.prefix):
        b.allocations()
        ran += 1
    if not ran:
        sys.exit(3)  # scripts/bench.sh has others


if __name__ == "__main__":
    main()
