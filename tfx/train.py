"""Training: a pure step, and one loop around it.

The loop's order is evaluate, save, fetch, step, log: a checkpoint of step n holds the
state after n updates, and batch n is a function of the seed and n, so a run that was
stopped and started again is the run that never stopped, bit for bit.
"""

import contextlib
import dataclasses
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from rich.table import Table

import tfx
from tfx import (
    adopt,
    assemble,
    bucket,
    checkpoint,
    flops,
    hosts,
    lock,
    metrics,
    models,
    optim,
    scores,
    sharding,
    validate,
    workdir,
)
from tfx import config as configs
from tfx.data import pipeline
from tfx.schema import Config
from tfx.setup import create_state, init_state
from tfx.state import TrainState

SHARED = "the workdir has to be one directory, shared by all of them"


class Diverged(Exception):
    """The loss or the gradient became NaN or infinite; nothing after it was saved."""


def make_train_step(config: Config, loss, tx, shardings):
    """The update, jitted: (state, batch, frozen) -> (state, metrics). The state is donated;
    `frozen` are parameters that the loss reads and nothing moves."""
    keep = lambda tree: jax.lax.with_sharding_constraint(tree, shardings.params)

    def gradients(params, batch, key, frozen):
        def total(params):
            value, weight, sums = loss(params, batch, {"dropout": key}, True, frozen)
            return value, {"loss": value, "weight": weight} | sums

        grads, sums = jax.grad(total, has_aux=True)(params)
        return keep(grads), sums

    def accumulate(params, batch, key, frozen, parts):
        # "(m g) -> g m": each micro-batch takes rows from every device; "(g m)" would send
        # rows between devices.
        split = lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

        def add(carry, inputs):
            part, i = inputs
            new = gradients(params, part, jax.random.fold_in(key, i), frozen)
            total = jax.tree.map(jnp.add, carry, new)
            return (keep(total[0]), total[1]), None

        first = jax.tree.map(lambda x: x[: x.shape[0] // parts], batch)
        shapes = jax.eval_shape(gradients, params, first, key, frozen)
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        zero = (keep(zero[0]), zero[1])
        return jax.lax.scan(add, zero, (jax.tree.map(split, batch), jnp.arange(parts)))[0]

    def train_step(state: TrainState, batch, frozen=None) -> tuple[TrainState, dict]:
        key, parts = jax.random.fold_in(state.rng, state.step), config.train.accum
        if parts == 1:
            grads, sums = gradients(state.params, batch, key, frozen)
        else:
            grads, sums = accumulate(state.params, batch, key, frozen, parts)
        grads = jax.tree.map(lambda g: g / jnp.maximum(sums["weight"], 1.0), grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = optax.incremental_update(params, ema, 1 - config.optim.ema)
        sums["grad_norm"] = optax.tree.norm(grads)
        return TrainState(state.step + 1, params, opt_state, state.rng, ema), sums

    return jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))


class Parts(NamedTuple):
    """What a run is put together from."""

    ids: Any
    model: nn.Module
    tx: optax.GradientTransformation
    batches: pipeline.Batches
    like: TrainState  # shapes and shardings
    shardings: TrainState
    valid: validate.Data | None
    loss: Callable
    frozen: dict | None = None  # a teacher's parameters


def put_together(config: Config, directory: Path, mesh, say, multiple: int = 0) -> Parts:
    """Tokenizer, data, model, optimiser and loss of a config; nothing on a device but a teacher.

    Args:
      multiple: of which the run planned its batches' rows; 0: it starts now, on this mesh.
    """
    found = hosts.in_turn(lambda: _prepared(config, directory, mesh, say, multiple))
    teacher, frozen = None, None
    if place := getattr(config.objective, "teacher", ""):
        # Its checkpoint is read by all processes at once.
        teacher, frozen = adopt.load(place, mesh, config.train.dtype)
        adopt.check_teacher(config, found[1].config, teacher.config)  # of what is known by now
    return Parts(*found, assemble.make_loss(config, found[1], teacher), frozen)


def _prepared(config: Config, directory: Path, mesh, say, multiple: int) -> tuple:
    """What one process prepares for the others: the parts from `ids` to `valid`."""
    bucket.pull(directory)  # the tokenizer that the process that leads has learned
    ids = assemble.open_tokenizer(config, directory, say)
    bucket.publish(directory)
    model = assemble.build_model(config, ids)
    shapes = nn.unbox(models.shapes(model))
    tx = optim.build(config.optim, config.train.steps, config.model.width, shapes)
    like, shardings = init_state(config, model, tx, mesh)
    sharding.check(models.shapes(model), (), mesh)
    valid = validate.read(config, ids, directory, say)  # before the training text, which is long
    cuts = sharding.batch_parts(mesh) * config.train.accum
    planned = dict(multiple=multiple or cuts, parts=cuts)
    batches = assemble.open_batches(config, ids, directory, "train", **planned, say=say)
    sharding.check((), [n for _, *sides in batches.shapes for n in sides], mesh)
    shapes = ", ".join(f"{n}x{'+'.join(map(str, sides))}" for n, *sides in batches.shapes)
    say(
        f"batches: {batches.steps_per_epoch:,} an epoch, shapes {shapes}, "
        f"{batches.padding:.1%} padding"
    )
    devices = f"{mesh.size} x {jax.devices()[0].device_kind}"
    name = models.name_of(model.config)
    say(f"model: {name}, {count(like.params):,} parameters, on {devices}")
    place = getattr(config.objective, "teacher", "")
    if place and assemble.tokenizer_of(place).fingerprint != ids.fingerprint:
        raise ValueError(
            f"objective.teacher = {place}: it reads other ids; set tokenizer.path to it"
        )
    return ids, model, tx, batches, like, shardings, valid


def count(params) -> int:
    """Number of parameters in a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def first_state(
    config: Config, parts: Parts, mesh, checkpoints, measure: validate.Measure, say
) -> tuple[TrainState, dict]:
    """The state to go on from, and what the run remembers beside it: the best validation value and
    its measure, evaluations since, the last BLEU, which data and tokenizer it is bound to, of what
    its batches' rows are a multiple, how many seconds it ran, and of these how many it trained."""
    bound = {"data": parts.batches.examples.fingerprint, "tokenizer": parts.ids.fingerprint}
    hosts.agree(bound | measure, "the text has to be the same on all hosts")
    begun = {"multiple": parts.batches.multiple, "productive": 0.0}
    if checkpoints.steps:
        state, memory = checkpoints.restore(parts.like)
        for what, text in (("data", "training data"), ("tokenizer", "tokenizer")):
            if memory[what] != bound[what]:
                raise ValueError(
                    f"the {text} changed since step {int(state.step)} was saved; put it back, "
                    "or start a new workdir with --config.init_from"
                )
        say(f"resuming from step {int(state.step):,}")
        return state, begun | validate.take_up(memory, measure, say)
    params = None
    if config.init_from:
        params = adopt.parameters(config, parts.model, mesh, say)
    state = create_state(config, parts.model, parts.tx, parts.shardings, params)
    unmeasured = {"best": None, "stale": 0, "bleu": None, "measure": measure}
    return state, unmeasured | begun | bound


def train(config: Config, directory: str, provenance: dict | None = None, profile=()) -> dict:
    """Train in a workdir, from its last checkpoint if it has one.

    Args:
      provenance: of this start, for `workdir.prepare`.
      profile: the first and the last step to trace; nothing should be evaluated or saved between.

    Returns:
      A summary: the last step, its loss, and how many programs were compiled for the step.

    Raises:
      hosts.Stopped: a signal came; the state is saved.
      Diverged: the loss is not finite.
      ValueError: the config, the data or the workdir does not fit.
    """
    values = {"tfx": tfx.__version__} | configs.flatten(configs.to_dict(config))
    hosts.agree(values, "start all of them with the same tfx and config")
    new = not (bucket.place(directory) / "config.json").exists()
    if not new:
        workdir.check(directory, config)
        reason, summary = validate.finished(config, directory)
        hosts.agree({"nothing to do": reason}, SHARED)
        if reason:
            if hosts.leads():
                print(f"nothing to do: {reason}")
            return summary
    with lock.Lock(directory, "train") as held:
        mesh, directory = hosts.in_turn(lambda: claim(config, directory, provenance, held))
        start = {f"{bucket.home(directory)}/starts.jsonl": workdir.last_start(directory)}
        hosts.agree(start, SHARED)
        keep = dataclasses.asdict(config.checkpoint)
        keep.pop("every")
        with (
            bucket.published(directory),
            jax.set_mesh(mesh),
            hosts.stop_requests() as stopping,
            metrics.Screen(config.train.steps, quiet=not hosts.leads()) as screen,
            checkpoint.Checkpoints(directory, **keep, held=held) as checkpoints,
        ):
            with workdir.given_back(directory, new and hosts.leads()):
                planned = checkpoints.meta().get("multiple", 0) if checkpoints.steps else 0
                parts = put_together(config, directory, mesh, screen.say, planned)
                watch = validate.Validation(config, parts, mesh, screen.say)
                state, memory = first_state(
                    config, parts, mesh, checkpoints, watch.measure, screen.say
                )
            mine = directory if hosts.leads() else None
            with (
                metrics.Writer(mine, int(state.step)) as writer,
                metrics.Profile(mine, bucket.home(directory), profile, screen.say) as trace,
            ):
                shown = writer, screen, trace
                return _loop(
                    config, parts, mesh, state, memory, watch, checkpoints, shown, stopping
                )


def claim(
    config: Config, directory: str, provenance: dict | None, held: lock.Lock
) -> tuple[Any, Path]:
    """The mesh, and the workdir, locked and taken up by the process that leads; before anything is
    built."""
    if getattr(config.model, "head", "") == "none":
        heads = " or ".join(assemble.objective(config).HEADS)
        raise ValueError(f"model.head = none: there is nothing to train; set it to {heads}")
    adopt.check(config, directory)
    mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
    check(config, mesh)
    workdir.check(directory, config)
    # A start whose text, or metric, is not there leaves no workdir behind.
    if config.eval.bleu_every:
        scores.of_text(config.eval)
    for split in ("train", "valid") if config.eval.every or config.eval.bleu_every else ("train",):
        assemble.corpora(config, split)
    if not hosts.leads():
        return mesh, bucket.local(directory)
    workdir.check_place(directory)
    held.acquire()
    return mesh, workdir.prepare(directory, config, provenance)


def check(config: Config, mesh) -> None:
    """Refuse what needs no text to be known: an optimiser that optax has not, patterns that match
    no parameter, sizes that the mesh does not divide."""
    pieces = config.model.vocab or config.tokenizer.vocab
    shapes = models.shapes(assemble.model_for(config, pieces, pieces))
    optim.build(config.optim, config.train.steps, config.model.width, nn.unbox(shapes))
    # How many pieces a tokenizer will have learned is not known.
    sharding.check(shapes, (), mesh, unknown="" if config.model.vocab else "V")


def _loop(config, parts, mesh, state, memory, watch, checkpoints, shown, stopping) -> dict:
    writer, screen, trace = shown
    train_step = make_train_step(config, parts.loss, parts.tx, parts.shardings)
    report = Report(config, parts, mesh, writer, screen)
    every, done, started = config.checkpoint.every, int(state.step), int(state.step)
    spent, began = memory.get("spent", memory["productive"]), time.time()
    fetch = lambda step: assemble.fetch(parts.batches, step, mesh)
    with (
        contextlib.closing(pipeline.prefetch(fetch, done)) as stream,
        hosts.watchdog(config.train.watchdog) as alive,
    ):
        while True:
            last, value, improved = done >= config.train.steps, None, False
            if done > started:
                # Evaluate.
                try:
                    with report.paused():
                        value = watch.evaluate(state.weights, done, last, memory, writer)
                except Exception:
                    # Another start would come to the same end; what was trained until here is kept.
                    report.flush(done, memory)
                    checkpoints.save(state, memory)
                    checkpoints.wait()
                    raise
                improved = validate.improves(memory, value)
                # Save.
                signal, patience = stopping(), config.eval.patience
                tired = bool(patience) and memory["stale"] >= patience
                stop = last or tired or signal
                kept = improved and config.checkpoint.keep_best
                if stop or done % every == 0 or kept:
                    report.flush(done, memory)
                    trace.stop()  # a signal may come in the middle of it
                    memory["spent"] = spent + time.time() - began
                    checkpoints.save(state, memory, value)
                if tired:
                    screen.say(
                        f"step {done:,}: no gain in {memory['stale']} evaluations "
                        f"(eval.patience = {patience}), stopping early"
                    )
                if stop:
                    checkpoints.wait()
                if signal:
                    raise hosts.Stopped(signal, done)
                if stop:
                    break
            if done + 1 == trace.first:
                with report.paused():
                    checkpoints.wait()
                    trace.start()
            with jax.profiler.StepTraceAnnotation("step", step_num=done + 1):
                # Fetch.
                _, batch = next(stream)
                # Step.
                state, sums = train_step(state, batch, parts.frozen)
            done += 1
            # Log.
            report.add(sums, batch)
            alive()
            if done == trace.last:
                with report.paused():
                    trace.stop()
            if done % config.train.log_every == 0 or done == config.train.steps:
                report.flush(done, memory)
    spent += time.time() - began
    screen.say(f"goodput {memory['productive'] / spent:.1%} of {spent:,.0f} s that the run took")
    compiled = train_step._cache_size()
    return {"step": done, "compiled": compiled, "memory": memory, **report.last}


class Report:
    """The metrics of the steps since the last report.

    They stay on the device until `flush`, so that the device never waits for the host; but
    no more than two steps are ever in flight, so that a signal is heard within seconds.
    """

    def __init__(self, config: Config, parts: Parts, mesh, writer, screen):
        self.last: dict[str, float] = {}
        self._pending, self._since, self._flops = [], time.time(), 0
        self._writer, self._screen, self._model = writer, screen, parts.model.config
        self._steps_per_epoch = parts.batches.steps_per_epoch
        self._tokens = parts.batches.tokens_per_epoch / self._steps_per_epoch
        self._objective = config.objective
        self._devices = mesh.size, mesh.devices.flat[0].device_kind
        self._rate = optim.schedule(config.optim, config.train.steps, config.model.width)

    def add(self, sums: dict, batch: dict) -> None:
        """One step's sums, still being computed, and what it was taken on."""
        self._pending.append(sums)
        self._flops += flops.training(self._model, flops.shape_of(batch))
        jax.block_until_ready(self._pending[-2:][0])

    def flush(self, done: int, memory: dict) -> None:
        """Fetch, check and show."""
        if not self._pending:
            return
        rows = jax.device_get(self._pending)
        first = done - len(rows) + 1
        total = {name: float(np.sum([row[name] for row in rows])) for name in rows[0]}
        if not math.isfinite(total["loss"] + total["grad_norm"]):
            raise Diverged(
                f"loss or gradient became NaN or infinite within steps {first:,} to {done:,}; "
                "lower optim.lr, lengthen optim.warmup or set optim.clip"
            )
        seconds, norm = time.time() - self._since, total.pop("grad_norm")
        self.last = validate.means(self._objective, total) | {
            "lr": float(self._rate(done - 1)),
            "grad_norm": norm / len(rows),
            "tokens_per_second": self._tokens * len(rows) / seconds,
            "epoch": done / self._steps_per_epoch,
            "tflops_per_second": self._flops / seconds / 1e12,
        }
        share = flops.mfu(self._flops, seconds, *self._devices)
        self.last |= {"mfu": share} if share is not None else {}
        memory["productive"] += seconds
        self._writer.write(done, "train", **self.last)
        self._screen.step(done, self.last, memory["bleu"])
        self._pending, self._since, self._flops = [], time.time(), 0

    @contextlib.contextmanager
    def paused(self):
        """Time in here is not spent on training: tokens per second do not count it."""
        jax.block_until_ready(self._pending)
        began = time.time()
        yield
        self._since += time.time() - began


def dry_run(config: Config, directory: str | None = None) -> None:
    """Build everything and train nothing: print parameters, shapes, memory, steps an epoch."""
    if config.eval.bleu_every:
        scores.of_text(config.eval)
    mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
    check(config, mesh)
    with (
        jax.set_mesh(mesh),
        tempfile.TemporaryDirectory() as scratch,
        metrics.Screen(config.train.steps, quiet=not hosts.leads()) as screen,
    ):
        # A folder that holds no run yet stays as it is.
        begun = directory is not None and (bucket.place(directory) / "config.json").exists()
        where = bucket.local(directory if begun else scratch)
        where.mkdir(parents=True, exist_ok=True)
        parts = put_together(config, where, mesh, screen.say)
        table = Table("parameter", "shape", "numbers", "over the mesh", box=None, pad_edge=False)
        for path, leaf in jax.tree_util.tree_leaves_with_path(parts.like.params):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            spec = ", ".join(f"{axis}" for axis in leaf.sharding.spec if axis) or "-"
            table.add_row(name, str(leaf.shape), f"{math.prod(leaf.shape):,}", spec)
        screen.console.print(table)
        batch = {
            name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding.of_batch(mesh))
            for name, value in largest(parts.batches).items()
        }
        for name, value in batch.items():
            screen.say(f"batch[{name!r}]: {value.dtype} {list(value.shape)}")
        step = make_train_step(config, parts.loss, parts.tx, parts.shardings)
        began = time.time()
        needs = step.lower(parts.like, batch, parts.frozen).compile().memory_analysis()
        state = needs.argument_size_in_bytes
        screen.say(f"compiled the largest shape in {time.time() - began:.1f} s")
        screen.say(
            f"memory a device: {(state + needs.temp_size_in_bytes) / 2**20:,.0f} MiB "
            f"({state / 2**20:,.0f} for state and batch, "
            f"{needs.temp_size_in_bytes / 2**20:,.0f} while a step runs)"
        )
        epochs = config.train.steps / parts.batches.steps_per_epoch
        screen.say(
            f"{config.train.steps:,} steps = {epochs:,.1f} epochs of "
            f"{parts.batches.steps_per_epoch:,} steps; nothing was trained"
        )


def largest(batches: pipeline.Batches) -> dict[str, np.ndarray]:
    """A batch of the shape with the most positions."""
    most = max(batches.shapes, key=lambda shape: shape[0] * sum(shape[1:]))
    steps = range(batches.steps_per_epoch)
    return batches.batch(next(step for step in steps if batches.shape(step) == most))
