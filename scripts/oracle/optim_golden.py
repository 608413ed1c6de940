"""Golden numbers for AdamW: what torch.optim.AdamW does to a few parameters.

Run from the repository root with a Python that has torch:

    python scripts/oracle/optim_golden.py > optim/testdata/adamw.json

Every case has weights, ten steps of gradients and learning rates, and the
weights and both moments after each step, all in fp32 and written exactly.
"""

import json
import torch


def case(name, beta1, beta2, eps, decay, rates, scale, size=12, steps=10):
    gen = torch.Generator().manual_seed(len(name))
    p = torch.nn.Parameter(torch.randn(size, generator=gen))
    grads = torch.randn(steps, size, generator=gen) * scale
    grads[:, 0] = 0.0  # an element that never sees a gradient
    grads[3:, 1] = 0.0  # one that stops seeing it
    grads[:, 2] *= 1e-6  # one whose second moment is near epsilon squared
    opt = torch.optim.AdamW([p], lr=1.0, betas=(beta1, beta2), eps=eps, weight_decay=decay, foreach=False, fused=False)
    start, after = p.detach().tolist(), []
    for k in range(steps):
        rate = torch.tensor(rates(k + 1), dtype=torch.float32).item()  # our rates are fp32
        opt.param_groups[0]["lr"] = rate
        p.grad = grads[k].clone()
        opt.step()
        state = opt.state[p]
        after.append({
            "lr": rate,
            "grad": grads[k].tolist(),
            "p": p.detach().tolist(),
            "m": state["exp_avg"].tolist(),
            "v": state["exp_avg_sq"].tolist(),
        })
    return {"name": name, "beta1": beta1, "beta2": beta2, "eps": eps, "decay": decay, "start": start, "steps": after}


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases = [
        case("recipe", 0.9, 0.95, 1e-8, 0.1, lambda k: 3e-4 * min(1, k / 5), 1.0),
        case("defaults", 0.9, 0.999, 1e-8, 0.01, lambda k: 1e-3, 0.01),
        case("no decay", 0.8, 0.99, 1e-6, 0.0, lambda k: 1e-2 / k, 100.0),
    ]
    print("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]")
