"""Do Hugging Face's classes read what tfx writes, whole, and compute the same?

    python scripts/check_export.py make /tmp/exported
    PATH_OF_ANOTHER_PYTHON scripts/check_export.py check /tmp/exported

The first writes a folder for every reference of tests/fixtures/hf, and for a small model of every
family and head of tfx's own making, with inputs and what tfx makes of them in io.npz. The second
needs torch, transformers and numpy alone: it loads each folder by the class that config.json names,
wants no tensor missing, left over or of another shape, and compares the outputs.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

LIMIT = 1e-5  # against max(1, the largest)
ROOT = Path(__file__).parent.parent
REFERENCES = ROOT / "tests/fixtures/hf"
SMALL = dict(width=16, depth=2, heads=2, mlp=24, vocab=40, max_length=32)
OWN = {  # family: fields that the default of no head shows
    "transformer": [dict(epsilon=1e-5), dict(epsilon=1e-5, tie="decoder", source_vocab=40)],
    "marian": [{}, dict(tie="none", source_vocab=30), dict(tie="decoder", source_vocab=30)],
    "bart": [{}, dict(output_bias=False)],
    "bert": [dict(activation="gelu_tanh", head="classify")],
    "roberta": [dict(activation="relu")],
    "gpt": [dict(activation="silu"), dict(tie=False)],
    "gpt2": [dict(by_depth=True), dict(tie=False), dict(head="choice", summary_width="width")],
    "xlnet": [dict(causal=True), dict(tied=False), dict(head="classify", head_activation="none")],
    "t5": [dict(activation=name) for name in ("geglu", "geglu_tanh", "swiglu", "gelu_tanh")]
    + [dict(tie="inputs", scale_output=False, decoder_depth=1), dict(tie="inputs")],
}


def own():
    """(name, model, parameters) of small models that were never Hugging Face's."""
    import dataclasses
    from typing import get_args, get_type_hints

    import jax
    from flax import linen as nn

    from tfx import models

    for family, home in models.MODELS.items():
        exported = lambda head, home=home: any(
            fields.get("head") == head for fields in home.FORMAT.heads.values()
        )
        heads = get_args(get_type_hints(home.Config).get("head"))
        more = dict(mlp=64) if family == "gpt" else {}
        more |= dict(key_width=6, value_width=6) if family == "t5" else {}
        fields = [dict(head=head) for head in heads if exported(head)] + OWN.get(family, [{}])
        for number, each in enumerate(fields):
            config = home.Config(**SMALL | more | each)
            if family == "distilbert" and config.head == "none":
                config = dataclasses.replace(config, pooler="none")
            model = models.build(config)
            params = nn.unbox(models.parameters(model, jax.random.key(number)))
            leaves, tree = jax.tree.flatten(params)
            keys = jax.random.split(jax.random.key(number), len(leaves))
            draw = lambda x, key: np.asarray(x + 0.1 * jax.random.normal(key, x.shape))
            params = tree.unflatten(map(draw, leaves, keys))
            yield f"own/{family}-{number}", model, params


def texts(model) -> dict[str, np.ndarray]:
    """Arguments for one of their models."""
    random = np.random.default_rng(0)
    head = getattr(model.config, "head", "")
    shape = (2, 3, 7) if head == "choice" else (2, 7)
    ids = random.integers(4, 28, shape)
    ids[..., -1] = 1  # T5 classifies at its end
    found = dict(input_ids=ids, attention_mask=np.ones(shape, int))
    if getattr(model.config, "causal", False):
        del found["attention_mask"]  # XLNet's "uni" takes none of several rows
    if "choice" in head and "gpt" in type(model).__name__.lower():
        found = dict(input_ids=ids, mc_token_ids=np.full(shape[:2], 6))
    if "target_in" in model.INPUTS:
        found["decoder_input_ids"] = random.integers(4, 28, (2, 5))
    return found


def make(out: Path) -> None:
    sys.path.insert(0, str(ROOT))
    from tfx import pretrained
    from tfx.lab import parity

    def put(name, model, params, theirs, about):
        pretrained.write(out / name, model, params, about=about)
        again = pretrained.read(out / name)
        found = parity.run(again.model, again.about, again.params, theirs)
        arrays = {f"in/{key}": x for key, x in theirs.items()}
        arrays |= {f"out/{key}": np.asarray(x) for key, x in found.items() if x is not None}
        np.savez(out / name / "io.npz", **arrays)

    for folder in sorted(path.parent for path in REFERENCES.glob("*/*/io.npz")):
        found = pretrained.read(folder)
        with np.load(folder / "io.npz") as file:
            case = file.files[0].split("/")[0]
            start = f"{case}/in/"
            theirs = {k.removeprefix(start): file[k] for k in file.files if k.startswith(start)}
        about = {key: x for key, x in found.about.items() if key.endswith("token_id")}
        name = f"{folder.parent.name}/{folder.name}"
        put(name, found.model, found.params, theirs, about)
        print(name)
    for name, model, params in own():
        ids = dict(pad_token_id=int("roberta" in name), eos_token_id=1, decoder_start_token_id=3)
        put(name, model, params, texts(model), ids)
        print(name)


def check(out: Path) -> int:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    failed = 0
    folders = sorted(path.parent for path in out.rglob("io.npz"))
    for folder in folders:
        (name,) = json.loads((folder / "config.json").read_text())["architectures"]
        model, told = getattr(transformers, name).from_pretrained(
            folder, output_loading_info=True, attn_implementation="eager"
        )
        wrong = {key: sorted(map(str, found)) for key, found in told.items() if found}
        with np.load(folder / "io.npz") as file:
            arrays = {key: file[key] for key in file.files}
        tensor = lambda x: torch.as_tensor(x) if x.dtype.kind == "f" else torch.as_tensor(x).long()
        given = {k[3:]: tensor(x) for k, x in arrays.items() if k.startswith("in/")}
        with torch.no_grad():
            theirs = model.eval()(**given)
        off = {}
        for key in (key for key in theirs if f"out/{key}" in arrays):
            if isinstance(x := theirs[key], torch.Tensor):
                ours, x = arrays[f"out/{key}"], x.numpy()
                worst = np.abs(ours - x).max() / max(1, np.abs(x).max())
                off[key] = float(worst) if ours.shape == x.shape else float("inf")
        fits = not wrong and off and max(off.values()) <= LIMIT
        failed += not fits
        shown = " ".join(f"{key} {x:.1e}" for key, x in off.items())
        print(f"{'fits' if fits else 'DOES NOT FIT'}  {folder.relative_to(out)}  {name}  {shown}")
        if wrong:
            print(f"    {wrong}")
    print(f"{len(folders) - failed} of {len(folders)} fit")
    return int(bool(failed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=("make", "check"))
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    sys.exit((make if args.verb == "make" else check)(args.out))
