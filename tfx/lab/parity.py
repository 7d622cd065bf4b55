"""Does a model of ours compute what the reference implementation computed?

A reference folder holds a Hugging Face model, `config.json` and `model.safetensors`, and what
it made of given inputs, `io.npz`: arrays `<case>/in/<argument>` and `<case>/out/<name>`, and of
some cases `out64` (in float64), `grad` of the loss and `adamw` (losses of six steps). What a
case or a search changed is in `meta.json`. What is not there is not checked; an
output that ours does not make differs infinitely.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tfx import decode, models, pretrained
from tfx.choose import Ids
from tfx.models import hf, weights
from tfx.nn.linear import Product
from tfx.schema import Decode

LIMIT = 1e-5  # of outputs, against max(1, the largest of the reference)
# Of each gradient against its largest; of losses, as Adam makes as much of a gradient's last digit
# as of a large one (a reference in float32 was 1.1e-4 off one in float64); of a search's scores.
LIMITS = {"grad": 1e-4, "adamw": 5e-4, "scores": 1e-4}
# Each program runs once, or six times: what takes time is compiling.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Difference(NamedTuple):
    """How far an output is from the reference."""

    case: str
    output: str
    difference: float  # against max(1, the largest of the reference); of ids: how many differ
    limit: float

    @property
    def fits(self) -> bool:
        return self.difference <= self.limit  # and not NaN

    @property
    def excess(self) -> float:
        """How much of what is allowed the difference takes."""
        return self.difference / (self.limit or 1.0)


def check(folder: str | Path, float64: bool = False) -> Iterator[Difference]:
    """Every output that the folder holds, and how far ours is from it.

    Args:
      float64: compute in float64, and compare with what was computed in float64 where there is
        such.

    Raises:
      FileNotFoundError, ValueError: the folder is not whole.
    """
    path = Path(folder)
    if not (path / "io.npz").is_file():
        raise FileNotFoundError(f"{folder}: no io.npz; want a folder of references")
    with np.load(path / "io.npz") as file, jax.enable_x64(float64):
        arrays = {key: file[key] for key in file.files}
        meta = path / "meta.json"
        meta = json.loads(meta.read_bytes()) if meta.is_file() else {}
        reference = Reference(
            pretrained.read_config(path), weights.read(path), arrays, meta, f"{folder}", float64
        )
        for case in dict.fromkeys(key.split("/")[0] for key in arrays):
            if case == "eps_probe":
                yield from reference.probe()
            elif case.startswith("gen_"):
                yield from reference.generated(case)
            else:
                yield from reference.case(case)


def compare(folder: str | Path, float64: bool = False) -> int:
    """Print every output's difference, gradients as one line a case; 1 where one does not fit."""
    worst: dict[tuple[str, str], Difference] = {}
    for found in check(folder, float64):
        name = found.case, found.output.partition("/")[0]
        if name not in worst or not found.excess <= worst[name].excess:
            worst[name] = found
    for found in worst.values():
        said = "fits" if found.fits else f"does not fit: at most {found.limit:g}"
        print(f"{found.case:16}{found.output:28}{found.difference:9.2g}  {said}")
    failed = [found for found in worst.values() if not found.fits]
    print(f"{folder}: {len(worst) - len(failed)} of {len(worst)} fit")
    return int(bool(failed))


class Reference:
    """The content of a reference folder."""

    def __init__(self, about, tensors, arrays, meta, where: str, float64: bool):
        self._about, self._tensors, self._arrays = about, tensors, arrays
        self._meta, self._where, self._float64 = meta, where, float64

    def case(self, case: str, name: str = "", tensors=None) -> Iterator[Difference]:
        """Outputs, gradients and steps of a case; the outputs of `name` if it is another one."""
        said = self._meta.get("cases", {}).get(case, {})
        found = self._model(said.get("config_override", {}), tensors or self._tensors)
        theirs = self._under(case, "in") | said.get("extra", {})
        outputs = jit(partial(run, found.model, found.about, theirs=theirs))(found.params)
        hidden = hide(found.model.config, outputs, theirs, found.about.get("problem_type"))
        wanted = self._under(name or case, "out")
        exact = self._under(name or case, "out64") if self._float64 else {}
        for key, want in (wanted | exact).items():
            if key not in outputs:
                yield Difference(name or case, key, float("inf"), LIMIT)  # nothing to compare
                continue
            unknown = np.isnan(hidden[key]) & ~np.isnan(outputs[key])
            if not unknown.all():
                yield Difference(name or case, key, distance(outputs[key], want, unknown), LIMIT)
        gradients = self._under(case, "grad")
        if gradients and not name and not np.isnan(hidden.get("loss", np.nan)):
            yield from self._learn(case, found, theirs, gradients)

    def probe(self) -> Iterator[Difference]:
        """A case again, with some tensors made small: shows the epsilon of the norms."""
        if not (said := self._meta.get("eps_probe")):
            return
        scale = dict.fromkeys(said["multiply_params"], said["scale"])
        tensors = {name: x * scale.get(name, 1) for name, x in self._tensors.items()}
        yield from self.case(said["case"], "eps_probe", tensors)

    def generated(self, case: str) -> Iterator[Difference]:
        """Searches: their ids, and their scores."""
        said = self._meta.get("generate", {}).get(case.removeprefix("gen_"), {})
        found, theirs = self._model({}, self._tensors), self._under(case, "in")
        wanted = self._under(case, "out")
        for name in (name for name in wanted if name in said):
            ids, scores = generate(found, theirs, wanted[name].shape[1], said[name]["kwargs"])
            differ = np.inf if ids.shape != wanted[name].shape else (ids != wanted[name]).sum()
            yield Difference(case, name, float(differ), 0)
            if f"{name}_scores" in wanted:
                off = np.abs(scores - wanted[f"{name}_scores"]).max()
                yield Difference(case, f"{name}_scores", float(off), LIMITS["scores"])

    def _learn(self, case, found, theirs, gradients) -> Iterator[Difference]:
        loss = lambda params: run(found.model, found.about, params, theirs)["loss"]
        home = models.family(found.model.config)
        boxed, format = models.shapes(found.model), home.FORMAT
        config = found.model.config
        named = lambda tree: format.clean(hf.to_tensors(format, config, boxed, tree, False))
        ours, wanted = named(jax.device_get(jit(jax.grad(loss))(found.params))), {}
        wanted = format.clean(gradients)
        for name in wanted.keys() & ours.keys():
            most = np.abs(wanted[name]).max() or 1.0
            off = np.abs(ours[name] - wanted[name]).max() / most
            # What a gradient of zero has for digits is noise.
            off = off if most > 1e-5 else np.abs(ours[name]).max()
            yield Difference(case, f"grad/{name}", float(off), LIMITS["grad"])
        if (losses := self._arrays.get(f"{case}/adamw/loss")) is not None:
            axes = {
                "/".join(piece.path): len(piece.theirs(format.transposed))
                for piece in hf.pieces(format, config, boxed)
                if piece.at.name in wanted  # others are not learned
            }
            ours = adamw(loss, found.params, len(losses), axes)
            yield Difference(
                case, "adamw/loss", float(np.abs(ours - losses).max()), LIMITS["adamw"]
            )

    def _model(self, override, tensors) -> pretrained.Pretrained:
        about = self._about | override
        name = pretrained.family(about, tensors, self._where)
        dtype = "float64" if self._float64 else "float32"
        found = pretrained.of_tensors(name, about, tensors, dtype, self._where)
        if not self._float64:
            return found
        wide = jax.tree.map(lambda x: x.astype(np.float64), found.params)
        return found._replace(params=wide)

    def _under(self, *names: str) -> dict[str, np.ndarray]:
        prefix = "/".join(names) + "/"
        found = {k.removeprefix(prefix): x for k, x in self._arrays.items() if k.startswith(prefix)}
        return found


def generate(found: pretrained.Pretrained, theirs: dict, width: int, settings: dict):
    """Ids [R, T] and scores [R] of a search, in the form that Hugging Face's `generate` has them.

    Args:
      width: T, of the reference; what is shorter is filled up.
      settings: the arguments of `generate`.
    """
    model, about, s = found.model, found.about, settings
    end, beams = s.get("eos_token_id", about.get("eos_token_id")), s.get("num_beams", 1)
    pad = s.get("pad_token_id", about.get("pad_token_id"))
    pad = end if pad is None else pad
    start = s.get("decoder_start_token_id", about.get("decoder_start_token_id"))
    stops = {True: "full", False: "current", "never": "exact"}
    how = Decode(
        method="beam" if beams > 1 else "greedy",
        beam=beams,
        alpha=s.get("length_penalty", 1.0),
        penalty="length",
        stop=stops[s.get("early_stopping", False)],
        unended="ranked",
        no_repeat=s.get("no_repeat_ngram_size", 0),
    )
    rows, vocab = len(theirs["input_ids"]), model.config.vocab
    batch = models.family(model.config).FORMAT.batch(about, {**theirs, "decoder_input_ids": None})
    prompt = [] if about.get("is_encoder_decoder") else jnp.asarray(theirs["input_ids"], int)
    first, before = prompt.shape[1] if len(prompt) else 1, {}
    most = s.get("max_new_tokens") or s.get("max_length", first + 20) - first
    if len(prompt):
        before = dict(begin_B=prompt[:, -1], before_BP=prompt[:, :-1])

    def search(params, batch):
        apply, limit_B = partial(model.apply, {"params": params}), jnp.full(rows, most)
        context, step = apply(batch, method="start"), _ruled(apply, first, most, end, about | s)
        parts = step, partial(model.init_cache, rows), context, limit_B, most, how
        return decode.search(*parts, **before, ids=Ids(start, end, (vocab,)), least=rows)

    found = jax.device_get(jit(search)(found.params, batch))
    kept = s.get("num_return_sequences", 1)
    # A beam search fills with its end where 0 would be the padding.
    fill = pad if beams == 1 else pad or end
    ids = np.full((rows, kept, width), fill)
    ids[..., :first] = prompt[:, None] if len(prompt) else start
    for row, n in np.ndindex(rows, kept):
        tokens = found.tokens_BWT[row, n, : found.lengths_BW[row, n]]
        ids[row, n, first : first + len(tokens)] = tokens[: width - first]
    return ids.reshape(-1, width), np.asarray(found.scores_BW[:, :kept]).ravel()


def _ruled(apply, first: int, most: int, end: int, settings: dict):
    """The step of a model, `first` tokens being there before: what the settings force the second
    and the last one to be, and no end where it is too early. The probability of that goes to an id
    behind the vocabulary, for others must not share it."""
    places = (1 - first, "forced_bos_token_id"), (most - 1, "forced_eos_token_id")
    said = lambda name: settings.get(name) or 0
    least = max(said("min_length") - first, said("min_new_tokens"))

    def step(tokens_BW, cache, t, mask_BWS, context):
        logits_BWV, cache = apply(tokens_BW, cache, t, mask_BWS, context, method="step")
        logits_BWV = jnp.pad(logits_BWV, ((0, 0), (0, 0), (0, 1)), constant_values=-jnp.inf)
        turned_BWV = logits_BWV.at[..., [end, -1]].set(logits_BWV[..., [-1, end]])
        logits_BWV = jnp.where(t < least, turned_BWV, logits_BWV)
        ids_11V = jnp.arange(logits_BWV.shape[-1])[None, None]
        for place, name in places:
            if (forced := settings.get(name)) is not None:
                only_11V = jnp.where(ids_11V == forced, 0.0, -jnp.inf)
                logits_BWV = jnp.where(t == place, only_11V, logits_BWV)
        return logits_BWV, cache

    return step


def distance(ours, theirs, unknown=False) -> float:
    """The largest difference against max(1, the largest of theirs), but where it is `unknown`."""
    if ours.shape != theirs.shape:
        return float("inf")
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    off = np.where(unknown, 0, np.abs(ours - theirs))
    return float(off.max() / max(1.0, np.abs(theirs).max()))


def hide(config, outputs: dict, theirs: dict, problem="") -> dict[str, jax.Array]:
    """Outputs, NaN where they come from tokens that see nothing: padding in front of a text that
    is read from left to right. Ours read zeros there; theirs, whatever their masks add up to. And
    where they rank what has no chance at all, which is any, or what follows from it."""
    if "start_top_index" in outputs:
        starts_BW, ends_BR = (outputs[f"{side}_top_log_probs"] for side in ("start", "end"))
        begun_BR = jnp.tile(starts_BW > 0, ends_BR.shape[1] // starts_BW.shape[1])
        likely = {"start_top_index": starts_BW > 0, "end_top_log_probs": begun_BR}
        likely["end_top_index"] = begun_BR & (ends_BR > 0)
        known = {key: jnp.where(there, outputs[key], jnp.nan) for key, there in likely.items()}
        outputs = outputs | known
    mask, format = theirs.get("attention_mask"), models.family(config).FORMAT
    if not format.causal or mask is None or mask.ndim > 2 or mask[:, 0].all():
        return outputs
    blind_BT = np.cumsum(mask, -1) == 0
    places = {"attentions": blind_BT[:, None, :, None]}
    places |= dict.fromkeys(("start_logits", "end_logits"), blind_BT)
    hidden = {}
    for key, x in outputs.items():
        place = places.get(key, blind_BT[..., None])
        hidden[key] = x if x.ndim < place.ndim else np.where(place, np.nan, x)
    return hidden | loss(config, hidden, theirs, problem)


def run(model, about: dict, params, theirs: dict) -> dict[str, jax.Array]:
    """All outputs of a model, under the names that Hugging Face gives them."""
    format = models.family(model.config).FORMAT
    batch = format.batch(about, theirs)
    found, seen = model.apply({"params": params}, batch, method="predict", mutable="intermediates")
    multiply = lambda x: x.logits() if isinstance(x, Product) else x
    found = {key: multiply(x) for key, x in found.items()}
    outputs = format.outputs(model.config, found, seen["intermediates"])
    return outputs | loss(model.config, outputs, theirs, about.get("problem_type"))


def loss(config, outputs: dict, theirs: dict, problem="") -> dict[str, jax.Array]:
    """The loss that Hugging Face's class computes where it is given labels.

    Args:
      problem: what its configuration says that a class is, if it says so.
    """
    head, labels = getattr(config, "head", "lm"), theirs.get("labels")
    parts = []
    if head in ("span", "beam") and "start_positions" in theirs:
        for side in ("start", "end"):
            logits_BT, at_B = outputs[f"{side}_logits"], theirs[f"{side}_positions"].reshape(-1)
            ignored = at_B >= logits_BT.shape[1]
            parts.append(_mean_nll(logits_BT, jnp.where(ignored, -100, jnp.maximum(at_B, 0))) / 2)
        if head == "beam" and {"cls_index", "is_impossible"} <= theirs.keys():
            logits_B, none_B = outputs["cls_logits"], theirs["is_impossible"].reshape(-1)
            parts.append(optax.sigmoid_binary_cross_entropy(logits_B, none_B).mean() / 2)
    if labels is not None:
        logits = outputs["prediction_logits" if head == "pretraining" else "logits"]
        if head == "causal" or "mc_logits" in outputs:
            parts.append(_mean_nll(logits[..., :-1, :], labels[..., 1:]))
        elif head != "classify":
            parts.append(_mean_nll(logits, labels))
        elif problem == "regression" or (not problem and config.classes == 1):
            parts.append(jnp.square(logits - labels.reshape(logits.shape)).mean())
        elif problem == "multi_label_classification" or labels.dtype.kind == "f":
            parts.append(optax.sigmoid_binary_cross_entropy(logits, labels).mean())
        else:
            parts.append(_mean_nll(logits, labels.reshape(-1)))
    if (next_B := theirs.get("next_sentence_label")) is not None:
        parts.append(_mean_nll(outputs["seq_relationship_logits"], next_B))
    found = {"loss": sum(parts)} if parts else {}
    if (choice_B := theirs.get("mc_labels")) is not None:
        found["mc_loss"] = _mean_nll(outputs["mc_logits"], choice_B)
    return found


def _mean_nll(logits, labels):
    """Mean over labels that are not -100."""
    kept = labels != -100
    logp = jnp.take_along_axis(
        jax.nn.log_softmax(logits), jnp.where(kept, labels, 0)[..., None], -1
    )[..., 0]
    return -jnp.where(kept, logp, 0).sum() / kept.sum()


def adamw(loss, params, steps: int, axes: dict[str, int]) -> np.ndarray:
    """Losses before each step of AdamW as the references took them: clipped, and with a decay of
    what has two axes or more in theirs, where a layer's bias has one.

    Args:
      axes: how many, by the path of a parameter.
    """
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    decay = jax.tree_util.tree_map_with_path(lambda path, _: axes.get(name(path), 0) > 1, params)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(5e-3, 0.9, 0.98, 1e-6, weight_decay=0.01, mask=decay),
    )

    @jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = tx.init(params), []
    for _ in range(steps):
        params, state, value = step(params, state)
        losses.append(float(value))
    return np.array(losses)
