"""Live parity on a real model: skein against PyTorch on the same weights file, the same data and the demo's recipe.

Usage: parity.py SKEIN MODEL_DIR TRAIN.jsonl HELDOUT.jsonl [--quick]

MODEL_DIR is a Hugging Face folder with fp32 weights (skein import --dtype fp32). Checked, each with its tolerance:
  held-out loss over all targets, fp32 (1e-4) and, weights and activations in bf16 on both sides, bf16 (5e-3)
  the first five step losses of the demo's recipe in fp32 (1e-4)
  the held-out loss after the demo's 24 steps in bf16 (0.05), and of the folder that skein exported, loaded by
  transformers (1e-4)                                                    (left out with --quick)
Packing, masks and targets are computed here from the text, independently of skein.
Last line: "parity ok: N checks"; the exit status is 1 if any check fails.
"""
import json, os, subprocess, sys, tempfile, time
import torch, torch.nn.functional as F
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

T, GLOBAL_BATCH, STEPS, RATE, WARMUP = 512, 4, 24, 3e-4, 5
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
args = [a for a in sys.argv[1:] if not a.startswith("--")]
skein, model_dir, train_file, heldout_file = args
quick = "--quick" in sys.argv
torch.set_num_threads(os.cpu_count())
tok = PreTrainedTokenizerFast(tokenizer_file=os.path.join(model_dir, "tokenizer.json"))
failures = checks = 0


def check(name, got, want, tolerance):
    global failures, checks
    checks += 1
    ok = abs(got - want) <= tolerance
    failures += not ok
    print(f"parity {name} skein={got:.6f} pytorch={want:.6f} difference={abs(got - want):.2g} allowed={tolerance:g} {'ok' if ok else 'FAILED'}", flush=True)


def load(folder=model_dir):
    """transformers gives the embedding a padding_idx, whose row then gets no gradient from the lookup. SmolLM2's pad is
    <|im_end|>, which stands in every example: its row must learn like any other, so there is no padding_idx here."""
    m = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    m.get_input_embeddings().padding_idx = None
    return m


def encode(line):
    question, answer = [m["content"] for m in json.loads(line)["messages"]]
    prompt = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    a = tok(prompt, add_special_tokens=False).input_ids
    b = tok(f"{answer}<|im_end|>\n", add_special_tokens=False).input_ids
    return a + b, [-100] * len(a) + b[:-1] + [-100]


def packs(path, limit=None):
    """Greedy packs of T tokens: [(ids, labels, document lengths)], labels not yet shifted."""
    out, ids, labels, docs = [], [], [], []
    for line in open(path):
        i, l = encode(line)
        if len(ids) + len(i) > T:
            out.append((ids, labels, docs))
            ids, labels, docs = [], [], []
            if limit and len(out) == limit:
                return out
        ids, labels, docs = ids + i, labels + l, docs + [len(i)]
    return out + [(ids, labels, docs)]


def batch(ps):
    ids, labels = torch.zeros(len(ps), T, dtype=torch.long), torch.full((len(ps), T), -100)
    pos, doc = torch.zeros(len(ps), T, dtype=torch.long), torch.full((len(ps), T), -1)
    for r, (i, l, docs) in enumerate(ps):
        ids[r, : len(i)], labels[r, : len(l)] = torch.tensor(i), torch.tensor(l)
        at = 0
        for k, n in enumerate(docs):
            pos[r, at : at + n], doc[r, at : at + n] = torch.arange(n), k
            at += n
    see = (doc[:, :, None] == doc[:, None, :]) & torch.tril(torch.ones(T, T, dtype=torch.bool))
    return ids, labels, pos, torch.zeros(see.shape).masked_fill(~see, -1e9)[:, None]


def loss(m, ps):
    ids, labels, pos, mask = batch(ps)
    logits = m(input_ids=ids, position_ids=pos, attention_mask=mask.to(next(m.parameters()).dtype)).logits.float()
    return (F.cross_entropy(logits[:, :-1].reshape(-1, logits.size(-1)), labels[:, 1:].reshape(-1), reduction="sum"),
            (labels[:, 1:] != -100).sum().item())


def heldout(m, ps, autocast):
    total = n = 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for i in range(0, len(ps), 4):
            a, b = loss(m, ps[i : i + 4])
            total, n = total + a.item(), n + b
    return total / n, n


def run(*command):
    out = subprocess.run([skein, *command], capture_output=True, text=True)
    if out.returncode:
        sys.exit(f"{' '.join(command)}: exit status {out.returncode}\n{out.stdout}{out.stderr}")
    return [json.loads(x) for x in out.stdout.splitlines() if x.startswith("{")]


def skein_heldout(precision, folder=model_dir):
    event = run("eval", folder, heldout_file, "--precision", precision, "--sequence-length", str(T), "-o", "json")[-1]
    return event["loss"], event["targets"]


def skein_train(precision, steps, exported=lambda folder: None):
    """Step losses and held-out losses of a run; exported is called with the folder that it wrote."""
    with tempfile.TemporaryDirectory() as d:
        job = os.path.join(d, "job.json")  # JSON is YAML
        json.dump({"kind": "FineTune", "name": "parity", "model": {"base": os.path.abspath(model_dir)},
            "data": {"train": os.path.abspath(train_file), "validation": os.path.abspath(heldout_file), "sequenceLength": T,
                     "packing": True, "shuffle": False},
            "train": {"steps": steps, "globalBatch": GLOBAL_BATCH, "precision": precision,
                      "optimizer": {"name": "adamw", "learningRate": RATE, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weightDecay": 0.1, "clip": 1.0},
                      "schedule": {"kind": "constant", "warmupSteps": WARMUP}, "seed": 1},
            "cluster": {"worldSize": 4, "workers": {"min": 1, "max": 4}}, "checkpoint": {"store": os.path.join(d, "checkpoints")},
            "output": {"export": os.path.join(d, "out")}}, open(job, "w"))
        events = run("train", "-f", job, "-o", "json")
        exported(os.path.join(d, "out"))
    return [e["loss"] for e in events if e.get("event") == "step"], [e["loss"] for e in events if e.get("event") == "evaluated"]


def torch_train(autocast, steps, train, held=None):
    m = load()
    decay, other = [p for p in m.parameters() if p.dim() > 1], [p for p in m.parameters() if p.dim() <= 1]
    opt = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": other, "weight_decay": 0.0}], lr=RATE, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for s in range(1, steps + 1):
        for g in opt.param_groups:
            g["lr"] = RATE * min(1, s / WARMUP)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            l, n = loss(m, train[(s - 1) * GLOBAL_BATCH : s * GLOBAL_BATCH])
        opt.zero_grad()
        (l / n).backward()
        torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        opt.step()
        losses.append(l.item() / n)
    return losses, heldout(m, held, autocast)[0] if held else None


held, train = packs(heldout_file), packs(train_file, STEPS * GLOBAL_BATCH)
model = load()
print(f"parity heldout-autocast pytorch={heldout(model, held, True)[0]:.6f} (fp32 residual stream and norms: for comparison only)", flush=True)
for precision, tolerance in (("fp32", 1e-4), ("bf16", 5e-3)):
    if precision == "bf16":
        model = model.to(torch.bfloat16)  # weights and activations in bf16, as skein has them
    want, n = heldout(model, held, False)
    got, targets = skein_heldout(precision)
    check(f"heldout-{precision} targets={n}", got, want, tolerance)
    if targets != n or n < 5000:
        sys.exit(f"skein counts {targets} targets, PyTorch {n}; at least 5,000 are wanted")
del model
want, _ = torch_train(False, 5, train)
got, _ = skein_train("fp32", 5)
for k in range(5):
    check(f"recipe-fp32-step-{k + 1}", got[k], want[k], 1e-4)
if not quick:
    start = time.time()
    want, after = torch_train(True, STEPS, train, held)
    print(f"parity recipe-bf16 pytorch: {STEPS} steps and evaluation in {time.time() - start:.0f} s, last step loss {want[-1]:.4f}", flush=True)
    def check_export(folder):
        check("exported-folder-heldout-fp32", skein_heldout("fp32", folder)[0], heldout(load(folder), held, False)[0], 1e-4)

    got, evaluated = skein_train("bf16", STEPS, check_export)
    check("recipe-bf16-heldout-after", evaluated[-1], after, 0.05)
print(f"parity {'ok' if not failures else 'FAILED'}: {checks} checks, {failures} failed")
sys.exit(failures > 0)
