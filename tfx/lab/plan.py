"""What would a run need on devices that are not there? Its real step, compiled ahead of time.

libtpu compiles for any TPU topology on any machine; nothing is run, and no data is read. `plan`
compiles, `show` puts what was learned on one page, and docs/plan.md says how to read it.
"""

import contextlib
import dataclasses
import importlib.util
import itertools
import json
import math
import os
import re
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.experimental import topologies

from tfx import assemble, flops, models, optim, sharding, train, translate
from tfx.choose import Ids
from tfx.config import Config
from tfx.data.tokenizer import Bytes
from tfx.lab import collectives
from tfx.objectives import seq2seq
from tfx.setup import init_state

KNOWN = ("cpu", "v4:2x2x2", "v5e:4x4", "v5e:16x16", "v5p:4x4x4", "v6e:4x4", "tpu7x:2x2x1")
# The largest slice of each generation; asked for a larger one, libtpu aborts the whole process.
LARGEST = {
    "v4": (16, 16, 16),
    "v5e": (16, 16),
    "v5p": (16, 20, 28),
    "v6e": (16, 16),
    "tpu7x": (16, 24, 24),
}
LENGTH = 64  # of source and target, unless the shape is given


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was learned; sizes in bytes on one device, times in seconds.

    Attributes:
      devices, kind: how many, and what JAX calls them.
      shape: rows of a batch, source length, target length (decoding: the longest output).
      arguments: state or parameters, and the batch.
      temporaries: while a step runs; with the results that replace no argument.
      memory: all of it, the program too.
      capacity: of a device; None if it is not known.
      flops: of the model, over all devices; `repeated` are those of remat.
      traffic: collectives; None where the compiler could not place the program.
      compute, hbm, ici: lower bounds, of one step each; None without traffic or a known chip.
      remedy: what would make it fit; None if it fits, or nothing was found.
    """

    topology: str
    program: str
    devices: int
    kind: str
    mesh: dict[str, int]
    settings: dict[str, str | int | bool]
    parameters: int
    parameter_bytes: int
    shape: flops.Shape
    fits: bool
    arguments: int
    temporaries: int
    memory: int
    capacity: int | None
    flops: int
    repeated: int
    traffic: collectives.Traffic | None
    compute: float | None
    hbm: float | None
    ici: float | None
    remedy: str | None = None

    @property
    def seconds(self) -> float | None:
        """Of a step, if all that can overlap does; None if not known."""
        return max(self.times.values(), default=None)

    @property
    def times(self) -> dict[str, float]:
        """The bounds, by name, as far as they are known."""
        named = {"compute": self.compute, "memory": self.hbm, "communication": self.ici}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def mfu(self) -> float | None:
        """The most that the model's FLOPs utilisation can be; None if not known."""
        if not self.seconds:
            return None
        return flops.mfu(self.flops, self.seconds, self.devices, self.kind)


def devices(topology: str) -> list:
    """The devices of a topology, `cpu` being those of this process.

    Raises:
      ValueError: no such topology; libtpu is missing.
    """
    if topology == "cpu":
        return jax.devices("cpu")
    generation, _, shape = topology.partition(":")
    known, most = f"want one such as {', '.join(KNOWN)}", LARGEST.get(generation, ())
    if not (most and _is_slice(shape, most)):
        limits = f"at most {'x'.join(map(str, most))}, the first two sizes even; " if most else ""
        raise ValueError(f'topology "{topology}": {limits}{known}')
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"topology {topology}: TPU programs are compiled by libtpu, which is not installed; "
            'pip install "tfx-research[tpu]"'
        )
    # Without these libtpu looks for a metadata server, and shuts other processes out.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(name, value)
    one = {"chip_config_name": "megacore"} if generation == "v4" else {}  # both cores one device
    try:
        return list(topologies.get_topology_desc(topology, "tpu", **one).devices)
    except jax.errors.JaxRuntimeError as error:
        why = str(error).partition("\n")[0]
        raise ValueError(f'topology "{topology}": {why}; {known}') from None


def _is_slice(shape: str, most: tuple[int, ...]) -> bool:
    """Whether it is 4x4x8, or such; a host holds 2 x 2 chips."""
    if not re.fullmatch(r"\d+(x\d+)*", shape):
        return False
    sizes = [int(size) for size in shape.split("x")]
    within = all(1 <= n <= limit for n, limit in zip(sorted(sizes), most, strict=False))
    return len(sizes) == len(most) and within and not any(n % 2 for n in sizes[:2])


def plan(
    config: Config,
    topology: str = "v5e:4x4",
    *,
    decode: bool = False,
    shape: flops.Shape | None = None,
) -> Plan:
    """Compile the training step of a config for a topology, or its search with `decode`.

    Args:
      shape: rows, source and target length; default 64 + 64 tokens, and as many rows as
        batch.tokens (decode.tokens) allows and the mesh divides.

    Raises:
      ValueError: no such topology, no libtpu, a mesh that does not divide the model, the batch
        or the devices, a shape that is longer than the model takes.
    """
    there = devices(topology)
    found = _plan(config, topology, there, decode, shape)
    if found.fits:
        return found
    for change in _remedies(config, found):
        other = _plan(_changed(config, change), topology, there, decode, found.shape)
        if other.fits:
            said = ", ".join(f"{key}={value}" for key, value in change.items())
            return dataclasses.replace(found, remedy=f"{said} ({_size(other.memory)} a device)")
    return found


def sweep_mesh(
    config: Config,
    topology: str = "v5e:4x4",
    *,
    decode: bool = False,
    shape: flops.Shape | None = None,
    say=assemble.silent,
) -> list[Plan]:
    """A plan for every way to cut a model over data, fsdp and tensor that divides its sizes and
    the batch; those that fit first, the fastest first."""
    there, plans = devices(topology), []
    tried = list(_cuts(config, there, decode, shape))
    say(f"{len(tried)} meshes divide the model and the batch\n{HEAD}")
    for config in tried:
        plans.append(_plan(config, topology, there, decode, shape))
        say(_row(plans[-1]))
    sent = lambda p: sum(c.sent for c in p.traffic.collectives) if p.traffic else math.inf
    each = lambda p: (p.seconds or math.inf) / p.shape[0]
    return sorted(plans, key=lambda p: (not p.fits, each(p), sent(p), p.memory))


def _cuts(config: Config, there: list, decode: bool, shape) -> Iterator[Config]:
    """The config on every mesh over data, fsdp and tensor that divides its sizes and the batch."""
    sizes = [n for n in range(1, len(there) + 1) if len(there) % n == 0]
    for fsdp, tensor in itertools.product(sizes, sizes):
        cut = _changed(config, {"mesh.data": -1, "mesh.fsdp": fsdp, "mesh.tensor": tensor})
        with contextlib.suppress(sharding.Misfit):
            mesh = _mesh(cut, there)
            _shape(cut, mesh, decode, shape)
            parts = sharding.batch_parts(mesh) * (1 if decode else config.train.accum)
            if _rows(config, decode, shape) >= parts:
                yield cut


def show(plan: Plan) -> str:
    """The plan on one page."""
    p, n = plan, plan.devices
    rows, source, target = p.shape
    head = f"{p.program} on {p.topology}: {n} x {p.kind}, compiled, not run"
    lines = [
        head,
        "",
        "mesh          " + ", ".join(f"{axis}={size}" for axis, size in p.mesh.items()),
        "settings      " + ", ".join(f"{key}={value}" for key, value in p.settings.items()),
        f"parameters    {p.parameters:,}; {_size(p.parameter_bytes)} a device",
        f"batch         {rows:,} rows x ({source} + {target}) tokens",
        f"memory        {_size(p.memory)} a device: {_size(p.arguments)} arguments, "
        f"{_size(p.temporaries)} temporaries",
        "              " + _verdict(p),
        f"model FLOPs   {p.flops:.4g} a step"
        + (f", and {p.repeated:.4g} computed again (remat)" if p.repeated else ""),
    ]
    if p.traffic:
        lines += ["", f"{'collectives':20}{'count':>8}{'bytes':>12}{'sent a device':>16}"]
        lines += [
            f"{c.kind:20}{c.count:>8,}{_size(c.bytes):>12}{_size(c.sent):>16}"
            for c in p.traffic.collectives
        ] or ["none"]
        if p.traffic.unknown:
            lines += [f"in loops of unknown length, counted once: {p.traffic.unknown}"]
    return "\n".join([*lines, "", *_roofline(p)])


def table(plans: list[Plan]) -> str:
    """What `sweep_mesh` found, a plan a line, and how to take the first."""
    if not plans:
        return "no mesh divides the model and the batch; see --shape and batch.tokens"
    p = plans[0]
    cuts = " ".join(f"--config.mesh.{axis}={p.mesh[axis]}" for axis in ("data", "fsdp", "tensor"))
    lines = [
        f"{p.program} on {p.topology}: {p.devices} x {p.kind}, compiled, not run",
        "",
        "settings      " + ", ".join(f"{key}={value}" for key, value in p.settings.items()),
        f"parameters    {p.parameters:,}",
        f"batch         rows x ({p.shape[1]} + {p.shape[2]}) tokens",
        "",
        HEAD,
        *map(_row, plans),
        "",
        "memory, sent: of one device; step, MFU: as if all overlaps; in order of step / rows",
    ]
    return "\n".join(lines + [f"the first: {cuts}"] * p.fits)


def to_json(plan: Plan) -> str:
    """Indented JSON of all that a plan holds, and its step time and MFU bound."""
    tree = dataclasses.asdict(plan) | {"seconds": plan.seconds, "mfu": plan.mfu}
    if plan.traffic:
        tree["traffic"] = {
            "collectives": [c._asdict() for c in plan.traffic.collectives],
            "unknown": plan.traffic.unknown,
        }
    return json.dumps(tree, indent=2) + "\n"


def _plan(config: Config, topology: str, there: list, decode: bool, shape) -> Plan:
    mesh, model = _mesh(config, there), _model(config)
    shape = _shape(config, mesh, decode, shape)
    like = sharding.place(models.shapes(model), mesh)
    kind, how = there[0].device_kind, config.decode
    if decode:
        beams = 1 if how.method == "greedy" else how.beam
        work, again = flops.forward(model.config, shape, beams), 0
        step, arguments = _search(config, model, like, mesh, shape)
    else:
        work, again = flops.training(model.config, shape), flops.recomputed(model.config, shape)
        step, arguments = _training(config, model, mesh, shape)
    with jax.set_mesh(mesh):
        lowered = step.lower(*arguments)
    settings = dict(dtype=config.train.dtype, scan=config.model.scan)
    changing = dict(remat=config.model.remat, accum=config.train.accum)
    chip = flops.chip(kind)
    known = dict(
        topology=topology,
        program="search" if decode else "training step",
        devices=mesh.size,
        kind=kind,
        mesh=dict(mesh.shape),
        settings=settings | (dict(beam=beams) if decode else changing),
        parameters=train.count(like),
        parameter_bytes=_on_a_device(like),
        shape=shape,
        capacity=chip and int(chip.memory),
        flops=work,
        repeated=again,
        compute=chip and (work + again) / (mesh.size * chip.flops),
    )
    steps = shape[2] if decode else 1  # how often the parameters are read
    return Plan(**known | _compiled(lowered, _on_a_device(arguments), chip, steps))


def _on_a_device(tree) -> int:
    """Bytes of a tree of arrays that lie on one device."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    shapes = [leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else () for leaf in leaves]
    sizes = zip(leaves, shapes, strict=True)
    return sum(math.prod(shape) * leaf.dtype.itemsize for leaf, shape in sizes)


def _compiled(lowered, arguments: int, chip: flops.Chip | None, steps: int) -> dict:
    """What only the compiled program says."""
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not (needed := _too_much(str(error))):
            raise
        memory = dict(arguments=arguments, temporaries=needed, memory=arguments + needed)
        return memory | dict(fits=False, traffic=None, compute=None, hbm=None, ici=None)
    needs, traffic = program.memory_analysis(), collectives.read(program.as_text())
    arguments, results = needs.argument_size_in_bytes, needs.output_size_in_bytes
    temporaries = needs.temp_size_in_bytes + results - needs.alias_size_in_bytes
    memory = arguments + temporaries + needs.generated_code_size_in_bytes
    moved = arguments * steps + results + 2 * needs.temp_size_in_bytes
    return dict(
        fits=chip is None or memory <= chip.memory,
        arguments=arguments,
        temporaries=temporaries,
        memory=memory,
        traffic=traffic,
        hbm=chip and moved / chip.bandwidth,
        ici=chip and sum(c.sent for c in traffic.collectives) / chip.links,
    )


def _too_much(error: str) -> int:
    """The bytes of temporaries in libtpu's complaint that it cannot place them; else 0."""
    pattern = r"memory required for HLO temporaries \(([\d.]+)([KMGT])\)|Used ([\d.]+)([KMGT]) of"
    found = re.search(pattern, error) if "RESOURCE_EXHAUSTED" in error else None
    if not found:
        return 0
    number, unit = found[1] or found[3], found[2] or found[4]
    return int(float(number) * 1024 ** ("KMGT".index(unit) + 1))


def _training(config: Config, model, mesh, shape: flops.Shape) -> tuple:
    """The step of tfx/train.py, jitted, and its arguments."""
    shapes = nn.unbox(models.shapes(model))
    tx = optim.build(config.optim, config.train.steps, config.model.width, shapes)
    like, shardings = init_state(config, model, tx, mesh)
    step = train.make_train_step(config, assemble.make_loss(config, model), tx, shardings)
    rows, source, target = shape
    example = seq2seq.make_example(np.zeros(source - 1, np.int32), np.zeros(target - 1, np.int32))
    lengths = {name: len(ids) for name, ids in example.items()}
    if config.batch.kind == "pack":
        sides = {"source": source, "target": target}
        for side, what in itertools.product(sides, ("segments", "positions")):
            lengths[f"{side}_{what}"] = sides[side]
    at = partial(jax.ShapeDtypeStruct, sharding=sharding.of_batch(mesh))
    batch = {name: at((rows, length), jnp.int32) for name, length in lengths.items()}
    batch["weights"] = at((rows, target), jnp.float32)
    return step, (like, batch)


def _search(config: Config, model, like, mesh, shape: flops.Shape) -> tuple:
    """The search of tfx/translate.py, jitted, and its arguments."""
    rows, source, longest = shape
    at = partial(jax.ShapeDtypeStruct, sharding=sharding.of_batch(mesh))
    batch = {
        "source": at((rows, source), jnp.int32),
        "limit": at((rows,), jnp.int32),
        "number": at((rows,), jnp.uint32),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    search = jax.jit(partial(translate.search, (model,)), static_argnums=(3, 4, 5, 6))
    return search, ((like,), batch, key, Ids(), config.decode, longest, rows)


def _mesh(config: Config, there: list):
    mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh), devices=there)
    sharding.check(models.shapes(_model(config)), (), mesh)
    return mesh


def _model(config: Config):
    """The model, for a tokenizer that nobody has learned yet."""
    if not hasattr(config.model, "source_vocab"):
        name = models.name_of(config.model)
        raise ValueError(f'model.name = "{name}": tfx plan knows encoder-decoders so far')
    vocab = Bytes.vocab_size if config.tokenizer.kind == "bytes" else config.tokenizer.vocab
    vocab = config.model.vocab or vocab
    runtime = dict(vocab=vocab, source_vocab=vocab, dtype=config.train.dtype)
    return models.build(dataclasses.replace(config.model, **runtime))


def _shape(config: Config, mesh, decode: bool, shape: flops.Shape | None) -> flops.Shape:
    parts = sharding.batch_parts(mesh) * (1 if decode else config.train.accum)
    if shape is None:
        most = min(LENGTH + config.decode.extra, config.model.max_length)
        rows = max(_rows(config, decode, None) // parts, 1) * parts
        shape = rows, LENGTH, most if decode else LENGTH
    rows, *lengths = shape
    if min(shape) < 1 or max(lengths) > config.model.max_length:
        raise ValueError(
            f"shape {rows},{lengths[0]},{lengths[1]}: want at least 1 of each, and lengths of at "
            f"most {config.model.max_length} (model.max_length)"
        )
    if rows % parts:
        near = sorted({max(rows // parts, 1) * parts, -(-rows // parts) * parts})
        raise sharding.Misfit(
            f"a batch of {rows} rows: the mesh and train.accum cut it into {parts}; want "
            + " or ".join(map(str, near))
        )
    sharding.check((), lengths if mesh.shape["sequence"] > 1 else (), mesh)
    return shape


def _rows(config: Config, decode: bool, shape: flops.Shape | None) -> int:
    tokens = config.decode.tokens if decode else config.batch.tokens
    return shape[0] if shape else tokens // LENGTH


def _changed(config: Config, changes: dict) -> Config:
    for key, value in changes.items():
        section, _, name = key.partition(".")
        part = dataclasses.replace(getattr(config, section), **{name: value})
        config = dataclasses.replace(config, **{section: part})
    return config


def _remedies(config: Config, found: Plan) -> Iterator[dict]:
    """Changes that save memory, the cheapest first: each alone, in the end all together."""
    tried, parts = {}, found.mesh["data"] * found.mesh["fsdp"]
    changes = [{"mesh.data": 1, "mesh.fsdp": parts}] if found.mesh["data"] > 1 else []
    if found.program != "search":
        if config.model.remat != "full":
            changes.insert(0, {"model.remat": "full"})
        accum = (config.train.accum * more for more in (2, 4, 8))
        changes += [{"train.accum": n} for n in accum if found.shape[0] % (parts * n) == 0]
    for change in changes:
        tried |= change
        yield change
    if len(changes) > 1:
        yield tried


def _verdict(p: Plan) -> str:
    if p.capacity is None:
        return f"(how much a {p.kind} has is not known)"
    free = p.capacity - p.memory
    if p.fits:
        return f"fits in {_size(p.capacity)}, {_size(free)} to spare"
    hint = f"it would with {p.remedy}" if p.remedy else "nothing that was tried helps"
    return f"DOES NOT FIT in {_size(p.capacity)}, {_size(-free)} too much; {hint}"


def _roofline(p: Plan) -> list[str]:
    chip = flops.chip(p.kind)
    if not chip or not p.traffic:
        return [f"no step time: {'it does not fit' if chip else f'{p.kind} has no known peak'}"]
    notes = {
        "compute": f"at {chip.flops / 1e12:g} TFLOP/s (bfloat16 peak), split evenly",
        "memory": f"at {chip.bandwidth / 1e9:g} GB/s, state and temporaries moved just once",
        "communication": f"at {chip.links / 1e9:g} GB/s out of a device, every link busy",
    }
    lines = ["lower bounds of a step"]
    lines += [f"  {name:16}{_time(p.times[name]):>10}  {note}" for name, note in notes.items()]
    bound, total = max(p.times, key=p.times.get), sum(p.times.values())
    return [
        *lines,
        f"step time       {_time(p.seconds):>12}  bound by {bound}; {_time(total)} if nothing "
        "overlaps",
        f"MFU             {f'{p.mfu:.1%}':>12}  at most",
    ]


HEAD = " data  fsdp  tensor    rows      memory        sent        step     MFU  bound by"


def _row(p: Plan) -> str:
    sent = _size(sum(c.sent for c in p.traffic.collectives)) if p.traffic else "-"
    step, mfu = _time(p.seconds) if p.times else "-", f"{p.mfu:.1%}" if p.mfu else "-"
    verdict = max(p.times, key=p.times.get, default="") if p.fits else "does not fit"
    cells = f"{p.mesh['data']:>5}{p.mesh['fsdp']:>6}{p.mesh['tensor']:>8}{p.shape[0]:>8,}"
    return f"{cells}{_size(p.memory):>12}{sent:>12}{step:>12}{mfu:>8}  {verdict}".rstrip()


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:,.0f} B" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:,.3g} ms"
