"""How long Gloo's all_reduce takes between hosts: run once per host by
scripts/bench-ring.sh. Rank 0 prints, for each size, the best round's mean time.

    gloo_bench.py RANK WORLD MASTER_ADDRESS PORT SECONDS BYTES…
"""
import sys
import time

import torch
import torch.distributed as dist


def measure(size, seconds, rank):
    x = torch.ones(size // 4, dtype=torch.float32)
    stop = torch.zeros(1)
    best, per_round, rounds = float("inf"), 1, 0
    begin = time.perf_counter()
    while True:
        dist.barrier()
        start = time.perf_counter()
        for _ in range(per_round):
            dist.all_reduce(x)
        took = time.perf_counter() - start
        x.fill_(1)
        rounds += 1
        if rounds > 1:
            best = min(best, took / per_round)
        # All ranks must do the same: rank 0 decides.
        stop[0] = 0
        if rank == 0:
            if time.perf_counter() - begin > seconds:
                stop[0] = 1
            elif per_round < 200 and took < 0.02:
                stop[0] = 2
        dist.broadcast(stop, 0)
        if stop[0] == 1:
            return best
        if stop[0] == 2:
            per_round *= 2


def main():
    rank, world, address, port, seconds = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], float(sys.argv[5])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://{address}:{port}", rank=rank, world_size=world)
    for size in sys.argv[6:]:
        best = measure(int(size), seconds, rank)
        if rank == 0:
            print(size, f"{best:.9f}", flush=True)
    dist.barrier()
    dist.destroy_process_group()


main()
