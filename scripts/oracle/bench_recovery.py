"""torchrun's elastic restart, the other side of `make bench-recovery`: four processes of DDP
over Gloo on a model of the same shape, a checkpoint every so many steps, kill -9 of one of them
once a minute in the mean, and torchrun starts all of them again from the checkpoint.

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


def train(args):
    """One rank, under torchrun."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from transformers import LlamaConfig, LlamaForCausalLM

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    inner = LlamaForCausalLM(LlamaConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        vocab_size=300, max_position_embeddings=64, tie_word_embeddings=True)).train()
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
            ids = torch.randint(0, 300, (1, TOKENS), generator=generator)
            last = i == share - 1
            model.require_backward_grad_sync = last
            (model(input_ids=ids, labels=ids, use_cache=False).loss / share).backward()
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


class Run:
    """A torchrun under way."""

    def __init__(self, batch, every, steps=0):
        self.folder = tempfile.mkdtemp(prefix="bench-recovery-")
        self.log = open(os.path.join(self.folder, "log"), "w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(WORKERS), "--max-restarts", "100000", "--monitor-interval", "0.1",
             "--master-port", str(random.randrange(20000, 30000)), os.path.abspath(__file__), "--train", "--folder", self.folder,
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
        while len(self.steps()) < count:
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
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for rank in range(WORKERS):  # torchrun gives each of them a session of its own
            self.kill(rank)


def calibrate(want):
    batch = WORKERS
    for _ in range(3):
        run = Run(batch, 1000000)
        run.wait_for(2)
        took = run.undisturbed()
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
