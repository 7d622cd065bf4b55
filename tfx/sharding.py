"""Which device holds which part of an array? One mesh, and two tables from axis letters
to mesh axes: one for parameters, one for activations.

`jax.jit` with `NamedSharding` is what pmap and pjit became: the program is written for
one big device, and the compiler cuts it up as the tables say.
"""

import math

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor", "sequence")

# D is cut for parameters only (fully sharded data parallelism): an activation keeps its
# whole width, its batch is cut over `data` and `fsdp` alike.
PARAMETERS = {"D": "fsdp", "F": "tensor", "H": "tensor", "V": "tensor"}
ACTIVATIONS = {
    "B": ("data", "fsdp"),
    "T": "sequence",
    "S": "sequence",
    "F": "tensor",
    "H": "tensor",
    "V": "tensor",
}


class Misfit(ValueError):
    """Sizes that the mesh cannot cut: one line each, with the nearest that would do."""


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, sequence: int = 1, devices=None
) -> Mesh:
    """A mesh with axes `AXES` over all devices; one size may be -1: what remains.

    Args:
      devices: default `jax.devices()`.

    Raises:
      Misfit: the sizes do not multiply to the number of devices (jax itself would silently
        leave devices idle).
    """
    devices = jax.devices() if devices is None else devices
    sizes, count = [data, fsdp, tensor, sequence], len(devices)
    shown = ", ".join(f"{a}={s}" for a, s in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
        raise Misfit(f"mesh({shown}): sizes are at least 1, and one of them may be -1 (the rest)")
    known = math.prod(s for s in sizes if s != -1)
    fix = "set one of them to -1"
    if -1 in sizes:
        fix = f"{count} is no multiple of {known}: choose other sizes, or --config.mesh=dp"
    sizes = [count // known if s == -1 else s for s in sizes]
    if math.prod(sizes) != count:
        raise Misfit(
            f"mesh({shown}) does not cover the {'device' if count == 1 else f'{count} devices'}: "
            f"its sizes multiply to {math.prod(sizes)}; {fix}"
        )
    return Mesh(arrange(devices, sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arrange(devices, sizes) -> np.ndarray:
    """Devices in the shape of a mesh, those that talk most next to each other.

    Within a slice, or a GPU node, links are fast; between them slow. Where there are several,
    data parallelism alone goes across, for its one sum of gradients a step is the least talk.
    """
    slices = {getattr(d, "slice_index", 0) for d in devices}
    nodes = {d.process_index for d in devices} if devices[0].platform == "gpu" else {0}
    granules = max(len(slices), len(nodes))
    # Some sizes, such as 4 on a torus of 16 x 16, need a part of one of its axes.
    parts = dict(allow_split_physical_axes=True)
    if granules == 1:
        return mesh_utils.create_device_mesh(sizes, devices, **parts)
    if sizes[0] % granules:
        raise Misfit(
            f"mesh(data={sizes[0]}): the {len(devices)} devices are in {granules} slices or nodes, "
            f"and data runs across them; set mesh.data to a multiple of {granules}"
        )
    within, across = [sizes[0] // granules, *sizes[1:]], [granules, 1, 1, 1]
    by_process = len(slices) == 1
    return mesh_utils.create_hybrid_device_mesh(
        within, across, devices, process_is_granule=by_process, **parts
    )


CALLED = {"D": "model width", "F": "mlp width", "H": "heads", "V": "vocabulary"}


def check(boxed_shapes, lengths, mesh: Mesh, unknown: str = "") -> None:
    """Refuse, before anything is compiled, all that the mesh does not divide.

    Args:
      boxed_shapes: parameters with their axis letters, as for `of_parameters`.
      lengths: of the texts in a batch, padding counted.
      unknown: letters whose sizes are not known yet.

    Raises:
      Misfit: one line for each size, with the nearest ones that would do.
    """
    cuts = [(f"a length of {n}", "sequence", n) for n in sorted({*lengths})]
    for leaf in jax.tree.leaves(boxed_shapes, is_leaf=lambda x: isinstance(x, nn.Partitioned)):
        if isinstance(leaf, nn.Partitioned):
            cuts += [
                (f"{CALLED[letter]} {size}", PARAMETERS[letter], size)
                for letter, size in zip(leaf.names, leaf.value.shape, strict=True)
                if letter in PARAMETERS and letter not in unknown
            ]
    lines = []
    for what, axis, size in sorted({*cuts}):
        parts = mesh.shape[axis]
        if size % parts:
            below, above = size // parts * parts, -(-size // parts) * parts
            fits = [n for n in range(1, mesh.size + 1) if size % n == 0 and mesh.size % n == 0]
            near = sorted(sorted(fits, key=lambda n: abs(n - parts))[:2])
            sizes = " or ".join(str(n) for n in (below, above) if n)
            lines.append(
                f"{what:20} mesh.{axis}={parts:<4} {sizes:24} {' or '.join(map(str, near))}"
            )
    if lines:
        shown = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        head = (
            f"{'cannot be cut':20} {'by':{len('mesh.=') + 12}} {'sizes that can':24} cuts that fit"
        )
        raise Misfit("\n  ".join([f"mesh({shown}) does not divide these:", head, *lines]))


def constrain(x: jax.Array, axes: str) -> jax.Array:
    """Say how an activation lies over the mesh: `constrain(x_BTD, "BTD")`.

    Outside `jax.set_mesh` (one device, tests, notebooks) it does nothing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, P(*(ACTIVATIONS.get(a) for a in axes)))


def of_parameters(boxed_shapes, mesh: Mesh):
    """Shardings of a tree of parameters (or of a state that holds some), from its letters.

    Args:
      boxed_shapes: `jax.eval_shape` of an initialiser whose parameters carry their axis
        letters (`nn.with_logical_partitioning`).
    """
    spec = nn.get_partition_spec(boxed_shapes)
    return nn.logical_to_mesh_sharding(spec, mesh, tuple(PARAMETERS.items()))


def place(boxed_shapes, mesh: Mesh):
    """The same shapes, unboxed, each with its sharding: what a restore should look like."""
    like = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    return jax.tree.map(like, nn.unbox(boxed_shapes), of_parameters(boxed_shapes, mesh))


def place_any(boxed_shapes, mesh: Mesh):
    """As `place`; an array that the mesh does not divide lies whole on every device."""

    def fit(x):
        try:
            x.sharding.shard_shape(x.shape)
        except ValueError:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh))
        return x

    return jax.tree.map(fit, place(boxed_shapes, mesh))


def of_batch(mesh: Mesh) -> NamedSharding:
    """Rows of a batch are cut over `data` and `fsdp`."""
    return NamedSharding(mesh, P(ACTIVATIONS["B"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def rows_here(rows: int, mesh: Mesh) -> np.ndarray:
    """Which rows of a batch lie on devices of this process, ascending.

    Two processes hold the same rows where another axis of the mesh than the batch's lies across
    them.
    """
    parts = of_batch(mesh).addressable_devices_indices_map((rows,)).values()
    return np.unique([np.arange(rows)[part] for part in parts])


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh, rows: int = 0) -> dict[str, jax.Array]:
    """Hand a batch to the devices, each process to its own.

    Args:
      batch: all of its rows; or, where its number of `rows` is given, those of `rows_here`.
    """
    count = rows or len(next(iter(batch.values())))
    here, sharding = rows_here(count, mesh) if rows else np.arange(count), of_batch(mesh)

    def put(x):
        def part(index):
            start, stop, _ = index[0].indices(count)
            return x[np.searchsorted(here, start) :][: stop - start]

        return jax.make_array_from_callback((count, *x.shape[1:]), sharding, part)

    return {name: put(x) for name, x in batch.items()}
