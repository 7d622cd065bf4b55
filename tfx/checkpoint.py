"""What a run leaves on disk or in a bucket, and how it is found again.

`checkpoints/<step>/` holds, by Orbax, `params`, `ema` (when on), `optimizer` (its state,
the step, the RNG key) and `meta` (JSON). Translation reads one of the first two alone.
"""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from tfx import bucket, integrity, lock
from tfx.state import TrainState

preserve = ocp.training.preservation_policies


def _quiet():
    logging.getLogger("absl").setLevel(logging.ERROR)


def is_run(directory: str | Path) -> bool:
    """Whether it holds a run of ours; else it should be a folder of Hugging Face.

    Raises:
      FileNotFoundError: it is neither.
    """
    path = bucket.place(directory)
    if (path / "checkpoints").exists():
        return True
    if not (path / "config.json").exists():
        raise FileNotFoundError(
            f"{directory}: neither a workdir with a checkpoint nor a folder of Hugging Face with "
            "a config.json; check the path"
        )
    return False


@dataclasses.dataclass
class BestOfEach:
    """Preserves the `n` best checkpoints of every measure: values of unlike ones do not compare."""

    n: int

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        kept = [step for steps in _ranked(checkpoints) for step in steps[: self.n]]
        return [each.step in kept for each in checkpoints]


def _ranked(checkpoints) -> list[list[int]]:
    """The steps of each measure, the best value first, and the measure of the last value last."""
    values = {}
    for each in sorted(checkpoints, key=lambda each: each.step):
        if each.metrics is None or not math.isfinite(each.metrics["value"]):
            continue
        # Values that earlier versions saved are of an unknown measure.
        measure = json.dumps(each.metrics.get("measure"), sort_keys=True)
        values[measure] = [*values.pop(measure, []), (each.metrics["value"], each.step)]
    return [[step for _, step in sorted(found, reverse=True)] for found in values.values()]


class Checkpoints:
    """The checkpoints of one workdir. Saving is asynchronous; `close` waits for it.

    Args:
      keep_last, keep_best, keep_every: for the one process or run that trains there. It removes
        what is not kept, and what a run that died left half-written; who gives none removes
        nothing, for it may be that a run is saving.
      held: the lock of the workdir, which before every save must still be held.

    Raises:
      ValueError: the value of a checkpoint is damaged.

    Attributes:
      steps: those on disk, ascending.
    """

    def __init__(
        self,
        workdir: str | Path,
        keep_last: int = 0,
        keep_best: int = 0,
        keep_every: int = 0,
        held: lock.Lock | None = None,
    ):
        _quiet()
        self._workdir, self._held, self._saving = Path(workdir), held, None
        self._home = bucket.home(workdir) / "checkpoints"
        policies = [preserve.LatestN(keep_last) if keep_last else preserve.PreserveAll()]
        if keep_best:
            policies += [BestOfEach(keep_best)]
        if keep_every:
            policies += [preserve.EveryNSteps(keep_every)]
        for step in self._folders():
            if why := integrity.damage(self._home / f"{step}", ()):  # which Orbax reads at once
                raise ValueError(self._damaged(step, (), why))
        # Replicas share the writing of large arrays only: each slice is a program to compile.
        arrays = ocp.options.ArrayOptions
        saving = arrays.Saving(min_slice_bytes_for_replica_parallel=1 << 20)
        self._orbax = ocp.training.Checkpointer(
            self._home,
            preservation_policy=preserve.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=bool(keep_last),
            context=ocp.Context(array_options=arrays(saving=saving)),
        )

    @property
    def steps(self) -> list[int]:
        return [c.step for c in self._orbax.checkpoints]

    def best(self, count: int) -> list[int]:
        """The steps with the best validation values of the latest measure, best first."""
        ranked = _ranked(self._orbax.checkpoints)
        return ranked[-1][:count] if ranked else []

    def choose(self, step: int | None = None, last: int = 0, best: int = 0) -> list[int]:
        """Which steps to read: a given one, the last or best so many, or else the best one of
        those that were validated, or else the last. What is best goes by the latest measure alone.

        Raises:
          FileNotFoundError: there is no checkpoint.
          ValueError: not that one, or not so many.
        """
        if not self.steps:
            raise FileNotFoundError(f"{self._orbax.directory}: no checkpoint yet; train first")
        if step is not None and step not in self.steps:
            have = ", ".join(map(str, self.steps))
            raise ValueError(f"{self._orbax.directory}: no step {step}; there are {have}")
        found = (
            [step] if step is not None else self.best(best or 1) if not last else self.steps[-last:]
        )
        found = found or self.steps[-1:]
        if len(found) < max(last, best):
            of_measure = " with a value of the latest measure" if best else ""
            raise ValueError(
                f"{self._orbax.directory}: {max(last, best)} checkpoints to average, but only "
                f"{len(found)} are there{of_measure}; see checkpoint.keep_last and keep_best"
            )
        return sorted(found)

    def save(self, state: TrainState, meta: dict, value: float | None = None) -> None:
        """Write a state; returns before the bytes are on disk.

        Args:
          meta: JSON: what else the run must remember, with the `measure` of the value.
          value: the validation value that "best" goes by; larger is better. One that is not finite
            is none.

        Raises what went wrong with the save before this one.
        """
        step = int(state.step)
        self._finish()
        if step in self.steps:
            return
        items = {"params": state.params, "optimizer": _rest(state), "meta": meta}
        if state.ema is not None:
            items["ema"] = state.ema
        metrics = None
        if value is not None and math.isfinite(value):
            metrics = {"value": value, "measure": meta.get("measure")}
        if self._held is not None:
            self._held.confirm()
        bucket.publish(self._workdir)  # first: what belongs to a checkpoint is there before it
        how = dict(force=True, metrics=metrics)
        self._saving = self._orbax.save_checkpointables_async(step, items, **how)

    def save_weights(self, step: int, params, meta: dict) -> None:
        """Write parameters alone: enough to translate with and to start another run from."""
        bucket.publish(self._workdir)
        self._orbax.save_checkpointables(step, {"params": params, "meta": meta}, force=True)

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict]:
        """A state as it was saved, laid out as `like` says, on any number of devices.

        Args:
          like: `jax.ShapeDtypeStruct`s with shardings.

        Returns:
          The state and its `meta`.
        """
        step = self.steps[-1] if step is None else step
        wanted = {"params": like.params, "optimizer": _rest(like), "meta": None}
        if like.ema is not None:
            wanted["ema"] = like.ema
        if not self._has(step, "optimizer") and "data" not in self.meta(step):
            raise ValueError(
                f"{self._orbax.directory} holds averaged parameters alone; "
                "to train on, start a new workdir with --config.init_from"
            )
        found = self._read(step, wanted)
        rest = found["optimizer"]
        state = like.replace(params=found["params"], ema=found.get("ema"), **rest)
        return state, found["meta"]

    def weights(self, like, step: int | None = None):
        """The parameters to translate with: the moving average if there is one.

        Args:
          like: tree of `jax.ShapeDtypeStruct`s with shardings.
        """
        step = self.steps[-1] if step is None else step
        name = "ema" if self._has(step, "ema") else "params"
        return self._read(step, {name: like})[name]

    def meta(self, step: int | None = None) -> dict:
        """The JSON beside a checkpoint."""
        step = self.steps[-1] if step is None else step
        return self._read(step, {"meta": None})["meta"]

    def _has(self, step: int, name: str) -> bool:
        return (self._home / f"{step}" / name).exists()

    def _read(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
        """Load items of a checkpoint, laid out as `wanted` says.

        Raises:
          ValueError: it is damaged, or holds parameters of other shapes.
        """
        if why := integrity.damage(self._home / f"{step}", wanted):
            raise ValueError(self._damaged(step, wanted, why))
        for name in {"params", "ema"} & {*wanted}:
            found = ocp.metadata(self._home / f"{step}", checkpointable_name=name)
            stored = _shapes(found.metadata)
            if not stored:
                raise ValueError(self._damaged(step, wanted, f"{name} cannot be read"))
            self._check(stored, _shapes(wanted[name]))
        return self._orbax.load_checkpointables(step, wanted)

    def _check(self, stored: dict[str, tuple], wanted: dict[str, tuple]) -> None:
        # Orbax names no parameter when shapes differ, and pads silently when not strict.
        differ = sorted(k for k in stored | wanted if stored.get(k) != wanted.get(k))
        if differ:
            shown = [f"{k}: saved {stored.get(k)}, model {wanted.get(k)}" for k in differ[:4]]
            shown += [f"and {len(differ) - 4} more"] if len(differ) > 4 else []
            raise ValueError(f"checkpoint {self._home} does not fit the model: {'; '.join(shown)}")

    def _damaged(self, step: int, wanted: Iterable[str], why: str) -> str:
        """A line that says what is wrong with a checkpoint, and which ones to take instead."""
        where = self._home / f"{step}"
        self._await_removal()
        if not where.exists():
            return f"{where}: was removed while it was read, as a run does that saves; try again"
        others = sorted(each for each in self._folders() if each != step)
        needed = {"params", "meta", *wanted}
        intact = [n for n in others if not integrity.damage(self._home / f"{n}", needed)]
        if not intact:
            return f"checkpoint {where} is damaged ({why}), and no other one here is intact"
        names, fix = ", ".join(map(str, intact)), f"take --step={intact[-1]}, or "
        return (
            f"checkpoint {where} is damaged ({why}); intact: {names}; {fix if wanted else ''}move "
            "that folder away and the run goes on from there"
        )

    def _await_removal(self) -> None:
        """Give a run that saves here a moment: what looks damaged it may be about to remove."""
        try:
            lock.check(self._workdir)
        except lock.Held:
            time.sleep(1)

    def _folders(self) -> list[int]:
        """The steps that have a folder, whatever is in it."""
        folders = self._home.iterdir() if self._home.is_dir() else ()
        return [int(folder.name) for folder in folders if folder.name.isdigit()]

    def wait(self) -> None:
        """Block until the last save is on disk; raises what went wrong with it."""
        self._finish()
        self._orbax.wait()

    def _finish(self) -> None:
        # A response that is not asked for its result keeps a thread and an event loop for good.
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def close(self) -> None:
        """Wait for the last save, and let go of threads and files."""
        try:
            self._finish()
        finally:
            self._orbax.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def _shapes(tree) -> dict[str, tuple]:
    """{"encoder/layers/...": shape} of arrays, or of what Orbax knows of them."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(getattr(leaf, "shape", ()))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _rest(state: TrainState) -> dict:
    return {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}


def average(makers: list[Callable]):
    """The mean of trees that are made one by one, so that two are held at most."""
    add = jax.jit(lambda total, tree: jax.tree.map(jnp.add, total, tree), donate_argnums=0)
    total = makers[0]()
    for make in makers[1:]:
        total = add(total, make())
    return jax.tree.map(lambda x: x / len(makers), total) if len(makers) > 1 else total
