"""From lines to lines: open a workdir, batch, search, and put everything back in order.

run = tfx.load("runs/quickstart")
run.translate(["The old man sees a dog."])
"""

import collections
import dataclasses
import functools
import itertools
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn

from tfx import assemble, bucket, checkpoint, decode, hosts, lock, models, sharding, workdir
from tfx import config as configs
from tfx.choose import Ids
from tfx.data import tokenizer as tokenizers
from tfx.data.tokenizer import Tokenizer
from tfx.objectives import seq2seq
from tfx.schema import Config, Decode

CHUNK = 2048  # lines that are sorted by length and searched together
WORKERS = os.cpu_count() or 2
LEAST = {"cpu": 8}  # rows that take a step as long as fewer do; 256 on accelerators
SHORTEST = 16  # source lengths are padded to 16, 32, 64, ...: few programs to compile


class Hypothesis(NamedTuple):
    """One translation: its text and its score (what that is: `decode.search`)."""

    text: str
    score: float


@dataclasses.dataclass
class Run:
    """A trained model, ready to translate; several vote as an ensemble.

    Attributes:
      config, model, params, tokenizer, step: of the (first) workdir.
      others: (model, params) of the rest of the ensemble.
    """

    config: Config
    model: nn.Module
    params: dict
    tokenizer: Tokenizer
    step: int
    mesh: jax.sharding.Mesh
    others: tuple = ()

    def translate(self, lines: Sequence[str], **settings) -> list[str]:
        """The best translation of each line, in order; an empty line stays empty.

        Args:
          settings: fields of `tfx.schema.Decode` to change, such as beam=8.
        """
        how = dataclasses.replace(self.config.decode, **settings)
        return [found[0].text for found in self.search(lines, how)]

    def search(self, lines: Iterable[str], how: Decode | None = None, seed: int = 0):
        """Yields, for each line in order, a list of hypotheses, best first.

        Raises:
          ValueError: a line is longer than the model has positions for. With data.truncate it is
            cut, and a warning is logged.
        """
        self._check()
        how, lines, done = how or self.config.decode, iter(lines), 0
        while chunk := list(itertools.islice(lines, CHUNK)):
            yield from self._search_chunk(chunk, how, seed, done)
            done += len(chunk)

    def _search_chunk(self, lines, how, seed, first) -> list[list[Hypothesis]]:
        ids = self._encode(lines, first)
        found = [[Hypothesis("", 0.0)]] * len(lines)
        batches = list(_alike([len(i) for i in ids], how.tokens))[::-1]
        search = lambda rows: self._batch(
            [ids[i] for i in rows], [first + i for i in rows], how, seed
        )
        # Searching one batch leaves a CPU's other cores idle, and any device while text is made;
        # several devices, though, must all run the same programs in the same order.
        with ThreadPoolExecutor(1 if self.mesh.size > 1 else WORKERS) as pool:
            for rows, texts in zip(batches, pool.map(search, batches), strict=True):
                for i, hypotheses in zip(rows, texts, strict=True):
                    found[i] = hypotheses
        return found

    def score(self, sources: Sequence[str], targets: Sequence[str]) -> list[float]:
        """Log-probability, in nats, of each target given its source, EOS included."""
        self._check()
        pairs = list(zip(self._encode(sources), self._encode(targets, target=True), strict=True))
        scores = [0.0] * len(pairs)
        with jax.set_mesh(self.mesh):
            for rows in _alike(
                [max(map(len, pair)) + 1 for pair in pairs], self.config.batch.tokens
            ):
                batch = self._padded([pairs[i] for i in rows])
                batch = sharding.put_batch(batch, self.mesh)
                values = jax.device_get(self._scorer(self.params, batch))
                for i, value in zip(rows, values[: len(rows)], strict=True):
                    scores[i] = float(value)
        return scores

    def attention(self, sources: Sequence[str], targets: Sequence[str]) -> dict[str, np.ndarray]:
        """Every head's attention weights while each target is predicted from its source.

        Returns:
          "encoder" [N, B, H, S, S], "decoder" [N, B, H, T, T] and "cross" [N, B, H, T, S]: layer,
          line, head, query, key. Sources end with EOS, targets begin with BOS.
        """
        pairs = zip(self._encode(sources), self._encode(targets, target=True), strict=True)
        batch = self._padded(list(pairs))
        look = lambda params: self.model.apply({"params": params}, batch, mutable="intermediates")[
            1
        ]
        with jax.set_mesh(self.mesh):
            seen = jax.device_get(jax.jit(look)(self.params))["intermediates"]
        weights = lambda stack, part: seen[stack]["layers"][0][part]["weights"][0][
            :, : len(sources)
        ]
        return {
            "encoder": weights("encoder", "self_attention"),
            "decoder": weights("decoder", "self_attention"),
            "cross": weights("decoder", "cross_attention"),
        }

    def _check(self) -> None:
        if "source" not in self.model.INPUTS:
            raise ValueError(
                "this run writes no text of another; tfx eval scores it, tfx predict says what it "
                "answers, and tfx generate goes on with a text of a causal language model"
            )

    def _encode(self, lines, first: int = 0, target: bool = False) -> list[list[int]]:
        prefix = "" if target else getattr(self.config.objective, "prefix", "")
        lines = [f"{prefix}{line}" if line.strip() else line for line in lines]
        ids = (self.tokenizer.target if target else self.tokenizer.source).encode(lines)
        config, around = self.config, len(self.tokenizer.ends.around)
        if config.data.truncate and not target:
            room = config.data.max_length - around
            if long := [first + i + 1 for i, found in enumerate(ids) if len(found) > room]:
                logging.getLogger("tfx").warning(
                    "%d of %d lines are cut to %d tokens (data.truncate), the first is line %d",
                    *(len(long), len(ids), room, long[0]),
                )
            return [found[:room] for found in ids]
        most = config.model.max_length - around
        for i, found in enumerate(ids):
            if len(found) > most:
                raise ValueError(
                    f"line {first + i + 1} has {len(found):,} tokens, the model takes at most "
                    f"{most:,} (model.max_length, EOS counted); split the line"
                )
        return ids

    def _padded(self, pairs: list) -> dict[str, np.ndarray]:
        """One batch of pairs of ids, as `seq2seq` has them."""
        made = [seq2seq.make_example(*pair, self.tokenizer.ends) for pair in pairs]
        batch = _padded(made, sharding.batch_parts(self.mesh))
        if self.tokenizer.special["pad"] != 0:
            lengths = np.array([len(example["source"]) for example in made])
            batch["source_mask"] = _filled(batch["source"].shape, lengths).astype(np.int32)
        return batch

    def _batch(self, ids, numbers, how, seed) -> list[list[Hypothesis]]:
        """Search one batch; `numbers` seed each line's samples, whatever it is batched with."""
        read = self._padded([(i, []) for i in ids])
        source = read["source"]
        longest = min(source.shape[1] + how.extra, self.config.model.max_length)
        limit = np.zeros(len(source), np.int32)  # 0: a row that only fills the shape
        limit[: len(ids)] = [min(len(i) + how.extra, longest) for i in ids]
        number = np.zeros(len(source), np.uint32)
        number[: len(ids)] = numbers
        batch = {key: read[key] for key in ("source", "source_mask") if key in read}
        batch |= {"limit": limit, "number": number}
        params = (self.params, *(params for _, params in self.others))
        # Rows that are spread over devices stay there.
        least = LEAST.get(jax.default_backend(), 256) if self.mesh.size == 1 else len(source)
        # Two threads that meet a new shape at once must not both compile it.
        with jax.set_mesh(self.mesh), self._compiling[source.shape, how, longest]:
            rows = sharding.put_batch(batch, self.mesh)
            found = self._searcher(
                params, rows, jax.random.key(seed), self.ids, how, longest, least
            )
        found = jax.device_get(found)
        return [self._texts(found, row) for row in range(len(ids))]

    def _texts(self, found: decode.Hypotheses, row: int) -> list[Hypothesis]:
        kept = [w for w, score in enumerate(found.scores_BW[row]) if score > -np.inf] or [0]
        ids = [found.tokens_BWT[row, w, : found.lengths_BW[row, w]].tolist() for w in kept]
        texts = self.tokenizer.target.decode(ids)
        return [
            Hypothesis(t, float(found.scores_BW[row, w])) for t, w in zip(texts, kept, strict=True)
        ]

    @functools.cached_property
    def ids(self) -> Ids:
        """What begins, what ends, and what is never written: padding, what only begins, and rows
        of the embedding that no piece has."""
        begin, _, after = self.tokenizer.ends
        never = {self.tokenizer.special["pad"], begin} - {after[-1]}
        pieces = self.tokenizer.target.vocab_size
        return Ids(begin, after[-1], (*sorted(never), *range(pieces, self.model.config.vocab)))

    @functools.cached_property
    def _compiling(self):
        return collections.defaultdict(threading.Lock)

    @functools.cached_property
    def _searcher(self):
        voters = (self.model, *(model for model, _ in self.others))
        # Every process of several gets all translations.
        whole = sharding.replicated(self.mesh)
        return jax.jit(partial(search, voters), static_argnums=(3, 4, 5, 6), out_shardings=whole)

    @functools.cached_property
    def _scorer(self):
        whole = sharding.replicated(self.mesh)
        return jax.jit(partial(_score, self.model), out_shardings=whole)


def load(
    directory: str | Path | Sequence,
    step: int | None = None,
    average: int = 0,
    config: Config | None = None,
) -> Run:
    """Open a workdir, or several as an ensemble, on the devices that are here.

    Args:
      step: of the checkpoint; default the best if some were validated, else the last.
      average: use the mean of the last so many checkpoints instead.
      config: the (first) run's, with other values of what describes the machine
        (`config.MACHINE`): the mesh, say. By default it is the mesh that a run was trained on, or
        `dp` where that does not fit.

    Raises:
      FileNotFoundError: no run, or no checkpoint there.
      ValueError: tokenizers of an ensemble differ; no such step; the given mesh does not fit.
    """
    directories = [directory] if isinstance(directory, str | Path) else list(directory)
    places = [bucket.local(each) for each in directories]
    changes = {} if config is None else configs.machine(workdir.read_config(places[0]), config)
    opened = [_open(place, changes) for place in places]
    mesh = _mesh(opened, any(key.startswith("mesh.") for key in changes))
    runs = [_restored(each, mesh, step, average) for each in opened]
    for path, run in zip(directories, runs, strict=True):
        if run.tokenizer.fingerprint != runs[0].tokenizer.fingerprint:
            raise ValueError(f"{path}: its tokenizer is not that of {directories[0]}; no ensemble")
    return dataclasses.replace(runs[0], others=tuple((r.model, r.params) for r in runs[1:]))


def average(
    directory: str | Path,
    out: str | Path,
    last: int = 0,
    best: int = 0,
    config: Config | None = None,
) -> None:
    """Write a new workdir whose one checkpoint is the mean of several of another one.

    Args:
      last, best: how many, by step or by validation value.
      config: as for `load`.
    """
    with lock.making(out, "average"):
        if (bucket.place(out) / "checkpoints").exists():
            raise ValueError(f"{out}: has checkpoints already; choose another --out")
        place = bucket.local(directory)
        trained = workdir.read_config(place)
        changes = {} if config is None else configs.machine(trained, config)
        opened = _open(place, changes)
        mesh = _mesh([opened], any(key.startswith("mesh.") for key in changes))
        run = _restored(opened, mesh, None, last, best)
        made = workdir.prepare(out, trained)
        run.tokenizer.save(made)
        with checkpoint.Checkpoints(made) as saved:
            saved.save_weights(run.step, run.params, {"tokenizer": run.tokenizer.fingerprint})
    print(f"{out}: step {run.step:,}, the mean of {last or best} checkpoints of {directory}")


class Opened(NamedTuple):
    """A run whose parameters are not read yet."""

    place: Path
    config: Config
    tokenizer: Tokenizer
    model: nn.Module


def _open(place: Path, changes: dict) -> Opened:
    config = configs.on_machine(workdir.read_config(place), changes)
    ids = tokenizers.load(place)
    return Opened(place, config, ids, assemble.build_model(config, ids))


def _mesh(opened: list[Opened], asked: bool) -> jax.sharding.Mesh:
    """The mesh of the runs where they have one and it fits devices and models here, else `dp`.

    Raises:
      sharding.Misfit: it was asked for, and does not fit.
    """
    meshes = list(dict.fromkeys(each.config.mesh for each in opened))
    if len(meshes) == 1:
        try:
            mesh = sharding.make_mesh(**dataclasses.asdict(meshes[0]))
            for each in opened:
                sharding.check(models.shapes(each.model), (), mesh)
            return mesh
        except sharding.Misfit:
            if asked:
                raise
    if hosts.leads():
        count = jax.device_count()
        shown = (", ".join(f"{k}={n}" for k, n in dataclasses.asdict(m).items()) for m in meshes)
        logging.getLogger("tfx").warning(
            "%d %s here, the run was trained on %s: using dp",
            *(count, "device" if count == 1 else "devices"),
            " and ".join(f"mesh({each})" for each in shown),
        )
    return sharding.make_mesh()


def _restored(opened: Opened, mesh, step: int | None, last: int, best: int = 0) -> Run:
    place, config, ids, model = opened
    like = sharding.place(models.shapes(model), mesh)
    with checkpoint.Checkpoints(place) as saved:
        steps = saved.choose(step, last, best)
        if saved.meta(steps[-1])["tokenizer"] != ids.fingerprint:
            raise ValueError(
                f"{place}: the tokenizer is not the one that its checkpoints were trained "
                "with; copy the right tokenizer.* back"
            )
        params = checkpoint.average([partial(saved.weights, like, s) for s in steps])
    return Run(config, model, params, ids, steps[-1], mesh)


def search(
    voters, params, rows, key, ids: Ids, how: Decode, longest: int, least: int
) -> decode.Hypotheses:
    apply = [partial(m.apply, {"params": p}) for m, p in zip(voters, params, strict=True)]
    limit_B = rows["limit"]
    contexts = tuple(f(rows, method="start") for f in apply)
    init_cache = lambda slots: tuple(m.init_cache(len(limit_B), slots) for m in voters)
    step = decode.ensemble([partial(f, method="step") for f in apply])
    keys_B = jax.vmap(partial(jax.random.fold_in, key))(rows["number"])
    model = (step, init_cache, contexts)
    return decode.search(*model, limit_B, longest, how, keys_B=keys_B, least=least, ids=ids)


def _score(model, params, batch):
    logits_BTV = model.apply({"params": params}, batch)
    return decode.score(logits_BTV, batch["target_out"], batch["weights"])[0]


def _alike(lengths: list[int], tokens: int) -> Iterator[list[int]]:
    """Rows of like length together, in batches of `tokens`; rows of length 0 in none."""
    order = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: lengths[i])
    for length, group in itertools.groupby(order, key=lambda i: _round_up(lengths[i] + 1)):
        while rows := list(itertools.islice(group, max(tokens // length, 1))):
            yield rows


def _round_up(length: int, first: int = SHORTEST) -> int:
    return max(first, 1 << (length - 1).bit_length())


def _padded(examples: list[dict], multiple: int) -> dict[str, np.ndarray]:
    """One batch, both axes rounded up to a power of two: few shapes, few programs."""
    rows = -(-_round_up(len(examples), 1) // multiple) * multiple
    length = {k: _round_up(max(len(e[k]) for e in examples)) for k in examples[0]}
    batch = {k: np.zeros((rows, n), np.int32) for k, n in length.items()}
    for row, example in enumerate(examples):
        for k, ids in example.items():
            batch[k][row, : len(ids)] = ids
    lengths = np.array([len(example["target_out"]) for example in examples])
    return batch | {"weights": _filled(batch["target_out"].shape, lengths).astype(np.float32)}


def _filled(shape: tuple[int, int], lengths: np.ndarray) -> np.ndarray:
    """True on the first so many places of each row."""
    lengths = np.pad(lengths, (0, shape[0] - len(lengths)))
    return np.arange(shape[1])[None] < lengths[:, None]
