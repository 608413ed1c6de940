"""PyTorch's side of the benchmarks: one process for one way to run a workload, which takes a
step, or times a product, for each line of standard input and answers with a line of JSON.
The other side is `skein bench --lockstep`; bench.py lets the two take turns.

    bench_peer.py step MODEL MODE BATCH TOKENS THREADS
    bench_peer.py products THREADS

MODEL is gpt2 or smollm2, with random weights and no dropout. MODE is one of fp32, autocast
(bf16, parameters and moments stay fp32) and bf16 (parameters and moments too), with
"-compile" behind it for torch.compile. The optimizer is fused AdamW, gradients are clipped.
"""
import contextlib
import json
import sys
import time

import torch

WARM_UP_STEPS = 1  # which compiles, or fills the allocator
PRODUCT_SECONDS = 0.1


def resident_peak():
    """The most memory that this process has had, in bytes."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return 0


def load(name):
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config(attn_pdrop=0, embd_pdrop=0, resid_pdrop=0, attn_implementation="sdpa"))
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=100000, tie_word_embeddings=True, attn_implementation="sdpa"))


def stepper(name, mode, batch, tokens):
    """A function that takes one training step and returns its loss."""
    precision, _, compiled = mode.partition("-")
    model = load(name)
    vocab = model.config.vocab_size
    if precision == "bf16":
        model = model.bfloat16()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    forward = torch.compile(model) if compiled else model
    generator = torch.Generator().manual_seed(7)

    def step():
        ids = torch.randint(0, vocab, (batch, tokens), generator=generator)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16) if precision == "autocast" else contextlib.nullcontext():
            loss = forward(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def answer(**fields):
    print(json.dumps(fields), flush=True)


def serve_steps(name, mode, batch, tokens):
    step = stepper(name, mode, batch, tokens)
    for _ in range(WARM_UP_STEPS):
        step()
    answer(ready=mode, isa=torch.backends.cpu.get_cpu_capability(), torch=torch.__version__)
    for _ in sys.stdin:
        began = time.perf_counter()
        loss = step()
        answer(seconds=[time.perf_counter() - began], loss=loss, residentBytes=resident_peak())


def product(p):
    """The product that a line of JSON describes, as a function: torch.matmul into memory that is there."""
    dtype = torch.bfloat16 if p["precision"] == "bf16" else torch.float32
    rows, cols_in, cols_out = p["rows"], p["in"], p["out"]

    def rand(*shape):
        return (torch.rand(*shape) - 0.5).to(dtype)

    x, w, dy = rand(rows, cols_in), rand(cols_out, cols_in), rand(rows, cols_out)
    y, dx, dw = torch.empty_like(dy), torch.empty_like(x), torch.empty_like(w)
    forward, by_input, by_weight = (lambda: torch.matmul(x, w.t(), out=y)), (lambda: torch.matmul(dy, w, out=dx)), (lambda: torch.matmul(dy.t(), x, out=dw))
    if p["kind"] == "head":
        return lambda: (forward(), by_input(), by_weight())
    return {"fwd": forward, "dx": by_input, "dw": by_weight}[p["kind"]]


def serve_products():
    answer(ready="products", isa=torch.backends.cpu.get_cpu_capability(), torch=torch.__version__)
    name, run = None, None
    for line in sys.stdin:
        p = json.loads(line)
        if p["name"] != name:
            name, run = p["name"], product(p)
            run()
        best, until = float("inf"), time.perf_counter() + PRODUCT_SECONDS
        while best == float("inf") or time.perf_counter() < until:
            began = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - began)
        answer(seconds=[best])


def main():
    torch.set_num_threads(int(sys.argv[-1]))
    if sys.argv[1] == "step":
        name, mode, batch, tokens = sys.argv[2:6]
        serve_steps(name, mode, int(batch), int(tokens))
    else:
        with torch.no_grad():
            serve_products()


if __name__ == "__main__":
    main()
