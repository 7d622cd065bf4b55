"""What must the model compute? Reference numbers from PyTorch, for tests that do not need it.

    python scripts/make_torch_fixtures.py --out tests/fixtures        # needs torch 2.13 or newer

Writes four .npz files, the same bytes at every run. Floats are float32, ids int32, masks bool.
Keys: `param/<name>`, `in/<name>`, `out/<name>`, `grad/<name>`, after `<case>/` where there are
several. Every parameter is random, norm scales and biases too, so that each shows when it is
mapped wrongly; only the biases of key projections can not (softmax is shift invariant).

- A torch weight is [out, in]: a kernel [in, out] is its transpose. Heads are contiguous blocks
  of the projected width: [D, D] -> [D, H, K] after the transpose; the output one is [H, K, D].
- torch_transformer: `in_proj_weight` [3D, D] holds query, key and value in this order. In the
  decoder norm1 belongs to self-attention, norm2 to `multihead_attn` (cross), norm3 to the mlp.
  `encoder.norm` and `decoder.norm` are final norms, which the paper has not. Epsilon 1e-5. The
  cases share `param/` and `in/`. True in `*_padding` is padding; outputs there are real numbers
  (torch's fast path, off here, zeroes them). loss = sum(output * loss_weight).
- vaswani: the paper's model under the names of Marian checkpoints. One embedding, scaled by
  sqrt(D) where ids are read but not where it gives logits; interleaved sines and cosines; norm
  after each sum, none at the end; ReLU; epsilon 1e-6 (the paper names none). Ids: 0 pads, 1
  ends, 3 starts. Gradients and `adam/` follow `loss_uniform`; `adam/out/loss` holds the loss
  before each of six steps and after the last.
- attention: `padding` [B, S] and `future` [T, S] say what is hidden, `allowed` what is seen.
- numerics: norms and sinusoids are computed in float64: the truth, not torch's rounding.
"""

import argparse
import functools
import pathlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

WIDTH, HEADS, MLP, VOCAB = 16, 4, 32, 29
DEPTH = {"encoder": 2, "decoder": 3}


def save(path, arrays):
    small = {"f": np.float32, "i": np.int32, "b": np.bool_}
    arrays = {k: x.detach() if isinstance(x, torch.Tensor) else x for k, x in arrays.items()}
    arrays = {k: np.asarray(x) for k, x in arrays.items()}
    np.savez_compressed(path, **{k: x.astype(small[x.dtype.kind]) for k, x in arrays.items()})
    print(f"{path}  {len(arrays)} arrays  {path.stat().st_size / 1000:.0f} kB")


def under(prefix, /, **arrays):
    return {f"{prefix}/{name}": x for name, x in arrays.items()}


def randomize(shapes):
    """Matrices keep the size of what they multiply, norm scales stay near 1, biases near 0."""

    size = lambda shape: shape[-1] ** -0.5 if len(shape) > 1 else 0.2
    mean = lambda name: float("norm" in name and name.endswith("weight"))
    return {name: size(s) * torch.randn(s) + mean(name) for name, s in shapes.items()}


def padding(lengths):
    return torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]


def future(length):
    return torch.ones(length, length, dtype=torch.bool).triu(1)


def torch_transformer():
    sizes = (WIDTH, HEADS, *DEPTH.values(), MLP)
    build = functools.partial(nn.Transformer, *sizes, dropout=0.0, batch_first=True)
    params = randomize({name: p.shape for name, p in build().named_parameters()})
    source, target = torch.randn(3, 7, WIDTH), torch.randn(3, 5, WIDTH)
    source_padding, target_padding = padding([7, 4, 1]), padding([5, 2, 4])
    hidden = dict(tgt_key_padding_mask=target_padding, memory_key_padding_mask=source_padding)
    loss_weight = torch.randn(3, 5, WIDTH) * ~target_padding[..., None]
    arrays = under("param", **params)
    arrays |= under("in", source=source, target=target, loss_weight=loss_weight)
    arrays |= under("in", source_padding=source_padding, target_padding=target_padding)
    for case in ("post_relu", "post_gelu", "pre_relu", "pre_gelu"):
        place, activation = case.split("_")
        model = build(activation=activation, norm_first=place == "pre")
        model.load_state_dict(params)
        memory = model.encoder(source, src_key_padding_mask=source_padding)
        output = model.decoder(target, memory, tgt_mask=future(5), **hidden)
        loss = (output * loss_weight).sum()
        arrays |= under(f"{case}/out", memory=memory, output=output, loss=loss)
        if case in ("post_relu", "pre_gelu"):
            loss.backward()
            arrays |= under(f"{case}/grad", **{k: p.grad for k, p in model.named_parameters()})
    return arrays


def sinusoid(length, width):
    """Vaswani et al. 2017, section 3.5: sines in even columns, cosines in odd ones; float64."""
    angle = np.arange(length)[:, None] / 10000 ** (np.arange(0, width, 2) / width)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, width)


def layers(stack):
    return [f"model.{stack}.layers.{i}" for i in range(DEPTH[stack])]


def vaswani_params():
    shapes = {}
    for stack in DEPTH:
        for name in layers(stack):
            for attention in ("self_attn", "encoder_attn")[: 1 + (stack == "decoder")]:
                for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    shapes[f"{name}.{attention}.{projection}"] = (WIDTH, WIDTH)
                shapes[f"{name}.{attention}_layer_norm"] = (WIDTH,)
            shapes |= {f"{name}.fc1": (MLP, WIDTH), f"{name}.fc2": (WIDTH, MLP)}
            shapes[f"{name}.final_layer_norm"] = (WIDTH,)
    params = {f"{name}.weight": shape for name, shape in shapes.items()}
    params |= {f"{name}.bias": shape[:1] for name, shape in shapes.items()}
    return randomize({"model.shared.weight": (VOCAB, WIDTH)} | params)


def vaswani_model(p, source, target):
    """Memory [B, S, D] and logits [B, T, V] of the paper's model with parameters `p`."""

    def linear(name, x):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(name, x):
        return F.layer_norm(x, (WIDTH,), p[f"{name}.weight"], p[f"{name}.bias"], eps=1e-6)

    def attend(name, x, memory, hidden):
        def heads(projection, y):
            return linear(f"{name}.{projection}", y).unflatten(-1, (HEADS, -1)).transpose(1, 2)

        q, k, v = heads("q_proj", x), heads("k_proj", memory), heads("v_proj", memory)
        scores = q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
        mixed = (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(1, 2)
        return norm(f"{name}_layer_norm", x + linear(f"{name}.out_proj", mixed.flatten(-2)))

    def mlp(name, x):
        inner = F.relu(linear(f"{name}.fc1", x))
        return norm(f"{name}.final_layer_norm", x + linear(f"{name}.fc2", inner))

    def embed(ids):
        table = torch.tensor(sinusoid(ids.shape[1], WIDTH), dtype=torch.float32)
        return p["model.shared.weight"][ids] * WIDTH**0.5 + table

    memory, x, hidden = embed(source), embed(target), (source == 0)[:, None, None, :]
    for name in layers("encoder"):
        memory = mlp(name, attend(f"{name}.self_attn", memory, memory, hidden))
    for name in layers("decoder"):
        x = attend(f"{name}.self_attn", x, x, future(target.shape[1]))
        x = mlp(name, attend(f"{name}.encoder_attn", x, memory, hidden))
    return memory, x @ p["model.shared.weight"].T


def smoothed(logits, targets, smoothing, convention):
    """Label-smoothed negative log likelihood of each target, in one of the two conventions."""
    if convention == "uniform":  # smoothing / V on every class, the true one included
        options = dict(label_smoothing=smoothing, reduction="none")
        return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), **options).view_as(targets)
    # tensor2tensor: smoothing / (V - 1) on the others, less the entropy of that distribution
    low = smoothing / (logits.shape[-1] - 1)
    wanted = F.one_hot(targets, logits.shape[-1]) * (1 - smoothing - low) + low
    return (torch.special.xlogy(wanted, wanted) - wanted * logits.log_softmax(-1)).sum(-1)


def vaswani():
    def sentences(lengths):
        words = torch.randint(4, VOCAB, (3, max(lengths))).masked_fill(padding(lengths), 0)
        ended = F.pad(words, (0, 1))
        ended[range(3), lengths] = 1
        return words, ended

    _, source = sentences([7, 4, 2])
    words, target_out = sentences([4, 6, 1])
    target_in, weights = F.pad(words, (1, 0), value=3), (target_out != 0).float()
    p = vaswani_params()
    arrays = under("param", **{k: x.clone() for k, x in p.items()})
    arrays |= under("in", source=source, target_in=target_in, target_out=target_out)
    arrays |= under("in", weights=weights, label_smoothing=0.1)
    for x in p.values():
        x.requires_grad_()

    def forward(convention="uniform"):
        memory, logits = vaswani_model(p, source, target_in)
        losses = smoothed(logits, target_out, 0.1, convention)
        return memory, logits, (losses * weights).sum() / weights.sum()

    memory, logits, loss = forward()
    loss.backward()
    arrays |= under("out", memory=memory, logits=logits, loss_uniform=loss)
    arrays |= under("out", loss_tensor2tensor=forward("tensor2tensor")[-1])
    arrays |= under("grad", **{k: x.grad.clone() for k, x in p.items()})

    factor, warmup, losses = 0.1, 4, [loss]
    rates = [factor * WIDTH**-0.5 * min(s**-0.5, s * warmup**-1.5) for s in range(1, 7)]
    optimizer = torch.optim.Adam(p.values(), betas=(0.9, 0.98), eps=1e-9)
    for optimizer.param_groups[0]["lr"] in rates:
        optimizer.step()
        optimizer.zero_grad()
        losses.append(forward()[-1])
        losses[-1].backward()
    arrays |= under("adam/in", factor=factor, warmup=warmup)
    return arrays | under("adam/out", lr=rates, loss=torch.stack(losses))


def attention():
    model = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    params = randomize({name: p.shape for name, p in model.named_parameters()})
    model.load_state_dict(params)
    query, memory, hidden = torch.randn(2, 5, WIDTH), torch.randn(2, 7, WIDTH), padding([7, 3])
    arrays = under("param", **params)
    arrays |= under("mha_cross/in", query=query, memory=memory, padding=hidden)
    out, weights = model(query, memory, memory, hidden, average_attn_weights=False)
    arrays |= under("mha_cross/out", output=out, weights=weights)
    arrays |= under("mha_causal/in", query=query, future=future(5))
    out, weights = model(query, query, query, attn_mask=future(5), average_attn_weights=False)
    arrays |= under("mha_causal/out", output=out, weights=weights)
    q, k, v = (torch.randn(2, n, HEADS, 4) for n in (5, 7, 7))
    allowed = torch.rand(2, 1, 5, 7) < 0.6
    allowed[..., 2] = True  # no query without a key
    out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), allowed)
    arrays |= under("sdpa/in", q_BTHK=q, k_BSHK=k, v_BSHK=v, allowed=allowed)
    return arrays | under("sdpa/out", out_BTHK=out.transpose(1, 2))


def numerics():
    arrays = {f"sinusoid/out/{n}x{width}": sinusoid(n, width) for n, width in ((9, 2), (60, 16))}
    x = torch.cat([torch.linspace(-12, 12, 97), torch.tensor([-1e-4, 1e-4, 100, -100])])
    arrays |= under("activation/in", x=x) | under("activation/out", gelu_erf=F.gelu(x))
    arrays |= under("activation/out", silu=F.silu(x), gelu_tanh=F.gelu(x, approximate="tanh"))
    # rows: ordinary, large mean, larger mean, tiny variance (epsilon rules), constant, huge
    spread, mean = torch.tensor([[1, 1, 1, 1e-3, 0, 1e6], [0, 100, 1000, 0, 5, 0]]).unsqueeze(-1)
    x, scale, bias = mean + spread * torch.randn(6, WIDTH), torch.randn(WIDTH), torch.randn(WIDTH)
    arrays |= under("norm/in", x=x, scale=scale, bias=bias)
    x, scale, bias = x.double(), scale.double(), bias.double()
    for eps in (1e-5, 1e-6):
        arrays[f"norm/out/layer_norm_{eps:.0e}"] = F.layer_norm(x, (WIDTH,), scale, bias, eps)
        arrays[f"norm/out/rms_norm_{eps:.0e}"] = F.rms_norm(x, (WIDTH,), scale, eps)
    logits, targets = 4 * torch.randn(6, 11), torch.tensor([0, 10, 3, 3, 7, 1])
    arrays |= under("smoothing/in", logits=logits, targets=targets)
    for kind in ("uniform", "tensor2tensor"):
        for eps in (0.0, 0.1, 0.3):
            arrays[f"smoothing/out/{kind}_{eps}"] = smoothed(logits, targets, eps, kind)
    start, gradients = torch.randn(5), torch.randn(12, 5) * torch.logspace(-3, 2, 5)
    arrays |= under("optim/in", start=start, gradients=gradients)
    for name, decay in (("Adam", 0), ("AdamW", 0.01)):
        x, steps = start.clone().requires_grad_(), []
        optimizer = getattr(torch.optim, name)([x], 0.01, (0.9, 0.98), 1e-9, decay)
        for x.grad in gradients:
            optimizer.step()
            steps.append(x.detach().clone())
        arrays[f"optim/out/{name.lower()}"] = torch.stack(steps)
    return arrays


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default="tests/fixtures")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # one order of summation, the same bytes each time
    torch.use_deterministic_algorithms(True)
    torch.backends.mha.set_fastpath_enabled(False)
    for seed, make in enumerate((torch_transformer, vaswani, attention, numerics)):
        torch.manual_seed(seed)
        save(out / f"{make.__name__}.npz", make())


if __name__ == "__main__":
    main()
