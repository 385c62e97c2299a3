"""Sampling in groups: one prefill per prompt, G rollouts that read it, one uniform number per token (array code).

`generate` is one jitted program: prefill, then a loop that ends when every row has ended. A token depends on (seed,
draw, rollout, position) alone, so a draw gives the same sample wherever it stands in a batch or on a mesh.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from safer_jax import mesh as mesh_lib
from safer_jax.model.vlm import Vlm
from safer_jax.shapes import ANSWER, EMPTY, Prompts, Rollout

BLOCK = 512  # the vocabulary is searched in two stages, which block and where in it: no prefix sum over all of it


def generate(
    model: Vlm,
    prompts: Prompts,
    key: jax.Array,
    *,
    group: int,
    max_tokens: int,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    end_ids: tuple[int, ...],
    is_banned_V: np.ndarray,
) -> Rollout:
    """Sample `group` completions of up to `max_tokens` tokens for every prompt; E = 1.

    Args:
      key: root of all randomness; the draw numbers in `prompts` and the slots are folded into it.
      temperature: divides the logits; 0 takes the most likely token.
      top_k, top_p: truncate the distribution when not 0 and not 1. `logp` stays that of the whole distribution.
      end_ids: a row ends with any of these; the end token is part of the completion.
      is_banned_V: ids that are never sampled; they leave the normaliser of `logp` too.
    """
    prompts_count, limit = prompts.token_PS.shape[0], max_tokens
    is_banned_V = jnp.asarray(is_banned_V)
    end = np.asarray(end_ids, np.int32)
    key_PG = row_keys(key, prompts.draw_P, group)
    choose = lambda hidden_PGD, slot: draw_token(
        _masked_logits(hidden_PGD, model.head_VD(), is_banned_V, temperature),
        uniform(key_PG, slot),
        greedy=temperature == 0,
        top_k=top_k,
        top_p=top_p,
    )
    record = lambda out, value, slot: jax.lax.dynamic_update_index_in_dim(out, value, slot, axis=2)

    hidden_PSD, prompt_cache = model.prefill(prompts)
    hidden_PGD = jnp.broadcast_to(hidden_PSD[:, None, -1], (prompts_count, group, hidden_PSD.shape[-1]))
    token_PG, logp_PG = choose(hidden_PGD, 0)
    shape = (prompts_count, group, limit)
    carry = (
        jnp.int32(1),
        ~jnp.isin(token_PG, end),
        token_PG,
        model.text.empty_cache(prompts_count, group, limit, hidden_PSD.dtype),
        record(jnp.zeros(shape, jnp.int32), token_PG, 0),
        record(jnp.zeros(shape, jnp.float32), logp_PG, 0),
        record(jnp.full(shape, EMPTY, jnp.int8), jnp.int8(ANSWER) * jnp.ones_like(token_PG, jnp.int8), 0),
    )

    def goes_on(carry):
        slot, is_live_PG, *_ = carry
        return (slot < limit) & is_live_PG.any()

    def step(carry):
        slot, is_live_PG, token_PG, own, token_PGC, logp_PGC, role_PGC = carry
        position_PG = prompts.next_position_P[:, None] + slot - 1
        position_PG1 = jnp.broadcast_to(position_PG[..., None], (*token_PG.shape, 1))
        # The token of an ended row is fed too (static shapes) but into a slot that nothing attends to.
        hidden_PG1D, own = model.extend(
            token_PG[..., None], position_PG1, is_live_PG[..., None], prompt_cache, own, slot - 1
        )
        token_PG, logp_PG = choose(hidden_PG1D[:, :, 0], slot)
        token_PG, logp_PG = jnp.where(is_live_PG, token_PG, 0), jnp.where(is_live_PG, logp_PG, 0.0)
        role_PG = jnp.where(is_live_PG, jnp.int8(ANSWER), jnp.int8(EMPTY))
        return (
            slot + 1,
            is_live_PG & ~jnp.isin(token_PG, end),
            token_PG,
            own,
            record(token_PGC, token_PG, slot),
            record(logp_PGC, logp_PG, slot),
            record(role_PGC, role_PG, slot),
        )

    _, is_live_PG, _, _, token_PGC, logp_PGC, role_PGC = jax.lax.while_loop(goes_on, step, carry)
    return Rollout(token_PGC, logp_PGC, role_PGC, jnp.zeros(shape, jnp.int8), is_live_PG[..., None])


def rollout(sample: Callable[[Any, Prompts], Rollout], params: Any, prompts: Prompts, per_pass: int, mesh) -> Rollout:
    """This process's rows in, its rows out (host arrays), by the jitted `sample(params, prompts)`.

    Passes of `per_pass` prompts over all processes keep one compiled program and bound the cache; 0 means one pass.
    Raises ValueError when the passes do not come out even.
    """
    count = prompts.token_PS.shape[0]
    per_pass = per_pass // jax.process_count() or count
    if count % per_pass:
        raise ValueError(f"{count} prompts do not divide into passes of {per_pass}; change sampler.prompts_per_pass")
    passes = []
    for start in range(0, count, per_pass):
        part = jax.tree.map(lambda x: x[start : start + per_pass], prompts)
        passes.append(mesh_lib.local(sample(params, mesh_lib.put(part, mesh))))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *passes)


def row_keys(key: jax.Array, draw_P: Int[Array, "P"], group: int) -> jax.Array:
    """A key for every row, folded from the draw and the rollout's number: [P, G]."""
    of_draw = jax.vmap(jax.random.fold_in, (None, 0))(key, draw_P)
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(of_draw, jnp.arange(group))


def uniform(key_PG: jax.Array, slot: Int[Array, ""] | int) -> Float[Array, "P G"]:
    """One number in [0, 1) for the token at `slot` of every row."""
    at_slot = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(key_PG, slot)
    return jax.vmap(jax.vmap(jax.random.uniform))(at_slot)


def draw_token(
    logits: Float[Array, "P G V"], u: Float[Array, "P G"], *, greedy: bool, top_k: int, top_p: float
) -> tuple[Int[Array, "P G"], Float[Array, "P G"]]:
    """The token whose slice of the cumulative distribution holds `u`, and its log-probability before truncation."""
    logp_PGV = jax.nn.log_softmax(logits, axis=-1)
    if greedy:
        token_PG = jnp.argmax(logp_PGV, -1).astype(jnp.int32)
    else:
        token_PG = inverse_cdf(jnp.exp(truncate(logp_PGV, top_k, top_p)), u)
    return token_PG, jnp.take_along_axis(logp_PGV, token_PG[..., None], -1)[..., 0]


def inverse_cdf(weight: Float[Array, "*batch V"], u: Float[Array, "*batch"]) -> Int[Array, "*batch"]:
    """The first id at which the running sum of `weight` passes `u` times the total; never an id of weight 0."""
    padding = [(0, 0)] * (weight.ndim - 1) + [(0, -weight.shape[-1] % BLOCK)]
    blocks = jnp.pad(weight, padding).reshape(*weight.shape[:-1], -1, BLOCK)
    mass = blocks.sum(-1)
    block, before = _first_past(mass, u * mass.sum(-1))
    inside = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
    offset, _ = _first_past(inside, u * mass.sum(-1) - before)
    return (block * BLOCK + offset).astype(jnp.int32)


def _first_past(weight, threshold):
    """(index, sum before it) of the first positive weight whose running sum passes the threshold; rounding may leave
    none, and then the last positive one is it."""
    running = jnp.cumsum(weight, -1)
    is_past = (running > threshold[..., None]) & (weight > 0)
    last = weight.shape[-1] - 1 - jnp.argmax(jnp.flip(weight > 0, -1), -1)
    index = jnp.where(is_past.any(-1), jnp.argmax(is_past, -1), last)
    pick = lambda x: jnp.take_along_axis(x, index[..., None], -1)[..., 0]
    return index, pick(running) - pick(weight)


def truncate(logp: Float[Array, "*batch V"], top_k: int, top_p: float) -> Float[Array, "*batch V"]:
    """Drop (to -inf) all but the `top_k` likeliest ids, then all but the smallest set that holds `top_p` of the rest."""
    if top_k:
        kept = jax.lax.top_k(logp, min(top_k, logp.shape[-1]))[0][..., -1:]
        logp = jnp.where(logp >= kept, logp, -jnp.inf)
    if top_p < 1.0:
        ordered = jnp.flip(jnp.sort(jax.nn.log_softmax(logp, -1), -1), -1)
        mass_before = jnp.cumsum(jnp.exp(ordered), -1) - jnp.exp(ordered)
        least = jnp.min(jnp.where(mass_before < top_p, ordered, jnp.inf), -1, keepdims=True)
        logp = jnp.where(jax.nn.log_softmax(logp, -1) >= least, logp, -jnp.inf)
    return logp


def _masked_logits(
    hidden: Float[Array, "P G D"], head: Float[Array, "V D"], is_banned: Bool[Array, "V"], temperature: float
) -> Float[Array, "P G V"]:
    logits = jnp.einsum("pgd,vd->pgv", hidden, head, preferred_element_type=jnp.float32)
    return jnp.where(is_banned, -jnp.inf, logits / (temperature or 1.0))
