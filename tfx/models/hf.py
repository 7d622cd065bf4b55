"""How is a model of ours written in the files of Hugging Face, and read from them?

A family says so in a `Format`: the names of its configuration and of its parameters, as tables.
What follows from them is here: parameters to tensors and back, bit for bit, and a list of
everything that is missing, left over or of another shape.

Their linear layers are [out, in], or [in, out] where they come from GPT's code, and have no axis
of heads; their layers have a number in the name, where ours lie in one array.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from tfx.models import layers
from tfx.nn import mlp

ACTIVATIONS = {
    "gelu": "gelu",
    "relu": "relu",
    "tanh": "tanh",
    "silu": "silu",
    "swish": "silu",
    "quick_gelu": "gelu_sigmoid",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_python": "gelu",
}
RUNS = {"scan", "remat", "kernel", "dtype"}  # fields that say how a model runs, not what it is
LEAVES = {"kernel": "weight", "bias": "bias", "scale": "weight", "embedding": "weight"}
OLD = {"gamma": "weight", "beta": "bias"}  # norms, in files that were made from TensorFlow's


class At(NamedTuple):
    """Where a parameter is, if there is more to say than a name.

    Attributes:
      part, parts: several lie side by side in one tensor, along its last axis (or its first, if
        it is [out, in]).
      ones: how many axes of size 1 theirs has in front.
      flipped: it is stored the other way round than the family's linear layers are.
      heads: theirs has an axis of heads, as ours has.
    """

    name: str
    part: int = 0
    parts: int = 1
    ones: int = 0
    flipped: bool = False
    heads: bool = False


@dataclass(frozen=True)
class Format:
    """The tables of a family.

    Attributes:
      prefix: of the names of all but the head, in files of models that have a head.
      head: matches those names that never have the prefix.
      heads: {end of their class name: fields of our Config}.
      config: {field of our Config: theirs}.
      names: (our config) -> {path of ours: name of theirs}, of a linear, norm or embedding, or of
        a single parameter; "{n}" stands for the number of a layer.
      ignored: matches names of what is not learned, or is there under another name.
      transposed: whether their linear layers are [out, in].
      special: (their config, their tensors) -> more fields of ours.
      unspecial: (our config) -> more of theirs; a ValueError where there are no words for it.
      unread: (our config) -> fields that a model of it does not read.
      aliases: {name of a tensor: another name that it may have}.
      causal: whether texts are read from left to right.
      batch: (their config, arguments of their model) -> batch for ours.
      outputs: (our config, what our model predicts, what it sows) -> outputs as they name them.
    """

    prefix: str
    head: str
    heads: Mapping[str, Mapping[str, Any]]
    config: Mapping[str, str]
    names: Callable[[Any], Mapping[str, str | At]]
    ignored: str = r"position_ids$"
    transposed: bool = True
    special: Callable[[dict, dict], dict] = lambda theirs, tensors: {}
    unspecial: Callable[[Any], dict] = lambda config: {}
    unread: Callable[[Any], set[str]] = lambda config: set()
    aliases: Mapping[str, str] = field(default_factory=dict)
    causal: bool = False
    batch: Callable[[dict, dict], dict] = lambda about, theirs: one_text(theirs)
    outputs: Callable[[Any, dict, dict], dict] = lambda config, *found: of_one_text(*found)

    def clean(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tensors under the names of the table: no prefix, no names of old."""
        found = {}
        for name, x in tensors.items():
            stem, dot, leaf = name.removeprefix(self.prefix).rpartition(".")
            found[stem + dot + OLD.get(leaf, leaf)] = x
        for name, other in self.aliases.items():
            if name not in found and other in found:
                found[name] = found.pop(other)
        return found

    def prefixed(self, name: str, has_head: bool) -> str:
        """The name in a file."""
        body = has_head and not re.match(self.head, name)
        return self.prefix * body + name

    def to_config(self, cls: type, theirs: dict, tensors: dict, head: str, dtype="float32"):
        """Our Config of theirs, for the model class whose name ends like `head`."""
        given = {ours: theirs[name] for ours, name in self.config.items() if name in theirs}
        given |= dict(self.heads[head]) | self.special(theirs, tensors)
        for key in (key for key in given if key.endswith("activation")):
            name = given[key]
            given[key] = ACTIVATIONS.get(name, name)
            if given[key] not in ("none", *mlp.ACTIVATIONS, *mlp.GATED):
                choices = f"tfx has {', '.join(ACTIVATIONS)}"
                raise ValueError(f"config.json: {self.config.get(key, key)} = {name!r}: {choices}")
        return cls(**given, dtype=dtype)

    def from_config(self, config) -> dict:
        """Their config of ours, as far as it has fields for it.

        Raises:
          ValueError: an activation that theirs have not.
        """
        theirs, back = {}, {ours: name for name, ours in reversed(ACTIVATIONS.items())}
        for ours, name in self.config.items():
            value = getattr(config, ours)
            if ours.endswith("activation") and value != "none":
                if value not in back:
                    choices = ", ".join(back)
                    raise ValueError(f"model.{ours} = '{value}': Hugging Face's has {choices}")
                value = back[value]
            theirs.setdefault(name, value)  # of several the first, which counts most
        return theirs | self.unspecial(config)

    def head_of(self, config) -> str:
        """What their class's name ends with.

        Raises:
          ValueError: they have none for such a head.
        """
        # Whether something is dropped in training says nothing of which class it is.
        fits = lambda fields: all(
            getattr(config, key) == value
            for key, value in fields.items()
            if not key.endswith("dropout")
        )
        found = next((end for end, fields in self.heads.items() if fits(fields)), None)
        if found is None:
            choices = ", ".join(fields["head"] for fields in self.heads.values())
            raise ValueError(f"model.head = '{config.head}': Hugging Face's has {choices}")
        return found

    def meaning(self, config) -> dict[str, Any]:
        """The fields that say what a model computes, 0 and "auto" spelled out: where two configs
        mean the same, so do their models."""
        c, said = config, dataclasses.asdict(config)
        said |= {"key_width": layers.key_width(c), "value_width": layers.value_width(c)}
        auto = "on" if c.norm == "pre" else "off"
        said["final_norm"] = auto if c.final_norm == "auto" else c.final_norm
        said |= {f"decoder_{k}": said[f"decoder_{k}"] or said[k]
                 for k in ("depth", "heads", "mlp") if f"decoder_{k}" in said}  # fmt: skip
        if "source_vocab" in said:
            said["source_vocab"] = c.source_vocab or c.vocab
        unread = RUNS | self.unread(c)
        if c.position != "t5":
            unread |= {"position_buckets", "position_furthest"}
        if c.position != "learned":
            unread |= {"position_offset"} | ({"max_length"} - self.config.keys())
        if getattr(c, "head", "") not in ("classify", "tokens"):
            unread |= {"classes"}
        dropped = lambda key: key.endswith(("dropout", "layerdrop"))
        return {key: x for key, x in said.items() if key not in unread and not dropped(key)}


class Piece(NamedTuple):
    """One of our parameters, or that of one layer, and where it is in theirs."""

    path: tuple[str, ...]
    layer: int | None
    shape: tuple[int, ...]  # ours, of that layer
    inputs: int  # of a kernel, how many of its axes are contracted; 0: no kernel
    at: At

    def theirs(self, transposed: bool) -> tuple[int, ...]:
        """The shape of its share in their tensor, mostly flat where it is a kernel."""
        if not self.inputs:
            return (1,) * self.at.ones + (
                (math.prod(self.shape),) if self.path[-1] == "bias" else self.shape
            )
        parts = self.shape[: self.inputs], self.shape[self.inputs :]
        parts = parts[::-1] if transposed != self.at.flipped else parts
        return parts[0] + parts[1] if self.at.heads else tuple(map(math.prod, parts))


def pieces(format: Format, config, boxed) -> Iterator[Piece]:
    """All parameters of a model, from their shapes with axis letters."""
    table = format.names(config)
    is_box = lambda x: isinstance(x, nn.Partitioned)
    for keys, box in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_box):
        path = tuple(key.key for key in keys)
        whole, parent = "/".join(path), "/".join(path[:-1])
        # What theirs have no name for has its path, with slashes.
        at = table.get(whole, table.get(parent, whole))
        at = at if isinstance(at, At) else At(at)
        if whole not in table and parent in table:
            at = at._replace(name=f"{at.name}.{LEAVES[path[-1]]}")
        letters, shape = "".join(box.names), box.unbox().shape
        layered = "{n}" in at.name
        letters, shape = letters[layered:], shape[layered:]
        inputs = (2 if letters.startswith("HK") else 1) if path[-1] == "kernel" else 0
        for n in range(box.unbox().shape[0]) if layered else (None,):
            named = at._replace(name=at.name.replace("{n}", f"{n}"))
            yield Piece(path, n, shape, inputs, named)


def to_tensors(format: Format, config, boxed, params, has_head: bool) -> dict[str, np.ndarray]:
    """The tensors of a file, from parameters."""
    shared: dict[str, list] = {}
    for piece in pieces(format, config, boxed):
        x = params
        for key in piece.path:
            x = x[key]
        x = np.asarray(x if piece.layer is None else x[piece.layer])
        shape = piece.theirs(format.transposed)
        flipped = piece.inputs and format.transposed != piece.at.flipped
        if flipped:
            x = x.reshape(math.prod(piece.shape[: piece.inputs]), -1).T
        x = x.reshape(shape)
        parts = shared.setdefault(piece.at.name, [None] * piece.at.parts)
        parts[piece.at.part] = (x, 0 if flipped else -1)
    return {
        format.prefixed(name, has_head): np.ascontiguousarray(
            np.concatenate([x for x, _ in parts], parts[0][1]) if len(parts) > 1 else parts[0][0]
        )
        for name, parts in shared.items()
    }


def from_tensors(format: Format, config, boxed, tensors: Mapping[str, np.ndarray]):
    """Parameters from the tensors of a file.

    Raises:
      ValueError: tensors that are missing, left over or of another shape: all of them, a line.
    """
    tensors, missing, wrong, used, params = format.clean(tensors), set(), [], set(), {}
    for piece in pieces(format, config, boxed):
        name, shape = piece.at.name, piece.theirs(format.transposed)
        used.add(name)
        if name not in tensors:
            missing.add(name)
            continue
        flipped = piece.inputs and format.transposed != piece.at.flipped
        axis = 0 if flipped else -1
        whole = list(shape)
        whole[axis] *= piece.at.parts
        x = tensors[name]
        if x.size != math.prod(whole) or x.shape[:1] != tuple(whole[:1]):
            wrong.append(f"{name} is {list(x.shape)}, the model wants {whole}")
            continue
        x = np.split(x.reshape(whole), piece.at.parts, axis)[piece.at.part]
        x = x.reshape(len(x), -1).T if flipped else x
        x = x.reshape(piece.shape).astype(np.float32)
        tree = params
        for key in piece.path[:-1]:
            tree = tree.setdefault(key, {})
        if piece.layer is None:
            tree[piece.path[-1]] = x
        else:
            tree.setdefault(piece.path[-1], []).append(x)
    left = [name for name in tensors.keys() - used if not re.search(format.ignored, name)]
    kinds = {
        "missing": missing,
        "not of this model": left,
        "of another shape": wrong,
    }
    if found := [f"{kind}: {', '.join(sorted(names))}" for kind, names in kinds.items() if names]:
        raise ValueError(f"these weights do not fit the model; {'; '.join(found)}")
    stacked = lambda x: np.stack(x) if isinstance(x, list) else x
    return jax.tree.map(stacked, params, is_leaf=lambda x: isinstance(x, list))


def tied(theirs: Mapping, tensors: Mapping, *names: str) -> bool:
    """Whether the table of embeddings gives the logits, by the names of both. Two that differ are
    two, whatever the configuration says: as they read it."""
    there = [tensors[f"{name}.weight"] for name in names if f"{name}.weight" in tensors]
    same = len(there) < 2 or np.array_equal(*there)
    return theirs.get("tie_word_embeddings", True) and same


def one_text(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The batch of a model of one text, from the arguments of theirs."""
    ours = {"ids": "input_ids", "mask": "attention_mask", "types": "token_type_ids"}
    ours |= {"positions": "position_ids"}
    return {key: theirs[name] for key, name in ours.items() if theirs.get(name) is not None}


def of_one_text(found: dict, seen: dict) -> dict[str, Any]:
    """Outputs as Hugging Face names them."""
    names = {"states": "last_hidden_state", "pooled": "pooler_output", "nsp": "logits"}
    names |= {"start": "start_logits", "end": "end_logits"}
    outputs = {names.get(key, key): x for key, x in found.items()}
    if "nsp" in found and "logits" in found:
        outputs |= {"prediction_logits": found["logits"], "seq_relationship_logits": found["nsp"]}
    return outputs | of_stack(seen["encoder"])


def of_stack(seen: dict, prefix: str = "") -> dict[str, Any]:
    """Every layer's states and attention weights."""
    weights = {"self_attention": f"{prefix}attentions", "cross_attention": "cross_attentions"}
    layers = seen["layers"][0]
    outputs = {name: layers[part]["weights"][0] for part, name in weights.items() if part in layers}
    return outputs | {f"{prefix}hidden_states": seen["states"][0]}


def two_texts(theirs: Mapping[str, Any], start: int, pad: int | None = None) -> dict[str, Any]:
    """The batch of an encoder-decoder. Where theirs is given no decoder input, it is the labels,
    one to the right, behind the id `start`, and `pad` (or `start`) where they are ignored."""
    source, target = theirs["input_ids"], theirs.get("decoder_input_ids")
    labels = theirs.get("labels")
    if target is None and labels is not None:
        target = jnp.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=start)
        target = jnp.where(target == -100, start if pad is None else pad, target)
    mask = theirs.get("attention_mask")
    batch = {"source": source, "source_mask": jnp.ones_like(source) if mask is None else mask}
    batch |= {} if target is None else {"target_in": target}
    if (mask := theirs.get("decoder_attention_mask")) is not None:
        batch["target_mask"] = mask
    return batch


def of_two_texts(found: dict, seen: dict) -> dict[str, Any]:
    """Outputs as Hugging Face names them."""
    outputs = found | of_stack(seen["encoder"], "encoder_") | of_stack(seen["decoder"], "decoder_")
    last = {"encoder_last_hidden_state": outputs["encoder_hidden_states"][-1]}
    return outputs | last | {"last_hidden_state": outputs["decoder_hidden_states"][-1]}
