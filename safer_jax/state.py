"""The optimizer and the state that it moves: described first, then made on the mesh (array code)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from safer_jax import config as config_lib
from safer_jax import mesh as mesh_lib
from safer_jax.shapes import TrainState


def optimizer(
    settings: config_lib.Optimizer, *, lr: float, warmup_steps: int, weight_decay: float
) -> optax.GradientTransformation:
    """AdamW behind global-norm clipping: linear warm-up to `lr`, then constant; decay on matrices only.

    A frozen vision tower has no moments and never decays.
    """
    rate, b1, b2, eps = warmup(lr, warmup_steps), settings.b1, settings.b2, settings.eps
    adamw = optax.adamw(rate, b1, b2, eps, weight_decay=weight_decay, mask=_is_decayed)
    if not settings.train_vision:
        is_vision = lambda params: _by_path(params, lambda path: path[0] == "vision")
        is_other = lambda params: _by_path(params, lambda path: path[0] != "vision")
        adamw = optax.chain(optax.masked(adamw, is_other), optax.masked(optax.set_to_zero(), is_vision))
    return optax.chain(optax.clip_by_global_norm(settings.clip_norm), adamw)


def warmup(lr: float, warmup_steps: int) -> optax.Schedule:
    """Learning rate of update number `count`, from 0. With optax's linear_schedule the first would have rate 0."""
    return lambda count: lr * jnp.minimum(1.0, (count + 1) / max(1, warmup_steps))


def updates(opt_state: Any) -> Int[Array, ""]:
    """Updates that an optimizer has applied: what its schedule counts."""
    is_schedule = lambda path, _: getattr(path[-1], "tuple_name", "") == optax.ScaleByScheduleState.__name__
    return optax.tree.get(opt_state, "count", filtering=is_schedule)


def create(params: nnx.State, optimizer: optax.GradientTransformation) -> TrainState:
    """A state at step 0. Under eval_shape it is the abstract state that `shardings` and a restore need."""
    counters = [jnp.zeros((), jnp.int32) for _ in range(4)]  # one array four times could not be donated
    return TrainState(params, optimizer.init(params), *counters)


def shardings(abstract: TrainState, mesh: Mesh) -> TrainState:
    """Moments lie where their parameters lie; counters on every device."""
    return mesh_lib.shardings(abstract, mesh, mesh_lib.TRAIN)


def start_stage(state: TrainState, optimizer: optax.GradientTransformation) -> TrainState:
    """The same parameters and step with fresh moments, at the first draw: the step from warm start to GRPO."""
    return create(state.params, optimizer)._replace(step=state.step, skipped=state.skipped)


def apply_gradient(
    state: TrainState, gradient: nnx.State, loss: Float[Array, ""], optimizer: optax.GradientTransformation
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer update; when loss or gradient is not finite nothing moves and the skip is counted.

    optax.apply_if_finite would apply the NaN in the end; here the caller stops the run after too many in a row.
    """
    norm = optax.global_norm(gradient)
    is_finite = jnp.isfinite(norm) & jnp.isfinite(loss)
    update, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    moved = (optax.apply_updates(state.params, update), opt_state)
    kept = (state.params, state.opt_state)
    params, opt_state = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), moved, kept)
    is_skipped = (~is_finite).astype(jnp.int32)
    state = state._replace(
        params=params,
        opt_state=opt_state,
        skipped=state.skipped + is_skipped,
        skipped_in_a_row=jnp.where(is_finite, 0, state.skipped_in_a_row + 1),
    )
    return state, {"grad_norm": norm, "skipped": is_skipped}


def _is_decayed(params: Any) -> Any:
    return _by_path(params, lambda path: "norm" not in path[-1] and "bias" not in path[-1])


def _by_path(params: nnx.State, choose) -> nnx.State:
    """A tree of booleans, from each parameter's path of names."""

    def one(path, _):
        return choose([entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)])

    return jax.tree_util.tree_map_with_path(one, params)
