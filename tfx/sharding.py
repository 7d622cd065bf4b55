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


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, sequence: int = 1) -> Mesh:
    """A mesh over all devices, with axes `AXES`; one size may be -1: what remains.

    Raises:
      ValueError: the sizes do not multiply to the number of devices (jax itself would
        silently leave devices idle).
    """
    sizes, count = [data, fsdp, tensor, sequence], jax.device_count()
    shown = ", ".join(f"{a}={s}" for a, s in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
        raise ValueError(
            f"mesh({shown}): sizes are at least 1, and one of them may be -1 (the rest)"
        )
    known = math.prod(s for s in sizes if s != -1)
    sizes = [count // known if s == -1 else s for s in sizes]
    if math.prod(sizes) != count:
        raise ValueError(
            f"mesh({shown}) does not cover the {count} devices: its sizes multiply to "
            f"{math.prod(sizes)}; set one of them to -1"
        )
    if len({d.slice_index for d in jax.devices() if hasattr(d, "slice_index")}) > 1:
        slices = len({d.slice_index for d in jax.devices()})
        inner = [sizes[0] // slices, *sizes[1:]]
        devices = mesh_utils.create_hybrid_device_mesh(inner, [slices, 1, 1, 1])
        return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    return jax.make_mesh(tuple(sizes), AXES, (AxisType.Auto,) * len(AXES))


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


def of_batch(mesh: Mesh) -> NamedSharding:
    """Rows of a batch are cut over `data` and `fsdp`."""
    return NamedSharding(mesh, P(ACTIVATIONS["B"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are cut."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Hand this host's rows of a batch to the devices."""
    sharding = of_batch(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
