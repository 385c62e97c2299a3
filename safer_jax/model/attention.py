"""Attention in the group layout: G rows of a prompt read its keys once (array code).

A completion's query sees its prompt's keys and its own row's keys; one softmax runs over the scores of both parts, so
the result is that of a row that holds prompt and completion in one sequence.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED = -1e30  # finite, so that a row which may see nothing is a mean instead of NaN


def self_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B M K H"],
    v: Float[Array, "B M K H"],
    mask: Bool[Array, "#B #T M"],
) -> Float[Array, "B T N H"]:
    """Attention of whole rows; `mask` is True where a query may see a key. Scores and softmax in float32."""
    q_BTKRH = _by_kv_head(q, k.shape[-2])
    score_BKRTM = jnp.einsum("btkrh,bmkh->bkrtm", q_BTKRH, k, preferred_element_type=jnp.float32)
    weight = jax.nn.softmax(jnp.where(mask[:, None, None], score_BKRTM, MASKED), axis=-1).astype(v.dtype)
    return jnp.einsum("bkrtm,bmkh->btkrh", weight, v).reshape(q.shape)


def group_attention(
    q: Float[Array, "P G T N H"],
    prompt_k: Float[Array, "P S K H"],
    prompt_v: Float[Array, "P S K H"],
    is_prompt: Bool[Array, "P S"],
    own_k: Float[Array, "P G K M H"],
    own_v: Float[Array, "P G K M H"],
    own_mask: Bool[Array, "#P #G T M"],
) -> Float[Array, "P G T N H"]:
    """Attention of completions to their prompt (read once for the group) and to their own row so far."""
    slots = prompt_k.shape[1]
    q_PGTKRH = _by_kv_head(q, prompt_k.shape[-2])
    score_prompt = jnp.einsum("pgtkrh,pskh->pgkrts", q_PGTKRH, prompt_k, preferred_element_type=jnp.float32)
    score_own = jnp.einsum("pgtkrh,pgkmh->pgkrtm", q_PGTKRH, own_k, preferred_element_type=jnp.float32)
    score_prompt = jnp.where(is_prompt[:, None, None, None, None], score_prompt, MASKED)
    score_own = jnp.where(own_mask[:, :, None, None], score_own, MASKED)
    weight = jax.nn.softmax(jnp.concatenate([score_prompt, score_own], -1), axis=-1).astype(own_v.dtype)
    mixed = jnp.einsum("pgkrts,pskh->pgtkrh", weight[..., :slots], prompt_v)
    mixed += jnp.einsum("pgkrtm,pgkmh->pgtkrh", weight[..., slots:], own_v)
    return mixed.reshape(q.shape)


def _by_kv_head(q: Float[Array, "*batch N H"], kv_heads: int) -> Float[Array, "*batch K R H"]:
    """Scaled queries, grouped by the key/value head they read."""
    *batch, heads, size = q.shape
    return (q * size**-0.5).reshape(*batch, kv_heads, heads // kv_heads, size)


def rotate(x: Float[Array, "*batch N H"], angle: Float[Array, "*batch half"]) -> Float[Array, "*batch N H"]:
    """Rotary embedding of both halves of a head by `angle` [.., H/2], in float32 (the layout of transformers)."""
    cos, sin = jnp.cos(angle)[..., None, :], jnp.sin(angle)[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)
