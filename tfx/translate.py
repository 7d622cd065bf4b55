"""From lines to lines: open a workdir, batch, search, and put everything back in order.

run = tfx.load("runs/quickstart")
run.translate(["The old man sees a dog."])
"""

import collections
import dataclasses
import functools
import itertools
import math
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

from tfx import (
    bucket,
    checkpoint,
    decode,
    ensemble,
    lock,
    restore,
    sharding,
    workdir,
)
from tfx import config as configs
from tfx.choose import Ids
from tfx.data.text import LineErrors
from tfx.data.tokenizer import Tokenizer
from tfx.objectives import seq2seq
from tfx.schema import Config, Decode

CHUNK = 2048  # lines that are sorted by length and searched together
WORKERS = os.cpu_count() or 2
LEAST = {"cpu": 8}  # rows that take a step as long as fewer do; 256 on accelerators
SHORTEST = 16  # source lengths are padded to 16, 32, 64, ...: few programs to compile


class Hypothesis(NamedTuple):
    """One translation: its text and its score (what that is: `decode.search`), nan where nothing
    was translated."""

    text: str
    score: float


@dataclasses.dataclass
class Run:
    """A trained model, ready to translate; several vote as an ensemble.

    Attributes:
      config, model, params, tokenizer, step: of the (first) workdir; of an ensemble, the lengths
        in the config are what all of its models take.
      others: (model, params) of the rest of the ensemble.
    """

    config: Config
    model: nn.Module
    params: dict
    tokenizer: Tokenizer
    step: int
    mesh: jax.sharding.Mesh
    others: tuple = ()

    def translate(
        self, lines: Sequence[str], long: str = "cut", seed: int = 0, **settings
    ) -> list[str]:
        """The best translation of each line, in order; an empty line stays empty.

        Args:
          long: what becomes of a line with more tokens than the model takes: cut, skip or fail.
          seed: of samples.
          settings: fields of `tfx.schema.Decode` to change, such as beam=8.

        Raises:
          TypeError: one string is given instead of several.
          ValueError: the run is no translator; with long="fail", a line is too long.
        """
        how = dataclasses.replace(self.config.decode, **settings)
        return [found[0].text for found in self.search(lines, how, seed, LineErrors(long))]

    def search(
        self,
        lines: Iterable[str],
        how: Decode | None = None,
        seed: int = 0,
        errors: LineErrors | None = None,
    ) -> Iterator[list[Hypothesis]]:
        """Yields, for each line in order, a list of hypotheses, best first.

        Args:
          errors: what to do about lines that are too long. By default, as in every evaluation,
            they are cut where data.truncate is set, and refused where it is not.

        Raises:
          TypeError, ValueError: as `translate` says.
        """
        self._check()
        refuse_string(lines)
        how, lines, done = how or self.config.decode, iter(lines), 0
        if errors is None:
            fix = "split the line, or set data.truncate=true"
            errors = LineErrors("cut" if self.config.data.truncate else "fail", fix=fix)
        with errors:
            while chunk := list(itertools.islice(lines, CHUNK)):
                yield from self.search_together(chunk, how, seed, done, errors)
                done += len(chunk)

    def search_together(
        self,
        lines: Sequence[str | None],
        how: Decode,
        seed: int,
        before: int,
        errors: LineErrors,
    ) -> list[list[Hypothesis]]:
        """The hypotheses of some lines, sorted by length and searched together.

        Args:
          lines: None stands for one that could not be read.
          before: how many lines came before; what is drawn for a line depends on its number.
        """
        self._check()
        ids = self._encode(lines, errors, before)
        found = [[Hypothesis("", math.nan if each is None else 0.0)] for each in ids]
        batches = list(alike([len(each or ()) for each in ids], how.tokens))[::-1]
        search = lambda rows: self._batch(
            [ids[i] for i in rows], [before + i for i in rows], how, seed
        )
        # Searching one batch leaves a CPU's other cores idle, and any device while text is made;
        # several devices, though, must all run the same programs in the same order.
        pool = ThreadPoolExecutor(1 if self.mesh.size > 1 else WORKERS)
        try:
            for rows, texts in zip(batches, pool.map(search, batches), strict=True):
                for i, hypotheses in zip(rows, texts, strict=True):
                    found[i] = hypotheses
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # an error or Ctrl-C waits for none
        return found

    def score(
        self,
        sources: Sequence[str | None],
        targets: Sequence[str | None],
        errors: Sequence[LineErrors] = (),
    ) -> list[float]:
        """Log-probability, in nats, of each target given its source, EOS included.

        Of several models it is that of the mean of their probabilities (`tfx/ensemble.py`).

        Args:
          errors: of sources and of targets, what to do about lines that are too long; by default
            they are cut. A pair with a line that is skipped has nan.

        Raises:
          TypeError: one string is given instead of several.
          ValueError: the run is no translator; there are more of one side than of the other.
        """
        self._check()
        refuse_string(sources)
        refuse_string(targets)
        sources, targets = list(sources), list(targets)
        if len(sources) != len(targets):
            raise ValueError(f"{len(sources):,} sources and {len(targets):,} targets; want as many")
        sides = errors or (LineErrors(name="source"), LineErrors(name="target"))
        scores = []
        with sides[0], sides[1]:
            for first in range(0, len(sources), CHUNK):
                some = slice(first, first + CHUNK)
                ids = self._encode(sources[some], sides[0], first)
                given = self._encode(targets[some], sides[1], first, target=True)
                scores += self._scores(list(zip(ids, given, strict=True)))
        return scores

    def _scores(self, pairs: list) -> list[float]:
        """Those of pairs of ids; of a pair with None, nan."""
        scores = [math.nan] * len(pairs)
        lengths = [0 if None in pair else max(map(len, pair)) + 1 for pair in pairs]
        params = (self.params, *(params for _, params in self.others))
        with jax.set_mesh(self.mesh):
            for rows in alike(lengths, self.config.decode.tokens):
                batch = self._padded([pairs[i] for i in rows])
                batch = sharding.put_batch(batch, self.mesh)
                values = jax.device_get(self._scorer(params, batch))
                for i, value in zip(rows, values[: len(rows)], strict=True):
                    scores[i] = float(value)
        return scores

    def attention(self, sources: Sequence[str], targets: Sequence[str]) -> dict[str, np.ndarray]:
        """Every head's attention weights while each target is predicted from its source.

        Returns:
          "encoder" [N, B, H, S, S], "decoder" [N, B, H, T, T] and "cross" [N, B, H, T, S]: layer,
          line, head, query, key. Sources end with EOS, targets begin with BOS.
        """
        refuse_string(sources)
        refuse_string(targets)
        errors = LineErrors("fail", fix="split the line")
        ids, given = self._encode(sources, errors), self._encode(targets, errors, target=True)
        batch = self._padded(list(zip(ids, given, strict=True)))
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

    def _encode(
        self, lines, errors: LineErrors, before: int = 0, target: bool = False
    ) -> list[list[int] | None]:
        """Ids of every line, no more than the model takes; None of one that is skipped."""
        prefix = "" if target else getattr(self.config.objective, "prefix", "")
        texts = [f"{prefix}{line}" if line and line.strip() else line or "" for line in lines]
        ids = (self.tokenizer.target if target else self.tokenizer.source).encode(texts)
        room, limit = self.room(target)
        for i, found in enumerate(ids):
            if lines[i] is None:
                ids[i] = None
            elif len(found) > room:
                keep = errors.too_long(before + i + 1, len(found), room, limit)
                ids[i] = found[:room] if keep else None
        return ids

    def room(self, target: bool = False) -> tuple[int, str]:
        """How many tokens a source or a target may have, and the key of the config that says so:
        what the model has positions for, or where training cuts sources, what it has seen."""
        data, around = self.config.data, len(self.tokenizer.ends.around)
        if data.truncate and not target:
            return data.max_length - around, "data.max_length"
        return self.config.model.max_length - around, "model.max_length"

    def _padded(self, pairs: list) -> dict[str, np.ndarray]:
        """One batch of pairs of ids, as `seq2seq` has them."""
        made = [seq2seq.make_example(*pair, self.tokenizer.ends) for pair in pairs]
        batch = _padded(made, sharding.batch_parts(self.mesh), self.config.model.max_length)
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
        voters = (self.model, *(model for model, _ in self.others))
        whole = sharding.replicated(self.mesh)
        return jax.jit(partial(ensemble.score, voters), out_shardings=whole)


def load(
    directory: str | Path | Sequence,
    step: int | Sequence[int] | None = None,
    average: int = 0,
    config: Config | None = None,
) -> Run:
    """Open a workdir, or several as an ensemble, on the devices that are here.

    Args:
      step: of the checkpoint; default the best if some were validated, else the last. Several of
        one workdir are an ensemble; of several workdirs, one for all or one for each.
      average: use the mean of the last so many checkpoints instead.
      config: the (first) run's, with other values of what describes the machine
        (`config.MACHINE`): the mesh, say. By default it is the mesh that a run was trained on, or
        `dp` where that does not fit.

    Raises:
      FileNotFoundError: no run, or no checkpoint there.
      ValueError: no such step; models of an ensemble do not fit each other; the given mesh does
        not fit.
    """
    directories = [directory] if isinstance(directory, str | Path) else list(directory)
    steps = [step] if isinstance(step, int | None) else list(step)
    members = ensemble.members(directories, steps, average)
    places = {each: bucket.local(each) for each in directories}
    changes = {}
    if config is not None:
        changes = configs.machine(workdir.read_config(places[directories[0]]), config)
    opened = [_open(places[each], changes) for each, _ in members]
    mesh = restore.mesh_for(opened, any(key.startswith("mesh.") for key in changes))
    runs = [
        _run(each, mesh, *restore.weights(each, mesh, step, average))
        for each, (_, step) in zip(opened, members, strict=True)
    ]
    if len(runs) == 1:
        return runs[0]
    config = ensemble.agreed(runs, [f"{place}" for place, _ in members])
    others = tuple((run.model, run.params) for run in runs[1:])
    return dataclasses.replace(runs[0], config=config, others=others)


def refuse_string(lines) -> None:
    """Raise a TypeError where one string stands for several: it would be read as its letters."""
    if isinstance(lines, str | bytes):
        raise TypeError(
            f'"{lines[:20]}": one string, where a list of them is wanted; write ["..."]'
        )


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

    Raises:
      ValueError: there are not so many, or `out` holds something.
    """
    workdir.check_new(out)
    with lock.making(out, "average"):
        place = bucket.local(directory)
        trained = workdir.read_config(place)
        changes = {} if config is None else configs.machine(trained, config)
        opened = _open(place, changes)
        mesh = restore.mesh_for([opened], any(key.startswith("mesh.") for key in changes))
        run = _run(opened, mesh, *restore.weights(opened, mesh, None, last, best))
        _keep(run, trained, out)
    print(f"{out}: step {run.step:,}, the mean of {last or best} checkpoints of {directory}")


def _open(place: Path, changes: dict) -> restore.Opened:
    config = configs.on_machine(workdir.read_config(place), changes)
    return restore.open_run(place, config)


def _run(opened: restore.Opened, mesh, params, step: int) -> Run:
    return Run(opened.config, opened.model, params, opened.tokenizer, step, mesh)


def _keep(run: Run, config: Config, out: str | Path) -> None:
    """Write a run's weights into a new workdir."""
    with workdir.new(out, config) as made:
        run.tokenizer.save(made)
        with checkpoint.Checkpoints(made) as saved:
            saved.save_weights(run.step, run.params, {"tokenizer": run.tokenizer.fingerprint})


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


def alike(lengths: list[int], tokens: int) -> Iterator[list[int]]:
    """Rows of like length together, in batches of `tokens`; rows of length 0 in none."""
    order = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: lengths[i])
    for length, group in itertools.groupby(order, key=lambda i: round_up(lengths[i] + 1)):
        while rows := list(itertools.islice(group, max(tokens // length, 1))):
            yield rows


def round_up(length: int, first: int = SHORTEST) -> int:
    return max(first, 1 << (length - 1).bit_length())


def _padded(examples: list[dict], multiple: int, most: int) -> dict[str, np.ndarray]:
    """One batch, both axes rounded up to a power of two: few shapes, few programs. No more than
    `most` tokens long, for the model has no more positions."""
    rows = -(-round_up(len(examples), 1) // multiple) * multiple
    length = {k: min(round_up(max(len(e[k]) for e in examples)), most) for k in examples[0]}
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
