"""What a run leaves on disk or in a bucket, and how it is found again.

`checkpoints/<step>/` holds, by Orbax, `params`, `ema` (when on), `optimizer` (its state,
the step, the RNG key) and `meta` (JSON). Translation reads one of the first two alone.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from tfx import bucket
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

    Attributes:
      steps: those on disk, ascending.
    """

    def __init__(self, workdir: str | Path, keep_last=0, keep_best: int = 0, keep_every: int = 0):
        _quiet()
        self._workdir = Path(workdir)
        policies = [preserve.LatestN(keep_last) if keep_last else preserve.PreserveAll()]
        if keep_best:
            policies += [BestOfEach(keep_best)]
        if keep_every:
            policies += [preserve.EveryNSteps(keep_every)]
        # Replicas share the writing of large arrays only: each slice is a program to compile.
        arrays = ocp.options.ArrayOptions
        saving = arrays.Saving(min_slice_bytes_for_replica_parallel=1 << 20)
        self._orbax = ocp.training.Checkpointer(
            bucket.home(workdir) / "checkpoints",
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
        """
        step = int(state.step)
        if step in self.steps:
            return
        items = {"params": state.params, "optimizer": _rest(state), "meta": meta}
        if state.ema is not None:
            items["ema"] = state.ema
        metrics = None
        if value is not None and math.isfinite(value):
            metrics = {"value": value, "measure": meta.get("measure")}
        bucket.publish(self._workdir)  # first: what belongs to a checkpoint is there before it
        self._orbax.save_checkpointables_async(step, items, force=True, metrics=metrics)

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
        wanted = {"params": like.params, "optimizer": _rest(like), "meta": None}
        if like.ema is not None:
            wanted["ema"] = like.ema
        if "optimizer" not in self._items(step):
            raise ValueError(
                f"{self._orbax.directory} holds averaged parameters alone; "
                "to train on, start a new workdir with --config.init_from"
            )
        self._check(step, "params", like.params)
        found = self._orbax.load_checkpointables(step, wanted)
        rest = found["optimizer"]
        state = like.replace(params=found["params"], ema=found.get("ema"), **rest)
        return state, found["meta"]

    def weights(self, like, step: int | None = None):
        """The parameters to translate with: the moving average if there is one.

        Args:
          like: tree of `jax.ShapeDtypeStruct`s with shardings.
        """
        name = "ema" if "ema" in self._items(step) else "params"
        self._check(step, name, like)
        return self._orbax.load_checkpointables(step, {name: like})[name]

    def meta(self, step: int | None = None) -> dict:
        """The JSON beside a checkpoint."""
        return self._orbax.load_checkpointables(step, {"meta": None})["meta"]

    def _items(self, step):
        return self._orbax.checkpointables_metadata(step).metadata

    def _check(self, step, name, like) -> None:
        # Orbax names no parameter when shapes differ, and pads silently when not strict.
        shape = lambda tree: {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        stored, wanted = shape(self._items(step)[name]), shape(like)
        if stored != wanted:
            differ = sorted(k for k in stored | wanted if stored.get(k) != wanted.get(k))
            shown = "; ".join(f"{k}: saved {stored.get(k)}, model {wanted.get(k)}" for k in differ)
            raise ValueError(f"checkpoint {self._orbax.directory} does not fit the model: {shown}")

    def wait(self) -> None:
        """Block until the last save is on disk; raises what went wrong with it."""
        self._orbax.wait()

    def close(self) -> None:
        self._orbax.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def _rest(state: TrainState) -> dict:
    return {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}


def average(makers: list[Callable]):
    """The mean of trees that are made one by one, so that two are held at most."""
    add = jax.jit(lambda total, tree: jax.tree.map(jnp.add, total, tree), donate_argnums=0)
    total = makers[0]()
    for make in makers[1:]:
        total = add(total, make())
    return jax.tree.map(lambda x: x / len(makers), total) if len(makers) > 1 else total
