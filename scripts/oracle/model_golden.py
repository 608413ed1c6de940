"""Golden numbers for package model: logits, every gradient tensor and ten AdamW losses of tiny, loud models.

Usage: model_golden.py [OUT]      (OUT defaults to model/testdata/parity)

Loud: weights are spread so widely (std 0.15, norms U(0.5, 1.5), biases std 0.2) that a wrong epsilon, window, base or
bias changes logits by far more than the tests allow. Weights are drawn by integer arithmetic (splitmix64, sums of twelve
16-bit numbers) and rounded to bf16, so that the Go tests draw the very same ones and only results are stored.
NAME.json holds the configuration, the ten losses and where each tensor stands in NAME.bin (fp32 or int32, little-endian).
Everything runs in fp32 on one thread with the eager attention of transformers, documents packed by an additive mask.
"""
import copy, json, os, sys
import numpy as np, torch, torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "../../model/testdata/parity")
torch.set_num_threads(1)
MASK = (1 << 64) - 1

COMMON = dict(initializer_range=0.02, hidden_act="silu", bos_token_id=1, eos_token_id=2, num_hidden_layers=3)
GPT2 = dict(model_type="gpt2", architectures=["GPT2LMHeadModel"], n_layer=3, n_positions=64, layer_norm_epsilon=1e-3,
    initializer_range=0.02, bos_token_id=1, eos_token_id=2)
MODELS = {
    "llama-tied-gqa": dict(COMMON, model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=67, hidden_size=39,
        intermediate_size=56, num_attention_heads=3, num_key_value_heads=1, head_dim=16, rms_norm_eps=1e-3, rope_theta=10000.0,
        max_position_embeddings=64, tie_word_embeddings=True, attention_bias=False, mlp_bias=False),
    "llama-untied-bias": dict(COMMON, model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=61, hidden_size=36,
        intermediate_size=44, num_attention_heads=6, num_key_value_heads=3, head_dim=10, rms_norm_eps=1e-3, rope_theta=5000.0,
        max_position_embeddings=64, tie_word_embeddings=False, attention_bias=True, mlp_bias=True,
        rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)),
    "llama-mha-linear": dict(COMMON, model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=70, hidden_size=35,
        intermediate_size=40, num_attention_heads=5, num_key_value_heads=5, head_dim=8, rms_norm_eps=1e-3, rope_theta=10000.0,
        max_position_embeddings=64, tie_word_embeddings=True, attention_bias=False, mlp_bias=False,
        rope_scaling=dict(rope_type="linear", factor=2.0)),
    "mistral-window": dict(COMMON, model_type="mistral", architectures=["MistralForCausalLM"], vocab_size=65, hidden_size=42,
        intermediate_size=48, num_attention_heads=6, num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-3, rope_theta=10000.0,
        max_position_embeddings=64, tie_word_embeddings=False, sliding_window=7),
    "qwen2-yarn": dict(COMMON, model_type="qwen2", architectures=["Qwen2ForCausalLM"], vocab_size=71, hidden_size=36,
        intermediate_size=52, num_attention_heads=3, num_key_value_heads=1, rms_norm_eps=1e-3, rope_theta=10000.0,
        max_position_embeddings=64, tie_word_embeddings=True, use_sliding_window=False, max_window_layers=3, sliding_window=None,
        rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)),
    "gpt2-tanh": dict(GPT2, vocab_size=69, n_embd=39, n_head=3, n_inner=130, activation_function="gelu_new"),
    "gpt2-erf-untied": dict(GPT2, vocab_size=63, n_embd=40, n_head=5, n_inner=None, activation_function="gelu",
        tie_word_embeddings=False),
}
NORMS = ("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")
T = 48
DOCS = [[20, 17, 11], [31, 1, 16]]


def splitmix(seed):
    state = seed & MASK
    while True:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield z ^ (z >> 31)


def seed_of(name):
    h = 0xCBF29CE484222325
    for b in name.encode():
        h = ((h ^ b) * 0x100000001B3) & MASK
    return h


def bf16(x):
    u = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    u = (u + 0x7FFF + ((u >> 16) & 1)) & 0xFFFF0000
    return u.astype(np.uint32).view(np.float32)


def draw(name, n):
    """n numbers for a tensor: twelve 16-bit draws from three outputs make one sum, exact in fp32."""
    g, out = splitmix(seed_of(name)), np.zeros(n, np.float32)
    for i in range(n):
        s = 0
        for _ in range(3):
            z = next(g)
            s += (z & 0xFFFF) + ((z >> 16) & 0xFFFF) + ((z >> 32) & 0xFFFF) + (z >> 48)
        if name.endswith(NORMS):
            out[i] = np.float32(0.5) + np.float32(s % 65536) / np.float32(65536)
        else:
            scale = np.float32(0.2 if name.endswith("bias") else 0.15)
            out[i] = (np.float32(s - 393210) / np.float32(65536)) * scale
    return bf16(out)


def tokens(name, vocab):
    g = splitmix(seed_of(name + "/tokens"))
    n = len(DOCS) * T
    ids = [int(next(g) % vocab) for _ in range(n)]
    want = [int(next(g) % 4) != 0 for _ in range(n)]
    targets, pos, doc, row = [-100] * n, [0] * n, [0] * n, 0
    for lens in DOCS:
        for ln in lens:
            for j in range(ln):
                pos[row + j], doc[row + j] = j, row
                if j + 1 < ln and want[row + j]:
                    targets[row + j] = ids[row + j + 1]
            row += ln
    t = lambda x: torch.tensor(x).reshape(len(DOCS), T)
    return t(ids), t(targets), t(pos), t(doc)


def mask(doc, window):
    i, j = torch.arange(T)[:, None], torch.arange(T)[None, :]
    m = (doc[:, :, None] == doc[:, None, :]) & (j <= i)
    if window:
        m &= j > i - window
    return torch.zeros(m.shape).masked_fill(~m, torch.finfo(torch.float32).min)[:, None]


def build(conf):
    cfg = AutoConfig.for_model(**copy.deepcopy(conf))  # it writes into nested dictionaries
    m = AutoModelForCausalLM.from_config(cfg, attn_implementation="eager").to(torch.float32)
    with torch.no_grad():
        for k, p in m.named_parameters():
            x = torch.from_numpy(draw(k, p.numel()))
            p.copy_(x.reshape(p.shape[::-1]).T if is_conv1d(m, k) else x.reshape(p.shape))
    return m.eval()  # without dropout


def is_conv1d(m, name):
    """GPT-2 keeps the weights of its products as [in, out]; ours, and what is stored here, are [out, in]."""
    return name.endswith(".weight") and isinstance(m.get_submodule(name.rpartition(".")[0]), Conv1D)


def check_mask(m, conf):
    """Our additive mask, with its window, is the one that transformers makes for one whole document."""
    window = conf.get("sliding_window")
    ids = torch.randint(0, conf["vocab_size"], (1, T))
    ours = m(input_ids=ids, attention_mask=mask(torch.zeros(1, T), window)).logits
    theirs = m(input_ids=ids).logits
    assert torch.allclose(ours, theirs, atol=1e-4), (ours - theirs).abs().max()


for name, conf in MODELS.items():
    m = build(conf)
    check_mask(m, conf)
    ids, targets, pos, doc = tokens(name, conf["vocab_size"])
    att = mask(doc, conf.get("sliding_window"))
    run = lambda: m(input_ids=ids, position_ids=pos, attention_mask=att).logits
    loss = lambda lg: F.cross_entropy(lg.reshape(-1, lg.size(-1)), targets.reshape(-1), ignore_index=-100)
    logits = run()
    first = loss(logits)
    first.backward()
    out = {"logits": logits.detach().reshape(-1, logits.size(-1)).contiguous(),
           "ids": ids.reshape(-1).to(torch.int32), "targets": targets.reshape(-1).to(torch.int32)}
    for k, p in m.named_parameters():
        g = p.grad.detach().T if is_conv1d(m, k) else p.grad.detach()
        out["grad." + k] = g.clone().contiguous()
    decay = [p for k, p in m.named_parameters() if p.dim() > 1]
    other = [p for k, p in m.named_parameters() if p.dim() <= 1]
    opt = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": other, "weight_decay": 0.0}], lr=1e-3,
                            betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for _ in range(10):
        opt.zero_grad()
        l = loss(run())
        l.backward()
        torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        opt.step()
        losses.append(l.item())
    index, blob = {}, b""
    for k, t in out.items():
        index[k] = {"shape": list(t.shape), "offset": len(blob)}
        blob += t.numpy().tobytes()
    with open(os.path.join(OUT, name + ".bin"), "wb") as f:
        f.write(blob)
    with open(os.path.join(OUT, name + ".json"), "w") as f:
        json.dump({"config": conf, "documents": DOCS, "sequence": T, "losses": losses, "tensors": index}, f, indent=1)
        f.write("\n")
    print(f"{name}: loss {first.item():.6f}, max logit {logits.abs().max():.2f}, losses {losses[0]:.4f} -> {losses[-1]:.4f}")
