"""PyTorch's side of cluster-smollm2: one rank of DDP or ZeroRedundancyOptimizer over Gloo,
started by torchrun. Rank 0 prints a line of JSON for each step: seconds, and the most memory
that any rank has had.

    torchrun --nproc-per-node 4 bench_ddp.py ddp|zero STEPS
"""
import json
import sys
import time

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from bench_peer import load, resident_peak

TOKENS = 512


def main():
    kind, steps = sys.argv[1], int(sys.argv[2])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.set_num_threads(1)
    inner = load("smollm2").train()
    model = DistributedDataParallel(inner, gradient_as_bucket_view=True)
    choices = {"lr": 1e-4, "weight_decay": 0.01, "fused": True}
    if kind == "zero":
        optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, **choices)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), **choices)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(steps):
        dist.barrier()
        began = time.perf_counter()
        ids = torch.randint(0, inner.config.vocab_size, (1, TOKENS), generator=generator)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        dist.barrier()
        took = time.perf_counter() - began
        peak = torch.tensor([resident_peak()])
        dist.all_reduce(peak, dist.ReduceOp.MAX)
        if rank == 0:
            print(json.dumps({"seconds": took, "residentBytes": peak.item(), "loss": loss.item()}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
