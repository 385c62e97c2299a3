"""The device mesh, the one table from logical axes to mesh axes, and global arrays in and out of it (array code).

Mesh axes: `data` (replicas), `fsdp` (parameters cut up, gathered when used), `tensor` (heads, feed-forward, vocabulary).
A batch is cut over `data` and `fsdp` together.
"""

from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes, when training and when sampling. With the training layout every decode step would gather
# every layer, so the sampler's copy of the weights is whole over `data` and `fsdp`.
TABLE = {
    "prompt": (("data", "fsdp"), ("data", "fsdp")),
    "width": ("fsdp", None),
    "vision_width": ("fsdp", None),
    "heads": ("tensor", "tensor"),
    "kv_heads": ("tensor", "tensor"),
    "ffn": ("tensor", "tensor"),
    "vocab": ("tensor", "tensor"),
    "whole": (None, None),
}
TRAIN, SAMPLE = 0, 1


class MeshError(ValueError):
    """The mesh asked for does not fit the devices or the batch."""


def make(data: int, fsdp: int, tensor: int, devices: list[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A mesh of all devices; one axis may be -1 and takes what the others leave.

    Raises MeshError naming the sizes when their product is not the number of devices.
    """
    devices = devices if devices is not None else jax.devices()
    sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
    asked = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items())
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise MeshError(f"{asked}: sizes are positive, and at most one is -1 (the rest of the devices)")
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if free and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if int(np.prod(list(sizes.values()))) != len(devices):
        raise MeshError(
            f"{asked} make {fixed} devices{' or a multiple' if free else ''}, but there are {len(devices)}; "
            f"set sizes whose product is {len(devices)}, or one of them to -1"
        )
    grid = np.asarray(devices).reshape([sizes[name] for name in AXES])
    return jax.sharding.Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def spec(names: tuple[str | None, ...], column: int, mesh: Any = None, shape: tuple[int, ...] | None = None):
    """The PartitionSpec of logical axis names. With `mesh` and `shape`, a dimension that its mesh axis does not divide
    stays whole (2 kv heads on 4 tensor devices: each device holds both)."""
    parts = []
    for dim, name in enumerate(names):
        axes = TABLE[name][column] if name is not None else None
        if axes is not None and shape is not None:
            group = axes if isinstance(axes, tuple) else (axes,)
            if shape[dim] % int(np.prod([mesh.shape[axis] for axis in group])):
                axes = None
        parts.append(axes)
    return PartitionSpec(*parts)


def shardings(abstract: Any, mesh: jax.sharding.Mesh, column: int = TRAIN) -> Any:
    """A NamedSharding for every parameter or moment, from the logical axes in its metadata; other leaves lie whole."""

    def one(leaf):
        if not isinstance(leaf, nnx.Variable):
            return NamedSharding(mesh, PartitionSpec())
        if not jax.tree.leaves(leaf):  # optax keeps no moment for a frozen parameter
            return leaf
        names = leaf.get_metadata()["out_sharding"]
        return leaf.replace(NamedSharding(mesh, spec(names, column, mesh, leaf.shape)))

    return jax.tree.map(one, abstract, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Pin an activation's layout; outside a mesh (a plain call on one device) it changes nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(names, TRAIN, mesh, x.shape))


def ways(rows: int) -> int:
    """Over how many devices an activation of so many rows is cut: 1 outside a mesh, or where they do not divide it."""
    mesh = jax.sharding.get_abstract_mesh()
    count = 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]
    return count if rows % count == 0 else 1


def put(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Host arrays (this process's share of the leading batch axis) to global arrays cut over `data` and `fsdp`.

    Raises MeshError when the batch axis cannot be cut evenly.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]

    def one(x):
        x = np.asarray(x)
        if x.shape[0] * jax.process_count() % ways:
            raise MeshError(
                f"{x.shape[0] * jax.process_count()} prompts cannot be cut over data x fsdp = {ways} devices; "
                f"make the batch a multiple of {ways} or the mesh smaller"
            )
        sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), *[None] * (x.ndim - 1)))
        return jax.make_array_from_process_local_data(sharding, x)

    return jax.tree.map(one, tree)


def replicate(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """The same host values on every device."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def local(tree: Any) -> Any:
    """This process's rows of global arrays that are cut along their first axis only, as host arrays."""

    def one(x):
        rows = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
        return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])

    return jax.tree.map(one, tree)


def gather(tree: Any) -> Any:
    """Every process's rows, in the order of the processes, as host arrays. Every process must call it."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    return multihost_utils.process_allgather(tree, tiled=True)
