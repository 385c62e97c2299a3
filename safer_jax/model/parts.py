"""What both towers are made of: a parameter with its logical axes, a norm, a scan over stacked layers (array code)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class Init:
    """Makes parameters: shape, initial value and logical axes stand on one line where a weight is made."""

    def __init__(self, key: jax.Array, std: float, dtype: Any):
        self._key, self._std, self._dtype, self._count = key, std, dtype, 0

    def normal(self, **axes: int) -> nnx.Param:
        self._count += 1
        key = jax.random.fold_in(self._key, self._count)
        return self._param(self._std * jax.random.normal(key, tuple(axes.values()), self._dtype), axes)

    def zeros(self, **axes: int) -> nnx.Param:
        return self._param(jnp.zeros(tuple(axes.values()), self._dtype), axes)

    def ones(self, **axes: int) -> nnx.Param:
        return self._param(jnp.ones(tuple(axes.values()), self._dtype), axes)

    def _param(self, value: jax.Array, axes: dict[str, int]) -> nnx.Param:
        # An axis written with a trailing underscore (layers_, head_) is never cut.
        names = tuple("whole" if name.endswith("_") else name for name in axes)
        return nnx.Param(value, out_sharding=names, eager_sharding=False)


def rms_norm(x: Float[Array, "*batch D"], weight: Float[Array, "D"], eps: float) -> Float[Array, "*batch D"]:
    """x / rms(x) * weight, the mean in float32."""
    wide = x.astype(jnp.float32)
    wide *= jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + eps)
    return wide.astype(x.dtype) * weight


def linear(x: Float[Array, "*batch D"], weight: Float[Array, "D *out"]) -> Float[Array, "..."]:
    """x @ weight as one product of all tokens: the gradient of a batched product copies its inputs transposed on CPUs
    (1.8 times slower there), and elsewhere it is the same program."""
    flat = x.reshape(-1, x.shape[-1]) @ weight.reshape(x.shape[-1], -1)
    return flat.reshape(*x.shape[:-1], *weight.shape[1:])


def scan_layers(layers: nnx.Module, step: Callable, carry: Any, per_layer: Any = None, *, remat: bool):
    """`step(layer, carry, slice of per_layer) -> (carry, out)` over the stacked layers, one compiled body for all.

    With `remat` the backward pass recomputes a layer from its input instead of keeping its activations.
    """
    graph, stacked = nnx.split(layers)

    def body(carry, slices):
        params, extra = slices
        return step(nnx.merge(graph, params), carry, extra)

    return jax.lax.scan(jax.checkpoint(body) if remat else body, carry, (stacked, per_layer))
