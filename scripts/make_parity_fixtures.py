"""What do Hugging Face's models compute? Reference folders, from random weights, for parity tests.

    python scripts/make_parity_fixtures.py --sizes tests --out tests/fixtures/hf
    python scripts/make_parity_fixtures.py --sizes odd --out /tmp/odd --only 'bert/.*MaskedLM'

Needs torch 2.13 and transformers 5.23 or newer; the same bytes at every run. Writes
<family>/<Class or Class_variant>/ with config.json and model.safetensors, as save_pretrained
makes them, io.npz and meta.json; hf_inputs.py and its neighbours say which, fed with what.

- Every parameter is random, norm scales, biases and rows of padding too, for each must show when
  it is mapped wrongly. float32, eval mode, eager attention.
- io.npz: <case>/in/<argument of forward>, <case>/out/<name> (hidden_states [layers + 1, B, T, D],
  attentions [layers, B, H, T, S]; of XLNet's two streams hidden_states.<i> and
  attentions.<layer>.<stream>; mems [layers, memory, B, D]), <case>/out64/<name> in float64 for the
  first case and for losses, <case>/grad/<parameter>, gradnorm, grad_global_norm and adamw/ for a
  family's main model, eps_probe/out/<name>, gen_<set>/in/<argument>, gen_<set>/out/<mode>.
- meta.json: notes, overrides of the config and extra arguments of each case, shapes of the
  tensors in the file, exact arguments of generate(), how far a wrong epsilon moves the probe and
  how far an output moves when a parameter is left out (`sensitivity`, without --sizes tests).
- Gradients are taken with the embeddings' padding_idx removed: the true ones.
"""

import argparse
import copy
import dataclasses
import itertools
import json
import pathlib
import re
import warnings
import zlib

import numpy as np
import torch
import transformers
from hf_decoders import gpt, marian_and_bart, t5
from hf_encoders import bert
from hf_inputs import SIZES
from hf_xlnet import xlnet
from torch import nn

# Softmax does not see what is added to all scores of a query: key biases, and the like of them.
INVISIBLE = re.compile(r"key\.bias|k_proj\.bias|k_lin\.bias|start_logits\.dense\.bias|mask_emb|"
                       r"end_logits\.(LayerNorm|dense_1)\.bias")  # fmt: skip
GAINS = {  # of matrices; the first pattern found in the name counts
    r"Attention\.[qk]\.": 0.6,  # T5 does not scale its scores
    r"query|key|[qk]_proj|[qk]_lin|\.[qk]$": 1.6,
    r"out|fc2|lin2|c_proj|wo\.|layer_2|\.o$|\.o\.weight": 0.7,
    r"": 1.2,
}


def build(reference, override=None, state=None, seed=0):
    """The model of a folder, with random parameters or those of `state`."""
    config = getattr(transformers, reference.model).config_class(**reference.config)
    for name, value in (override or {}).items():
        setattr(config, name, value)
    config._attn_implementation = "eager"
    model = getattr(transformers, reference.model)(config).eval()
    own = not reference.config.get("tie_word_embeddings", True)
    if own and hasattr(getattr(model, "lm_head", None), "weight"):
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())  # as real files have it
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None
    if state is None:
        torch.manual_seed(zlib.crc32(f"{seed} {reference.folder}".encode()))
        randomize(model)
    else:
        model.load_state_dict(state)
    return model


@torch.no_grad()
def randomize(model):
    """Matrices about keep the size of what they multiply; norm scales are near 1, biases near 0.

    Sharp attention and modest outputs of sublayers, else all positions grow alike in deep stacks
    and nothing of the last attention can be seen.
    """
    embeddings = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, x in tensors:
        if not (x.requires_grad or name == "final_logits_bias"):
            continue  # sinusoids, position ids
        x.copy_(torch.randn(x.shape))
        if x in embeddings:
            scaled = getattr(model.config, "scale_embedding", False)  # by sqrt(D), where read
            x *= 1.0 if "relative_attention_bias" in name else 0.2 if scaled else 0.5
        elif name.endswith("bias") or x.ndim < 2:
            scales = x.ndim < 2 and name.endswith("weight")  # those of norms
            x *= 0.3 if scales else 0.2
            x += scales
        elif "seg_embed" in name or "mask_emb" in name:
            x *= 0.5
        else:
            inner = x.shape[0] if x.ndim == 3 or "c_" in name else x.shape[-1]
            gain = next(gain for pattern, gain in GAINS.items() if re.search(pattern, name))
            x *= gain * inner**-0.5


def doubled(model):
    """The model in float64; XLNet's positions follow it only in the one-stream branch."""
    model = copy.deepcopy(model).double()
    for module in model.modules():
        if isinstance(module, transformers.XLNetModel):
            place = module.relative_positional_encoding
            module.relative_positional_encoding = lambda *a, p=place, **k: p(*a, **k).double()
    return model


def tensor(x, dtype=torch.float32):
    x = torch.as_tensor(np.asarray(x))
    return x.to(dtype) if x.is_floating_point() else x.long()


def forward(model, case, attentions=True):
    """The outputs of a case: name -> tensor, under the names of the reference."""
    arrays = {name: tensor(x, model.dtype) for name, x in case.inputs.items()}
    if "mems" in arrays:
        arrays["mems"] = list(arrays["mems"])
    extra = dict(use_cache=False) if model.config.is_encoder_decoder else {}
    extra |= case.extra | dict(output_hidden_states=True, output_attentions=attentions)
    found = {}
    for name, value in model(**arrays, **extra).items():
        if name == "past_key_values" or (isinstance(value, tuple) and not value):
            continue
        two = "target_mapping" in arrays and name == "hidden_states"
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif not isinstance(value[0], torch.Tensor):
            found |= {f"{name}.{i}.{j}": x for i, xs in enumerate(value) for j, x in enumerate(xs)}
        elif two or len({x.shape for x in value}) > 1:  # the last of DoubleHeads has more axes
            found |= {f"{name}.{i}": x for i, x in enumerate(value)}
        else:
            found[name] = torch.stack(list(value))
    return found


def gradients(model, case):
    """The loss of a case, parameter -> gradient, and the norm of all of them."""
    model.zero_grad()
    loss = forward(model, case)["loss"]
    loss.backward()
    found = {n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None}
    norm = torch.linalg.vector_norm(torch.stack([x.double().norm() for x in found.values()]))
    return loss.item(), found, norm.item()


ADAMW = dict(lr=5e-3, betas=(0.9, 0.98), eps=1e-6)


def adamw(model, case):
    """Six steps: the losses before each, and the norms of the gradients before clipping."""
    model = copy.deepcopy(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        dict(params=[p for p in parameters if p.ndim >= 2], weight_decay=0.01),
        dict(params=[p for p in parameters if p.ndim < 2], weight_decay=0.0),
    ]
    optimizer, steps = torch.optim.AdamW(groups, **ADAMW), []
    for _ in range(6):
        loss, _, norm = gradients(model, case)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        steps.append((loss, norm))
    return dict(zip(("loss", "grad_norm"), np.array(steps).T, strict=True))


def probe_epsilon(model, reference, case):
    """Hidden states where norms see tiny inputs; how far another epsilon moves them."""
    scale, *names = reference.probe
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name in names:
            model.get_parameter(name).mul_(scale)
        hidden = lambda: {n: x for n, x in forward(model, case).items() if "hidden_states" in n}
        found, effect = hidden(), {}
        for wrong in (1e-12, 1e-6, 1e-5):
            for module in model.modules():
                for name in ("eps", "variance_epsilon"):
                    if hasattr(module, name):
                        setattr(module, name, wrong)
            moved = hidden()
            effect[str(wrong)] = max(float((x - moved[n]).abs().max()) for n, x in found.items())
    assert sorted(effect.values())[1] > 0.01, (reference.folder, effect)
    first = next(iter(reference.cases))
    told = dict(case=first, multiply_params=names, scale=scale, outputs=sorted(found))
    return found, told | dict(effect_of_wrong_eps=effect)


BEAM = dict(do_sample=False, num_beams=4, length_penalty=1.0, early_stopping=True)
MODES = {
    "greedy": dict(do_sample=False, num_beams=1),
    "beam4": BEAM,
    "beam4_lp06": BEAM | dict(length_penalty=0.6, early_stopping=False),
    "beam4_all": BEAM | dict(num_return_sequences=4, early_stopping="never"),
    "beam4_false": BEAM | dict(early_stopping=False),
    "beam4_never": BEAM | dict(early_stopping="never"),
    "beam4_lp2": BEAM | dict(length_penalty=2.0, early_stopping="never"),
    "beam4_ngram": BEAM | dict(no_repeat_ngram_size=2),
}


@torch.no_grad()
def generate(model, inputs, kwargs):
    """mode -> (ids, scores or None), mode -> arguments; some sentences end, others do not."""
    text = {name: tensor(x) for name, x in inputs.items()}
    kwargs = dict(max_new_tokens=12, pad_token_id=model.config.pad_token_id) | kwargs
    run = lambda model, mode, **more: model.generate(
        **text, **kwargs | mode | more, output_scores=True, return_dict_in_generate=True
    )
    kwargs["eos_token_id"] = model.config.vocab_size - 2
    free = run(model, MODES["greedy"], max_new_tokens=9).sequences[:, -9:]
    ends = lambda word: sum(word in row[2:7] and word not in row[:2] for row in free.tolist())
    words = sorted({int(word) for word in free[:, 1:7].flatten()} - {kwargs["pad_token_id"]})
    kwargs["eos_token_id"] = min(words, key=lambda word: (abs(ends(word) - 1), word))
    if "forced_eos_token_id" in kwargs:
        kwargs["forced_eos_token_id"] = kwargs["eos_token_id"]
    double, found, told = doubled(model), {}, {}
    for name, mode in MODES.items():
        out, exact = run(model, mode), run(double, mode)
        assert out.sequences.equal(exact.sequences), (name, "float64 chooses other words")
        found[name] = out.sequences
        if "sequences_scores" in out:
            found[f"{name}_scores"] = out.sequences_scores
        told[name] = dict(kwargs=kwargs | mode, sequences=out.sequences.tolist())
    return found, told


@torch.no_grad()
def sensitivity(reference, model, outputs):
    """parameter -> the largest change of an output when it is 0, or 1 where it scales."""
    state, moved = model.state_dict(), {}
    silent = build(reference, state=state)
    for name, x in silent.named_parameters():
        x.copy_(torch.full_like(x, float(x.ndim < 2 and name.endswith("weight"))))
        changes = [0.0]
        for case, wanted in zip(reference.cases.values(), outputs.values(), strict=True):
            if case.override:
                continue
            for key, y in forward(silent, case, attentions=False).items():
                if y.is_floating_point() and y.shape == wanted[key].shape:
                    changes.append(float((y - wanted[key]).abs().max()))
        x.copy_(state[name])
        moved[name] = max(changes)
    weak = {n for n, change in moved.items() if change < 3e-3 and not INVISIBLE.search(n)}
    assert not weak, (reference.folder, {n: moved[n] for n in weak})
    return moved


def difference(out, exact):
    pairs = {n: (x.detach(), exact[n].detach()) for n, x in out.items() if x.is_floating_point()}
    for name, (x, y) in pairs.items():
        gap = float((x - y).abs().max())
        assert gap < 6e-6 * max(1, float(y.abs().max())), (name, gap)
        yield name, dict(absmax=float(y.abs().max()), f32_vs_f64=gap)


def put(arrays, prefix, named):
    for name, x in named.items():
        x = x.detach().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
        arrays[f"{prefix}/{name}"] = x.astype(np.int32) if x.dtype.kind in "ib" else x


def in64(name, later):
    """Whether an output is kept in float64: losses, and what the heads of a first case give."""
    return name.endswith("loss") or not (later or re.search("hidden|attentions|mems|index", name))


def run_cases(reference, size, model, arrays):
    """The outputs of each case, put into `arrays`, and what meta.json tells of it."""
    outputs, told, seen = {}, {}, size.lean and not reference.main
    for name, case in reference.cases.items():
        if case.mems_of:
            case.inputs["mems"] = outputs[case.mems_of]["mems"].numpy()
        here = build(reference, case.override, model.state_dict())
        with torch.no_grad():
            out, exact = forward(here, case), forward(doubled(here), case)
        unwanted = re.compile("attentions|hidden_states" if size.lean else "attentions")
        put(arrays, f"{name}/in", case.inputs)
        wanted = {n: x for n, x in out.items() if not (seen and unwanted.search(n))}
        put(arrays, f"{name}/out", wanted)
        put(arrays, f"{name}/out64", {n: x for n, x in exact.items() if in64(n, seen)})
        extra = case.extra | (dict(use_cache=False) if model.config.is_encoder_decoder else {})
        told[name] = dict(note=case.note, config_override=case.override, extra=extra)
        gaps = dict(difference(out, exact))
        if not size.lean:
            shapes = {n: list(x.shape) for n, x in out.items()}
            told[name] |= dict(outputs=shapes, tolerance=gaps)
        outputs[name], seen = out, True
    return outputs, told


def train(name, case, size, model, arrays):
    """Gradients and six steps on a case, put into `arrays`, and what meta.json tells of them."""
    loss, grads, norm = gradients(model, case)
    _, _, norm64 = gradients(doubled(model), case)
    put(arrays, f"{name}/grad", grads)
    norms = {n: x.double().norm() for n, x in grads.items() if not size.lean}
    put(arrays, f"{name}/gradnorm", norms)
    put(arrays, name, dict(grad_loss=loss, grad_global_norm=norm, grad_global_norm64=norm64))
    steps = adamw(model, case)
    put(arrays, f"{name}/adamw", steps)
    optimizer = ADAMW | dict(weight_decay="0.01 where ndim >= 2, else 0", clip_global_norm=1.0)
    return dict(adamw=dict(optimizer=optimizer, loss=steps["loss"].tolist()))


def make(reference, size, out):
    """Writes one folder and returns its bytes."""
    model, arrays = build(reference, seed=size.seed), {}
    model.save_pretrained(out)
    config = json.loads((out / "config.json").read_text()) | reference.file_config
    config = {name: x for name, x in config.items() if name not in reference.file_lacks}
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    meta = {"class": reference.model, "seed": size.seed, "note": reference.note}
    outputs, meta["cases"] = run_cases(reference, size, model, arrays)
    first, case = next(iter(reference.cases.items()))
    if reference.main:
        meta["cases"][first] |= train(first, case, size, model, arrays)
    if reference.probe:
        found, meta["eps_probe"] = probe_epsilon(model, reference, case)
        put(arrays, "eps_probe/out", found)
    for name, (inputs, kwargs) in reference.generate.items():
        found, told = generate(model, inputs, kwargs)
        put(arrays, f"gen_{name}/in", inputs)
        put(arrays, f"gen_{name}/out", found)
        meta.setdefault("generate", {})[name] = told
    if not size.lean:
        meta["sensitivity"] = dict(params=sensitivity(reference, model, outputs))
    check_reload(reference, out, outputs)
    with (out / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    meta["tensors"] = {n: x["shape"] for n, x in header.items() if n != "__metadata__"}
    meta["n_params_tied"] = sum(p.numel() for p in model.parameters())
    np.savez_compressed(out / "io.npz", **arrays)
    (out / "meta.json").write_text(json.dumps(meta) + "\n")
    return sum(path.stat().st_size for path in out.iterdir())


@torch.no_grad()
def check_reload(reference, out, outputs):
    """What from_pretrained makes of the folder computes the same."""
    model = getattr(transformers, reference.model).from_pretrained(out, attn_implementation="eager")
    for name, case in reference.cases.items():
        if not case.override:
            for key, x in forward(model.eval(), case).items():
                assert torch.equal(x, outputs[name][key]), (reference.folder, name, key)


# Folders that would repeat others but for sizes and prefixes.
REPEATED = re.compile(
    "roberta/.*(regression|Token|Multiple)|distilbert/.*(regression|Token|Multiple)|_v11resaved|"
    "T5Model_v11|MarianModel|Bart.*_scaled"
)


def references(size):
    for family in (bert, gpt, t5, xlnet, marian_and_bart):
        for reference in family(size):
            if not size.lean:
                yield reference
            elif not REPEATED.search(reference.folder):
                few = dict(itertools.islice(reference.cases.items(), 2))
                short = dataclasses.replace(reference, cases=few, generate={})
                yield reference if reference.main else short


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--only", default="", help="a regular expression in <family>/<Class>")
    parser.add_argument("--sizes", choices=SIZES, default="small")
    flags = parser.parse_args()
    torch.set_num_threads(1)  # one order of summation, the same bytes each time
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    size, total = SIZES[flags.sizes], 0
    for reference in references(size):
        if re.search(flags.only, reference.folder):
            out = flags.out / reference.folder
            out.mkdir(parents=True, exist_ok=True)
            total += (written := make(reference, size, out))
            names = " ".join(itertools.chain(reference.cases, reference.generate))
            print(f"{reference.folder:45} {written / 1000:6.0f} kB  {names}", flush=True)
    print(f"{total / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
