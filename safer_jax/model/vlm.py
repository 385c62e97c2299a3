"""Qwen2.5-VL: images and text in, hidden states out, one graph for sampling and training (array code)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from safer_jax.mesh import constrain
from safer_jax.model.parts import Init
from safer_jax.model.text import OwnCache, PromptCache, Text
from safer_jax.model.variants import ModelConfig
from safer_jax.model.vision import Vision
from safer_jax.shapes import Prompts


class Vlm(nnx.Module):
    """The policy. Ported from transformers' Qwen2_5_VLForConditionalGeneration; parity is tested against it."""

    def __init__(self, config: ModelConfig, *, key: jax.Array, dtype: Any = jnp.float32):
        init = Init(key, config.init_std, dtype)
        self.config = config
        self.vision = Vision(config.vision, config.text.width, init)
        self.text = Text(config.text, config.tied, init)

    def head_VD(self) -> Float[Array, "V D"]:
        """The output head; tied policies share the embedding."""
        return self.text.head_VD()

    def embed_prompts(
        self, prompts: Prompts, *, remat: bool = False, train_vision: bool = True
    ) -> Float[Array, "P S D"]:
        """Token embeddings with the images' merged tokens in place of their placeholders. Without `train_vision` no
        gradient reaches the tower, and its backward pass is not computed."""
        x = self.text.lookup(prompts.token_PS)
        if prompts.pixel_PXI.shape[1] == 0:
            return x
        merged_PYD = self.vision(prompts.pixel_PXI, prompts.patch_position_PX2, prompts.segment_PX, remat=remat)
        if not train_vision:
            merged_PYD = jax.lax.stop_gradient(merged_PYD)
        slot_PS = prompts.image_slot_PS
        image_PSD = jnp.take_along_axis(merged_PYD, jnp.maximum(slot_PS, 0)[..., None], axis=1)
        return constrain(jnp.where((slot_PS >= 0)[..., None], image_PSD, x), "prompt", None, None)

    def prefill(self, prompts: Prompts) -> tuple[Float[Array, "P S D"], PromptCache]:
        """Hidden states of the prompts (slot S-1 predicts the first completion token) and their shared cache."""
        x = self.embed_prompts(prompts)
        return self.text.prefill(x, prompts.position_P3S, prompts.is_prompt_PS)

    def extend(
        self,
        token: Int[Array, "P G T"],
        position: Int[Array, "P G T"],
        is_token: Bool[Array, "P G T"],
        prompt: PromptCache,
        own: OwnCache,
        slot: Int[Array, ""],
    ) -> tuple[Float[Array, "P G T D"], OwnCache]:
        """Feed T more tokens of every rollout; see text.Text.extend."""
        return self.text.extend(self.text.lookup(token), position, is_token, prompt, own, slot)

    def __call__(
        self,
        prompts: Prompts,
        token: Int[Array, "P G C"],
        is_valid: Bool[Array, "P G C"],
        *,
        remat: bool = False,
        train_vision: bool = True,
    ) -> Float[Array, "P G C D"]:
        """Hidden states that predict completion token c at index c, the prompt's tokens going through once per group.

        Positions count a row's valid tokens, so holes cost nothing. The last token predicts nothing and is dropped.
        """
        x_prompt = self.embed_prompts(prompts, remat=remat, train_vision=train_vision)
        position = prompts.next_position_P[:, None, None] + jnp.cumsum(is_valid, -1) - 1
        hidden_PSD, hidden_PGCD = self.text(
            x_prompt,
            prompts.position_P3S,
            prompts.is_prompt_PS,
            self.text.lookup(token),
            position,
            is_valid,
            remat=remat,
        )
        first = jnp.broadcast_to(hidden_PSD[:, None, -1:], (*token.shape[:2], 1, hidden_PSD.shape[-1]))
        return jnp.concatenate([first, hidden_PGCD[:, :, :-1]], axis=2)


def abstract(config: ModelConfig, dtype: Any = jnp.float32) -> tuple[nnx.GraphDef, nnx.State]:
    """The model's graph and its parameters as ShapeDtypeStructs: nothing is allocated."""
    built = {}

    def build():
        built["graph"], params = nnx.split(Vlm(config, key=jax.random.key(0), dtype=dtype))
        return params

    params = jax.eval_shape(build)
    return built["graph"], params


def init_params(config: ModelConfig, key: jax.Array, dtype: Any = jnp.float32) -> nnx.State:
    """Random parameters; jit it with out_shardings to make each device draw only its share."""
    return nnx.split(Vlm(config, key=key, dtype=dtype))[1]


def cast(params: nnx.State, dtype: Any) -> nnx.State:
    """The parameters in the compute dtype. Gradients flow back through the cast to the float32 masters."""
    return jax.tree.map(lambda x: x.astype(dtype), params)
