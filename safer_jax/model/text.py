"""Qwen2.5-VL's decoder in the group layout: prefill, extend by cached steps, or both parts at once (array code)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from safer_jax.mesh import constrain
from safer_jax.model.attention import group_attention, rotate, self_attention
from safer_jax.model.parts import Init, linear, rms_norm, scan_layers
from safer_jax.model.variants import TextConfig


class PromptCache(NamedTuple):
    """Keys and values of the prompts, written once by the prefill and read by every rollout of the group."""

    k_ZPSKH: jax.Array
    v_ZPSKH: jax.Array
    is_prompt_PS: jax.Array


class OwnCache(NamedTuple):
    """Keys and values of what each rollout wrote; slot m holds the m-th token that was fed.

    This order is the fastest on CPUs. On TPUs the compiler chooses its own: carried through the decode loop, the cache
    is laid out position-major, updated in place and sliced inside the attention's products (compiled for v5e).
    """

    k_ZPGKMH: jax.Array
    v_ZPGKMH: jax.Array
    is_filled_PGM: jax.Array


class Layer(nnx.Module):
    """A decoder block. Its weights are made stacked over z layers; the scan hands it one layer's slice."""

    def __init__(self, config: TextConfig, init: Init):
        z, d, f, n, k, h = config.depth, config.width, config.ffn, config.heads, config.kv_heads, config.head_size
        self.norm1 = init.ones(layers_=z, width=d)
        self.q = init.normal(layers_=z, width=d, heads=n, head_=h)
        self.k = init.normal(layers_=z, width=d, kv_heads=k, head_=h)
        self.v = init.normal(layers_=z, width=d, kv_heads=k, head_=h)
        self.q_bias = init.zeros(layers_=z, heads=n, head_=h)
        self.k_bias = init.zeros(layers_=z, kv_heads=k, head_=h)
        self.v_bias = init.zeros(layers_=z, kv_heads=k, head_=h)
        self.o = init.normal(layers_=z, heads=n, head_=h, width=d)
        self.norm2 = init.ones(layers_=z, width=d)
        self.gate = init.normal(layers_=z, width=d, ffn=f)
        self.up = init.normal(layers_=z, width=d, ffn=f)
        self.down = init.normal(layers_=z, ffn=f, width=d)

    def __call__(self, x: Float[Array, "P L D"], angle: Float[Array, "P L half"], attend, eps: float):
        """One block. `attend(q_PLNH, k_PLKH, v_PLKH) -> (mixed_PLNH, kept)` sees the rotated queries and keys."""
        normed = rms_norm(x, self.norm1[...], eps)
        q = linear(normed, self.q[...]) + self.q_bias[...]
        k = linear(normed, self.k[...]) + self.k_bias[...]
        v = linear(normed, self.v[...]) + self.v_bias[...]
        mixed, kept = attend(rotate(q, angle), rotate(k, angle), v)
        mixed = constrain(mixed, "prompt", None, "heads", None).reshape(*x.shape[:2], -1)
        x = x + linear(mixed, self.o[...].reshape(-1, x.shape[-1]))
        normed = rms_norm(x, self.norm2[...], eps)
        hidden = jax.nn.silu(linear(normed, self.gate[...])) * linear(normed, self.up[...])
        x = x + linear(constrain(hidden, "prompt", None, "ffn"), self.down[...])
        return constrain(x, "prompt", None, None), kept


class Text(nnx.Module):
    """Embedding, decoder blocks, final norm and (untied) head."""

    def __init__(self, config: TextConfig, tied: bool, init: Init):
        self.config = config
        self.embed = init.normal(vocab=config.vocab, width=config.width)
        self.layers = Layer(config, init)
        self.norm = init.ones(width=config.width)
        if not tied:
            self.head = init.normal(vocab=config.vocab, width=config.width)

    def lookup(self, token: Int[Array, "P *slots"]) -> Float[Array, "P *slots D"]:
        """Embeddings of ids. The table is gathered over `fsdp`, since rows looked up in its cut form would have to go
        from a cut width to a cut batch, which XLA does by copying the whole batch to every device."""
        x = constrain(self.embed[...], "vocab", None)[token]
        return constrain(x, "prompt", *[None] * token.ndim)

    def head_VD(self) -> Float[Array, "V D"]:
        """[V, D], whole over `fsdp`: gathered once instead of in every chunk of tokens."""
        return constrain(self.head[...] if hasattr(self, "head") else self.embed[...], "vocab", None)

    def prefill(
        self, x: Float[Array, "P S D"], position: Int[Array, "P 3 S"], is_prompt: Bool[Array, "P S"]
    ) -> tuple[Float[Array, "P S D"], PromptCache]:
        """Hidden states of the prompts and the cache that their rollouts read."""
        angle, mask = self._angle(position), _causal(is_prompt)

        def step(layer, x, _):
            attend = lambda q, k, v: (self_attention(q, k, v, mask), (k, v))
            return layer(x, angle, attend, self.config.norm_eps)

        x, (k_ZPSKH, v_ZPSKH) = scan_layers(self.layers, step, x, remat=False)
        return self._final(x), PromptCache(k_ZPSKH, v_ZPSKH, is_prompt)

    def extend(
        self,
        x: Float[Array, "P G T D"],
        position: Int[Array, "P G T"],
        is_token: Bool[Array, "P G T"],
        prompt: PromptCache,
        own: OwnCache,
        slot: Int[Array, ""],
    ) -> tuple[Float[Array, "P G T D"], OwnCache]:
        """Feed T tokens a row into slots slot .. slot+T-1; a token sees its prompt and its row's filled slots up to it.

        `is_token` marks holes: rows of unequal length share their slots, and an unfilled slot is never attended to.
        """
        prompts, rollouts, tokens, width = x.shape
        angle = self._angle(jnp.broadcast_to(position.reshape(prompts, 1, -1), (prompts, 3, rollouts * tokens)))
        is_filled = jax.lax.dynamic_update_slice(own.is_filled_PGM, is_token, (0, 0, slot))
        reached = jnp.arange(is_filled.shape[-1]) <= slot + jnp.arange(tokens)[:, None]
        mask = is_filled[:, :, None, :] & reached

        def step(layer, carry, slices):
            x, own_k, own_v = carry
            z, prompt_k, prompt_v = slices

            def attend(q, k, v):
                grouped = lambda t: t.reshape(prompts, rollouts, tokens, *t.shape[2:])
                place = lambda cache, new: jax.lax.dynamic_update_slice(
                    cache, jnp.swapaxes(grouped(new), 2, 3)[None].astype(cache.dtype), (z, 0, 0, 0, slot, 0)
                )
                kept = place(own_k, k), place(own_v, v)
                k_PGKMH, v_PGKMH = (jax.lax.dynamic_index_in_dim(cache, z, keepdims=False) for cache in kept)
                is_prompt = prompt.is_prompt_PS
                mixed = group_attention(grouped(q), prompt_k, prompt_v, is_prompt, k_PGKMH, v_PGKMH, mask)
                return mixed.reshape(q.shape), kept

            x, kept = layer(x, angle, attend, self.config.norm_eps)
            return (x, *kept), None

        carry = (x.reshape(prompts, -1, width), own.k_ZPGKMH, own.v_ZPGKMH)
        layers = (np.arange(self.config.depth), prompt.k_ZPSKH, prompt.v_ZPSKH)
        (x, own_k, own_v), _ = scan_layers(self.layers, step, carry, layers, remat=False)
        return self._final(x).reshape(prompts, rollouts, tokens, width), OwnCache(own_k, own_v, is_filled)

    def __call__(
        self,
        x_prompt: Float[Array, "P S D"],
        prompt_position: Int[Array, "P 3 S"],
        is_prompt: Bool[Array, "P S"],
        x_own: Float[Array, "P G C D"],
        own_position: Int[Array, "P G C"],
        is_valid: Bool[Array, "P G C"],
        *,
        remat: bool = False,
    ) -> tuple[Float[Array, "P S D"], Float[Array, "P G C D"]]:
        """Prompt and completions in one pass, L = S + G*C tokens a prompt: the prompt's go through the network once."""
        prompts, slots, width = x_prompt.shape
        _, rollouts, length, _ = x_own.shape
        flat = jnp.broadcast_to(own_position.reshape(prompts, 1, -1), (prompts, 3, rollouts * length))
        angle = self._angle(jnp.concatenate([prompt_position, flat], -1))
        prompt_mask = _causal(is_prompt)
        own_mask = jnp.tril(jnp.ones((length, length), bool)) & is_valid[:, :, None, :]

        def attend(q, k, v):
            own = lambda t: t[:, slots:].reshape(prompts, rollouts, length, *t.shape[2:])
            keys = lambda t: jnp.swapaxes(own(t), 2, 3)
            k_prompt, v_prompt = k[:, :slots], v[:, :slots]
            mixed_prompt = self_attention(q[:, :slots], k_prompt, v_prompt, prompt_mask)
            mixed_own = group_attention(own(q), k_prompt, v_prompt, is_prompt, keys(k), keys(v), own_mask)
            return jnp.concatenate([mixed_prompt, mixed_own.reshape(prompts, -1, *q.shape[2:])], 1), None

        def step(layer, x, _):
            return layer(x, angle, attend, self.config.norm_eps)

        x = jnp.concatenate([x_prompt, x_own.reshape(prompts, -1, width)], 1)
        x, _ = scan_layers(self.layers, step, constrain(x, "prompt", None, None), remat=remat)
        x = self._final(x)
        return x[:, :slots], x[:, slots:].reshape(x_own.shape)

    def empty_cache(self, prompts: int, rollouts: int, slots: int, dtype) -> OwnCache:
        config = self.config
        shape = (config.depth, prompts, rollouts, config.kv_heads, slots, config.head_size)
        cache = constrain(jnp.zeros(shape, dtype), None, "prompt", None, "kv_heads", None, None)
        return OwnCache(cache, cache, jnp.zeros((prompts, rollouts, slots), bool))

    def _final(self, x: Float[Array, "P L D"]) -> Float[Array, "P L D"]:
        return rms_norm(x, self.norm[...], self.config.norm_eps)

    def _angle(self, position: Int[Array, "P 3 L"]) -> Float[Array, "P L half"]:
        return mrope_angle(position, self.config)


def mrope_angle(position: Int[Array, "P 3 L"], config: TextConfig) -> Float[Array, "P L half"]:
    """Rotary angles; each frequency turns with the axis (time, height, width) that its section names."""
    half = config.head_size // 2
    frequency = config.rope_theta ** -(np.arange(0, half, dtype=np.float32) / half)
    sections = np.split(frequency, np.cumsum(config.mrope_section)[:-1])
    place = position[..., None].astype(jnp.float32)
    return jnp.concatenate([place[:, axis] * section for axis, section in enumerate(sections)], -1)


def _causal(is_token: Bool[Array, "P S"]) -> Bool[Array, "P S S"]:
    slots = is_token.shape[1]
    return jnp.tril(jnp.ones((slots, slots), bool)) & is_token[:, None, :]
