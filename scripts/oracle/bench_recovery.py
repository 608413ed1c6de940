"""torchrun's elastic restart, the other side of `make bench-recovery`: four processes of DDP
over Gloo on a transformer of the same size, a checkpoint every so many steps, kill -9 of one of
them once a minute in the mean, and torchrun starts all of them again from the checkpoint. They
import nothing but PyTorch, and meet by its c10d rendezvous.

    bench_recovery.py --minutes 10 --step 1 [--seed 1]

Goodput is steps done × undisturbed step time / wall time, as in our counted line. A step is
made as long as is asked for by the number of its sequences, as there.
"""
import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

WORKERS = 4
KILL_MEAN = 60.0
UNDISTURBED = 8  # steps that are timed
TOKENS = 48
VOCABULARY, HIDDEN, LAYERS, HEADS, MLP = 300, 256, 8, 4, 1024
PATIENCE = 600  # seconds for a step


def train(args):
    """One rank, under torchrun."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    class Model(nn.Module):
        """A causal transformer with tied embeddings, and its loss."""

        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
            self.layers = nn.ModuleList([nn.TransformerEncoderLayer(HIDDEN, HEADS, MLP, dropout=0, batch_first=True, norm_first=True) for _ in range(LAYERS)])
            self.norm = nn.LayerNorm(HIDDEN)
            self.mask = nn.Transformer.generate_square_subsequent_mask(TOKENS)  # no buffer: DDP would send it round

        def forward(self, ids):
            x = self.embedding(ids)
            for layer in self.layers:
                x = layer(x, src_mask=self.mask, is_causal=True)
            logits = self.norm(x) @ self.embedding.weight.T
            return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    # All starts share torchrun's store: without a prefix for each, Gloo dials processes that are dead.
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", store=dist.PrefixStore("start-" + os.environ["TORCHELASTIC_RESTART_COUNT"], store), rank=rank, world_size=WORKERS)
    torch.set_num_threads(1)
    torch.manual_seed(1)
    inner = Model().train()
    model = DistributedDataParallel(inner, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    path, done = os.path.join(args.folder, "checkpoint.pt"), 0
    if os.path.exists(path):
        saved = torch.load(path)
        inner.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done = saved["done"]
    with open(os.path.join(args.folder, f"pid-{rank}"), "w") as f:
        f.write(str(os.getpid()))
    share = args.batch // WORKERS
    while args.steps == 0 or done < args.steps:
        generator = torch.Generator().manual_seed(done * WORKERS + rank)
        optimizer.zero_grad(set_to_none=True)
        for i in range(share):
            ids = torch.randint(0, VOCABULARY, (1, TOKENS), generator=generator)
            model.require_backward_grad_sync = i == share - 1
            (model(ids) / share).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        done += 1
        if rank == 0:
            if done % args.every == 0:
                torch.save({"model": inner.state_dict(), "optimizer": optimizer.state_dict(), "done": done}, path + ".new")
                os.replace(path + ".new", path)
            with open(os.path.join(args.folder, "steps"), "a") as f:
                f.write(json.dumps({"done": done, "at": time.time()}) + "\n")
    dist.destroy_process_group()


def children(parent):
    """The processes that a process has started."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as f:
                if int(f.read().rpartition(")")[2].split()[1]) == parent:
                    found.append(int(pid))
        except OSError:  # it has ended
            continue
    return found


class Run:
    """A torchrun under way."""

    def __init__(self, batch, every, steps=0):
        self.folder = tempfile.mkdtemp(prefix="bench-recovery-")
        self.log = open(os.path.join(self.folder, "log"), "w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(WORKERS), "--max-restarts", "100000", "--monitor-interval", "0.1",
             "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{random.randrange(20000, 30000)}", "--rdzv-id", "bench", os.path.abspath(__file__), "--train", "--folder", self.folder,
             "--batch", str(batch), "--every", str(every), "--steps", str(steps)],
            stdout=self.log, stderr=self.log, start_new_session=True)

    def steps(self):
        try:
            with open(os.path.join(self.folder, "steps")) as f:
                return [json.loads(line) for line in f if line.endswith("\n")]
        except FileNotFoundError:
            return []

    def wait_for(self, count):
        """Waits until so many lines of steps have been written."""
        end = time.time() + PATIENCE
        while len(self.steps()) < count:
            if time.time() > end:
                sys.exit(f"bench: torchrun has taken no step for {PATIENCE} s; its log is {self.log.name}")
            if self.process.poll() is not None:
                sys.exit(f"bench: torchrun ended with status {self.process.returncode}; its log is {self.log.name}")
            time.sleep(0.05)

    def undisturbed(self):
        """Mean seconds of the next steps; the first one is left out."""
        seen = len(self.steps())
        self.wait_for(seen + UNDISTURBED + 2)
        steps = self.steps()[seen + 1:seen + UNDISTURBED + 2]
        return (steps[-1]["at"] - steps[0]["at"]) / (len(steps) - 1)

    def kill(self, rank):
        """Kills a rank's process as a power cut would; false if it is not there now."""
        try:
            with open(os.path.join(self.folder, f"pid-{rank}")) as f:
                os.kill(int(f.read()), signal.SIGKILL)
            return True
        except (FileNotFoundError, ValueError, ProcessLookupError):
            return False

    def end(self):
        ranks = children(self.process.pid)  # torchrun gives each of them a session of its own
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pid in ranks:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def calibrate(want):
    batch = WORKERS
    for _ in range(3):
        run = Run(batch, 1000000)
        try:
            run.wait_for(2)
            took = run.undisturbed()
        finally:
            run.end()
        after = WORKERS * max(1, round(batch / WORKERS * want / took))
        if after == batch:
            break
        batch = after
    return batch


def storm(run, seconds, draw):
    kills, end = 0, time.time() + seconds
    while True:
        gap = draw.expovariate(1 / KILL_MEAN)
        if time.time() + gap > end:
            time.sleep(max(0, end - time.time()))
            return kills
        time.sleep(gap)
        kills += run.kill(draw.randrange(WORKERS))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--minutes", type=float, default=10)
    p.add_argument("--step", type=float, default=1)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--train", action="store_true")
    p.add_argument("--folder")
    p.add_argument("--batch", type=int)
    p.add_argument("--every", type=int)
    p.add_argument("--steps", type=int, default=0)
    args = p.parse_args()
    if args.train:
        return train(args)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left running
    batch, every = calibrate(args.step), max(1, int(30 / args.step))
    run = Run(batch, every)
    try:
        run.wait_for(2)
        before = run.undisturbed()
        seen = len(run.steps())
        run.wait_for(seen + 1)
        first = run.steps()[-1]
        kills = storm(run, args.minutes * 60, random.Random(args.seed))
        seen = len(run.steps())
        run.wait_for(seen + 1)
        last = run.steps()[-1]
        after = run.undisturbed()
    finally:
        run.end()
    wall, steps, step = last["at"] - first["at"], last["done"] - first["done"], (before + after) / 2
    told = len([s for s in run.steps() if first["at"] < s["at"] <= last["at"]])
    print(f"recovery-{args.step:g}s torchrun: step {before:.2f} s undisturbed before, {after:.2f} after; {batch} sequences a step; {kills} kills in {wall:.0f} s; "
          f"steps {steps}, {told - steps} of them again; a checkpoint every {every} steps")
    print(f"bench recovery-{args.step:g}s-torchrun theirs={100 * steps * step / wall:.1f} unit=% by=steps_x_undisturbed_time kills={kills}")


if __name__ == "__main__":
    main()
