"""Sampling in groups: one prefill per prompt, G rollouts that read it, one uniform number per token (array code).

`generate` is one jitted program: prefill, then a loop that ends when every row has ended. `rerun` continues the cache of
rejected rows with an instruction, decodes a reflection, a forced header and a correction. A token depends on (seed, draw,
rollout, position) alone, so a draw gives the same sample wherever it stands in a batch, in a pass or on a mesh.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from safer_jax.model.text import OwnCache, PromptCache
from safer_jax.model.vlm import Vlm
from safer_jax.shapes import ANSWER, CORRECTION, EMPTY, FORCED, REFLECTION, Layout, Prompts, Rejected, Rollout, Written

BLOCK = 512  # the vocabulary is searched in two stages, which block and where in it: no prefix sum over all of it


class Cache(NamedTuple):
    """Keys and values of all that was fed; `rerun` goes on from it."""

    prompt: PromptCache
    own: OwnCache


class Drawing(NamedTuple):
    """How tokens are drawn.

    temperature: divides the logits; 0 takes the most likely token.
    top_k, top_p: truncate the distribution when not 0 and not 1. Log-probs stay those of the whole distribution.
    end_ids: a row ends with any of these; the end token is part of the completion. The first one ends cut rows.
    is_banned_V: ids that are never sampled; they leave the normaliser of the log-probs too.
    """

    temperature: float
    end_ids: tuple[int, ...]
    is_banned_V: np.ndarray
    top_k: int = 0
    top_p: float = 1.0


def generate(
    model: Vlm, prompts: Prompts, key: jax.Array, *, group: int, max_tokens: int, drawing: Drawing
) -> tuple[Rollout, Cache]:
    """Sample `group` completions of up to `max_tokens` tokens for every prompt; E = 1.

    `key` is the root of all randomness; the draw numbers in `prompts` and the slots are folded into it.
    """
    count = prompts.token_PS.shape[0]
    hidden_PSD, prompt = model.prefill(prompts)
    hidden_PGD = jnp.broadcast_to(hidden_PSD[:, None, -1], (count, group, hidden_PSD.shape[-1]))
    own = model.text.empty_cache(count, group, max_tokens, hidden_PSD.dtype)
    row = _Row(
        jnp.broadcast_to(prompts.next_position_P[:, None], (count, group)),
        jnp.ones((count, group), bool),
        row_keys(key, prompts.draw_P, group),
    )
    written, is_cut_PG, _, own = _decode(model, drawing, Cache(prompt, own), row, hidden_PGD, 0, max_tokens, ANSWER)
    attempt_PGC = jnp.zeros(written.token.shape, jnp.int8)
    verdict_PGEJ = jnp.zeros((count, group, 1, 0), jnp.float32)
    return Rollout(*written, attempt_PGC, is_cut_PG[..., None], verdict_PGEJ), Cache(prompt, own)


def rerun(
    model: Vlm,
    prompts: Prompts,
    cache: Cache,
    rejected: Rejected,
    start: Int[Array, ""],
    key: jax.Array,
    *,
    group: int,
    layout: Layout,
    header: np.ndarray,
    drawing: Drawing,
    goes_on: bool,
) -> tuple[Written, Bool[Array, " B"], Cache | None]:
    """Ask B rejected rows again by continuing their cache: (slots start .. start + layout.rerun, is_cut, cache).

    Rows are gathered with their prompts' keys and values and run as B prompts of one rollout each. `header` [h] stands
    between reflection and correction; without reflection (layout.reflection = 0) the instruction asks for the
    correction. With `goes_on` the rows are scattered back into the cache, for a further rerun.
    """
    count = prompts.token_PS.shape[0]
    row_B = jnp.minimum(rejected.row_B, count * group - 1)  # a filling row reads the last one and is never written
    p_B = row_B // group
    prompt = PromptCache(cache.prompt.k_ZPSKH[:, p_B], cache.prompt.v_ZPSKH[:, p_B], cache.prompt.is_prompt_PS[p_B])
    own = _grow(_pick(cache.own, row_B), layout.completion)
    row = _Row(
        (prompts.next_position_P[p_B] + rejected.length_B)[:, None],
        rejected.is_row_B[:, None],
        row_keys(key, prompts.draw_P, group).reshape(-1)[row_B][:, None],
    )
    last_B1, is_cut_B1 = rejected.token_B[:, None], rejected.is_cut_B[:, None]
    segments = [(rejected.forced_BF, rejected.is_forced_BF, layout.answer, CORRECTION)]
    if layout.reflection:
        header_BF = jnp.broadcast_to(jnp.asarray(header, jnp.int32), (len(row_B), len(header)))
        segments = [
            (rejected.forced_BF, rejected.is_forced_BF, layout.reflection, REFLECTION),
            (header_BF, jnp.ones(header_BF.shape, bool), layout.answer, CORRECTION),
        ]
    parts, at = [], start
    for forced_BF, is_forced_BF, limit, role in segments:
        forced, hidden_B1D, row, own = _force(
            model, drawing, Cache(prompt, own), row, last_B1, is_cut_B1, forced_BF, is_forced_BF, at
        )
        at += forced.token.shape[-1]
        sampled, is_cut_B1, last_B1, own = _decode(model, drawing, Cache(prompt, own), row, hidden_B1D, at, limit, role)
        row = row._replace(position_PG=row.position_PG + (sampled.role != EMPTY).sum(-1))
        at += limit
        parts += [forced, sampled]
    written = jax.tree.map(lambda *part: jnp.concatenate(part, -1)[:, 0], *parts)
    kept = cache._replace(own=_scatter(cache.own, own, rejected.row_B)) if goes_on else None
    return written, is_cut_B1[:, 0], kept


def grow(cache: Cache, slots: int) -> Cache:
    """The cache with room for `slots` tokens of every rollout."""
    return cache._replace(own=_grow(cache.own, slots))


class _Row(NamedTuple):
    position_PG: jax.Array  # of the next token: counts valid tokens, never slots
    is_live_PG: jax.Array  # False: a filling row, or one that has ended
    key_PG: jax.Array


def _decode(
    model: Vlm,
    drawing: Drawing,
    cache: Cache,
    row: _Row,
    hidden_PGD: Float[Array, "P G D"],
    start: Int[Array, ""] | int,
    limit: int,
    role: int,
) -> tuple[Written, Bool[Array, "P G"], Int[Array, "P G"], OwnCache]:
    """Sample up to `limit` tokens from slot `start` on: (tokens, is_cut, each row's last token, own cache).

    `hidden_PGD` predicts the first one. A row's last token is not fed: nothing of its own comes after it.
    """
    end = np.asarray(drawing.end_ids, np.int32)
    head_VD, is_banned_V = model.head_VD(), jnp.asarray(drawing.is_banned_V)
    shape = (*row.is_live_PG.shape, limit)
    record = lambda out, value, step: jax.lax.dynamic_update_index_in_dim(out, value, step, axis=2)

    def choose(hidden_PGD, step, is_live_PG):
        token_PG, logp_PG = draw_token(
            _masked_logits(hidden_PGD, head_VD, is_banned_V, drawing.temperature),
            uniform(row.key_PG, start + step),
            greedy=drawing.temperature == 0,
            top_k=drawing.top_k,
            top_p=drawing.top_p,
        )
        role_PG = jnp.where(is_live_PG, jnp.int8(role), jnp.int8(EMPTY))
        return Written(jnp.where(is_live_PG, token_PG, 0), jnp.where(is_live_PG, logp_PG, 0.0), role_PG)

    def more(carry):
        step, is_live_PG, *_ = carry
        return (step < limit) & is_live_PG.any()

    def advance(carry):
        step, is_live_PG, last_PG, own, written = carry
        position_PG1 = (row.position_PG + step - 1)[..., None]
        # The token of an ended row is fed too (static shapes) but into a slot that nothing attends to.
        hidden_PG1D, own = model.extend(
            last_PG[..., None], position_PG1, is_live_PG[..., None], cache.prompt, own, start + step - 1
        )
        new = choose(hidden_PG1D[:, :, 0], step, is_live_PG)
        written = Written(*(record(out, value, step) for out, value in zip(written, new, strict=True)))
        last_PG = jnp.where(is_live_PG, new.token, last_PG)
        return step + 1, is_live_PG & ~jnp.isin(new.token, end), last_PG, own, written

    first = choose(hidden_PGD, 0, row.is_live_PG)
    written = Written(*(record(jnp.zeros(shape, value.dtype), value, 0) for value in first))
    is_live_PG = row.is_live_PG & ~jnp.isin(first.token, end)
    carry = (jnp.int32(1), is_live_PG, first.token, cache.own, written)
    _, is_cut_PG, last_PG, own, written = jax.lax.while_loop(more, advance, carry)
    return written, is_cut_PG, last_PG, own


def _force(
    model: Vlm,
    drawing: Drawing,
    cache: Cache,
    row: _Row,
    last_PG: Int[Array, "P G"],
    is_cut_PG: Bool[Array, "P G"],
    forced_PF: Int[Array, "P F"],
    is_forced_PF: Bool[Array, "P F"],
    start: Int[Array, ""],
) -> tuple[Written, Float[Array, "P G D"], _Row, OwnCache]:
    """Feed what nobody samples, at slots start .. start + 1 + F: (tokens, hidden of the last one, row, own cache).

    These are an end token where the row was cut, else a hole, and the forced text, which ends at the last slot. Before
    them, in slot start - 1, which no decoded token has taken, the last sampled token: it has no key and value yet.
    """
    is_row_PG = row.is_live_PG
    spread = lambda value_PF: jnp.broadcast_to(value_PF[:, None], (*is_row_PG.shape, value_PF.shape[-1]))
    end_PG1 = jnp.full((*is_row_PG.shape, 1), drawing.end_ids[0] if drawing.end_ids else 0, jnp.int32)
    token = jnp.concatenate([last_PG[..., None], end_PG1, spread(forced_PF)], -1)
    is_token = jnp.concatenate([jnp.ones_like(end_PG1, bool), is_cut_PG[..., None], spread(is_forced_PF)], -1)
    is_token &= is_row_PG[..., None]
    token = jnp.where(is_token, token, 0)
    position = (row.position_PG - 2)[..., None] + jnp.cumsum(is_token, -1)  # the last token's own is position - 1
    hidden, own = model.extend(token, position, is_token, cache.prompt, cache.own, start - 1)
    role = jnp.where(is_token, jnp.int8(FORCED), jnp.int8(EMPTY))
    written = Written(token[..., 1:], jnp.zeros(token.shape, jnp.float32)[..., 1:], role[..., 1:])
    return written, hidden[:, :, -1], row._replace(position_PG=position[..., -1] + 1), own


def _grow(own: OwnCache, slots: int) -> OwnCache:
    room = slots - own.is_filled_PGM.shape[-1]
    k, v = (jnp.pad(cache, [(0, 0)] * 4 + [(0, room), (0, 0)]) for cache in own[:2])
    return OwnCache(k, v, jnp.pad(own.is_filled_PGM, [(0, 0), (0, 0), (0, room)]))


def _flat(own: OwnCache) -> OwnCache:
    """The rollouts of all prompts as rows: [Z, B, K, M, H] and [B, M]."""
    k, v = (cache.reshape(cache.shape[0], -1, *cache.shape[3:]) for cache in own[:2])
    return OwnCache(k, v, own.is_filled_PGM.reshape(-1, own.is_filled_PGM.shape[-1]))


def _pick(own: OwnCache, row_B: Int[Array, " B"]) -> OwnCache:
    k, v, is_filled = _flat(own)
    return OwnCache(k[:, row_B][:, :, None], v[:, row_B][:, :, None], is_filled[row_B][:, None])


def _scatter(own: OwnCache, rows: OwnCache, row_B: Int[Array, " B"]) -> OwnCache:
    k, v, is_filled = _flat(own)
    k, v = k.at[:, row_B].set(rows[0][:, :, 0], mode="drop"), v.at[:, row_B].set(rows[1][:, :, 0], mode="drop")
    is_filled = is_filled.at[row_B].set(rows.is_filled_PGM[:, 0], mode="drop")
    return OwnCache(*(flat.reshape(whole.shape) for flat, whole in zip((k, v, is_filled), own, strict=True)))


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
